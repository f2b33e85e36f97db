"""One server: its connections, and the breaker that keeps calls away from it while it does not work.

The first operation that takes too long, or that a new connection cannot be made for, opens the breaker. From then on
every operation fails at once, and a task in the background asks until the server answers again: no call pays for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

from redis import exceptions as sdk
from redis.asyncio import Connection

from tianji_mw.alarms import TICK_S
from tianji_mw.redact import Secret
from tianji_mw.redis.connections import Connect, answer_of
from tianji_mw.redis.errors import Command, RedisDown, RedisFailed
from tianji_mw.redis.failures import failure_of
from tianji_mw.redis.settings import Address, RedisSettings, shown
from tianji_mw.runtime import Runtime

#: Pauses of the probe.
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0
_PAUSE_GROWS: Final = 1.5
#: An operation that was interrupted so much later than planned was held up by us and not by the server.
_STALL_S: Final = 3 * TICK_S


class Lost(Exception):
    """A connection that had worked before broke, as when the server starts anew. Nothing is known of the answer."""


class Node:
    """The server at one address.

    `changed` is called when the breaker opens or closes; `look` before each question of the probe, to find out where
    the servers are by now.
    """

    def __init__(
        self,
        address: Address,
        connect: Connect,
        settings: RedisSettings,
        runtime: Runtime,
        *,
        changed: Callable[[Node], None],
        look: Callable[[], Awaitable[None]],
    ) -> None:
        self.address = address
        self.where = shown(address)
        #: Why calls are kept away; None when they are not.
        self.trouble: RedisFailed | None = None
        #: It is out of use.
        self.closed = False
        self._connect, self._runtime = connect, runtime
        self._password: Secret | None = settings.password
        self._probe_timeout_s = settings.probe_timeout_s
        self._changed, self._look = changed, look
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(settings.max_connections)

    async def ask(self, commands: Sequence[Command], within_s: float) -> list[Any]:
        """The answers of one round trip, errors of the server among them.

        Raises Lost, and RedisFailed: RedisDown at once when calls are kept away, else after `within_s` at most.
        """
        if self.trouble is not None:
            raise self.down()
        clock = self._runtime.clock
        began, sent = clock(), False
        try:
            with self._runtime.alarms.within(max(within_s - TICK_S, within_s / 2)):
                async with self._free:
                    sent = True
                    return await self._exchange(commands)
        except TimeoutError:
            slow = RedisFailed(f"Redis at {self.where}: no answer within {within_s * 1000:.0f} ms", kind="timeout")
            if sent and (clock() - began) / 1e9 < within_s + _STALL_S:
                await self._open_breaker(slow)
            raise slow from None
        # redis-py's TimeoutError is the kernel's ETIMEDOUT; what speaks another protocol is no server of ours.
        except (sdk.ConnectionError, sdk.TimeoutError, sdk.InvalidResponse) as error:
            failed = failure_of(error, self.where)
            await self._open_breaker(failed)
            raise failed from None
        except sdk.RedisError as error:
            raise failure_of(error, self.where) from None

    def down(self) -> RedisDown:
        """What calls get while they are kept away."""
        reason = self.trouble
        if reason is None:
            return RedisDown(f"Redis at {self.where}: it is no node any more", kind="unreachable")
        return RedisDown(reason.message, kind=reason.kind, code=reason.code)

    async def aclose(self) -> None:
        """Close its connections; those in use end with their operation."""
        self.closed = True
        await self._drop_idle()

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        used = bool(self._idle)
        connection = self._idle.pop() if used else self._connect(self.address)
        try:
            if not used:
                await connection.connect()  # type: ignore[no-untyped-call]
            packed = connection.pack_commands(cast("Any", commands))
            await connection.send_packed_command(packed, check_health=False)
            answers = [await answer_of(connection) for _ in commands]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if used and type(error) in (sdk.ConnectionError, sdk.TimeoutError):  # a subclass is an answer
                await self._drop_idle()  # the others broke with it
                raise Lost from None
            raise
        if self.closed or self.trouble is not None:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)
        return answers

    async def _drop_idle(self) -> None:
        while self._idle:
            await self._idle.pop().disconnect(nowait=True)

    # --- the breaker

    async def _open_breaker(self, reason: RedisFailed) -> None:
        if self.trouble is not None or self.closed:
            return
        self.trouble = reason
        self._runtime.spawn(f"redis-probe {self.where}", self._probe)
        self._changed(self)
        await self._drop_idle()

    async def _probe(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._away():
            # Spread, so that the processes of a fleet do not come back in step.
            await self._runtime.sleep(pause_s * self._runtime.rng.uniform(0.8, 1.0))
            pause_s = min(pause_s * _PAUSE_GROWS, _LONGEST_PAUSE_S)
            await self._look()
            if self._away():
                await self._ask_again()

    def _away(self) -> bool:
        """Calls are kept away, and may come back."""
        return self.trouble is not None and not self.closed

    async def _ask_again(self) -> None:
        """Close the breaker if the server answers."""
        connection = self._connect(self.address)
        try:
            async with asyncio.timeout(self._probe_timeout_s):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(connection.pack_command("PING"), check_health=False)
                answer = await answer_of(connection)
                if isinstance(answer, sdk.ResponseError) and not isinstance(answer, sdk.NoPermissionError):
                    raise answer
        except TimeoutError:
            await connection.disconnect(nowait=True)
        except sdk.RedisError as error:
            await connection.disconnect(nowait=True)
            self.trouble = failure_of(error, self.where)
            if self.trouble.kind == "refused" and self._password is not None:
                await self._password.renew()
        else:
            self.trouble = None
            self._idle.append(connection)
            if self.closed:
                await self._drop_idle()
            self._changed(self)
