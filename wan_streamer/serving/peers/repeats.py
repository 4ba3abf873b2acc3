"""Pictures are sent twice while packets are lost.

A picture of a talking head is a packet or two. That the last one is lost shows only when the next picture comes, 40 ms
later, and then the browser asks for it. So while it has to ask, every packet goes out once more before it can. Where
many are lost the network is full, and more packets would make it worse.

`send_twice`   does so for one sender
"""

import asyncio
import contextlib
from collections import deque

from aiortc import RTCRtpSender
from aiortc.rtp import is_rtcp

from wan_streamer.serving.peers.jitter import private

AFTER_S = 0.015  # losses come in bursts: not at once
FEW = 0.1  # of the packets; more are lost where the network is full
WINDOW_S = 2.0  # in which the lost ones are counted
HOLD_S = 10.0  # after the last one that was asked for


def send_twice(sender: RTCRtpSender) -> None:
    """Let `sender` send its packets again, as RTX where the browser knows it, while a few are asked for."""
    _Repeats(sender)


class _Repeats:
    def __init__(self, sender: RTCRtpSender) -> None:
        self._ssrc: bytes = private(sender, "_ssrc").to_bytes(4, "big")
        self._send_rtp, self._retransmit = private(sender.transport, "_send_rtp"), private(sender, "_retransmit")
        self._sent: deque[float] = deque()
        self._asked: deque[float] = deque()
        self._latest: int | None = None  # the number of the newest packet
        self._until = 0.0
        sender.transport._send_rtp = self._send  # type: ignore[method-assign]
        sender._retransmit = self._answer  # type: ignore[method-assign]

    async def _answer(self, sequence_number: int) -> None:
        """The browser asks for a packet."""
        self._count(self._asked)
        few = len(self._asked) <= 1 + FEW * len(self._sent)
        self._until = self._asked[-1] + HOLD_S if few else 0.0
        await self._retransmit(sequence_number)

    async def _send(self, data: bytes) -> None:
        """What any sender of the connection sends."""
        await self._send_rtp(data)
        if is_rtcp(data) or data[8:12] != self._ssrc:
            return
        number = int.from_bytes(data[2:4], "big")
        if self._latest is not None and not 0 < (number - self._latest) % 0x10000 < 0x8000:
            return  # is sent again already
        self._latest = number
        self._count(self._sent)
        if self._sent[-1] < self._until:
            loop = asyncio.get_running_loop()
            loop.call_later(AFTER_S, lambda: asyncio.ensure_future(self._repeat(number)))

    async def _repeat(self, number: int) -> None:
        with contextlib.suppress(ConnectionError):
            await self._retransmit(number)

    @staticmethod
    def _count(times: deque[float]) -> None:
        times.append(asyncio.get_running_loop().time())
        while times[0] < times[-1] - WINDOW_S:
            times.popleft()
