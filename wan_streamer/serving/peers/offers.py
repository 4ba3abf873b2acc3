"""What strangers may put into a connection.

`check_offer`     an SDP offer of sane size, with candidates that the server may send to
`check_bundle`    a BUNDLE group that names sections of its own
`guard_channels`  one data channel, whose messages cannot end the connection
"""

import contextlib
import ipaddress
from collections.abc import Callable, Collection

from aiortc import RTCSctpTransport
from aiortc.sdp import SessionDescription

from wan_streamer.errors import ServingError

MAX_SECTIONS = 4  # of an offer: sound, picture, data, and one more
MAX_CANDIDATES = 8  # of a section; a browser names two or three for each of its networks
DCEP, DCEP_OPEN = 50, 3  # RFC 8832: the protocol that opens data channels, and its message


def check_offer(sdp: str, address: str, relays: Collection[str] = ()) -> str:
    """The offer without candidates that the server has no reason to send to.

    A server that sends connectivity checks to whatever an offer names is a weapon against others. Nothing is lost: the
    page sends its own checks, and the server answers where they come from.

    address  where the offer came from; "": unknown, as in tests
    relays   addresses of TURN servers that the page was told
    Raises `ServingError` if the offer has too many sections.
    """
    kept: list[str] = []
    sections = candidates = 0
    for line in sdp.splitlines():
        if line.startswith("m="):
            sections, candidates = sections + 1, 0
        if line.startswith("a=candidate:"):
            if candidates >= MAX_CANDIDATES or not _may_send_to(line, address, relays):
                continue
            candidates += 1
        kept.append(line)
    if sections > MAX_SECTIONS:
        raise ServingError(f"offer: expected at most {MAX_SECTIONS} sections, got {sections}")
    return "\r\n".join(kept) + "\r\n"


def check_bundle(sdp: str) -> None:
    """Raises `ServingError` if an offer bundles what is none of its sections: aiortc would take it, connect, and fail
    where nobody can be told. And what aiortc's parser raises.
    """
    offer = SessionDescription.parse(sdp)
    names = [section.rtp.muxId for section in offer.media if section.kind in ("audio", "video", "application")]
    bundled = [name for group in offer.group if group.semantic == "BUNDLE" for name in map(str, group.items)]
    for ids in (names, bundled):
        if len(set(ids)) < len(ids) or not set(ids) <= set(names):
            raise ServingError(f"offer: expected a BUNDLE group of its sections {names}, each once, got {bundled}")


def _may_send_to(line: str, came_from: str, relays: Collection[str]) -> bool:
    """Addresses from which the offer came, and private ones if it came from a private one; relays of our own."""
    fields = line.split()
    if len(fields) < 8 or fields[2].lower() != "udp":
        return False
    if fields[4].endswith(".local"):  # the browser hides the address: it is one of the local network
        return _is_private(came_from)
    try:
        host, port = ipaddress.ip_address(fields[4]), int(fields[5])
    except ValueError:
        return False
    if host.is_multicast or host.is_unspecified or not 1024 <= port <= 65_535:
        return False
    if str(host) in relays and " typ relay" in line:
        return True
    return str(host) == came_from or (_is_private(str(host)) and _is_private(came_from))


def _is_private(address: str) -> bool:
    try:
        return not ipaddress.ip_address(address).is_global
    except ValueError:
        return address == ""


def guard_channels(sctp: RTCSctpTransport, refuse: Callable[[Exception], None]) -> None:
    """Take one data channel and no more; pass what a message makes aiortc raise to `refuse`.

    Replaces a private part of aiortc 1.16: a message that is not UTF-8 would end the connection there.
    """
    receive = sctp._data_channel_receive

    async def receive_guarded(stream: int, protocol: int, data: bytes) -> None:
        if protocol == DCEP and data[:1] == bytes([DCEP_OPEN]) and sctp._data_channels:
            return
        try:
            await receive(stream, protocol, data)
        except Exception as error:
            with contextlib.suppress(Exception):
                refuse(error)

    sctp._data_channel_receive = receive_guarded  # type: ignore[method-assign, assignment]
