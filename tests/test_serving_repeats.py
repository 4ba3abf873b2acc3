"""Two real peers over a wire that loses packets: pictures go out twice while it does, and only then."""

import asyncio
import random
from collections import Counter

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection, VideoStreamTrack
from aiortc.rtp import is_rtcp

from wan_streamer.serving.peers.repeats import send_twice


async def wire(share: float, seconds: float) -> tuple[Counter[int], set[int]]:
    """How often each packet of a picture was sent, and the numbers of those that were lost; such a share of all."""
    dice = random.Random(0)
    sends: Counter[int] = Counter()
    lost: set[int] = set()
    caller, callee = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
    sender = caller.addTrack(VideoStreamTrack())
    offer = await caller.createOffer()  # without RTX the same packet is sent again, so that both can be counted here
    offer.sdp = (
        "\r\n".join(line for line in offer.sdp.splitlines() if "rtx" not in line and "apt=" not in line) + "\r\n"
    )
    await caller.setLocalDescription(offer)
    await callee.setRemoteDescription(caller.localDescription)
    await callee.setLocalDescription(await callee.createAnswer())
    await caller.setRemoteDescription(callee.localDescription)
    send = sender.transport._send_rtp

    async def drop_some(data: bytes) -> None:
        if not is_rtcp(data):
            number = int.from_bytes(data[2:4], "big")
            sends[number] += 1
            if dice.random() < share:
                lost.add(number)
                return
        await send(data)

    sender.transport._send_rtp = drop_some
    send_twice(sender)
    await asyncio.sleep(seconds)
    await asyncio.gather(caller.close(), callee.close())
    return sends, lost


@pytest.mark.parametrize(("share", "twice"), [(0.0, False), (0.05, True), (0.4, False)])
def test_pictures_are_sent_twice_while_a_few_are_lost(share: float, twice: bool) -> None:
    sends, lost = asyncio.run(wire(share, 4.0))
    heard = sorted(set(sends) - lost)[len(sends) // 3 : -3]  # after the first losses; the last are under way
    again = sum(sends[number] > 1 for number in heard) / len(heard)
    assert again > 0.9 if twice else again < 0.1
