"""STUN and TURN servers, through which pages and server find a way to each other.

`IceServers`  as configured; `issue` what one visitor is given, with credentials that end
`read_ice`    the same from a file, checked
"""

import asyncio
import base64
import hashlib
import hmac
import json
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from wan_streamer.errors import ServingError
from wan_streamer.files import parse_json

# no IPv6 addresses: aiortc would refuse every offer
URL = re.compile(r"(stuns?|turns?):([\w.-]+)(?::(\d{1,5}))?(\?transport=(?:udp|tcp))?")
MOST_SERVERS, MOST_URLS = 8, 8
CREDENTIAL_S = 3600  # that of a relay must last for a call; coturn asks for it again whenever an allocation is renewed


@dataclass(frozen=True)
class IceServer:
    """One entry of `RTCConfiguration.iceServers`. A STUN server has no username and credential."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None


@dataclass(frozen=True)
class IceSetting:
    """One entry of the file: addresses of a STUN server, or of a TURN server with a fixed username and credential or
    the secret that it shares with this server (coturn: `use-auth-secret` and `static-auth-secret`)."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = None
    secret: str | None = None
    __pydantic_config__ = ConfigDict(extra="forbid")


SETTING = TypeAdapter(IceSetting)


@dataclass(frozen=True)
class Issued:
    """expires_s: the credentials are good for so long; None: they do not expire."""

    servers: tuple[IceServer, ...]
    expires_s: int | None


@dataclass(frozen=True)
class IceServers:
    """None of them by default: a call on one machine or in one network needs none, and nobody else is asked."""

    settings: tuple[IceSetting, ...] = ()

    def issue(self) -> Issued:
        """What a visitor, or this server, is to use from now on."""
        servers = tuple(_issue(setting) for setting in self.settings)
        return Issued(servers, CREDENTIAL_S if any(setting.secret for setting in self.settings) else None)

    async def relays(self) -> frozenset[str]:
        """The addresses of the TURN servers. A name that cannot be looked up has none."""
        names = {_host(url) for setting in self.settings for url in setting.urls if url.startswith("turn")}
        found = await asyncio.gather(*(_addresses(name) for name in sorted(names)))
        return frozenset().union(*found)


def read_ice(path: str | Path | None) -> IceServers:
    """The servers of a JSON file, a list of `IceSetting`; none without a file.

    Raises `ServingError` that says which entry is wrong, and never a secret.
    """
    if path is None:
        return IceServers()
    where = f"--ice-servers {path}"
    try:
        entries = parse_json(Path(path).read_bytes())
    except OSError as error:
        raise ServingError(f"{where}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ServingError(f"{where}: expected JSON") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_SERVERS:
        raise ServingError(f"{where}: expected a list of 1 to {MOST_SERVERS} servers")
    return IceServers(tuple(_read_entry(entry, f"{where}: entry {i + 1}") for i, entry in enumerate(entries)))


def _read_entry(entry: object, where: str) -> IceSetting:
    if isinstance(entry, dict) and isinstance(entry.get("urls"), str):
        entry = {**entry, "urls": [entry["urls"]]}  # browsers take both
    try:
        setting = SETTING.validate_json(json.dumps(entry), strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise ServingError(f"{where}: expected another value of {place or 'it'} ({problem['msg']})") from None
    if not 1 <= len(setting.urls) <= MOST_URLS:
        raise ServingError(f"{where}: expected 1 to {MOST_URLS} urls")
    for url in setting.urls:
        match = URL.fullmatch(url)
        if match is None or int(match[3] or 0) > 65_535 or (match[4] and url.startswith("stun")):
            raise ServingError(f"{where}: expected urls such as turn:turn.example:3478?transport=udp, got {url!r}")
    fixed = setting.username is not None and setting.credential is not None
    if any(url.startswith("turn") for url in setting.urls):
        if fixed == (setting.secret is not None) or (setting.username is None) != (setting.credential is None):
            raise ServingError(f"{where}: a TURN server needs a username and a credential, or a secret, and not both")
        if setting.secret == "":
            raise ServingError(f"{where}: the secret is empty")
    elif setting.username or setting.credential or setting.secret:
        raise ServingError(f"{where}: a STUN server takes no username, credential or secret")
    return setting


def _issue(setting: IceSetting) -> IceServer:
    if setting.secret is None:
        return IceServer(setting.urls, setting.username, setting.credential)
    # draft-uberti-behave-turn-rest: the time of expiry is the name, and its keyed hash the password
    username = f"{int(time.time()) + CREDENTIAL_S}:{secrets.token_hex(4)}"
    digest = hmac.new(setting.secret.encode(), username.encode(), hashlib.sha1).digest()
    return IceServer(setting.urls, username, base64.b64encode(digest).decode())


def _host(url: str) -> str:
    match = URL.fullmatch(url)
    assert match is not None
    return match[2]


async def _addresses(name: str) -> set[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    except OSError:
        return set()
    return {str(address[0]) for *_, address in found}
