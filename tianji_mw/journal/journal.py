"""`Journal`: what is offered is written down first, then read by each destination at its own pace.

It knows nobody who delivers: a `Subscriber` is a place in it, and `outbox.py` moves it. What leaves it undelivered,
because there is no more room, is the oldest, and counted for each destination that should have had it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tianji_mw.journal import refused
from tianji_mw.journal.entries import Damaged, Entry, decode, encode, length_at
from tianji_mw.journal.folder import Folder
from tianji_mw.journal.places import Held, Position, Subscriber
from tianji_mw.journal.segments import FileSegment, JournalFull, MemorySegment, bytes_in

log = logging.getLogger("tianji_mw.journal")

_CHUNK: Final = 256 << 10
#: The disk is tried again after so many seconds.
_AGAIN_S: Final = 5.0


class Journal:
    """`folder` None, or a disk that is full: in memory. Used from one event loop.

    `max_bytes` bounds all folders of the root together, `memory_bytes` what is in memory.
    """

    def __init__(
        self,
        root: Path | None,
        *,
        max_bytes: int = 1 << 30,
        memory_bytes: int = 64 << 20,
        segment_bytes: int = 8 << 20,
        count: Callable[[str, str], None] | None = None,
    ) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._memory_bytes = memory_bytes
        self._segment_bytes = max(min(segment_bytes, max_bytes // 4, memory_bytes // 4), 4096)
        self._count = count or _nothing_said
        self._folder: Folder | None = None
        self._held: deque[Held] = deque()
        self._subscribers: dict[str, Subscriber] = {}
        self._targets: dict[tuple[str, ...], bytes] = {}
        self._split: dict[bytes, frozenset[str]] = {}
        self._new: list[tuple[tuple[str, ...], str, str, bytes]] = []
        self._next = 1
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Why the disk is not used at the moment; empty when it is.
        self.trouble = ""
        self._retry_at = 0.0

    # --- life

    async def open(self, name: str) -> None:
        """Take a folder, and find what earlier processes left. `name`: of a new folder. Raises SetupError."""
        self._loop = asyncio.get_running_loop()
        if self.root is None:
            self._rotate()
            return
        from tianji_mw.journal.leftovers import take

        await take(self, self.root, name)

    def begin(self, folder: Folder, held: Sequence[Held], after: int) -> None:
        """Go on in this folder: with what is there, and segments numbered from `after` + 1."""
        self._folder = folder
        self._held.extend(held)
        self._next = after + 1
        self._rotate()

    def subscribe(self, name: str) -> Subscriber:
        """The place of a destination, at what an earlier process left undelivered for it."""
        return self._subscribers.setdefault(name, Subscriber(name))

    @property
    def subscribers(self) -> Sequence[Subscriber]:
        """All places, also those of destinations that have left the config and for which records wait."""
        return tuple(self._subscribers.values())

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return sum(held.segment.size for held in self._held)

    @property
    def durable(self) -> bool:
        """Whether new records are written to disk."""
        return bool(self._held) and self._held[-1].segment.durable

    def close(self) -> None:
        """Write what is new, and let the folder go; what was delivered is deleted."""
        self.flush()
        self._clean()
        empty = not any(subscriber.waiting or subscriber.open for subscriber in self._subscribers.values())
        for held in self._held:
            if isinstance(held.segment, FileSegment) and not empty:
                held.segment.sync()
            held.segment.close()
        if self._folder is not None:
            self._folder.release(empty=empty)
            self._folder = None
        self._held.clear()

    # --- writing

    def offer(self, names: tuple[str, ...], record_id: str, kind: str, raw: bytes) -> None:
        """Write a record down for these destinations, before the event loop does anything else.

        All that are offered in one turn of the loop share one write.
        """
        if not self._new and self._loop is not None:
            self._loop.call_soon(self.flush)
        self._new.append((names, record_id, kind, raw))

    def flush(self) -> None:
        """Write down what was offered."""
        if not self._new or not self._held:
            return
        new, self._new = self._new, []
        pieces: list[bytes] = []
        for names, record_id, kind, raw in new:
            targets = self._targets.get(names)
            if targets is None:
                targets = self._targets[names] = ",".join(names).encode()
            pieces += encode(targets, record_id, kind, raw)
        data = b"".join(pieces)
        size = self._held[-1].segment.size
        full = size and size + len(data) > self._segment_bytes
        if full or (self.trouble and self._due()):
            self._rotate()
        self._append(data)
        held = self._held[-1]
        for names, _, _, raw in new:
            for name in names:
                held.add(name, 1, len(raw))
                subscriber = self._subscribers[name]
                subscriber.waiting += 1
                subscriber.waiting_bytes += len(raw)
                subscriber.on_new()

    def _append(self, data: bytes) -> None:
        try:
            self._held[-1].segment.append(data)
        except JournalFull as full:
            self._report(str(full))
            self._held.append(Held(MemorySegment(self._number())))
            self._held[-1].segment.append(data)
            self._shrink()

    def _due(self) -> bool:
        """Whether the disk, which was full, is worth another attempt."""
        return self._loop is not None and self._loop.time() >= self._retry_at

    def _report(self, trouble: str) -> None:
        if self._loop is not None:
            self._retry_at = self._loop.time() + _AGAIN_S
        if not self.trouble:
            log.error("records are kept in memory: the spool folder %s says: %s", self.root, trouble)
        self.trouble = trouble
        self._count("spool_unwritable", trouble)

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _rotate(self) -> None:
        """A new segment to write to, and room for it."""
        segment: FileSegment | MemorySegment | None = None
        if self._folder is not None:
            try:
                segment = FileSegment(self._folder.path, self._number())
                self.trouble = ""
            except OSError as error:
                self._report(error.strerror or type(error).__name__)
        self._held.append(Held(segment or MemorySegment(self._number())))
        self._clean()
        self._shrink()

    def _shrink(self) -> None:
        """Give the oldest up while there is too much. The newest segment stays."""
        others = 0
        if self.root is not None:
            own = sum(held.segment.size for held in self._held if held.segment.durable)
            others = max(bytes_in(self.root) - own, 0)
        while len(self._held) > 1:
            disk = sum(held.segment.size for held in self._held if held.segment.durable)
            memory = self.size - disk
            over_disk = disk > 0 and disk + others + self._segment_bytes > self.max_bytes
            over_memory = memory + self._segment_bytes > self._memory_bytes
            durable = next((held for held in self._held if held.segment.durable), None)
            block = next((held for held in self._held if not held.segment.durable), None)
            oldest = durable if over_disk else block if over_memory else None
            if oldest is None or oldest is self._held[-1]:
                return
            self._give_up(oldest)

    def _give_up(self, held: Held) -> None:
        number = held.segment.number
        self._held.remove(held)
        after = next((Position(one.segment.number, 0) for one in self._held if one.segment.number > number), self._end)
        for subscriber in self._subscribers.values():
            count, size = held.unread.get(subscriber.name, (0, 0))
            subscriber.waiting -= count
            subscriber.waiting_bytes -= size
            if subscriber.read_at.segment == number:
                subscriber.read_at = after
            subscriber.on_lost(number, count)
        held.segment.delete()

    # --- reading

    @property
    def _end(self) -> Position:
        if not self._held:
            return Position(self._next, 0)
        last = self._held[-1].segment
        return Position(last.number, last.size)

    async def read(self, subscriber: Subscriber, most: int, max_bytes: int) -> list[tuple[Position, Entry]]:
        """The next records for this destination, at most so many and so large together; at least one if there is one.

        They are open until `finish`. Gives way to other tasks between large pieces; one reader at a time.
        """
        self.flush()
        found: list[tuple[Position, Entry]] = []
        while subscriber.waiting and len(found) < most:
            held = next((one for one in self._held if one.segment.number >= subscriber.read_at.segment), None)
            if held is None:
                break
            number = held.segment.number
            if subscriber.read_at.segment < number:
                subscriber.read_at = Position(number, 0)
            if not held.unread.get(subscriber.name, (0, 0))[0]:
                subscriber.read_at = Position(number + 1, 0)
                continue
            before = subscriber.read_at
            if self._read_piece(held, subscriber, found, most, max_bytes):
                break
            if subscriber.read_at == before:
                self._skip_rest(held, subscriber)
            await asyncio.sleep(0)
        if not subscriber.waiting:
            subscriber.read_at = self._end
        return found

    def _read_piece(
        self, held: Held, subscriber: Subscriber, found: list[tuple[Position, Entry]], most: int, max_bytes: int
    ) -> bool:
        """Take what one piece of a segment holds for the subscriber; whether it has enough."""
        name, number = subscriber.name, held.segment.number
        size = sum(len(entry.raw) for _, entry in found)
        for entry in self.entries(held, subscriber.read_at.at):
            mine = name in self._names(entry.targets)
            if mine and found and size + len(entry.raw) > max_bytes:
                return True
            subscriber.read_at = Position(number, entry.end)
            if mine:
                held.add(name, -1, -len(entry.raw))
                subscriber.waiting -= 1
                subscriber.waiting_bytes -= len(entry.raw)
                position = Position(number, entry.start)
                subscriber.open[position] = None
                found.append((position, entry))
                size += len(entry.raw)
                if len(found) == most:
                    return True
        return False

    def _names(self, targets: bytes) -> frozenset[str]:
        names = self._split.get(targets)
        if names is None:
            names = self._split[targets] = frozenset(targets.decode("utf-8", "replace").split(","))
        return names

    def _skip_rest(self, held: Held, subscriber: Subscriber) -> None:
        """The rest of the segment cannot be read: what was counted in it is lost."""
        count, size = held.unread.pop(subscriber.name)
        subscriber.waiting -= count
        subscriber.waiting_bytes -= size
        subscriber.read_at = Position(held.segment.number + 1, 0)
        subscriber.on_lost(-1, count)

    def entries(self, held: Held, at: int) -> Iterator[Entry]:
        """The entries of one piece of a segment, from byte `at`. Damaged ones are left out, and counted."""
        segment = held.segment
        data = segment.read(at, _CHUNK)
        need = length_at(data)
        if need > len(data):
            data = segment.read(at, need)
        base = at
        while True:
            try:
                yield from decode(data[at - base :], at)
                return
            except Damaged as damage:
                self._count("spool_damaged", "")
                log.error("the spool is damaged: segment %d at byte %d", segment.number, damage.at)
                if damage.skip is None:
                    return
                at = damage.skip

    def finish(self, subscriber: Subscriber, positions: Iterable[Position]) -> None:
        """These records, which it has read, are delivered or given up."""
        for position in positions:
            subscriber.open.pop(position, None)
        if self._folder is not None:
            self._folder.move_cursor(subscriber.name, *subscriber.done_at)
        self._clean()

    def in_memory(self, subscriber: Subscriber) -> int:
        """How many of its records that are not finished end with the process."""
        volatile = {held.segment.number for held in self._held if not held.segment.durable}
        unread = sum(held.unread.get(subscriber.name, (0, 0))[0] for held in self._held if not held.segment.durable)
        return unread + sum(position.segment in volatile for position in subscriber.open)

    def refuse(self, name: str, reason: str, raw: bytes) -> None:
        """Keep a record that was given up for people to look at, where there is a disk."""
        if self.root is None:
            return
        try:
            refused.keep(self.root, name, reason, raw)
        except OSError as error:
            self._count("refused_not_kept", error.strerror or type(error).__name__)

    def _clean(self) -> None:
        """Delete the oldest segments that nobody needs."""
        while len(self._held) > 1:
            first = self._held[0]
            number = first.segment.number
            if any(count for count, _ in first.unread.values()):
                return
            if any(next(iter(one.open)).segment <= number for one in self._subscribers.values() if one.open):
                return
            self._held.popleft()
            first.segment.delete()


def _nothing_said(event: str, detail: str) -> None:
    pass
