"""Cooldowns that lie in Redis, each under a key that ends with it: for processes that did not hear when it began.

No failure of Redis leaves this file: it is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson

from tianji_mw.counters.lua import key_of
from tianji_mw.redis.errors import Command, RedisFailed
from tianji_mw.routing.news import Cooled, cooled_of, said
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.redis.client import Redis

#: Commands in one go; each has the client's whole time.
_AT_ONCE: Final = 1_000


class SharedCooldowns:
    """Named by deployment ids."""

    def __init__(self, redis: Redis, runtime: Runtime, prefix: str) -> None:
        self._redis, self._runtime, self._prefix = redis, runtime, prefix

    async def put(self, cooled: Sequence[Cooled]) -> bool:
        """Whether all of them lie there now."""
        commands: list[tuple[str, Command]] = []
        for one in cooled:
            name, left_ms = self._name(one.id), max(1, round(one.seconds * 1000))
            commands.append((name, ("SET", name, orjson.dumps(said(one)), "PX", left_ms)))
        return not any(isinstance(answer, RedisFailed) for answer in await self._run(commands))

    async def read(self, ids: Iterable[str]) -> dict[str, Cooled | None]:
        """What holds for each id; those that could not be read are missing."""
        asked = [*ids]
        names = [self._name(name) for name in asked]
        answers = await self._run([(name, (verb, name)) for name in names for verb in ("GET", "PTTL")])
        found: dict[str, Cooled | None] = {}
        for name, value, left_ms in zip(asked, answers[::2], answers[1::2], strict=True):
            if not isinstance(value, RedisFailed) and not isinstance(left_ms, RedisFailed):
                found[name] = self._cooled(name, value, left_ms / 1000) if value is not None and left_ms > 0 else None
        return found

    def _cooled(self, name: str, value: bytes, left_s: float) -> Cooled | None:
        try:
            return cooled_of(orjson.loads(value))._replace(id=name, seconds=left_s)
        except ValueError:
            self._runtime.count("routing_messages", "malformed")
            return None

    async def _run(self, commands: list[tuple[str, Command]]) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(commands), _AT_ONCE):
            answers += await self._redis.run_many(commands[start : start + _AT_ONCE])
        failed = next((answer for answer in answers if isinstance(answer, RedisFailed)), None)
        if failed is not None:
            self._runtime.count("routing_errors", f"cooldowns {failed.kind}")
        return answers

    def _name(self, deployment_id: str) -> str:
        return key_of(self._prefix, deployment_id, "cooldown")
