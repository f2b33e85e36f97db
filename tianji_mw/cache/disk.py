"""Answers in a folder of this machine: they survive a restart, and several processes may share them. SQLite.

For one machine. The least recently used go first; when an answer was used is known to the minute.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Final, TypeVar

from pydantic import Field, PrivateAttr

from tianji_mw.cache.base import CacheStore, StoreFailed
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.cache")

T = TypeVar("T")

_SCHEMA: Final = """
create table if not exists entries (
    key text primary key, value blob not null, size integer not null, expires real not null, used real not null
);
create index if not exists by_use on entries (used, size);
create index if not exists by_expiry on entries (expires);
"""
#: Seconds between two notes of when an entry was used.
_USED_S: Final = 60.0
#: Bytes of an entry beside its key and value, roughly.
_OVERHEAD: Final = 100
_BUSY_S: Final = 2.0
_CURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "timeout": "another process holds the file: end it, or give each its own cache_params.disk_cache_dir",
        "full": "make room on the disk, or set cache_params.disk_cache_dir",
        "refused": "set cache_params.disk_cache_dir",
    }
)
#: Keys of one page of a listing, and of one statement.
_PAGE: Final = 500


class Disk(CacheStore):
    """Entries in `cache.sqlite` of a folder.

    >>> Disk(disk_cache_dir="/var/cache/tianji").max_bytes
    1073741824
    """

    #: A disk under load takes longer than memory, and the first read after the start comes from it.
    read_timeout_s: ClassVar[float] = 1.0
    aliases: ClassVar[dict[str, str]] = {"disk_cache_dir": "folder"}

    #: Without one, `tianji` in the user's cache folder (XDG_CACHE_HOME).
    folder: Path | None = None
    max_bytes: int = Field(default=1 << 30, ge=1 << 16)
    #: A larger value is not kept.
    max_item_bytes: int = Field(default=8 << 20, ge=1)

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _db: sqlite3.Connection | None = PrivateAttr(default=None)
    _wall: Callable[[], float] = PrivateAttr(default=time.time)
    _runtime: Runtime | None = PrivateAttr(default=None)
    _counts: dict[str, int] = PrivateAttr(default_factory=lambda: {"evicted": 0, "refused": 0, "set_aside": 0})
    #: Bytes written since the bound was looked at: adding all sizes up takes milliseconds.
    _written: int = PrivateAttr(default=1 << 62)

    @property
    def path(self) -> Path:
        """The file."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return (self.folder or Path(home) / "tianji") / "cache.sqlite"

    async def start(self, runtime: Runtime) -> None:
        """Open the file. One that is damaged is set aside. Raises SetupError for a folder that cannot be used."""
        self._runtime, self._wall = runtime, runtime.wall
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tianji-cache-disk")
        try:
            await self._in_thread(self._open)
        except StoreFailed as error:
            await self.aclose()
            raise SetupError(f"cache on disk: {error.message}; {_CURES.get(error.kind, _CURES['refused'])}") from None

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.submit(self._close)
            await asyncio.to_thread(pool.shutdown)

    async def get(self, key: str) -> bytes | None:
        return await self._in_thread(self._get, key)

    async def get_many(self, keys: Sequence[str]) -> list[bytes | None]:
        return await self._in_thread(lambda: [self._get(key) for key in keys])

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await self.put_many([(key, value, ttl_s)])

    async def put_many(self, items: Sequence[tuple[str, bytes, float]]) -> None:
        await self._in_thread(self._put, items)

    async def delete(self, keys: Sequence[str]) -> int:
        return await self._in_thread(self._delete, keys)

    async def keys(self, prefix: str) -> AsyncIterator[str]:
        after = ""
        while page := await self._in_thread(self._page, prefix, after):
            for key in page:
                yield key
            after = page[-1]

    async def ping(self) -> None:
        await self._in_thread(lambda: self._opened().execute("select 1").fetchone())

    async def report(self) -> dict[str, Any]:
        return await self._in_thread(self._figures)

    # --- in its thread

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        if self._pool is None:
            raise StoreFailed("the cache on disk was not started")
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._tried, work, *arguments))

    def _tried(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return work(*arguments)
        except sqlite3.Error as error:
            if _damaged(error):
                self._set_aside()
                raise StoreFailed("the file was damaged and is set aside") from None
            full = isinstance(error, sqlite3.OperationalError) and "full" in str(error)
            kind = "full" if full else "timeout" if "locked" in str(error) else "error"
            raise StoreFailed(f"{self.path}: {error}", kind=kind) from None
        except OSError as error:
            kind = "full" if error.errno == errno.ENOSPC else "refused"
            raise StoreFailed(f"{self.path}: {error.strerror or type(error).__name__}", kind=kind) from None

    def _opened(self) -> sqlite3.Connection:
        if self._db is None:
            self._open()
        assert self._db is not None
        return self._db

    def _open(self) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            self._connect()
        except sqlite3.DatabaseError as error:
            if not _damaged(error):
                raise
            self._set_aside()
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connect()

    def _connect(self) -> None:
        self._db = db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        # What a power cut takes from a cache is no loss; a process that dies takes nothing.
        for pragma in ("journal_mode=wal", "synchronous=off", "journal_size_limit=16777216", "quick_check(1)"):
            db.execute(f"pragma {pragma}").fetchall()
        db.executescript(_SCHEMA)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def _set_aside(self) -> None:
        """Keep a damaged file for whoever wants to look at it, and begin anew."""
        with suppress(sqlite3.Error):
            self._close()
        self._db = None
        aside = self.path.with_suffix(f".damaged-{int(self._wall())}")
        with suppress(FileNotFoundError):
            self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self._counts["set_aside"] += 1
        if self._runtime is not None:
            self._runtime.count("cache_errors", "open corrupt")
        log.error("the cache's file was damaged; it is set aside as %s, and a new one begins", aside.name)

    def _get(self, key: str) -> bytes | None:
        db, now = self._opened(), self._wall()
        row = db.execute("select value, expires, used from entries where key = ?", (key,)).fetchone()
        if row is None or row[1] <= now:
            return None
        if now - row[2] > _USED_S:
            with suppress(sqlite3.OperationalError):  # another process writes: it is no reason to wait
                db.execute("update entries set used = ? where key = ?", (now, key))
        return bytes(row[0])

    def _put(self, items: Iterable[tuple[str, bytes, float]]) -> None:
        db, now = self._opened(), self._wall()
        rows, refused = [], []
        for key, value, ttl_s in items:
            if len(value) > self.max_item_bytes or ttl_s <= 0:
                refused.append((key,))
            else:
                rows.append((key, value, len(key) + len(value) + _OVERHEAD, now + ttl_s, now))
        self._counts["refused"] += len(refused)
        db.execute("begin immediate")
        try:
            db.executemany("delete from entries where key = ?", refused)  # an older value would be an untruth
            db.executemany("insert or replace into entries values (?, ?, ?, ?, ?)", rows)
            self._written += sum(row[2] for row in rows)
            if self._written > self.max_bytes // 100:
                self._evict(db, now)
                self._written = 0
            db.execute("commit")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("rollback")
            raise

    def _evict(self, db: sqlite3.Connection, now: float) -> None:
        (size,) = db.execute("select coalesce(sum(size), 0) from entries").fetchone()
        if size <= self.max_bytes:
            return
        db.execute("delete from entries where expires <= ?", (now,))
        (size,) = db.execute("select coalesce(sum(size), 0) from entries").fetchone()
        # A tenth more goes than has to, so that not every write looks for a victim.
        while size > self.max_bytes * 0.9:
            victims = db.execute("select key, size from entries order by used limit 64").fetchall()
            if not victims:
                break
            db.executemany("delete from entries where key = ?", [(key,) for key, _ in victims])
            size -= sum(taken for _, taken in victims)
            self._counts["evicted"] += len(victims)

    def _delete(self, keys: Sequence[str]) -> int:
        db, count, now = self._opened(), 0, self._wall()
        for at in range(0, len(keys), _PAGE):
            some = list(keys[at : at + _PAGE])
            marks = ",".join("?" * len(some))
            live = db.execute(f"select count(*) from entries where key in ({marks}) and expires > ?", (*some, now))  # noqa: S608 - marks alone
            count += live.fetchone()[0]
            db.execute(f"delete from entries where key in ({marks})", some)  # noqa: S608
        return count

    def _page(self, prefix: str, after: str) -> list[str]:
        # By range and not by pattern: signs of patterns in a prefix are letters.
        found = self._opened().execute(
            "select key from entries where key >= ? and key > ? and expires > ? order by key limit ?",
            (prefix, after, self._wall(), _PAGE),
        )
        page = [key for (key,) in found]
        return [key for key in page if key.startswith(prefix)]

    def _figures(self) -> dict[str, Any]:
        db = self._opened()
        items, size = db.execute("select count(*), coalesce(sum(size), 0) from entries").fetchone()
        return {"items": items, "bytes": size, "max_bytes": self.max_bytes, "path": str(self.path), **self._counts}


def _damaged(error: sqlite3.Error) -> bool:
    return not isinstance(error, sqlite3.OperationalError) and (
        "malformed" in str(error) or "not a database" in str(error)
    )
