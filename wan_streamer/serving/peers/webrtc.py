"""WebRTC for one call: aiortc carries what `Call` hears, says and shows.

`WebRtcPeer`               one connection: uplink tracks, downlink tracks, data channel
`use_loopback_candidates`  lets a page on the same machine connect when no other network exists
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any

import aioice.ice
import av
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from wan_streamer.data.pictures import Scaler
from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.dialects.base import Dialect
from wan_streamer.serving.peers import jitter
from wan_streamer.serving.peers.base import EVENTS_KEPT, Peer
from wan_streamer.serving.peers.offers import check_bundle, check_offer, guard_channels
from wan_streamer.serving.peers.tails import use_tails
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.uplink import fit
from wan_streamer.serving.watch.metrics import Metrics

LOOPBACK = "127.0.0.1"
CLOSE_TIMEOUT_S = 3.0

log = logging.getLogger(__name__)
_get_host_addresses = aioice.ice.get_host_addresses


def _with_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    addresses = _get_host_addresses(use_ipv4, use_ipv6)
    return [LOOPBACK, *addresses] if use_ipv4 else addresses


def use_loopback_candidates() -> None:
    """aioice leaves 127.0.0.1 out, so that a machine without a network cannot call itself. Process-wide."""
    aioice.ice.get_host_addresses = _with_loopback


class WebRtcPeer(Peer):
    """RTP for the media, a data channel of any name for the messages."""

    def __init__(
        self,
        model: ModelProcess,
        config: ServingConfig,
        talk: Conversation,
        dialect: Dialect,
        metrics: Metrics | None = None,
    ) -> None:
        super().__init__(model, config, talk, dialect, metrics)
        # a list, even if empty: aiortc would otherwise ask a public STUN server, which a local call does not need
        issued = config.ice.issue().servers
        servers = [RTCIceServer(list(server.urls), server.username, server.credential) for server in issued]
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=servers))
        self._channel: RTCDataChannel | None = None
        self._waiting: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._pumps: set[asyncio.Task[None]] = set()
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_datachannel)
        self._pc.on("connectionstatechange", self._on_state)

    async def answer(self, offer: str, address: str = "") -> str:
        """The SDP answer to the page's offer; see `check_offer`. Raises `ServingError` if it is not a usable one."""
        sdp = check_offer(offer, address, await self._config.ice.relays())
        try:
            if self._config.video_playout_ms is not None:
                jitter.accept_playout_delay()
            check_bundle(sdp)
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
            if self._pc.sctp is not None:
                guard_channels(self._pc.sctp, self._refuse)
            transceivers = self._pc.getTransceivers()
            if not transceivers:
                raise ServingError("offer: expected an audio or video section, got none")
            for transceiver in transceivers:
                if self._config.own_jitter_buffers:
                    jitter.use_low_latency(transceiver.receiver)
                if transceiver.kind == "video":
                    use_tails(transceiver.sender)
                if transceiver.kind == "video" and self._config.video_playout_ms is not None:
                    jitter.use_playout_delay(transceiver.sender, self._config.video_playout_ms)
            self._attach(self.call.playout.audio)
            self._attach(self.call.playout.video)
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except ServingError:
            raise
        except Exception as error:  # aiortc's parser raises whatever its line parsing meets
            raise ServingError(
                f"offer: expected an SDP offer of a browser ({type(error).__name__}: {error})"
            ) from error
        return self._pc.localDescription.sdp

    def _attach(self, track: MediaStreamTrack) -> None:
        """Send a track in the first section of its kind; the page decides what it wants to receive."""
        for transceiver in self._pc.getTransceivers():
            if transceiver.kind == track.kind and transceiver.sender.track is None:
                transceiver.sender.replaceTrack(track)
                transceiver.direction = "sendrecv"
                return

    async def close(self) -> None:
        """Close the connection and free everything. Safe to call twice."""
        self._gone.set()
        for task in self._pumps:
            task.cancel()
        with contextlib.suppress(Exception):  # a timeout too: aiortc waits for ever if its own tasks were cancelled
            await asyncio.wait_for(self._pc.close(), CLOSE_TIMEOUT_S)

    def _send(self, text: str) -> None:
        if self._channel is None or self._channel.readyState != "open":
            self._waiting.append(text)
            return
        while self._waiting:
            self._channel.send(self._waiting.popleft())
        self._channel.send(text)

    def _unsent(self) -> bool:
        return bool(self._waiting or (self._channel and self._channel.bufferedAmount))

    def _on_state(self) -> None:
        log.debug("connection %s", self._pc.connectionState)
        if self._pc.connectionState == "connected":
            self._connected.set()
        elif self._pc.connectionState in ("failed", "closed"):
            self.hang_up()

    def _on_track(self, track: MediaStreamTrack) -> None:
        self._spawn(self._pump_audio(track) if track.kind == "audio" else self._pump_video(track))

    async def _pump_audio(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame)
                self.call.heard = time.monotonic()
                self.call.uplink.audio.push(frame, self.call.heard)

    async def _pump_video(self, track: MediaStreamTrack) -> None:
        convert = Scaler(fit)
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.VideoFrame)
                self.call.heard = time.monotonic()
                picture = await asyncio.to_thread(convert, frame)  # now, so that the unit need not wait for it
                self.call.uplink.video.push(picture, self.call.heard)

    def _on_datachannel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)
        while self._waiting:
            channel.send(self._waiting.popleft())

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
