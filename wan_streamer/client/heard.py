"""What a call over a WebSocket gives its caller: one stream, in the order of arrival.

`Sound` `Picture`  the agent's voice and face, with their times on one clock
`AgentEvent`       these, and the events of the page's dialect (`serving.messages`)
`read_event`       JSON text -> an event
`Inbox`            events that nobody has read yet; old media go first, words are kept
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields

import numpy as np

from wan_streamer.files import parse_json
from wan_streamer.serving.messages import (
    CaptionEvent,
    ErrorEvent,
    NoticeEvent,
    PlaybackEvent,
    PongEvent,
    ServerEvent,
    SessionEvent,
    StatsEvent,
    TurnEvent,
)

MEDIA_KEPT = 75  # a second of sound and picture
EVENTS_KEPT = 4096


@dataclass(frozen=True, eq=False)
class Sound:
    """samples_T  float32 [T], mono, 24 kHz, about 20 ms
    start_ms   when it begins"""

    samples_T: np.ndarray
    start_ms: float

    def pcm(self) -> np.ndarray:
        """int16 [T]."""
        return (self.samples_T.clip(-1, 1) * 32767).astype("<i2")


@dataclass(frozen=True, eq=False)
class Picture:
    """image_HWC  uint8 [H, W, 3], RGB
    start_ms   when it is to be seen, on the clock of the sound"""

    image_HWC: np.ndarray
    start_ms: float


AgentEvent = Sound | Picture | ServerEvent
KINDS: dict[str, type] = {
    "session": SessionEvent,
    "caption": CaptionEvent,
    "turn": TurnEvent,
    "playback": PlaybackEvent,
    "notice": NoticeEvent,
    "error": ErrorEvent,
    "pong": PongEvent,
    "stats": StatsEvent,
}


def read_event(text: str) -> ServerEvent | None:
    """None for an event that a newer server may have. Raises `ValueError` or `TypeError` if it is no event."""
    told = parse_json(text)
    kind = KINDS.get(told["type"])
    if kind is None:
        return None
    return kind(**{field.name: told[field.name] for field in fields(kind) if field.init and field.name in told})


class Inbox:
    """Who reads late misses the oldest media and catches up at once: a backlog would delay all that follows."""

    def __init__(self) -> None:
        self._events: deque[AgentEvent] = deque(maxlen=EVENTS_KEPT)
        self._media = 0
        self._news = asyncio.Event()
        self._over: Exception | bool = False

    def put(self, event: AgentEvent) -> None:
        self._events.append(event)
        if isinstance(event, Sound | Picture):
            self._media += 1
            if self._media > MEDIA_KEPT:
                self.drop_media(self._media - MEDIA_KEPT)
        self._news.set()

    def drop_media(self, count: int | None = None) -> None:
        """The oldest; None: all."""
        kept: deque[AgentEvent] = deque(maxlen=EVENTS_KEPT)
        for event in self._events:
            if isinstance(event, Sound | Picture) and count != 0:
                count = None if count is None else count - 1
                continue
            kept.append(event)
        self._events = kept
        self._media = sum(isinstance(event, Sound | Picture) for event in kept)

    def end(self, error: Exception | None = None) -> None:
        """What came before can still be read; then readers end, or an error is raised in them."""
        self._over = self._over or error or True
        self._news.set()

    async def read(self) -> AsyncIterator[AgentEvent]:
        while True:
            while not self._events:
                if isinstance(self._over, Exception):
                    raise self._over
                if self._over:
                    return
                self._news.clear()
                await self._news.wait()
            event = self._events.popleft()
            self._media -= isinstance(event, Sound | Picture)
            yield event
