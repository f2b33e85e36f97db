"""`ObjectCallback`: what all object stores share: how records become objects, and which of them arrived. No plugin.

A store's own class has its login, and `put`. Names of objects follow from their records, so that a second attempt
overwrites; an object either arrives whole or is offered again.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tianji_mw.callbacks.base import Callback, NotDelivered
from tianji_mw.callbacks.objects.build import Builder, Stored, readable
from tianji_mw.callbacks.objects.keys import Layout, Partition, ended
from tianji_mw.errors import MissingExtra
from tianji_mw.records import Record
from tianji_mw.runtime import Runtime

__all__ = ["ObjectCallback", "PutFailed", "Stored"]

#: Parts of `timeout_s` after which no upload begins, and after which those on their way are given up for now: what has
#: arrived by then is reported, where a cancelled write would have to begin anew.
_LAST_START: Final = 0.7
_LAST_END: Final = 0.9
_FALSE: Final = frozenset({"false", "0", "no", "off", "f", "n", ""})


class PutFailed(Exception):
    """An object did not arrive. `message` is for the operator: no key, no content.

    `retry`: this object again, later. `busy`: the same, and the store asks for less. `refused`: never this object.
    `too_large`: not in one piece; its records are offered in smaller files, or one alone is refused.
    `halt`: no other will arrive now either (no bucket, a wrong key, nobody answers), so the rest is not tried.
    """

    def __init__(
        self,
        message: str,
        kind: Literal["retry", "busy", "refused", "too_large", "halt"] = "retry",
        *,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.retry_after_s = retry_after_s


class ObjectCallback(Callback):
    """Base of destinations that store objects. Subclasses write `put`, and call `super().start()`."""

    #: What error messages call it.
    title: ClassVar[str]

    flush_interval_s: float = Field(default=5.0, ge=0.01, le=3600)
    timeout_s: float = Field(default=60.0, gt=0, le=3600)
    #: Seconds for one upload.
    upload_timeout_s: float = Field(default=30.0, ge=1, le=3600)

    #: Folders before every key.
    prefix: str = ""
    #: `records`: one object each, as LiteLLM names it. `batches`: files in folders that query engines read.
    #: `batch_files`: one file for each batch and folder, as LiteLLM's `batch_file_upload` names it.
    layout: Layout = "records"
    partition: Partition = "day"
    #: Parquet is for `batches` only.
    format: Literal["jsonl", "parquet"] = "jsonl"
    #: `auto`: none for JSON, zstd inside Parquet.
    compression: Literal["auto", "none", "gzip", "zstd"] = "auto"
    #: Whether the aliases of team and key are folders.
    team_prefix: bool = False
    key_prefix: bool = False
    strip_base64_files: bool = False
    prompts_only: bool = False
    #: Uploads at once.
    concurrent_uploads: int = Field(default=16, ge=1, le=1024)
    #: Whether that number grows while all goes well, up to the other one, and halves when the store is busy.
    adaptive_uploads: bool = False
    max_adaptive_uploads: int = Field(default=200, ge=1, le=1024)
    #: Whether an object that the store refuses for ever is given up; else it is offered again.
    drop_refused: bool = True
    #: Seconds after a call's end in which its record is offered again while others are taken; 0: for ever.
    max_retry_age_s: float = Field(default=0.0, ge=0)

    _clock: Any = PrivateAttr(default=None)
    _wall: Any = PrivateAttr(default=None)
    _builder: Builder | None = PrivateAttr(default=None)
    #: Uploads at once, now.
    _limit: int = PrivateAttr(default=1)

    @field_validator("prompts_only", mode="before")
    @classmethod
    def _careful(cls, value: Any) -> Any:
        """A text that is no clear 'no' means yes, as in LiteLLM: better no answers than ones nobody wanted stored."""
        return value.strip().lower() not in _FALSE if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> ObjectCallback:
        if self.format == "parquet" and self.layout != "batches":
            raise ValueError("format: parquet needs layout: batches")
        return self

    async def start(self, runtime: Runtime) -> None:
        """Make sure that what `format` and `compression` need is installed. Raises MissingExtra."""
        self._clock, self._wall = runtime.clock, runtime.wall
        self._limit = self.concurrent_uploads
        if self.format == "parquet":
            try:
                import pyarrow.parquet  # noqa: F401
            except ModuleNotFoundError:
                raise MissingExtra("pyarrow", "parquet") from None
        elif self.compression == "zstd":
            try:
                import zstandard  # noqa: F401
            except ModuleNotFoundError:
                raise MissingExtra("zstandard", "zstd") from None
        self._builder = Builder(
            prefix=self.prefix,
            layout=self.layout,
            partition=self.partition,
            file_format=self.format,
            compression=self.compression,
            team=self.team_prefix,
            key=self.key_prefix,
            no_files=self.strip_base64_files,
            no_answers=self.prompts_only,
        )

    @abstractmethod
    async def put(self, item: Stored) -> None:
        """Store one object whole, over an older one of its key; one attempt. Raises PutFailed."""

    async def write(self, batch: Sequence[Record]) -> None:
        if self._builder is None:
            raise NotDelivered(f"{self.title} was not started")
        begun = self._clock()
        good = [record for record in batch if readable(record)]
        items = await asyncio.to_thread(self._builder.objects, good)
        uploads = _Uploads(self, self._builder, items, begun)
        await uploads.run()
        bad = [record for record in batch if not readable(record)] if len(good) < len(batch) else []
        if uploads.problems or bad:
            raise uploads.outcome(bad)


class _Uploads:
    """The uploads of one batch: so many at once, and what became of each."""

    def __init__(self, callback: ObjectCallback, builder: Builder, items: Sequence[Stored], begun: int) -> None:
        self._callback = callback
        self._builder = builder
        self._waiting = list(reversed(items))
        self._running: dict[asyncio.Task[None], Stored] = {}
        self._begun = begun
        #: What stopped the rest.
        self._halted: PutFailed | None = None
        #: Uploads that ended since the limit was last changed.
        self._since = 0
        self.stored = 0
        self.problems: list[tuple[Stored, PutFailed]] = []

    async def run(self) -> None:
        """Upload all, or as many as time allows."""
        timeout_s = self._callback.timeout_s
        try:
            while self._waiting or self._running:
                self._fill(late=self._elapsed() > timeout_s * _LAST_START)
                if not self._running:
                    break
                left = timeout_s * _LAST_END - self._elapsed()
                done, _ = await asyncio.wait(self._running, timeout=max(left, 0.0), return_when="FIRST_COMPLETED")
                for task in done:
                    self._note(self._running.pop(task), task)
                if not done:
                    break
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)
        why = self._halted or PutFailed("there was not enough time for all")
        self.problems += [(item, why) for item in (*self._running.values(), *self._waiting)]

    def outcome(self, bad: Sequence[Record]) -> NotDelivered:
        """What the outbox is told; `bad`: records that are no JSON objects.

        What the store refuses is offered again as long as it has taken nothing else: then a setting may be at fault.
        """
        callback, failed, refused = self._callback, list[Record](), list(bad)
        for item, problem in self.problems:
            hopeless = problem.kind == "too_large" or (problem.kind == "refused" and self.stored > 0)
            (refused if hopeless and callback.drop_refused else failed).extend(item.records)
        if callback.max_retry_age_s and self.stored:
            oldest = callback._wall() - callback.max_retry_age_s
            refused += [record for record in failed if ended(record) < oldest]
            failed = [record for record in failed if ended(record) >= oldest]
        message = f"{callback.title}: {len(bad)} records are no JSON objects"
        if said := Counter(problem.message for _, problem in self.problems).most_common(1):
            count = len(self.problems)
            message = f"{callback.title}: {count} of {count + self.stored} objects were not stored: {said[0][0]}"
        pauses = [problem.retry_after_s for _, problem in self.problems if problem.retry_after_s is not None]
        return NotDelivered(message, failed=failed, refused=refused, retry_after_s=max(pauses, default=None))

    def _fill(self, *, late: bool) -> None:
        while self._waiting and len(self._running) < self._callback._limit and not self._halted and not late:
            item = self._waiting.pop()
            self._running[asyncio.ensure_future(self._callback.put(item))] = item

    def _elapsed(self) -> float:
        seconds: float = (self._callback._clock() - self._begun) / 1e9
        return seconds

    def _note(self, item: Stored, task: asyncio.Task[None]) -> None:
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._adapt(error)
        if error is None:
            self.stored += 1
            return
        if not isinstance(error, PutFailed):
            # No text of it: it may hold a key, or what somebody said.
            error = PutFailed(f"{type(error).__name__} in the callback's own code")
        if error.kind == "halt":
            self._halted = error
        middle = len(item.records) // 2
        if error.kind == "too_large" and len({record.id for record in item.records}) > 1:
            for half in (item.records[:middle], item.records[middle:]):
                self._waiting += self._builder.objects(half)
        else:
            self.problems.append((item, error))

    def _adapt(self, error: BaseException | None) -> None:
        """One more at once after a round without trouble; half as many when the store is busy, once in a round."""
        callback, self._since = self._callback, self._since + 1
        if not callback.adaptive_uploads or self._since <= callback._limit:
            return
        if isinstance(error, PutFailed) and error.kind == "busy":
            callback._limit, self._since = max(1, callback._limit // 2), 0
        elif error is None:
            callback._limit, self._since = min(callback._limit + 1, callback.max_adaptive_uploads), 0
