"""What a dialect is, and the page's own.

`Dialect`   writes the events of one connection and reads its visitor's
`Wire`      base of the events of dialects with event ids
`event_id_of`   of a message that is wrong otherwise
"""

import json
from dataclasses import asdict

from wan_streamer.files import parse_json
from wan_streamer.serving.messages import Message, ServerEvent, parse_page_message

MAX_EVENT_ID = 128  # characters


class Dialect:
    """The page's own: events as they are. Others override all three methods; one object serves one connection."""

    def write(self, event: ServerEvent) -> list[str]:
        """The JSON texts that tell an event; none if the dialect has no words for it."""
        return [event.to_json()]

    def read(self, data: str | bytes) -> Message:
        """One message of the visitor. Raises `EventError`."""
        return parse_page_message(data)

    def acknowledge(self, message: Message) -> list[str]:
        """The JSON texts that say that a message was taken. To be asked for after each that was."""
        return []


class Wire:
    """An event of another dialect. A field that is None is left out."""

    def to_json(self) -> str:
        return json.dumps(_given(asdict(self)))  # type: ignore[call-overload]


def _given(value: object) -> object:
    if isinstance(value, dict):
        return {name: _given(item) for name, item in value.items() if item is not None}
    return [_given(item) for item in value] if isinstance(value, list | tuple) else value


def event_id_of(data: str | bytes) -> str | None:
    """The `event_id` of a message that could not be read, if it is one: so that its sender knows which was refused."""
    try:
        fields = parse_json(data) if isinstance(data, str) else None
    except ValueError:
        return None
    found = fields.get("event_id") if isinstance(fields, dict) else None
    return found if isinstance(found, str) and len(found) <= MAX_EVENT_ID else None
