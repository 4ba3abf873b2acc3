"""A server's HTTP, from Python.

`ask`   one request, its JSON answer
`SESSION`   the header by which a balancer knows which server has the conversation, if there are several
"""

import asyncio
import json
import ssl
import urllib.error
import urllib.request
from typing import Any

from wan_streamer.errors import ServingError
from wan_streamer.files import parse_json

REQUEST_S = 30.0
SESSION = "X-Session-Id"


async def ask(
    url: str, method: str, path: str, body: dict | None = None, *, bearer: str = "", tls: ssl.SSLContext | None = None
) -> dict[str, Any]:
    """The JSON answer. Raises `ServingError` with the server's words."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"}, method=method)
    if bearer:
        request.add_header("Authorization", f"Bearer {bearer}")

    told = [value for name in ("resume", "queue", "session") if isinstance(value := (body or {}).get(name), str)]
    if told:
        request.add_header(SESSION, told[0])

    def send() -> dict[str, Any]:
        with urllib.request.urlopen(request, timeout=REQUEST_S, context=tls) as answer:
            return parse_json(answer.read())

    try:
        return await asyncio.to_thread(send)
    except urllib.error.HTTPError as error:
        try:
            words = parse_json(error.read())["message"]
        except (ValueError, KeyError, TypeError):
            words = error.reason
        raise ServingError(f"{url}: {words} ({error.code})") from None
    except (OSError, ValueError) as error:  # nobody answers, or no address
        raise ServingError(f"{url}: {error}") from None
