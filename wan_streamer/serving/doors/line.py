"""Who waits for a place.

`Line`   tickets in the order in which they came: the first are called when there are places, and nobody overtakes
`Ticket` one of them
`Place`  what the owner of a ticket may know
"""

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

RECENT_CALLS = 20  # their mean length is the estimate


@dataclass(frozen=True)
class Place:
    """A place in the line.

    place       1 for the next
    estimate_s  seconds until it is called; None if no call has ended yet
    ready       called: an offer with this ticket is let in
    """

    ticket: str
    place: int
    estimate_s: float | None
    ready: bool


@dataclass
class Ticket:
    """Whose turn it will be.  seen, called  when.  returned  it was used and has opened no call."""

    code: str
    address: str
    seen: float = field(default_factory=time.monotonic)
    called: float | None = None
    returned: bool = False


class Line:
    """The line. Nothing here runs by itself: `call` brings it up to date and is to be called before anything else.

    ticket_s          a ticket that nobody asks about for so long is dropped
    turn_s            a ticket that was called and not used for so long is dropped
    most, most_of_one tickets, of all addresses and of one
    mark              the beginning of every ticket
    """

    def __init__(self, ticket_s: float, turn_s: float, most: int, most_of_one: int, mark: str = "") -> None:
        self._ticket_s, self._turn_s, self._most, self._most_of_one = ticket_s, turn_s, most, most_of_one
        self._mark = mark
        self._tickets: dict[str, Ticket] = {}
        self._lengths: deque[float] = deque(maxlen=RECENT_CALLS)
        self._calls = 1  # at a time

    def call(self, free: int, calls: int) -> int:
        """Call the first of the line. Returns how many places are left for who has no ticket.

        free   places that nobody has, those of called tickets included
        calls  places in all
        """
        now, self._calls = time.monotonic(), calls
        for code, ticket in list(self._tickets.items()):
            unused = ticket.called is not None and now - ticket.called > self._turn_s
            if unused or now - ticket.seen > self._ticket_s:
                del self._tickets[code]
        for ticket in islice(self._tickets.values(), max(0, free)):
            ticket.called = ticket.called or now
        return free - sum(ticket.called is not None for ticket in self._tickets.values())

    def __len__(self) -> int:
        return len(self._tickets)

    def join(self, address: str) -> Place | None:
        """A new place at the end; None if the line is full."""
        of_one = sum(ticket.address == address for ticket in self._tickets.values())
        if len(self._tickets) >= self._most or of_one >= self._most_of_one:
            return None
        code = self._mark + secrets.token_urlsafe(16)
        self._tickets[code] = Ticket(code, address)
        return self.place(code)

    def place(self, code: str) -> Place | None:
        """Where this ticket is, whose owner asks; None if there is no such ticket (any more)."""
        ticket = self._tickets.get(code)
        if ticket is None:
            return None
        ticket.seen = time.monotonic()
        number = list(self._tickets).index(code) + 1
        return Place(code, number, self._estimate_s(number), ticket.called is not None)

    def __contains__(self, code: str) -> bool:
        """Whether there is such a ticket. Unlike `place` this may be asked by others than its owner."""
        return code in self._tickets

    def leave(self, code: str) -> Ticket | None:
        """The ticket is used, or its owner has gone. Returns it; None if there is no such ticket."""
        return self._tickets.pop(code, None)

    def give_back(self, ticket: Ticket) -> None:
        """It opened no call: its owner may try another way. Once, or who never connects keeps a place."""
        if not ticket.returned:
            now = time.monotonic()
            again = Ticket(ticket.code, ticket.address, seen=now, called=now, returned=True)
            self._tickets = {again.code: again, **self._tickets}

    def learn(self, call_s: float) -> None:
        """A call has taken so long."""
        self._lengths.append(call_s)

    def _estimate_s(self, number: int) -> float | None:
        """Places become free at the rate of so many calls in their mean length, however long those of now last yet."""
        if not self._lengths:
            return None
        return round(number * sum(self._lengths) / len(self._lengths) / self._calls, 1)
