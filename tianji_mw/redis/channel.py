"""Pub/sub: messages of one channel, for as long as the server is there, over a connection of its own.

Messages that were sent while it was not connected are lost; whoever listens is told that there may have been some.
On a cluster it is sharded pub/sub (Redis 7), so that a message goes to one shard and not to all nodes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from redis import exceptions as sdk
from redis.asyncio import Connection

from tianji_mw.redis.client import Redis
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.redis.failures import failure_of

log = logging.getLogger("tianji_mw.redis")

#: Silence after which the server is asked whether it is there, and again as much to answer.
_QUIET_S: Final = 1.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 5.0


class Channel:
    """One channel. `heard` gets every message; `joined` is called before the first one after each (new) connection."""

    def __init__(
        self,
        redis: Redis,
        name: str,
        *,
        heard: Callable[[bytes], Awaitable[None]],
        joined: Callable[[], Awaitable[None]],
    ) -> None:
        self.name = name
        #: When the server was last heard, in nanoseconds of the runtime's clock; None before that.
        self.heard_ns: int | None = None
        self._redis, self._heard, self._joined = redis, heard, joined
        self._sharded = redis.settings.mode == "cluster"
        #: Whether it is connected, as far as it was said in the log.
        self._well: bool | None = None
        self._connection: Connection | None = None
        self._closed = asyncio.Event()

    async def send(self, message: bytes) -> None:
        """To everybody who listens, this process among them. Raises RedisFailed."""
        if self._sharded:
            try:
                await self._redis.run("SPUBLISH", self.name, message, key=self.name)
                return
            except RedisFailed as error:
                self._plain_from_now(error)
        await self._redis.run("PUBLISH", self.name, message, key=self.name)

    async def listen(self) -> None:
        """Listen for ever, connecting anew with pauses; run it as a background task."""
        pause_s = _FIRST_PAUSE_S
        while not self._closed.is_set():
            began = self._redis.runtime.clock()
            try:
                await self._listened()
            except RedisFailed as error:
                if self._closed.is_set():
                    return
                self._redis.runtime.count("redis_errors", f"subscribe {error.kind}")
                if self._well is not False:
                    log.warning("%s; nothing comes over channel %s now", error.message, self.name)
                self._well = False
            if self._closed.is_set():
                return
            lasted_s = (self._redis.runtime.clock() - began) / 1e9
            pause_s = _FIRST_PAUSE_S if lasted_s > 2 * _LONGEST_PAUSE_S else min(pause_s * 1.5, _LONGEST_PAUSE_S)
            await self._redis.runtime.sleep(pause_s * self._redis.runtime.rng.uniform(0.8, 1.0))
            await self._redis.table.refresh()

    async def aclose(self) -> None:
        """End `listen`."""
        self._closed.set()
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def _listened(self) -> None:
        """Until the connection breaks. Raises RedisFailed."""
        node = self._redis.node_of(self.name)
        connection = self._connection = self._redis.connect(node.address)
        try:
            await self._subscribed(connection)
            while True:
                await self._next(connection)
        except TimeoutError:
            raise RedisFailed(f"Redis at {node.where}: the subscription fell silent", kind="timeout") from None
        except sdk.RedisError as error:
            raise failure_of(error, node.where) from None
        finally:
            self._connection = None
            await connection.disconnect(nowait=True)

    async def _subscribed(self, connection: Connection) -> None:
        async with asyncio.timeout(self._redis.settings.probe_timeout_s):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_command("SSUBSCRIBE" if self._sharded else "SUBSCRIBE", self.name)
            try:
                await connection.read_response(disable_decoding=True)
            except sdk.ResponseError as error:
                self._plain_from_now(failure_of(error, connection.host))
                return await self._subscribed(connection)
        if self._well is False:
            log.info("Redis: channel %s works again", self.name)
        self._well = True
        await self._joined()
        self.heard_ns = self._redis.runtime.clock()
        return None

    async def _next(self, connection: Connection) -> None:
        answer = await connection.read_response(disable_decoding=True, timeout=_QUIET_S)
        if answer is None:
            await connection.send_command("PING")
            answer = await connection.read_response(disable_decoding=True, timeout=_QUIET_S)
            if answer is None:
                raise TimeoutError
        self.heard_ns = self._redis.runtime.clock()
        if answer[0] in (b"message", b"smessage"):
            await self._heard(answer[2])
        elif answer[0] == b"sunsubscribe":  # its slot went to another node
            raise RedisFailed("Redis: the channel has moved", kind="unreachable")

    def _plain_from_now(self, error: RedisFailed) -> None:
        """A server before Redis 7 has no sharded pub/sub; any other error is raised."""
        if not self._sharded or error.code != "ERR" or "unknown command" not in error.answer.lower():
            raise error
        self._sharded = False
