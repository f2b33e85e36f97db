"""An index in this process: no server, and kept over restarts where `path` is set.

A search takes about 1 ms among 100,000 points of one partition, and less among fewer; see `_sketches.py` for how. It
is not shared: each process has its own points. The first process to open `path` has it, others stay in memory.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from tianji_mw.cache.indexes._saved import FileInUse, Row, Saved
from tianji_mw.cache.indexes.base import IndexFailed, Match, Point, VectorIndex
from tianji_mw.errors import MissingExtra
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tianji_mw.cache.indexes._sketches import Sketches

log = logging.getLogger("tianji_mw.cache")

_WHO: Final = "semantic index"
#: Points handled between two looks at what else there is to do: under 1 ms.
_AT_ONCE: Final = 16


class Embedded(VectorIndex):
    """Points in memory, and in a file.

    >>> Embedded(path="/var/lib/tianji/index", max_points=50_000).instant
    True
    """

    instant: ClassVar[bool] = True

    #: A folder of its own for the file; none: memory only. Not on a network file system, which has no locks to trust.
    path: Path | None = None
    #: Beyond these, the points that were found or added the longest ago go.
    max_points: int = Field(default=100_000, ge=1, le=1_000_000)
    max_bytes: int = Field(default=256 << 20, ge=1 << 16)
    #: Seconds between writes, and so what a killed process may lose; also how long expired points may take up room.
    flush_interval_s: float = Field(default=1.0, ge=0.01, le=3600)

    _runtime: Any = PrivateAttr(default=None)
    _table: Sketches | None = PrivateAttr(default=None)
    _saved: Saved | None = PrivateAttr(default=None)
    _changes: dict[tuple[str, str], Row | None] = PrivateAttr(default_factory=dict)
    _stopping: asyncio.Event = PrivateAttr(default_factory=asyncio.Event)
    _tending: asyncio.Task[None] | None = PrivateAttr(default=None)
    _dims: int = PrivateAttr(default=0)

    async def start(self, runtime: Runtime, *, model_id: str, dims: int) -> None:
        """Take the points of the file. One that cannot be used is counted, and stops nothing. Raises MissingExtra."""
        try:
            from tianji_mw.cache.indexes._sketches import Sketches
        except ModuleNotFoundError as error:
            raise MissingExtra(error.name or "numpy", "semantic") from None
        self._runtime, self._dims = runtime, dims
        table = Sketches(dims, self.max_points, self.max_bytes)
        if self.path is not None:
            table = await asyncio.to_thread(self._load, self.path, table, model_id, dims)
        self._table = table
        self._stopping.clear()
        self._tending = asyncio.create_task(self._tend(), name="tianji:index")

    async def aclose(self) -> None:
        tending, self._tending = self._tending, None
        self._stopping.set()
        if tending is not None:
            await tending
            await self._flush()
        saved, self._saved, self._table = self._saved, None, None
        self._changes = {}
        if saved is not None:
            await asyncio.to_thread(saved.close)

    async def search(self, partition: str, vector: NDArray[np.float32], k: int) -> list[Match]:
        """The nearest points of the partition. Raises IndexFailed for a vector of another size."""
        return self._opened(vector).search(partition, vector, k, self._runtime.wall())

    async def add(self, points: Sequence[Point]) -> None:
        """Keep them. Raises IndexFailed for a vector of another size or without direction, and a point too large."""
        from tianji_mw.cache.indexes._sketches import packed

        for count, point in enumerate(points, 1):
            table, expires = self._opened(point.vector), self._runtime.wall() + point.ttl_s
            try:
                vector = packed(point.vector)
                gone = table.add(point.partition, point.id, vector, point.payload, expires)
            except ValueError as error:
                raise IndexFailed(f"the index does not take {error}") from None
            for place in gone:
                self._note(place, None)
            if self._saved is not None:
                row = Row(vector.values.tobytes(), vector.scale, point.payload, expires)
                self._note((point.partition, point.id), row)
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)

    async def delete(self, partition: str, ids: Sequence[str]) -> None:
        await self._remove([(partition, name) for name in ids])

    async def purge(self, partition_prefix: str) -> int:
        table = self._opened()
        return sum(
            [
                await self._remove([(partition, name) for name in table.points(partition)])
                for partition in table.beginning(partition_prefix)
            ]
        )

    async def ping(self) -> None:
        self._opened()

    async def report(self) -> dict[str, Any]:
        table = self._opened()
        return {
            "points": len(table),
            "partitions": table.partitions,
            "bytes": table.bytes,
            "evicted": table.evicted,
            "persisted": self._saved is not None,
        }

    # --- inside

    def _opened(self, vector: NDArray[np.float32] | None = None) -> Sketches:
        if self._table is None:
            raise IndexFailed("the index is not open")
        if vector is not None and vector.shape != (self._dims,):
            raise IndexFailed(f"the index holds vectors of {self._dims} dimensions, and this one is {vector.shape}")
        return self._table

    async def _remove(self, places: Sequence[tuple[str, str]]) -> int:
        table, removed = self._opened(), 0
        for count, (partition, name) in enumerate(places, 1):
            if table.remove(partition, name):
                self._note((partition, name), None)
                removed += 1
            if count % (8 * _AT_ONCE) == 0:
                await asyncio.sleep(0)
        return removed

    def _note(self, place: tuple[str, str], row: Row | None) -> None:
        if self._saved is not None:
            self._changes[place] = row

    def _load(self, folder: Path, table: Sketches, model_id: str, dims: int) -> Sketches:
        """The table with what the file holds, in a thread. Without a file the index works in memory."""
        import numpy as np

        from tianji_mw.cache.indexes._sketches import Packed

        try:
            saved = self._saved = Saved(folder, model_id, dims)
            for partition, name, row in saved.points(self._runtime.wall()):
                values = np.frombuffer(row.vector, np.int8)
                if len(values) == dims:
                    for place in table.add(partition, name, Packed(values, row.scale), row.payload, row.expires):
                        self._note(place, None)
        except FileInUse:
            self._without_file("another process has its file; points are kept in memory only")
            return table
        except (OSError, sqlite3.Error, ValueError, TypeError) as error:
            self._without_file(f"its file cannot be used ({type(error).__name__}); points are kept in memory only")
            return table
        if saved.lost:
            self._runtime.count("index_set_aside", saved.lost)
            log.warning("%s: the file was %s; the index begins empty", _WHO, saved.lost)
        return table

    def _without_file(self, trouble: str) -> None:
        saved, self._saved = self._saved, None
        if saved is not None:
            saved.close()
        self._changes = {}
        self._runtime.count("index_file_failures", "open")
        self._runtime.report(_WHO, trouble)
        log.warning("%s: %s", _WHO, trouble)

    async def _tend(self) -> None:
        """Free what has expired and write what has changed, every now and then."""
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(self.flush_interval_s):
                    await self._stopping.wait()
            except TimeoutError:
                pass
            while gone := self._opened().expired(self._runtime.wall(), 8 * _AT_ONCE):
                await self._remove(gone)
            await self._flush()

    async def _flush(self) -> None:
        saved, changes = self._saved, self._changes
        if saved is None or not changes:
            return
        self._changes = {}
        try:
            await asyncio.to_thread(saved.write, changes)
            self._runtime.report(_WHO, "")
            return
        except sqlite3.Error as error:
            trouble = f"its file cannot be written ({type(error).__name__})"
        self._changes = {**changes, **self._changes}
        self._runtime.count("index_file_failures", "write")
        self._runtime.report(_WHO, trouble)
        if len(self._changes) > 2 * self.max_points:
            # Too much to remember: a file that is behind would bring back what was deleted.
            self._saved, self._changes = None, {}
            await asyncio.to_thread(saved.abandon)
            log.warning("%s: %s for too long; it is removed, and points are kept in memory only", _WHO, trouble)
