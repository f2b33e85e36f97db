"""The points of an index in a SQLite file, for the next start. Searching never reads it.

One process has the file at a time. Changes come in batches, each in full or not at all, also when the process is
killed; a power failure may take the newest ones (WAL with `synchronous=NORMAL`). What cannot be read is set aside.

Source: SQLite documentation, "Write-Ahead Logging" and "PRAGMA locking_mode".
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

_FORMAT: Final = 1
_FILE: Final = "index.sqlite3"
_TABLES: Final = """
CREATE TABLE stamp (value TEXT NOT NULL);
CREATE TABLE points (
  partition TEXT NOT NULL, name TEXT NOT NULL, vector BLOB NOT NULL, scale REAL NOT NULL, payload BLOB NOT NULL,
  expires REAL NOT NULL, PRIMARY KEY (partition, name));
"""


class FileInUse(Exception):
    """Another process has the file."""


class Row(NamedTuple):
    """A point: `vector` as int8, to be multiplied by `scale`; `expires` in seconds since 1970."""

    vector: bytes
    scale: float
    payload: bytes
    expires: float


#: Partition and name of a point, and what it is now; None where it is no more.
Changes = Mapping[tuple[str, str], Row | None]


class Saved:
    """The open file of one model. Its methods block, and may be called from any thread, one at a time."""

    def __init__(self, folder: Path, model_id: str, dims: int) -> None:
        """Open or make it. Raises FileInUse, OSError, sqlite3.Error."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = folder / _FILE
        self._stamp = f"{_FORMAT} {dims} {model_id}"
        #: What was in the way of the older points: `corrupt`, or `outdated` (another model or format).
        self.lost = ""
        try:
            self._db, stamp = self._opened()
        except FileInUse:
            raise
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):  # no right, no space: the file may be well
                raise
            self.lost = "corrupt"
            self._set_aside()
            self._db, stamp = self._opened()
        if stamp == self._stamp:
            return
        try:
            if stamp:
                self.lost = "outdated"
                self._db.executescript("DROP TABLE IF EXISTS points; DROP TABLE IF EXISTS stamp; VACUUM;")
            self._db.executescript(_TABLES)
            self._db.execute("INSERT INTO stamp VALUES (?)", (self._stamp,))
        except sqlite3.Error:
            self._db.close()
            raise

    def points(self, now: float) -> Iterator[tuple[str, str, Row]]:
        """Partition, name and point of all that have not expired, oldest first. Raises sqlite3.Error."""
        self._db.execute("DELETE FROM points WHERE expires <= ?", (now,))
        rows = self._db.execute("SELECT partition, name, vector, scale, payload, expires FROM points ORDER BY rowid")
        for partition, name, *point in rows:
            yield partition, name, Row(*point)

    def write(self, changes: Changes) -> None:
        """Make these changes, all or none. Raises sqlite3.Error."""
        kept = [(*place, *row) for place, row in changes.items() if row is not None]
        with self._db:
            self._db.execute("BEGIN")
            # The rows of what changes are made anew, so that their order is that of the last changes.
            self._db.executemany("DELETE FROM points WHERE partition = ? AND name = ?", changes.keys())
            self._db.executemany("INSERT INTO points VALUES (?, ?, ?, ?, ?, ?)", kept)

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def abandon(self) -> None:
        """Remove it: it could not follow the changes, and must not bring back what was deleted."""
        self._db.close()
        _remove(self._all())

    def _opened(self) -> tuple[sqlite3.Connection, str]:
        """The connection, and the stamp of what is there; empty for a new file."""
        # What it holds says what people ask: for the owner's eyes. SQLite gives its other files the same rights.
        os.close(os.open(self._file, os.O_CREAT | os.O_RDWR, 0o600))
        db = sqlite3.connect(self._file, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("BEGIN EXCLUSIVE")
            db.execute("COMMIT")  # the lock stays
            if db.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("quick_check failed")
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "stamp" not in tables:
                return db, "other" if tables else ""
            found = db.execute("SELECT value FROM stamp").fetchone()
            return db, str(found[0]) if found else "other"
        except sqlite3.Error as error:
            db.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise FileInUse from None
            raise

    def _set_aside(self) -> None:
        """Keep one broken file for whoever wants to know; its journal belongs to nothing any more."""
        os.replace(self._file, self._file.with_name(_FILE + ".corrupt"))
        _remove(self._all())

    def _all(self) -> list[Path]:
        return [self._file.with_name(_FILE + end) for end in ("", "-wal", "-shm", "-journal")]


def _remove(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
