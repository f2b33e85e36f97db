"""What goes wrong with Redis, in one type, for callers that need not know redis-py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

#: A command's name and arguments.
Arg = str | bytes | int | float
Command = Sequence[Arg]

Kind = Literal["timeout", "unreachable", "full", "refused", "error"]


class RedisFailed(Exception):
    """An operation failed. `message` names the server and the cure; never a key, a value or a password.

    `kind`: `timeout`, `unreachable`, `full` (maxmemory), `refused` (login, rights, a replica), or `error`.
    """

    def __init__(self, message: str, *, kind: Kind = "error", code: str = "", answer: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.kind: Kind = kind
        #: First word of the server's error answer, such as `NOSCRIPT`; empty when there was no answer.
        self.code = code
        #: The whole of it, for code that must tell errors apart. It may hold keys: not for logs.
        self.answer = answer


class RedisDown(RedisFailed):
    """The node is known not to work, so nothing was sent. A probe in the background finds out when it works again."""


class KeysApart(ValueError):
    """Keys of one script lie in several hash slots, which a cluster refuses: give them one hash tag (`tagged`)."""
