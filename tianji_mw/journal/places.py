"""Places in the journal: where a destination stands, and what of a segment nobody has read yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tianji_mw.journal.segments import FileSegment, MemorySegment


class Position(NamedTuple):
    """A place in the journal: positions are ordered by time."""

    segment: int
    at: int


class Subscriber:
    """One destination's place in the journal: what it has not read, and what it has read and not finished."""

    def __init__(self, name: str) -> None:
        self.name = name
        #: Records and bytes that wait to be read.
        self.waiting = 0
        self.waiting_bytes = 0
        self.read_at = Position(0, 0)
        #: What it has read and neither delivered nor given up, in the order of the journal.
        self.open: dict[Position, None] = {}
        #: Told of new records; and of a segment that went away, with the count of its records that were not read.
        self.on_new: Callable[[], None] = _nothing
        self.on_lost: Callable[[int, int], None] = _nothing_of

    @property
    def done_at(self) -> Position:
        """Nothing before it is needed any more."""
        return next(iter(self.open), self.read_at)


class Held:
    """A segment, and how many records and bytes of it each subscriber has not read."""

    __slots__ = ("segment", "unread")

    def __init__(self, segment: FileSegment | MemorySegment) -> None:
        self.segment = segment
        self.unread: dict[str, list[int]] = {}

    def add(self, name: str, count: int, size: int) -> None:
        known = self.unread.setdefault(name, [0, 0])
        known[0] += count
        known[1] += size


def _nothing() -> None:
    pass


def _nothing_of(segment: int, count: int) -> None:
    pass
