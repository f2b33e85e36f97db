"""`Outbox`: delivers the records of one destination out of the journal, in batches, until they are there.

Delivered, given up (and counted, with the reason), or still in the journal: every record is one of the three, at any
moment. What fails is tried again with growing pauses, alone where others of its batch were taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.alerts import Alert
from tianji_mw.delivery import Delivery, OnFailure
from tianji_mw.journal import Entry, Journal, Position
from tianji_mw.records import NotDelivered, Record

if TYPE_CHECKING:
    from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.outbox")

Write = Callable[[Sequence[Record]], Awaitable[None]]

#: Failures in a row after which the destination counts as down.
_DOWN: Final = 5
#: Why a record is given up that failed, by policy.
_OVER: Final[dict[OnFailure, str]] = {"discard": "discarded", "retry": "retries", "spool": "hopeless"}
#: A record that failed so often while others were taken will never be taken.
_HOPELESS: Final = 30
_HURRIED_PAUSE_S: Final = 0.5
_IDLE_S: Final = 0.01
#: Records that are made before other tasks get their turn.
_AT_ONCE: Final = 8


class _Item:
    """A record on its way."""

    __slots__ = ("attempts", "due", "lost", "position", "record")

    def __init__(self, position: Position, record: Record) -> None:
        self.position = position
        self.record = record
        self.attempts = 0
        #: When it may be tried again, in nanoseconds of the clock.
        self.due = 0
        #: Its segment was given up while it was on its way.
        self.lost = False


class Outbox:
    """One destination's delivery. `name` also is its name in the journal."""

    def __init__(
        self,
        name: str,
        write: Write,
        *,
        journal: Journal,
        runtime: Runtime,
        delivery: Delivery,
        make: Callable[[Entry], Record] | None = None,
    ) -> None:
        self.name = name
        self.delivery = delivery
        self._write = write
        self._make = make or _record
        self._journal = journal
        self._runtime = runtime
        self._place = journal.subscribe(name)
        #: Records that the journal took for it: from earlier processes, and from this one.
        self.offered = self._place.waiting
        self.delivered = 0
        #: Given up, by reason.
        self.dropped: Counter[str] = Counter()
        self.last_error = ""
        #: Seconds since 1970 of the last success; 0 before the first.
        self.last_success = 0.0
        #: Attempts that failed, in a row.
        self.failures = 0
        self._pause_until = 0
        self._again: list[_Item] = []
        self._on_way: set[_Item] = set()
        #: Times of arrivals, coarse: clock and how many had been offered before.
        self._marks: deque[tuple[int, int]] = deque([(0, 0)] if self._place.waiting else [])
        self._mark_every = int(delivery.flush_interval_s * 1e9 / 8)
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()
        self._reading = asyncio.Lock()
        self._hurry = False
        #: Records of one write at most: fewer than the settings say while writes take too long.
        self._most = delivery.batch_size
        self._tasks: list[asyncio.Task[None]] = []
        self._place.on_new, self._place.on_lost = self._new, self._lost

    # --- life

    def start(self) -> None:
        """Begin to deliver."""
        self._tasks = [
            asyncio.create_task(self._work(), name=f"tianji:outbox:{self.name}:{at}")
            for at in range(self.delivery.concurrency)
        ]

    async def drain(self, seconds: float) -> int:
        """Deliver what there is without waiting for more, for so long; how many records are left."""
        self._hurry = True
        self._wake.set()
        self._journal.flush()
        try:
            async with asyncio.timeout(seconds):
                while self.pending and not (self.failures > 1 and self._journal.durable):
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            pass
        return self.pending

    async def aclose(self) -> None:
        """Stop; what is not delivered stays in the journal, or is counted where that is in memory only."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if gone := self._journal.in_memory(self._place):
            self._count("shutdown", gone)

    @property
    def pending(self) -> int:
        """Records that are neither delivered nor given up."""
        return self._place.waiting + len(self._place.open)

    def report(self) -> dict[str, Any]:
        """Its state, for people."""
        return {
            "offered": self.offered,
            "delivered": self.delivered,
            "dropped": dict(self.dropped),
            "pending": self.pending,
            "state": "down" if self.failures >= _DOWN else "failing" if self.failures else "ok",
            "last_error": self.last_error,
            "last_success": self.last_success or None,
        }

    # --- what the journal says

    def _new(self) -> None:
        now = self._runtime.clock()
        marks = self._marks
        if not marks or now - marks[-1][0] >= self._mark_every:
            marks.append((now, self.offered))
        self.offered += 1
        if self._place.waiting == 1 or self._full:
            self._wake.set()

    def _lost(self, segment: int, count: int) -> None:
        """A segment went away (-1: could not be read), with so many records that were not read."""
        gone = [item for item in (*self._again, *self._on_way) if item.position.segment == segment]
        for item in gone:
            item.lost = True
            self._place.open.pop(item.position, None)
        self._again = [item for item in self._again if not item.lost]
        if count + len(gone):
            self._count("spool_damaged" if segment < 0 else "spool_full", count + len(gone))

    def _count(self, reason: str, count: int) -> None:
        self.dropped[reason] += count
        self._runtime.count("log_dropped", f"{self.name} {reason}", count)
        log.error("callback %s: %d records are lost (%s); last error: %s", self.name, count, reason, self.last_error)

    # --- delivery

    @property
    def _full(self) -> bool:
        place, delivery = self._place, self.delivery
        return place.waiting >= delivery.batch_size or place.waiting_bytes >= delivery.max_batch_bytes

    def _ripe_in(self, now: int) -> float:
        """Seconds until new records shall go; below zero: now."""
        if not self._place.waiting or (self.delivery.ordered and self._again):
            return float("inf")
        if self._hurry or self._full:
            return 0.0
        taken = self.offered - self._place.waiting
        while len(self._marks) > 1 and self._marks[1][1] <= taken:
            self._marks.popleft()
        return self.delivery.flush_interval_s - (now - self._marks[0][0]) / 1e9

    async def _work(self) -> None:
        while True:
            async with self._reading:
                batch = await self._next()
            self._on_way.update(batch)
            try:
                await (self._deliver(batch) if batch else asyncio.sleep(_IDLE_S))
            finally:
                self._on_way.difference_update(batch)

    async def _next(self) -> list[_Item]:
        """The next batch, when it is time for one."""
        while True:
            self._wake.clear()
            now = self._runtime.clock()
            pause = (self._pause_until - now) / 1e9
            again = (min(item.due for item in self._again) - now) / 1e9 if self._again else float("inf")
            wait = max(pause, min(again, self._ripe_in(now)))
            if wait <= 0:
                return await self._take(now)
            try:
                async with asyncio.timeout(min(wait, 3600.0)):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _take(self, now: int) -> list[_Item]:
        """What is due again, and new records beside it."""
        delivery = self.delivery
        batch: list[_Item] = []
        size = 0
        for item in self._again:
            size += len(item.record.raw)
            if len(batch) == self._most or (batch and size > delivery.max_batch_bytes):
                break
            if item.due <= now:
                batch.append(item)
        if batch:
            taken = set(batch)
            self._again = [item for item in self._again if item not in taken]
        batch.sort(key=lambda item: item.position)
        room = 0 if delivery.ordered and batch else self._most - len(batch)
        if room > 0 and size < delivery.max_batch_bytes and len(self._again) <= delivery.batch_size:
            found = await self._journal.read(self._place, room, delivery.max_batch_bytes - size)
            for at, (position, entry) in enumerate(found, 1):
                batch += self._made(position, entry)
                if at % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        return batch

    def _made(self, position: Position, entry: Entry) -> list[_Item]:
        """The record of an entry; none where nothing can be made of it, which is counted."""
        try:
            return [_Item(position, self._make(entry))]
        except Exception as error:  # noqa: BLE001 - the outbox's failsafe: one record must not stop the others
            self.last_error = f"a record cannot be made: {_place_of(error)}"
            self._count("unreadable", 1)
            self._journal.refuse(self.name, self.last_error, entry.raw)
            self._journal.finish(self._place, [position])
            return []

    async def _deliver(self, batch: list[_Item]) -> None:
        """One attempt; where a batch was refused as a whole, one for each half of it."""
        problem = await self._attempt(batch)
        if problem is not None and not problem.retry and problem.failed is None and len(batch) > 1:
            middle = len(batch) // 2
            await self._deliver(batch[:middle])
            await self._deliver(batch[middle:])
            return
        self._settle(batch, problem)

    async def _attempt(self, batch: list[_Item]) -> NotDelivered | None:
        try:
            async with asyncio.timeout(self.delivery.timeout_s):
                await self._write([item.record for item in batch])
        except NotDelivered as problem:
            return problem
        except TimeoutError:
            self._most = max(1, len(batch) // 2)
            return NotDelivered(f"no answer within {self.delivery.timeout_s:g} s")
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return NotDelivered("the callback cancelled its own work")
        except Exception as error:  # noqa: BLE001 - the outbox's failsafe: whatever a destination raises, nothing is lost
            self._runtime.count("callback_errors", f"{self.name} {type(error).__name__}")
            # No text of it: it may hold what somebody said, or a key.
            log.error("callback %s raised %s", self.name, _place_of(error))
            return NotDelivered(f"{type(error).__name__} in the callback's own code")
        self._most = min(self.delivery.batch_size, self._most * 2)
        return None

    def _settle(self, batch: list[_Item], problem: NotDelivered | None) -> None:
        """Who is delivered, who is given up, and who is tried again."""
        refused, failed = _sorted(batch, problem)
        delivered = [item for item in batch if item not in refused and item not in failed]
        if problem is not None:
            self.last_error = problem.message
        self._note(problem, well=bool(delivered) or not failed)
        over = self._schedule(failed, alone=bool(delivered))
        self._give_up(list(refused), "refused")
        self._give_up(over, _OVER[self.delivery.on_failure])
        self.delivered += sum(not item.lost for item in delivered)
        waiting = failed.difference(over)
        self._journal.finish(self._place, [item.position for item in batch if item not in waiting])
        self._settled.set()
        self._wake.set()  # another worker may be waiting, and know nothing of what has to be tried again

    def _note(self, problem: NotDelivered | None, *, well: bool) -> None:
        """The destination's state after an attempt."""
        if well:
            if self.failures:
                log.info("callback %s takes records again; %d wait", self.name, self.pending)
                self._runtime.report(f"callback {self.name}", "")
            self.failures = self._pause_until = 0
            self.last_success = self._runtime.wall()
        else:
            self.failures += 1
            if self.failures in (1, _DOWN):
                log.warning("callback %s does not take records: %s; %d wait", self.name, self.last_error, self.pending)
            if self.failures == _DOWN:
                self._runtime.report(f"callback {self.name}", self.last_error)
                told = f"The callback {self.name} does not take records: {self.last_error}. {self.pending} wait."
                key = f"callback_failing:{self.name}"
                self._runtime.alert(Alert(kind="callback_failing", message=told, level="high", key=key))
            pause = self._backoff(self.failures)
            self._pause_until = self._runtime.clock() + int(pause * 1e9)
        if problem is not None and problem.retry_after_s is not None:
            pause = min(problem.retry_after_s, 3600.0)
            self._pause_until = max(self._pause_until, self._runtime.clock() + int(pause * 1e9))

    def _backoff(self, attempts: int) -> float:
        delivery = self.delivery
        pause = min(delivery.max_backoff_s, delivery.backoff_s * 2.0 ** min(attempts - 1, 30))
        pause *= self._runtime.rng.uniform(0.5, 1.5)
        return min(pause, _HURRIED_PAUSE_S) if self._hurry else pause

    def _schedule(self, failed: set[_Item], *, alone: bool) -> list[_Item]:
        """Put what failed back, and return those for which that is over. `alone`: others of the batch were taken."""
        over = []
        policy = self.delivery.on_failure
        for item in failed:
            item.attempts += 1
            tired = policy == "retry" and item.attempts > self.delivery.max_retries
            if policy == "discard" or tired or (alone and item.attempts >= _HOPELESS):
                over.append(item)
            elif not item.lost:
                pause = self._backoff(min(item.attempts, 4)) if alone else 0.0
                item.due = self._runtime.clock() + int(pause * 1e9)
                self._again.append(item)
        return over

    def _give_up(self, items: list[_Item], reason: str) -> None:
        counted = [item for item in items if not item.lost]
        if counted:
            self._count(reason, len(counted))
        if reason in ("refused", "hopeless"):
            for item in counted:
                self._journal.refuse(self.name, self.last_error, item.record.raw)


def _sorted(batch: list[_Item], problem: NotDelivered | None) -> tuple[set[_Item], set[_Item]]:
    """The items that are refused for ever, and those that failed. By id: a destination may have got copies."""
    if problem is None:
        return set(), set()
    never = {record.id for record in problem.refused}
    refused = {item for item in batch if item.record.id in never}
    if problem.failed is not None:
        again = {record.id for record in problem.failed}
        return refused, {item for item in batch if item.record.id in again} - refused
    rest = set(batch) - refused
    return (refused, rest) if problem.retry else (refused | rest, set())


def _record(entry: Entry) -> Record:
    return Record(entry.record_id, entry.raw)


def _place_of(error: BaseException) -> str:
    """The kind of an exception, and the line it came from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{where}"
