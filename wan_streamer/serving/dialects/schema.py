"""A JSON Schema of every event, made of the dataclasses that write and check them.

`event_schema`   for each dialect `NAME.server` (what the server sends) and `NAME.client` (what it takes)

    python -m wan_streamer.serving.dialects.schema > docs/events.schema.json
"""

import json
from functools import reduce
from operator import or_
from typing import Any

from pydantic import TypeAdapter

from wan_streamer.serving.dialects.live import LIVE_COMMANDS, LIVE_EVENTS
from wan_streamer.serving.dialects.realtime import REALTIME_COMMANDS, REALTIME_EVENTS
from wan_streamer.serving.dialects.start import ANSWERS, START
from wan_streamer.serving.messages import PAGE_MESSAGES, ServerEvent

DIALECTS: dict[str, tuple[TypeAdapter[Any], TypeAdapter[Any]]] = {
    "page": (TypeAdapter(ServerEvent), PAGE_MESSAGES),
    "socket": (ANSWERS, START),
    "live": (TypeAdapter(reduce(or_, LIVE_EVENTS)), LIVE_COMMANDS),  # type: ignore[arg-type]
    "realtime": (TypeAdapter(reduce(or_, REALTIME_EVENTS)), REALTIME_COMMANDS),  # type: ignore[arg-type]
}


def event_schema() -> dict[str, Any]:
    """The schema; validate against `{"$ref": "#/$defs/live.server"}` and its like."""
    definitions: dict[str, Any] = {}
    for name, (sent, taken) in DIALECTS.items():
        for side, adapter in (("server", sent), ("client", taken)):
            schema = adapter.json_schema(
                mode="serialization" if side == "server" else "validation",
                ref_template=f"#/$defs/{name}.{{model}}",
            )
            parts = schema.pop("$defs", {})
            schema.pop("discriminator", None)
            definitions |= {f"{name}.{part}": _named(part_schema) for part, part_schema in parts.items()}
            definitions[f"{name}.{side}"] = schema if parts else _named(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Messages of calls",
        "$defs": dict(sorted(definitions.items())),
    }


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    """The type of an event is a default only for who makes one in Python: it has to be there."""
    tag = schema.get("properties", {}).get("type", {})
    if "const" in tag or "enum" in tag:
        tag.pop("default", None)
        schema["required"] = ["type", *(name for name in schema.get("required", []) if name != "type")]
    return schema


def main() -> None:
    print(json.dumps(event_schema(), indent=1))


if __name__ == "__main__":
    main()
