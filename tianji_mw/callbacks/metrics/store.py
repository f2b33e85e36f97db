"""Where the metrics stand: one SQLite file that all processes of a sidecar share, or memory. No plugin.

A batch is one transaction, together with the ids of its records. So whoever is asked sees the same sums, a process that
is killed takes nothing of them along, and a record that comes again, even in another process, counts once. Neither
snapshots of each process nor prometheus-client's own files (which only grow, with every process) can promise that.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

from tianji_mw.callbacks.metrics.catalogue import Catalogue, Metric
from tianji_mw.callbacks.metrics.tally import Labels, Tally

#: Seconds that a write waits for those of other processes.
_BUSY_S: Final = 5.0
#: Ids of records that are remembered; a record comes again within minutes, or after a restart.
REMEMBERED: Final = 65_536
#: A process that has not said so for this long does not live any more, in seconds.
ALIVE_S: Final = 15.0
#: Files that are tried, should one be damaged.
_CANDIDATES: Final = 5
_FOLDED: Final = "tianji_metrics_folded_total"

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS series (
    id INTEGER PRIMARY KEY, metric TEXT NOT NULL, labels TEXT NOT NULL, UNIQUE (metric, labels));
CREATE TABLE IF NOT EXISTS sizes (metric TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS cells (
    series INTEGER NOT NULL, cell INTEGER NOT NULL, value REAL NOT NULL, exemplar TEXT NOT NULL,
    PRIMARY KEY (series, cell)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS recent (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS live (
    owner TEXT NOT NULL, metric TEXT NOT NULL, labels TEXT NOT NULL, value REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (owner, metric, labels)) WITHOUT ROWID;
"""
_ADD: Final = """
INSERT INTO cells (series, cell, value, exemplar) VALUES (?, ?, ?, ?) ON CONFLICT (series, cell) DO UPDATE SET
    value = value + excluded.value,
    exemplar = CASE excluded.exemplar WHEN '' THEN exemplar ELSE excluded.exemplar END
"""
# The index of the series gives the order, and CROSS JOIN keeps to it: nothing is sorted.
_READ: Final = """
SELECT metric, labels, cell, value, exemplar FROM series CROSS JOIN cells ON series = id ORDER BY metric, labels
"""
_SERIES_OF: Final = itemgetter(0, 1)
_GROW: Final = "INSERT INTO sizes VALUES (?, 1) ON CONFLICT (metric) DO UPDATE SET count = count + 1"
_SET: Final = """
INSERT INTO cells (series, cell, value, exemplar) VALUES (?, ?, ?, ?) ON CONFLICT (series, cell) DO UPDATE SET
    value = excluded.value
"""


class Stored(NamedTuple):
    """A series: its labels as they stand on a page (`model="a",team="b"`), its numbers by cell, and its exemplars."""

    name: str
    labels: str
    cells: dict[int, float]
    #: Trace, value and time, with blanks between.
    exemplars: dict[int, str]


class StoreError(Exception):
    """The store cannot be read or written now. Its text names the kind of fault and no path."""


