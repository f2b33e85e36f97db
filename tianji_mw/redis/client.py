"""`Redis`: sends each command to the server of its key's slot, follows redirections, tries again where that helps.

One server, Sentinel and Cluster differ only in how the table of slots is filled. An operation takes `op_timeout_s` at
most, its retry included; what fails raises `RedisFailed`, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from redis import exceptions as sdk

from tianji_mw.redis.connections import Connect, connector
from tianji_mw.redis.errors import Arg, Command, RedisDown, RedisFailed
from tianji_mw.redis.failures import failure_of
from tianji_mw.redis.node import Lost, Node
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.redis.table import Table
from tianji_mw.redis.topology import Topology, topology_of
from tianji_mw.runtime import Runtime

#: Sends of one command: the first, one after a redirection or a failure, and one for a redirection after that.
_SENDS: Final = 3
#: Pause before a command of several keys goes again to a slot that is being moved.
_TRYAGAIN_S: Final = 0.02
_SCAN_COUNT: Final = 500


@dataclass(slots=True, eq=False)
class _Job:
    """One command on its way."""

    command: Command
    slot: int
    #: Running it twice does no harm.
    repeatable: bool = True
    #: An answer, an error of the server, Lost or RedisFailed.
    answer: Any = None
    #: Who got it.
    node: Node | None = None
    #: Who gets it next, in the place of the node of its slot.
    target: Node | None = None
    asking: bool = False
    #: It was sent again after a failure once.
    retried: bool = False


class Redis:
    """The client of one configuration; `tianji_mw.redis.shared` makes it."""

    def __init__(self, settings: RedisSettings, runtime: Runtime, connect: Connect, topology: Topology) -> None:
        self.settings = settings
        self.runtime = runtime
        self.connect = connect
        self.table = Table(settings, runtime, connect, topology)

    @classmethod
    async def open(cls, settings: RedisSettings, runtime: Runtime) -> Redis:
        """Find the servers and ask each; one that does not answer is left to its probe. Raises SetupError."""
        connect = await connector(settings)
        redis = cls(settings, runtime, connect, await topology_of(settings, runtime, connect))
        await redis.table.open()
        await asyncio.gather(*(redis._of(node, "PING", within_s=settings.probe_timeout_s) for node in redis.nodes))
        return redis

    async def aclose(self) -> None:
        """Close every connection."""
        await self.table.aclose()

    # --- commands

    async def run(self, *command: Arg, key: str, repeatable: bool = True) -> Any:
        """The answer of one command, in one round trip: bytes, int, list or None. Raises RedisFailed.

        `repeatable`: running it twice does no harm, so it may be sent again after a connection broke.
        """
        job = _Job(command, self.table.slot(key), repeatable)
        await self._send([job])
        if isinstance(job.answer, RedisFailed):
            raise job.answer
        return job.answer

    async def run_many(self, commands: Sequence[tuple[str, Command]]) -> list[Any]:
        """The answers of several (key, command), in their order: one round trip to each server, all at the same time.

        They are no transaction, and may be sent again. One that failed has its RedisFailed in the place of an answer.
        """
        jobs = [_Job(command, self.table.slot(key)) for key, command in commands]
        await self._send(jobs)
        return [job.answer for job in jobs]

    async def on_all(self, *command: Arg) -> dict[str, Any]:
        """The answer of every primary by its address, or its RedisFailed."""
        nodes = self.nodes
        answers = await asyncio.gather(*(self._of(node, *command) for node in nodes))
        return {node.where: answer for node, answer in zip(nodes, answers, strict=True)}

    async def scan(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, on every primary; some may come twice. Raises RedisFailed."""
        pattern = "".join(f"\\{c}" if c in "*?[]^\\" else c for c in prefix) + "*"
        if not self.nodes:
            raise self.table.nowhere()
        for node in self.nodes:
            cursor = b"0"
            while True:
                answer = await self._of(node, "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
                if isinstance(answer, RedisFailed):
                    raise answer
                cursor, keys = answer
                for key in keys:
                    yield key.decode("utf-8", "replace")
                if cursor == b"0":
                    break

    @property
    def nodes(self) -> list[Node]:
        """The primaries."""
        return list(self.table.nodes.values())

    def node_of(self, key: str) -> Node:
        """Who serves this key. Raises RedisDown when that is not known."""
        node = self.table.of(self.table.slot(key))
        if node is None:
            raise self.table.nowhere()
        return node

    # --- the way of a command

    async def _of(self, node: Node, *command: Arg, within_s: float | None = None) -> Any:
        """The answer of this node, or its RedisFailed."""
        for _ in range(2):
            job = _Job(command, 0)
            await self._ask(node, [job], within_s or self.settings.op_timeout_s)
            if not isinstance(job.answer, Lost):
                break
        self._settle(job)
        return job.answer

    async def _send(self, jobs: list[_Job]) -> None:
        clock = self.runtime.clock
        ends = clock() + int(self.settings.op_timeout_s * 1e9)
        left_s, waiting = self.settings.op_timeout_s, jobs
        for _ in range(_SENDS):
            await self._send_once(waiting, left_s)
            waiting = [job for job in waiting if isinstance(job.answer, Exception)]
            if waiting:
                waiting = await self._again(waiting, (ends - clock()) / 1e9)
            left_s = (ends - clock()) / 1e9
            if not waiting or left_s <= 0:
                break
        for job in jobs:
            if isinstance(job.answer, Exception):
                self._settle(job)

    async def _send_once(self, jobs: list[_Job], left_s: float) -> None:
        """Send each to its node. What comes of it stands in the jobs."""
        groups: dict[Node, list[_Job]] = {}
        for job in jobs:
            job.node = job.target or self.table.of(job.slot)
            if job.node is None:
                job.answer = self.table.nowhere()
            else:
                groups.setdefault(job.node, []).append(job)
        if len(groups) == 1:
            for node, group in groups.items():
                await self._ask(node, group, left_s)
        elif groups:
            await asyncio.gather(*(self._ask(node, group, left_s) for node, group in groups.items()))

    async def _ask(self, node: Node, jobs: list[_Job], left_s: float) -> None:
        commands: list[Command] = []
        for job in jobs:
            job.node = node
            if job.asking:
                commands.append(("ASKING",))
            commands.append(job.command)
        try:
            answers = iter(await node.ask(commands, left_s))
        except (RedisFailed, Lost) as error:
            for job in jobs:
                job.answer = error
            return
        for job in jobs:
            if job.asking:
                next(answers)
            job.answer = next(answers)

    async def _again(self, jobs: list[_Job], left_s: float) -> list[_Job]:
        """Those that are worth another send, pointed at where they should go."""
        again: list[_Job] = []
        look = pause = False
        for job in jobs:
            answer, job.target, job.asking = job.answer, None, False
            if isinstance(answer, sdk.AskError):  # MOVED is a kind of it in redis-py
                assert job.node is not None
                job.target = self.table.node((answer.host or job.node.address[0], answer.port))
                job.asking = not isinstance(answer, sdk.MovedError)
                if not job.asking:
                    self.table.moved(job.slot, job.target)
                again.append(job)
            elif isinstance(answer, sdk.TryAgainError):
                pause = True
                again.append(job)
            elif not job.retried and self._may_help(job):
                job.retried = True
                look = look or self.table.moves
                again.append(job)
        if pause:
            await self.runtime.sleep(_TRYAGAIN_S)
        if look and left_s > 0:
            await asyncio.wait((self.table.look(),), timeout=left_s)
        return [job for job in again if job.target is not None or not self._same_end(job)]

    def _may_help(self, job: _Job) -> bool:
        """Whether a second send may end better, and does no harm."""
        answer = job.answer
        if isinstance(answer, sdk.ClusterDownError | sdk.ReadOnlyError):
            return self.table.moves  # it was not run
        if not job.repeatable or isinstance(answer, RedisDown):
            return False
        if isinstance(answer, RedisFailed):
            return answer.kind == "unreachable" and self.table.moves
        return isinstance(answer, Lost)

    def _same_end(self, job: _Job) -> bool:
        """Whether it would go to a node that is known not to work."""
        node = self.table.of(job.slot)
        return node is None or node.trouble is not None

    def _settle(self, job: _Job) -> None:
        """Turn what went wrong into a RedisFailed, and count it."""
        answer = job.answer
        where = job.node.where if job.node is not None else self.settings.where
        if isinstance(answer, Lost):
            answer = job.answer = RedisFailed(f"Redis at {where}: the connection broke", kind="unreachable")
        elif isinstance(answer, sdk.RedisError):
            answer = job.answer = failure_of(answer, where)
        if isinstance(answer, RedisFailed):
            reason = "down" if isinstance(answer, RedisDown) else answer.kind
            self.runtime.count("redis_errors", f"{str(job.command[0]).lower()} {reason}")
