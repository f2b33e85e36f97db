"""Makes whole records out of what the journal holds: the events of a stream become the answer they amount to.

Done when a record is delivered, once for all destinations that take it within a short time.
"""

from __future__ import annotations

from typing import Final

import orjson

from tianji_mw.apis.assemble import assemble
from tianji_mw.callbacks.record import EVENTS
from tianji_mw.journal import Entry
from tianji_mw.records import Record

#: Records that are kept for other destinations.
_KEPT: Final = 512
_KEPT_BYTES: Final = 16 << 20


class Finisher:
    """Gives the record of a journal entry."""

    def __init__(self) -> None:
        self._recent: dict[str, Record] = {}
        self._size = 0

    def __call__(self, entry: Entry) -> Record:
        if entry.kind != "stream":
            return Record(entry.record_id, entry.raw, "alert" if entry.kind == "alert" else "call")
        record = self._recent.get(entry.record_id)
        if record is None:
            record = finished(entry.record_id, entry.raw)
            self._keep(record)
        return record

    def _keep(self, record: Record) -> None:
        self._recent[record.id] = record
        self._size += len(record.raw)
        while len(self._recent) > _KEPT or (self._size > _KEPT_BYTES and len(self._recent) > 1):
            self._size -= len(self._recent.pop(next(iter(self._recent))).raw)


def finished(record_id: str, raw: bytes) -> Record:
    """The record with an answer in the place of its events."""
    data = orjson.loads(raw)
    events = data.pop(EVENTS, "")
    data["response"] = assemble(data["tianji"]["api"], events.encode("utf-8", "replace"))
    return Record.of(record_id, data)
