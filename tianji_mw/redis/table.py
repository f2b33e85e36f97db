"""The table of slots: which node serves which, kept up to date, and told to the probes of the process."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from tianji_mw.redis.connections import Connect
from tianji_mw.redis.errors import RedisDown, RedisFailed
from tianji_mw.redis.node import Node
from tianji_mw.redis.settings import Address, RedisSettings
from tianji_mw.redis.slots import SLOTS, slot_of
from tianji_mw.redis.topology import Topology
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.redis")

_MOVED_PAUSE_NS: Final = 500_000_000
_FIND_AGAIN_S: Final = (0.25, 0.5, 1.0, 2.0, 5.0)


class Table:
    """The primaries and their slots. One server is a table with one node for all slots."""

    def __init__(self, settings: RedisSettings, runtime: Runtime, connect: Connect, topology: Topology) -> None:
        #: The primaries.
        self.nodes: dict[Address, Node] = {}
        #: The one node of what is no cluster.
        self.only: Node | None = None
        #: Looking again may find another answer.
        self.moves = topology.moves
        self._settings, self._runtime = settings, runtime
        self._connect, self._topology = connect, topology
        self._by_slot: list[Node | None] = [None] * SLOTS
        self._looking: asyncio.Task[None] | None = None
        self._next_look_ns = 0
        #: Why the servers are not known.
        self._unknown: RedisFailed | None = None

    def slot(self, key: str) -> int:
        """The slot of a key; 0 where it makes no difference."""
        return 0 if self.only is not None else slot_of(key)

    def of(self, slot: int) -> Node | None:
        """Who serves this slot, as far as is known."""
        return self.only or self._by_slot[slot]

    def node(self, address: Address) -> Node:
        """The node at this address, which is taken in if it is new."""
        node = self.nodes.get(address)
        if node is None:
            look = self.refresh if self.moves else _nothing
            node = self.nodes[address] = Node(
                address, self._connect, self._settings, self._runtime, changed=self._changed, look=look
            )
        return node

    def moved(self, slot: int, node: Node) -> None:
        """A server said that this slot is there now. Others may have moved too: look, but not for each of them."""
        self._by_slot[slot] = node
        now = self._runtime.clock()
        if now >= self._next_look_ns:
            self._next_look_ns = now + _MOVED_PAUSE_NS
            self.look()

    def nowhere(self) -> RedisDown:
        """What calls get for a slot that nobody serves."""
        reason = self._unknown
        if reason is None:
            return RedisDown(f"Redis at {self._settings.where}: no node serves this slot now", kind="unreachable")
        return RedisDown(reason.message, kind=reason.kind, code=reason.code)

    # --- looking

    async def open(self) -> None:
        """Look once, and go on in the background if there is no answer."""
        await self.refresh()
        if not self.nodes:
            self._runtime.spawn(f"redis-topology {self._settings.where}", self._find)

    async def refresh(self) -> None:
        """Find out where the servers are by now. It raises nothing: without an answer the table stays as it is."""
        await asyncio.wait((self.look(),))

    def look(self) -> asyncio.Task[None]:
        """The running look, or a new one; whoever wants one meanwhile shares it."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look(), name="tianji:redis-topology")
        return self._looking

    async def aclose(self) -> None:
        """Stop looking, and close the connections of all nodes."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        for node in self.nodes.values():
            await node.aclose()

    async def _look(self) -> None:
        known = [address for address, node in self.nodes.items() if node.trouble is None]
        try:
            ranges = await self._topology.ranges(known)
        except RedisFailed as error:
            if not self.nodes:
                if self._unknown is None:
                    log.warning("%s; calls continue without it", error.message)
                self._unknown = error
                self._tell()
            return
        by_slot: list[Node | None] = [None] * SLOTS
        for first, last, address in ranges:
            by_slot[first : last + 1] = [self.node(address)] * (last + 1 - first)
        self._by_slot, self._unknown = by_slot, None
        if self._settings.mode != "cluster":
            self.only = by_slot[0]
        used = {node.address for node in by_slot if node is not None}
        for address in [address for address in self.nodes if address not in used]:
            await self.nodes.pop(address).aclose()
        self._tell()

    async def _find(self) -> None:
        pauses = iter(_FIND_AGAIN_S)
        while not self.nodes:
            await self._runtime.sleep(next(pauses, _FIND_AGAIN_S[-1]))
            await self.refresh()
        log.info("Redis at %s is found", self._settings.where)

    # --- telling

    def _changed(self, node: Node) -> None:
        if node.trouble is None:
            log.info("Redis at %s answers again", node.where)
        else:
            log.warning("%s; calls continue without it", node.trouble.message)
        self._tell()

    def _tell(self) -> None:
        down = [node.trouble.message for node in self.nodes.values() if node.trouble is not None]
        text = self._unknown.message if self._unknown is not None else down[0] if down else ""
        if len(down) > 1:
            text += f" (and {len(down) - 1} more of {len(self.nodes)} nodes)"
        self._runtime.report(f"redis {self._settings.where}", text and f"{text}; calls continue without it")


async def _nothing() -> None:
    """One server stays where it is."""
