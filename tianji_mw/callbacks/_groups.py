"""Sends the records of a batch in as many requests as a service's limits ask for, and finds out which ones it refused.

No destination, and no retries: every record is offered once, and again only in the halves of a group that was refused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tianji_mw.records import NotDelivered, Record

#: Records that are built before other tasks get their turn.
_AT_ONCE: Final = 8
#: What building the payload of an odd record may raise.
ODD = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Item:
    """A record and what it becomes: JSON values, joined by commas, which go in the same request."""

    record: Record
    body: bytes
    count: int = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one request: JSON values, and bytes with the commas between them."""

    count: int
    size: int


Build = Callable[[Record], Sequence[bytes]]


async def built(batch: Iterable[Record], build: Build, limits: Limits) -> tuple[list[Item], list[Record]]:
    """The items of a batch, and the records of which none can be made, or one that is too large for any request.

    A record that becomes nothing (`build` gives an empty list) is left out: it counts as delivered. Calls that are
    being served get their turn in between.
    """
    items, refused = [], []
    for at, record in enumerate(batch, 1):
        if at % _AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            values = build(record)
        except ODD:
            refused.append(record)
            continue
        body = b",".join(values)
        if len(body) > limits.size or len(values) > limits.count:
            refused.append(record)
        elif values:
            items.append(Item(record, body, len(values)))
    return items, refused


def groups(items: Iterable[Item], limits: Limits) -> list[list[Item]]:
    """The items in as few requests as their order allows."""
    found: list[list[Item]] = []
    count = size = 0
    for item in items:
        more = len(item.body) + 1
        if not found or count + item.count > limits.count or size + more > limits.size + 1:
            found.append([])
            count = size = 0
        found[-1].append(item)
        count, size = count + item.count, size + more
    return found


def joined(group: Iterable[Item]) -> bytes:
    """The JSON values of a group, between commas."""
    return b",".join(item.body for item in group)


Send = Callable[[list[Item]], Awaitable[None]]


class Delivery:
    """What became of the records of one `write`; `done` raises what is left to say."""

    def __init__(self, title: str, refused: Sequence[Record] = ()) -> None:
        self.refused = [*refused]
        self.failed: list[Record] = []
        self.message = f"{title}: {len(refused)} records are too large or cannot be read" if refused else ""
        self.retry_after_s: float | None = None
        #: Groups that failed in a row: after two, the service is taken to be down.
        self._silent = 0

    async def send(self, requests: Sequence[list[Item]], send: Send) -> None:
        """Offer each group; a group that was refused, in halves, until it is known whose fault it is."""
        waiting = deque(requests)
        while waiting:
            group = waiting.popleft()
            if self.halted:
                self.failed += [item.record for item in group]
                continue
            try:
                await send(group)
            except NotDelivered as problem:
                self.message = problem.message
                if not problem.retry and len(group) > 1:
                    middle = len(group) // 2
                    waiting.extendleft((group[middle:], group[:middle]))
                    continue
                self.missed([item.record for item in group], problem)
            else:
                self.took()

    @property
    def halted(self) -> bool:
        """Whether it makes no sense to offer more now."""
        return self._silent > 1 or self.retry_after_s is not None

    def took(self) -> None:
        """The service took something."""
        self._silent = 0

    def missed(self, records: Sequence[Record], problem: NotDelivered) -> None:
        """These records were not taken, because of this."""
        self.message = problem.message
        if not problem.retry:
            self.refused += records
            return
        self.failed += records
        self._silent += 1
        if problem.retry_after_s is not None:
            self.retry_after_s = max(self.retry_after_s or 0.0, problem.retry_after_s)

    def done(self) -> None:
        """Raises NotDelivered where a record was not taken."""
        if self.failed or self.refused:
            raise NotDelivered(self.message, failed=self.failed, refused=self.refused, retry_after_s=self.retry_after_s)
