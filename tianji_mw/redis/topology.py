"""Finds out which server serves which hash slots: by configuration, from Sentinels, or from the nodes of a cluster.

Sources: Redis documentation, CLUSTER SLOTS, ROLE, and "Guidelines for Redis clients with support for Sentinel".
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, Protocol, TypeVar

from redis import exceptions as sdk

from tianji_mw.redis.connections import Connect, answer_of, connector
from tianji_mw.redis.errors import RedisFailed
from tianji_mw.redis.failures import failure_of
from tianji_mw.redis.settings import Address, RedisSettings, shown
from tianji_mw.redis.slots import SLOTS
from tianji_mw.runtime import Runtime

T = TypeVar("T")

#: First slot, last slot, and who serves them.
Range = tuple[int, int, Address]

#: So many servers are asked at the same time; the first that knows is believed.
_ASKED: Final = 5


class Topology(Protocol):
    """Where the primaries are."""

    #: Asking again may give another answer.
    moves: bool

    async def ranges(self, known: Sequence[Address]) -> list[Range]:
        """Who serves which slots. `known`: servers that worked a moment ago. Raises RedisFailed."""


class _Single:
    moves = False

    def __init__(self, address: Address) -> None:
        self._ranges: list[Range] = [(0, SLOTS - 1, address)]

    async def ranges(self, known: Sequence[Address]) -> list[Range]:
        return self._ranges


class _Sentinels:
    moves = True

    def __init__(self, settings: RedisSettings, runtime: Runtime, to_sentinel: Connect, to_server: Connect) -> None:
        self._nodes, self._name = settings.sentinel_nodes, settings.service_name
        self._timeout_s, self._runtime = settings.probe_timeout_s, runtime
        self._to_sentinel, self._to_server = to_sentinel, to_server

    async def ranges(self, known: Sequence[Address]) -> list[Range]:
        address = await _first(self._primary(node) for node in _some(self._nodes, self._runtime))
        return [(0, SLOTS - 1, address)]

    async def _primary(self, sentinel: Address) -> Address:
        where = f"sentinel {shown(sentinel)}"
        command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
        found = await _asked(self._to_sentinel, sentinel, where, self._timeout_s, *command)
        if not found:
            raise RedisFailed(f"Redis {where}: it watches nothing named service_name; check it", kind="refused")
        address = found[0].decode(), int(found[1])
        # A sentinel that was cut off may still name the old one.
        role = await _asked(self._to_server, address, shown(address), self._timeout_s, "ROLE")
        if role[0] != b"master":
            raise RedisFailed(f"Redis at {shown(address)}: it is a replica, and no primary yet", kind="unreachable")
        return address


class _Cluster:
    moves = True

    def __init__(self, settings: RedisSettings, runtime: Runtime, connect: Connect) -> None:
        self._startup, self._timeout_s = settings.startup_nodes, settings.probe_timeout_s
        self._runtime, self._connect = runtime, connect

    async def ranges(self, known: Sequence[Address]) -> list[Range]:
        # Those that work now come first; the configured ones are for when all of these have gone.
        candidates = dict.fromkeys((*_some(known, self._runtime), *_some(self._startup, self._runtime)))
        return await _first(self._told(node) for node in candidates)

    async def _told(self, node: Address) -> list[Range]:
        answer = await _asked(self._connect, node, shown(node), self._timeout_s, "CLUSTER", "SLOTS")
        if not answer:
            raise RedisFailed(f"Redis at {shown(node)}: it knows of no slots, so it is in no cluster yet")
        # A node that does not know its own name leaves it out: it is the one that was asked.
        return [
            (int(first), int(last), (primary[0].decode() if primary[0] else node[0], int(primary[1]) or node[1]))
            for first, last, primary, *_ in answer
        ]


async def topology_of(settings: RedisSettings, runtime: Runtime, connect: Connect) -> Topology:
    """The kind of topology that the settings name. Raises SetupError."""
    if settings.mode == "cluster":
        return _Cluster(settings, runtime, connect)
    if settings.mode == "sentinel":
        return _Sentinels(settings, runtime, await connector(settings, sentinel=True), connect)
    return _Single((settings.host, settings.port))


def _some(addresses: Sequence[Address], runtime: Runtime) -> list[Address]:
    return runtime.rng.sample(addresses, min(_ASKED, len(addresses)))


async def _first(questions: Iterable[Coroutine[Any, Any, T]]) -> T:
    """The first answer of all that are asked; the last failure when none answers."""
    tasks = [asyncio.ensure_future(question) for question in questions]
    failed: RedisFailed | None = None
    try:
        for next_done in asyncio.as_completed(tasks):
            try:
                return await next_done
            except RedisFailed as error:
                failed = error
            except (AttributeError, IndexError, TypeError, ValueError):
                failed = RedisFailed("Redis: the answer that says where its servers are cannot be read")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    raise failed or RedisFailed("Redis: there is nobody to ask", kind="unreachable")


async def _asked(connect: Connect, address: Address, where: str, timeout_s: float, *command: str) -> Any:
    """One question over a connection of its own: it must work while a node's breaker is open."""
    connection = connect(address)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()  # type: ignore[no-untyped-call]
            await connection.send_packed_command(connection.pack_command(*command), check_health=False)
            answer = await answer_of(connection)
            if isinstance(answer, sdk.ResponseError):
                raise answer
            return answer
    except TimeoutError:
        raise RedisFailed(f"Redis at {where}: no answer within {timeout_s:g} s", kind="timeout") from None
    except sdk.RedisError as error:
        raise failure_of(error, where) from None
    finally:
        await connection.disconnect(nowait=True)
