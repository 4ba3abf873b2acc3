"""Client secrets: what a server that knows the token hands to a page that must not.

`Keys`    of sessions that were created and not called yet: each opens one call, for a while
`Secret`  one of them
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field

PREFIX = "ek_"  # how others mark theirs, so that a secret is told from a token


@dataclass
class Secret:
    """session: whose call it opens. expires: `time.time()` seconds. ticket: with which its owner waits in the line."""

    session: str
    expires: float
    ticket: str = ""
    mark: InitVar[str] = ""
    value: str = field(init=False)

    def __post_init__(self, mark: str) -> None:
        self.value = PREFIX + mark + secrets.token_urlsafe(24)


class Keys:
    """lives_s: of a secret. most: secrets at a time. waits: whether a ticket is in the line; its secret lives on.
    mark: the beginning of every secret, after `PREFIX`."""

    def __init__(self, lives_s: float, most: int, waits: Callable[[str], bool], mark: str = "") -> None:
        self._lives_s, self._most, self._waits, self._mark = lives_s, most, waits, mark
        self._secrets: dict[str, Secret] = {}

    def create(self, session: str) -> Secret | None:
        """A new secret; None if there are too many."""
        for value in [value for value, secret in self._secrets.items() if self._is_over(secret)]:
            del self._secrets[value]
        if len(self._secrets) >= self._most:
            return None
        secret = Secret(session, time.time() + self._lives_s, mark=self._mark)
        self._secrets[secret.value] = secret
        return secret

    def take(self, value: str) -> Secret | None:
        """The secret, which is used from now on; None if it is wrong, was used or is too old."""
        secret = self._secrets.pop(value, None)
        return None if secret is None or self._is_over(secret) else secret

    def put_back(self, secret: Secret, ticket: str = "") -> None:
        """It opened no call: it can be used again. ticket: its owner waits in the line."""
        secret.ticket = ticket
        self._secrets[secret.value] = secret

    def _is_over(self, secret: Secret) -> bool:
        return time.time() > secret.expires and not (secret.ticket and self._waits(secret.ticket))
