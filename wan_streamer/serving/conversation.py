"""What outlives a connection.

`Conversation`  the model's session of one visitor, with which another connection can go on
"""

import asyncio
import secrets
import time

from wan_streamer.runtime.processes import ModelSession


class Conversation:
    """One visitor's conversation, over one connection after the other.

    token    who has it goes on with the conversation; another one for each connection
    visitor  the session of its last visit
    session  in the model process; None before the first and while the model is restarted
    lost     the session that was lost with its model process and is to be gone on with
    over     it has ended: nobody goes on with it
    began    when the first connection stood
    left     when the last connection was lost; None while one stands
    turn     whose connection has the session; the one before may be closing yet
    units    that the model has answered, over all connections; held: those of them that it did not see
    mark     the beginning of its tokens
    missed   deadlines that model processes missed that are no more
    """

    def __init__(self, mark: str = "") -> None:
        self.token, self._mark = "", mark
        self.renew()
        self.visitor = ""
        self.session: ModelSession | None = None
        self.lost: ModelSession | None = None
        self.over = False
        self.began = time.monotonic()
        self.left: float | None = None
        self.turn = asyncio.Lock()
        self.units = self.held = self.missed = 0

    @property
    def is_new(self) -> bool:
        return self.session is None and self.lost is None

    def renew(self) -> None:
        """Whoever knows the token of before has nothing."""
        self.token = self._mark + secrets.token_urlsafe(24)
