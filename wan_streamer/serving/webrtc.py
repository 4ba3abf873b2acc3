"""WebRTC for one call: aiortc carries what `Call` hears, says and shows.

`Peer`                     one connection: uplink tracks, downlink tracks, data channel
`use_loopback_candidates`  lets a page on the same machine connect when no other network exists
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Coroutine
from typing import Any, Literal

import aioice.ice
import av
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError

from wan_streamer.data.pictures import Scaler
from wan_streamer.errors import ServingError
from wan_streamer.runtime.processes import ModelProcess
from wan_streamer.serving import jitter
from wan_streamer.serving.call import Call
from wan_streamer.serving.conversation import Conversation
from wan_streamer.serving.dialects.base import Dialect
from wan_streamer.serving.doors.limits import Bucket
from wan_streamer.serving.messages import ErrorEvent, EventError, NoticeEvent, ServerEvent, SessionEvent
from wan_streamer.serving.offers import check_offer, guard_channels
from wan_streamer.serving.settings import ServingConfig
from wan_streamer.serving.uplink import fit
from wan_streamer.serving.watch.metrics import Metrics

LOOPBACK = "127.0.0.1"
CLOSE_TIMEOUT_S = 3.0
FAREWELL_S = 1.0  # the page has so long to take the last event
EVENTS_KEPT = 256  # events that wait for the data channel to open

LEFT = "the page left"

log = logging.getLogger(__name__)
_get_host_addresses = aioice.ice.get_host_addresses


def _with_loopback(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    addresses = _get_host_addresses(use_ipv4, use_ipv6)
    return [LOOPBACK, *addresses] if use_ipv4 else addresses


def use_loopback_candidates() -> None:
    """aioice leaves 127.0.0.1 out, so that a machine without a network cannot call itself. Process-wide."""
    aioice.ice.get_host_addresses = _with_loopback


class Peer:
    """One visitor's connection: `answer` an offer, `connect`, `converse` until the call is over, `close`.

    dialect  of its data channel, whatever that is called
    """

    def __init__(
        self,
        model: ModelProcess,
        config: ServingConfig,
        talk: Conversation,
        dialect: Dialect,
        metrics: Metrics | None = None,
    ) -> None:
        # no servers: aiortc would otherwise ask a public STUN server, which a local call does not need
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._config, self._dialect = config, dialect
        self._channel: RTCDataChannel | None = None
        self._waiting: deque[str] = deque(maxlen=EVENTS_KEPT)
        self._pumps: set[asyncio.Task[None]] = set()
        self._connected = asyncio.Event()
        self._gone = asyncio.Event()
        self._reason, self._tell = LEFT, False
        self._rate = Bucket(config.limits.messages_per_s, config.limits.message_burst)
        self._refusals = Bucket(config.limits.messages_per_s, config.limits.message_burst)
        self.call = Call(model, config, talk, self._emit, metrics)
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_datachannel)
        self._pc.on("connectionstatechange", self._on_state)

    async def answer(self, sdp: str, address: str = "") -> str:
        """The SDP answer to the page's offer. Raises `ServingError` if it is not a usable offer.

        address  where the offer came from; see `check_offer`
        """
        sdp = check_offer(sdp, address)
        try:
            if self._config.video_playout_ms is not None:
                jitter.accept_playout_delay()
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp=sdp, type="offer"))
            if self._pc.sctp is not None:
                guard_channels(self._pc.sctp, self._refuse)
            transceivers = self._pc.getTransceivers()
            if not transceivers:
                raise ServingError("offer: expected an audio or video section, got none")
            for transceiver in transceivers:
                if self._config.own_jitter_buffers:
                    jitter.use_low_latency(transceiver.receiver)
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

    async def connect(self) -> str | None:
        """Wait until media can flow. Returns None, or why that will not be."""
        try:
            await asyncio.wait_for(self._connected.wait(), self._config.connect_timeout_s)
        except TimeoutError:
            return f"the page did not connect within {self._config.connect_timeout_s:.0f} s"
        return self._reason if self._gone.is_set() else None

    async def converse(self) -> str:
        """Converse once connected, and return why it ended."""
        call, gone = asyncio.create_task(self.call.run()), asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait({call, gone}, return_when=asyncio.FIRST_COMPLETED)
            if call.done():
                await self.say("ended", call.result())
                return call.result()
            if self._tell:
                await self.say("ended", self._reason)
            return self._reason
        finally:
            for task in (call, gone):
                task.cancel()
            await asyncio.gather(call, gone, return_exceptions=True)

    def hang_up(self, reason: str = "") -> None:
        """End `connect` or `converse` from outside. reason: told to the page; nothing is told if the page has left."""
        if not self._gone.is_set():
            self._reason, self._tell = reason or LEFT, bool(reason)
        self._gone.set()
        self._connected.set()

    def notify(self, message: str) -> None:
        self._emit(NoticeEvent(message))

    async def say(self, state: Literal["ended", "busy"], reason: str) -> None:
        """Tell the page why there is no call (any more), and give it time to hear that."""
        self._emit(SessionEvent(state, reason))
        until = time.monotonic() + FAREWELL_S
        while time.monotonic() < until and (self._waiting or (self._channel and self._channel.bufferedAmount)):
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # sent is not yet received

    async def close(self) -> None:
        """Close the connection and free everything. Safe to call twice."""
        self._gone.set()
        for task in self._pumps:
            task.cancel()
        with contextlib.suppress(Exception):  # a timeout too: aiortc waits for ever if its own tasks were cancelled
            await asyncio.wait_for(self._pc.close(), CLOSE_TIMEOUT_S)

    def _emit(self, event: ServerEvent) -> None:
        for text in self._dialect.write(event):
            self._send(text)

    def _send(self, text: str) -> None:
        if self._channel is None or self._channel.readyState != "open":
            self._waiting.append(text)
            return
        while self._waiting:
            self._channel.send(self._waiting.popleft())
        self._channel.send(text)

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

    def _on_message(self, data: str | bytes) -> None:
        """Whatever is wrong with one message is told to the page, in one event, and the call goes on."""
        if not self._rate.take():
            return self._refuse(EventError("page messages: too many came; this one was dropped", "rate"))
        try:
            message = self._dialect.read(data)
            self.call.handle(message)
            for text in self._dialect.acknowledge(message):
                self._send(text)
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        if not self._refusals.take():
            return  # who sends without end gets no answers without end
        expected = isinstance(error, ServingError)
        log.log(logging.INFO if expected else logging.ERROR, "a page message failed: %s", type(error).__name__)
        if isinstance(error, EventError):
            self._emit(ErrorEvent(str(error), error.code))
        elif expected:
            self._emit(ErrorEvent(str(error), "not_taken"))
        else:
            self._emit(ErrorEvent("this message could not be handled", "internal"))

    def _spawn(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
