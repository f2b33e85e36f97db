"""Pins that all processes share, in Redis: which deployment a key belongs to. Read at once, written in the background.

No failure of Redis leaves this file: it is counted, and a pin that was not found is none.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tianji_mw.redis.errors import Command, RedisFailed
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis

#: Pins that wait to be written; more are not written.
_MOST_OWED: Final = 10_000
_AT_ONCE: Final = 500
_CLOSE_S: Final = 2.0


class _Owed(NamedTuple):
    id: str
    ttl_s: float
    move: bool
    heard: Callable[[str], None]


class SharedPins:
    """The keys may be long and hold names of people: Redis sees their hashes."""

    def __init__(self, redis: Redis, runtime: Runtime, prefix: str) -> None:
        self._redis, self._runtime, self._prefix = redis, runtime, prefix
        self._owed: dict[str, _Owed] = {}
        self._writing: asyncio.Task[None] | None = None

    async def find(self, keys: Sequence[str]) -> list[str | None]:
        """The deployment ids of these keys, in one round trip to each server."""
        named = [self._name(key) for key in keys]
        return [self._text(answer) for answer in await self._run([(name, ("GET", name)) for name in named])]

    def put(self, key: str, deployment_id: str, ttl_s: float, *, move: bool, heard: Callable[[str], None]) -> None:
        """Pin the key soon; one that is pinned elsewhere only with `move`. `heard` is told who has it then."""
        if len(self._owed) >= _MOST_OWED:
            self._runtime.count("routing_errors", "pins dropped")
            return
        self._owed[key] = _Owed(deployment_id, ttl_s, move, heard)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="tianji:routing-pins")

    async def aclose(self) -> None:
        """Write what is owed, if that goes fast."""
        if self._writing is not None and not self._writing.done():
            await asyncio.wait((self._writing,), timeout=_CLOSE_S)
            self._writing.cancel()

    async def _write(self) -> None:
        while self._owed:
            keys = list(self._owed)[:_AT_ONCE]
            batch = [(key, self._owed.pop(key)) for key in keys]
            commands = [command for key, owed in batch for command in _commands(self._name(key), owed)]
            answers = await self._run(commands)
            for place, (_, owed) in enumerate(batch):
                found = self._text(answers[3 * place + 1])
                if found is not None:
                    owed.heard(found)

    async def _run(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        answers = await self._redis.run_many(commands)
        failed = next((answer for answer in answers if isinstance(answer, RedisFailed)), None)
        if failed is not None:
            self._runtime.count("routing_errors", f"pins {failed.kind}")
        return answers

    def _name(self, key: str) -> str:
        return f"{self._prefix}:pin:{hashlib.blake2b(key.encode('utf-8', 'replace'), digest_size=16).hexdigest()}"

    @staticmethod
    def _text(answer: Any) -> str | None:
        return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else None


def _commands(name: str, owed: _Owed) -> list[tuple[str, Command]]:
    """Set, get and prolong; `NX` with `GET` in one command needs Redis 7."""
    ttl_ms = max(1, round(owed.ttl_s * 1000))
    only = () if owed.move else ("NX",)
    return [
        (name, ("SET", name, owed.id, "PX", ttl_ms, *only)),
        (name, ("GET", name)),
        (name, ("PEXPIRE", name, ttl_ms)),
    ]
