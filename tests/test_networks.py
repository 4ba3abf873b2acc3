"""What networks and cameras do to a call over WebRTC: relays, H.264, another size in the middle."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCIceTransportPolicy, RTCPeerConnection, RTCRtpSender
from aiortc.codecs.h264 import H264Encoder, H264PayloadDescriptor
from aiortc.codecs.vpx import Vp8Encoder, VpxPayloadDescriptor
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import VideoStreamTrack
from aiortc.rtp import RtpPacket
from protocol import served
from test_serving import Tone, Visitor, application, until

from wan_streamer.client import LiveClient
from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.doors.access import Access
from wan_streamer.serving.doors.ice import CREDENTIAL_S, IceServers, IceSetting, read_ice
from wan_streamer.serving.peers.jitter import KEY_FRAMES, VideoJitterBuffer
from wan_streamer.serving.peers.offers import check_offer
from wan_streamer.serving.settings import ServingConfig

PATIENCE_S = 30
SECRET = "shared with the relay"
TOKEN = "correct-horse-battery"


# -------------------------------------------------------------------------------------------------------- ICE servers


def write(folder: Path, value: object) -> Path:
    path = folder / "ice.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_servers_are_read_from_a_file(tmp_path: Path) -> None:
    assert read_ice(None).settings == ()
    fixed = {"urls": ["turn:10.0.0.1:3478?transport=udp"], "username": "u", "credential": "p"}
    servers = read_ice(write(tmp_path, [{"urls": "stun:stun.example"}, fixed]))
    assert [server.urls for server in servers.issue().servers] == [("stun:stun.example",), tuple(fixed["urls"])]
    assert servers.issue().expires_s is None
    assert asyncio.run(servers.relays()) == {"10.0.0.1"}


TURN = "turn:turn.example:3478"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "expected JSON"),
        ([], "a list of 1 to"),
        ({"urls": TURN}, "a list of 1 to"),
        ([{"urls": []}], "entry 1: expected 1 to"),
        ([{"urls": "stun:a.example"}, {"urls": "http://a.example"}], "entry 2: expected urls such as"),
        ([{"urls": "stun:a.example:99999"}], "expected urls such as"),
        ([{"urls": "stun:a.example?transport=udp"}], "expected urls such as"),
        ([{"urls": "turn:[::1]:3478", "secret": SECRET}], "expected urls such as"),
        ([{"urls": TURN}], "needs a username and a credential, or a secret"),
        ([{"urls": TURN, "username": "u"}], "needs a username and a credential"),
        ([{"urls": TURN, "username": "u", "secret": SECRET}], "needs a username and a credential"),
        ([{"urls": TURN, "username": "u", "credential": "p", "secret": SECRET}], "and not both"),
        ([{"urls": TURN, "secret": ""}], "the secret is empty"),
        ([{"urls": "stun:a.example", "secret": SECRET}], "takes no username"),
        ([{"urls": TURN, "secret": SECRET, "ttl": 3}], "ttl"),
        ([{"urls": TURN, "secret": 3}], "secret"),
    ],
)
def test_a_wrong_file_is_told(content: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="--ice-servers") as told:
        read_ice(write(tmp_path, content))
    assert words in str(told.value)
    assert SECRET not in str(told.value)
    with pytest.raises(ServingError, match="cannot be read"):
        read_ice(tmp_path / "nothing.json")


def test_the_page_is_given_credentials_that_end(model: ModelProcess) -> None:
    ice = IceServers((IceSetting(("stun:127.0.0.1",)), IceSetting((TURN,), secret=SECRET)))
    config = ServingConfig(ice=ice, access=Access(token=TOKEN))

    async def main() -> None:
        async with application(model, config) as client:
            assert (await client.get("/api/ice")).status_code == 401
            answer = await client.get("/api/ice", headers={"authorization": f"Bearer {TOKEN}"})
            assert SECRET not in answer.text
            stun, turn = answer.json()["ice_servers"]
            assert stun == {"urls": ["stun:127.0.0.1"]}
            expires = int(turn["username"].partition(":")[0])
            assert abs(expires - time.time() - CREDENTIAL_S) < 5
            assert answer.json()["expires_s"] == CREDENTIAL_S
            digest = hmac.new(SECRET.encode(), turn["username"].encode(), hashlib.sha1).digest()
            assert turn["credential"] == base64.b64encode(digest).decode()

    asyncio.run(main())


def test_candidates_of_our_relays_are_good() -> None:
    relay = "a=candidate:1 1 udp 1 9.9.9.9 50000 typ relay raddr 0.0.0.0 rport 0"
    assert relay in check_offer(relay, "8.8.8.8", {"9.9.9.9"})
    assert relay not in check_offer(relay, "8.8.8.8")
    assert relay not in check_offer(relay, "8.8.8.8", {"9.9.9.8"})
    host = "a=candidate:1 1 udp 1 9.9.9.9 50000 typ host"
    assert host not in check_offer(host, "8.8.8.8", {"9.9.9.9"})


@pytest.fixture
def coturn(tmp_path: Path) -> Iterator[tuple[IceServers, Path]]:
    """A relay on this machine, and what it logs."""
    program = shutil.which("turnserver")
    if program is None:
        pytest.skip("coturn is not installed")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    log = tmp_path / "coturn.txt"
    line = [program, "-n", "--no-cli", "--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=test.example",
            "--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}", "--no-tls", "--no-dtls",
            "--allow-loopback-peers", "--log-file=stdout", f"--pidfile={tmp_path / 'pid'}",
            f"--userdb={tmp_path / 'db'}", "--verbose"]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        end = time.monotonic() + 10
        while not connects(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield IceServers((IceSetting((f"turn:127.0.0.1:{port}?transport=udp",), secret=SECRET),)), log
    finally:
        process.kill()
        process.wait()


def connects(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class RelayedVisitor(Visitor):
    """Uses the relay that the server names, and nothing else."""

    async def call(self, **more: str) -> httpx.Response:
        servers = (await self.client.get("/api/ice")).json()["ice_servers"]
        await self.pc.close()
        self.pc = RTCPeerConnection(RTCConfiguration(
            iceServers=[RTCIceServer(**server) for server in servers], iceTransportPolicy=RTCIceTransportPolicy.RELAY
        ))  # fmt: skip
        self.channel = self.pc.createDataChannel("events")
        self.channel.on("message", lambda text: self.events.append(json.loads(text)))
        self.pc.on("track", lambda track: self.tasks.append(asyncio.create_task(self._collect(track))))
        for kind in ("audio", "video"):
            self.pc.addTransceiver(kind, direction="sendrecv")
        return await super().call(**more)


def test_a_call_through_a_relay(model: ModelProcess, coturn: tuple[IceServers, Path]) -> None:
    ice, log = coturn

    async def main() -> None:
        async with application(model, ServingConfig(ice=ice)) as client:
            visitor = RelayedVisitor(client)
            assert (await visitor.call()).status_code == 200
            offered = visitor.pc.localDescription.sdp
            assert " typ relay" in offered
            assert " typ host" not in offered
            await until(lambda: visitor.told("session", state="live"), "the call")
            await until(lambda: len(visitor.pictures) > 25, "pictures")
            await until(lambda: len(visitor.samples) > 50, "sound")

    asyncio.run(main())
    assert "allocate processed, success" in log.read_text().lower()


def test_the_python_client_knows_the_relay(model: ModelProcess, coturn: tuple[IceServers, Path]) -> None:
    async def main() -> None:
        async with served(model, ServingConfig(ice=coturn[0])) as server, LiveClient(server.url) as call:
            async for event in call.events():
                if event["type"] == "session.started":
                    break
            assert " typ relay" in call._pc.localDescription.sdp

    asyncio.run(main())


def test_a_dead_relay_leaves_the_direct_way(model: ModelProcess) -> None:
    ice = IceServers((IceSetting(("turn:127.0.0.1:9?transport=udp",), secret=SECRET),))

    async def main() -> None:
        async with application(model, ServingConfig(ice=ice)) as client:
            visitor = Visitor(client)
            assert (await visitor.call()).status_code == 200
            await until(lambda: visitor.told("session", state="live"), "the call")

    asyncio.run(main())


# -------------------------------------------------------------------------------------------------- codecs and losses

CODECS = {"VP8": (Vp8Encoder, VpxPayloadDescriptor), "H264": (H264Encoder, H264PayloadDescriptor)}


def packets(codec: str, frames: int, keys: set[int]) -> list[list[RtpPacket]]:
    """RTP packets of each of so many frames of noise, some of them key frames."""
    encoder_class, descriptor = CODECS[codec]
    encoder, number, out = encoder_class(), 100, []
    noise = np.random.default_rng(0)
    for i in range(frames):
        frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (192, 336, 3), np.uint8), format="rgb24")
        frame.pts, frame.time_base = i * 3600, Fraction(1, 90_000)
        payloads, timestamp = encoder.encode(frame, force_keyframe=i in keys)
        made = []
        for j, payload in enumerate(payloads):
            packet = RtpPacket(payload_type=100, marker=int(j == len(payloads) - 1), sequence_number=number,
                               timestamp=timestamp, payload=payload)  # fmt: skip
            packet._data = descriptor.parse(payload)[1]  # type: ignore[attr-defined]
            made.append(packet)
            number += 1
        out.append(made)
    return out


@pytest.mark.parametrize("codec", CODECS)
def test_after_a_loss_a_new_picture_is_asked_for_and_decodes(codec: str) -> None:
    sent = packets(codec, 30, {0, 20})
    starts = [any(KEY_FRAMES[codec](packet) for packet in frame) for frame in sent]
    assert [i for i, key in enumerate(starts) if key] == [0, 20]
    out: list[JitterFrame] = []
    buffer = VideoJitterBuffer(lambda _, frame: out.append(frame), KEY_FRAMES[codec])
    asked = []
    del sent[5][0]  # never comes
    for i, frame in enumerate(sent):
        for packet in frame:
            asks, ready = buffer.add(packet)
            asked += [i] * asks
            out += [ready] if ready is not None else []
    assert asked, "no picture was asked for"
    assert min(asked) <= 13  # 250 ms
    assert [round(frame.timestamp / 3600) for frame in out] == [*range(5), *range(20, 30)]
    decoder = av.CodecContext.create(codec.lower(), "r")
    decoded = 0
    for frame in out[5:]:  # from the key frame on, as one who has seen nothing before
        decoded += len(decoder.decode(av.Packet(frame.data)))
    decoded += len(decoder.decode(None))
    assert decoded == 10


@pytest.mark.parametrize(
    ("payload", "key"),
    [
        (b"\x65x", True),  # IDR
        (b"\x67x", True),  # sequence parameters
        (b"\x41x", False),
        (b"\x68x", False),  # picture parameters come with others
        (b"\x7c\x85x", True),  # FU-A: first fragment of an IDR
        (b"\x7c\x05x", False),  # a later one
        (b"\x7c\x81x", False),
        (b"\x78\x00\x02\x67x\x00\x02\x68x", True),  # STAP-A
        (b"\x78\x00\x02\x41x\x00\x02\x41x", False),
        (b"\x78\x00\x02\x41x\x00\x02\x65x", True),
        (b"\x78\xff\xff\x41", False),  # broken
        (b"\x78\x00\x00", False),
        (b"\x65", False),
        (b"", False),
    ],
)
def test_key_frames_of_h264(payload: bytes, key: bool) -> None:
    packet = RtpPacket()
    packet.payload = payload
    assert KEY_FRAMES["H264"](packet) is key


class Turning(VideoStreamTrack):
    """A camera that is turned, then zoomed; `index` chooses among its sizes (height, width), odd ones come slowly."""

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        super().__init__()
        self._sizes, self.index = sizes, 0

    async def recv(self) -> av.VideoFrame:
        pts, base = await self.next_timestamp()
        if self.index % 2:
            await asyncio.sleep(0.1)  # another rate
        size = self._sizes[self.index]
        frame = av.VideoFrame.from_ndarray(np.full((*size, 3), (20, 200, 30), np.uint8), format="rgb24")
        frame.pts, frame.time_base = pts, base
        return frame


@pytest.mark.parametrize("codec", CODECS)
def test_size_rate_and_rotation_may_change(model: ModelProcess, codec: str) -> None:
    """The agent sees each size, right way up, in either codec."""

    async def main() -> None:
        async with application(model, ServingConfig()) as client:
            camera = Turning([(240, 320), (320, 240), (360, 640)])
            visitor = Visitor(client, Tone(), camera)
            video = next(t for t in visitor.pc.getTransceivers() if t.kind == "video")
            every = RTCRtpSender.getCapabilities("video").codecs
            video.setCodecPreferences([one for one in every if one.mimeType == f"video/{codec}"])
            assert (await visitor.call()).status_code == 200
            assert codec in visitor.pc.remoteDescription.sdp
            for index, size in enumerate(("256x192", "144x192", "336x188")):
                camera.index = index  # only now: on a busy machine the first one may be seen late
                await until(lambda size=size: [e for e in visitor.told("caption", lane="transcript")
                                               if f"saw {size} " in e["text"]], size)  # fmt: skip
            seen = [e["text"] for e in visitor.told("caption", lane="transcript")][-1]
            colour = [int(x) for x in seen.split()[4].rstrip(".").split(",")]
            assert np.abs(np.subtract(colour, (20, 200, 30))).max() < 15
            assert not visitor.told("error")

    asyncio.run(main())


# --------------------------------------------------------------------------------------------------- another network


def test_from_another_network_the_same_conversation_goes_on(model: ModelProcess) -> None:
    """The old way is silent from one moment on, as when a phone leaves the WLAN; nobody says goodbye on it."""
    config = replace(ServingConfig(), idle_timeout_s=60)  # what goes on does not wait for the old way to end

    async def main() -> None:
        async with application(model, config) as client:
            before, after = Visitor(client), Visitor(client)
            token = (await before.call()).json()["resume"]
            await until(lambda: before.told("caption"), "the call")
            for transport in before.pc._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
                for protocol in transport._connection._protocols:
                    protocol.transport.close()
            answer = await after.call(resume=token)
            assert answer.status_code == 200
            assert answer.json()["resume"] != token
            await until(lambda: after.told("notice"), "the notice")
            assert "The conversation goes on" in after.told("notice")[0]["message"]
            await until(lambda: len(after.pictures) > 20, "pictures")
            desk = client._transport.app.state.desk  # type: ignore[attr-defined]
            await until(lambda: len(desk.sessions) == 1, "the old connection to be reaped")
            assert desk.pending == 0

    asyncio.run(main())
