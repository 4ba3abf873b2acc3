"""Who is let in.

`Access`       names, origins, proxies and the token that the server accepts
`plan_access`  the same from the command line, checked
"""

import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import aioice.ice

from wan_streamer.errors import ServingError

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,200}")


@dataclass(frozen=True)
class Access:
    """What a request must fit.

    hosts    names that a `Host` header may have, without port; IPv6 addresses in brackets
    origins  origins of pages that may call, beside the origin of the server itself
    proxies  addresses or networks whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed
    token    what a caller has to know; None: nothing
    """

    hosts: tuple[str, ...] = LOCAL_NAMES
    origins: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    token: str | None = None

    def knows(self, token: str) -> bool:
        """Whether a caller with this token is let in."""
        return self.token is None or secrets.compare_digest(token.encode(), self.token.encode())

    def may_watch(self, address: str, token: str, forwarded: bool) -> bool:
        """Whether a request may have the server's numbers.

        Without a token only programs of this machine may, and only of a server that nobody else uses: a proxy on the
        same machine has the same address.

        address    where the request comes from
        forwarded  it has a header that proxies add
        """
        if self.token is not None:
            return self.knows(token)
        return is_loopback(address) and not forwarded and not self.origins and not self.proxies

    def is_proxy(self, address: str) -> bool:
        try:
            return any(ipaddress.ip_address(address) in ipaddress.ip_network(proxy) for proxy in self.proxies)
        except ValueError:
            return False


def is_loopback(host: str) -> bool:
    """True for localhost and 127.0.0.0/8 and ::1: the only names on which browsers allow devices without HTTPS."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def plan_access(
    host: str, public_urls: Sequence[str] = (), proxies: Sequence[str] = (), token: str | None = None
) -> Access:
    """What the server accepts when it listens on `host`.

    A token is made up if the host is not local and none is given. Raises `ServingError` naming the wrong option.
    """
    if token is not None and not TOKEN.fullmatch(token):
        raise ServingError("--token: expected 16 to 200 letters, digits or ._~+/=-")
    for proxy in proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ServingError(f"--proxy: expected an IP address or network, got {proxy!r} ({error})") from None
    public = [_public_origin(url) for url in public_urls]
    hosts = (*LOCAL_NAMES, *_names_of(host), *(name for name, _ in public))
    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(16)
    return Access(tuple(dict.fromkeys(hosts)), tuple(origin for _, origin in public), tuple(proxies), token)


def _public_origin(url: str) -> tuple[str, str]:
    """(host, origin) of a `--public-url`."""
    expected = f"--public-url: expected an address such as https://agent.example/path, got {url!r}"
    try:
        parts = urlsplit(url.lower())
        name, port = parts.hostname, parts.port
    except ValueError as error:
        raise ServingError(f"{expected} ({error})") from None
    if parts.scheme not in ("http", "https") or not name or "@" in parts.netloc or "*" in name:
        raise ServingError(expected)
    host = f"[{name}]" if ":" in name else name
    default = {"http": 80, "https": 443}[parts.scheme]
    return host, f"{parts.scheme}://{host}" + ("" if port in (None, default) else f":{port}")


def _names_of(host: str) -> list[str]:
    """Names of this machine for visitors of a socket that listens on `host`."""
    names = [host]
    if host in ("0.0.0.0", "::"):
        names = [socket.gethostname(), *aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=True)]
    return [f"[{name}]" if ":" in name else name.lower() for name in names]