class Store:
    """All methods may be called in any thread, and take a while: never call them in an event loop."""

    def __init__(self, folder: Path | None, catalogue: Catalogue, limits: Mapping[str, int]) -> None:
        self._catalogue = catalogue
        #: Series of each metric at most.
        self._limits = limits
        self._lock = threading.Lock()
        self._ids: dict[tuple[str, Labels], int] = {}
        self._full: set[str] = set()
        self._connection = _opened(folder, _layout(catalogue))

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def fresh(self, ids: Collection[str]) -> set[str]:
        """Those of the ids that have not been counted. Raises StoreError."""
        with self._locked() as connection:
            found = connection.execute(
                "SELECT id FROM recent WHERE id IN (SELECT value FROM json_each(?))", [json.dumps(list(ids))]
            )
            return set(ids) - {row[0] for row in found}

    def add(self, tally: Tally, ids: Sequence[str] = ()) -> None:
        """Write a tally and the ids of its records: all, or nothing and StoreError, also where an id was there."""
        with self._transaction() as connection:
            connection.executemany("INSERT INTO recent (id) VALUES (?)", [(one,) for one in ids])
            if ids:
                connection.execute("DELETE FROM recent WHERE n <= (SELECT max(n) FROM recent) - ?", [REMEMBERED])
            folded: Counter[str] = Counter()
            added: list[tuple[int, int, float, str]] = []
            put: list[tuple[int, int, float, str]] = []
            for (_, labels), series in tally.series.items():
                number = self._series(connection, series.metric, labels, folded)
                rows = [(number, cell, value, series.exemplar(cell)) for cell, value in series.cells.items()]
                (put if series.metric.kind == "last" else added).extend(rows)
            if note := self._catalogue.get(_FOLDED):
                for name, times in folded.items():
                    added.append((self._series(connection, note, (name,), Counter()), 0, times, ""))
            connection.executemany(_ADD, added)
            connection.executemany(_SET, put)

    def tell(self, owner: str, at: float, gauges: Mapping[tuple[str, Labels], float]) -> None:
        """Write the gauges of a process, in the place of those that it told before. Raises StoreError."""
        rows = [
            (owner, name, written(self._catalogue[name], labels), value, at) for (name, labels), value in gauges.items()
        ]
        with self._transaction() as connection:
            connection.execute("DELETE FROM live WHERE owner = ? OR at < ?", [owner, at - 4 * ALIVE_S])
            connection.executemany("INSERT INTO live VALUES (?, ?, ?, ?, ?)", rows)

    def read(self) -> Generator[Stored, None, None]:
        """Every series but those of `gauges`, by metric; one at a time, for there can be many. Raises StoreError.

        Nothing can be written here meanwhile: read on to the end, or close it.
        """
        with self._locked() as connection:
            rows = connection.execute(_READ)
            for (name, labels), found in groupby(rows, _SERIES_OF):
                cells: dict[int, float] = {}
                exemplars: dict[int, str] = {}
                for _, _, cell, value, exemplar in found:
                    cells[cell] = value
                    if exemplar:
                        exemplars[cell] = exemplar
                yield Stored(name, labels, cells, exemplars)

    def gauges(self, now: float) -> dict[str, dict[str, float]]:
        """What the living processes told, together: values by metric and labels. Raises StoreError."""
        values: dict[str, dict[str, float]] = {}
        with self._locked() as connection:
            told = connection.execute("SELECT metric, labels, value FROM live WHERE at > ?", [now - ALIVE_S])
            for name, labels, value in told:
                gauge = values.setdefault(name, {})
                before = gauge.get(labels, 0.0)
                gauge[labels] = max(before, value) if self._catalogue[name].kind == "max" else before + value
        return values

    # --- inside

    def _series(self, connection: sqlite3.Connection, metric: Metric, labels: Labels, folded: Counter[str]) -> int:
        """The number of a series; beyond the limit, of the one that stands for the rest."""
        known = self._ids.get((metric.name, labels))
        if known is not None:
            return known
        text = written(metric, labels)
        row = connection.execute(
            "SELECT id FROM series WHERE metric = ? AND labels = ?", [metric.name, text]
        ).fetchone()
        if row is None:
            rest = metric.folded(labels)
            if labels != rest and self._is_full(connection, metric.name):
                folded[metric.name] += 1
                return self._series(connection, metric, rest, folded)
            made = connection.execute("INSERT INTO series (metric, labels) VALUES (?, ?)", [metric.name, text])
            row = (made.lastrowid,)
            connection.execute(_GROW, [metric.name])
        number = self._ids[metric.name, labels] = int(row[0])
        return number

    def _is_full(self, connection: sqlite3.Connection, name: str) -> bool:
        """Whether no new series are taken. No series is ever deleted: `increase()` would lose what it had counted."""
        if name not in self._full:
            row = connection.execute("SELECT count FROM sizes WHERE metric = ?", [name]).fetchone()
            if row is not None and row[0] >= self._limits[name]:
                self._full.add(name)
        return name in self._full

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise StoreError(f"the metrics cannot be stored ({type(error).__name__}: {error})") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._locked() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # Numbers of series that were made in it are none any more.
                self._ids.clear()
                self._full.clear()
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def written(metric: Metric, labels: Labels) -> str:
    """Labels as they stand on a page. An empty one is the same as none."""
    pairs = zip(metric.labels, labels, strict=True)
    return ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in pairs if value)


def _layout(catalogue: Catalogue) -> str:
    """What must be the same for numbers to be added up. A new config begins a new file, and leaves the old one be."""
    shape = [(metric.name, metric.kind, metric.labels, metric.buckets) for metric in catalogue.values()]
    return hashlib.sha256(json.dumps(sorted(shape)).encode()).hexdigest()[:12]


def _opened(folder: Path | None, layout: str) -> sqlite3.Connection:
    """The file of this layout, the next one where that is damaged (a power cut can do that), or memory."""
    if folder is None:
        return _connected(":memory:")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for number in range(_CANDIDATES):
            # No `.db`: prometheus-client would take such files in its own folder for its own.
            try:
                return _connected(str(folder / f"tianji-{layout}-{number}.sqlite3"))
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                continue
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"the folder of the metrics cannot be used ({type(error).__name__}: {error})") from None
    raise StoreError(f"the folder of the metrics holds {_CANDIDATES} damaged files; empty it")


def _connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        # Numbers may be lost by a power cut, not by the end of a process; so nothing waits for the disk.
        connection.execute("PRAGMA synchronous = OFF")
        _shared(connection)
        connection.executescript(_SCHEMA)
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("damaged")
    except BaseException:
        connection.close()
        raise
    return connection


def _shared(connection: sqlite3.Connection) -> None:
    """Let readers and a writer work at once (WAL). Processes that start together get in each other's way here."""
    end = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
