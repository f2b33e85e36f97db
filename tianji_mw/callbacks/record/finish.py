"""Gives the record of a journal entry: made once for all destinations that take it within a short time."""

from __future__ import annotations

from typing import Final

from tianji_mw.callbacks.record.payload import RecordRules, record_of
from tianji_mw.journal import Entry
from tianji_mw.records import Record

#: Records that are kept for other destinations.
_KEPT: Final = 512
_KEPT_BYTES: Final = 16 << 20


class Finisher:
    """From entries to records."""

    def __init__(self, rules: RecordRules, *, shared: bool) -> None:
        self._rules = rules
        #: Whether there is more than one destination to make a record for.
        self._shared = shared
        self._recent: dict[str, Record] = {}
        self._size = 0

    def __call__(self, entry: Entry) -> Record:
        if entry.kind == "alert":
            return Record(entry.record_id, entry.raw, "alert")
        record = self._recent.get(entry.record_id)
        if record is None:
            record = record_of(entry.record_id, entry.raw, self._rules)
            if self._shared:
                self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        self._recent[record.id] = record
        self._size += len(record.raw)
        while len(self._recent) > _KEPT or (self._size > _KEPT_BYTES and len(self._recent) > 1):
            self._size -= len(self._recent.pop(next(iter(self._recent))).raw)
