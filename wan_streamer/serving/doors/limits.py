"""How much one address may ask for.

`Limits`     sizes, times and rates
`who`        the address as limits count it
`Bucket`     a rate with a burst
`Rates`      a bucket for each address
"""

import ipaddress
import time
from dataclasses import dataclass

ADDRESSES_KEPT = 4096


@dataclass(frozen=True)
class Limits:
    """What the server spends on strangers. An address is an IPv4 address or an IPv6 /64 network.

    body_bytes           a longer request body is refused while it is read
    request_s            a request that is not complete after so many seconds is cut off
    connections          open TCP connections, of all addresses and (per_address) of one
    requests_per_s       requests of one address, request_burst of them at once
    offers_per_s         offers of one address, offer_burst of them at once
    pending_offers       offers answered and not connected yet, of all addresses and (per_address) of one
    queue                visitors who wait for a place, of all addresses and (per_address) of one
    secrets              client secrets that wait to be used
    socket_bytes         the longest message of a WebSocket
    media_per_s          binary messages of one WebSocket, media_burst of them at once
    messages_per_s       messages of one page in a call, message_burst of them at once; answered refusals likewise
    """

    body_bytes: int = 96_000
    request_s: float = 10.0
    connections: int = 256
    connections_per_address: int = 32
    requests_per_s: float = 20.0
    request_burst: int = 100
    offers_per_s: float = 0.5
    offer_burst: int = 10
    pending_offers: int = 8
    pending_offers_per_address: int = 2
    queue: int = 32
    queue_per_address: int = 4
    secrets: int = 256
    socket_bytes: int = 256_000
    media_per_s: float = 120.0
    media_burst: int = 240
    messages_per_s: float = 20.0
    message_burst: int = 60


def who(address: str) -> str:
    """An IPv4 address as it is; of an IPv6 address the /64 network, which one subscriber has to himself."""
    try:
        network = ipaddress.ip_network(f"{ipaddress.IPv6Address(address.partition('%')[0])}/64", strict=False)
    except ValueError:
        return address
    return str(network)


class Bucket:
    """`take` says whether one more is within the rate: `per_s` on average, `burst` at once."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._left, self._at = float(burst), time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Rates:
    """A `Bucket` for each address; the addresses that came last are remembered."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s, self._burst = per_s, burst
        self._buckets: dict[str, Bucket] = {}

    def take(self, address: str) -> bool:
        bucket = self._buckets.pop(address, None) or Bucket(self._per_s, self._burst)
        self._buckets[address] = bucket  # the newest is last
        if len(self._buckets) > ADDRESSES_KEPT:
            del self._buckets[next(iter(self._buckets))]
        return bucket.take()
