"""What the outbox carries: a `Record`, and `NotDelivered`, with which a destination says what it could not take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson

from tianji_mw.apis.base import JSON

#: What a record tells of: an LLM call, or something that people should look at.
RecordKind = Literal["call", "alert"]


class Record:
    """One record: its bytes (a JSON object), decoded at first use, at most once.

    Of the kind `call` it is LiteLLM's StandardLoggingPayload, with more of our own under `tianji`; docs/callbacks.md
    has the fields. Redaction has happened. It is shared: whoever wants it changed makes a copy.
    """

    __slots__ = ("_data", "id", "kind", "raw")

    def __init__(self, record_id: str, raw: bytes, kind: RecordKind = "call") -> None:
        #: The same in every attempt to deliver it, also after a restart: destinations deduplicate by it. A UUIDv7.
        self.id = record_id
        self.raw = raw
        self.kind: RecordKind = kind
        self._data: dict[str, JSON] | None = None

    @classmethod
    def of(cls, record_id: str, data: dict[str, JSON], kind: RecordKind = "call") -> Record:
        """A record of this content."""
        record = cls(record_id, orjson.dumps(data), kind)
        record._data = data
        return record

    @property
    def data(self) -> Mapping[str, Any]:
        """The decoded object; read only."""
        if self._data is None:
            self._data = orjson.loads(self.raw)
        return self._data

    def __repr__(self) -> str:
        return f"Record({self.id}, {self.kind}, {len(self.raw)} bytes)"


class NotDelivered(Exception):
    """A batch, or a part of it, was not taken. `message` names the reason; no key, no URL with one, no content.

    `failed`: records to offer again (None: all that are not in `refused`). `refused`: records that will never be
    taken, such as ones that are too large; they are dropped and counted. `retry=False`: the destination refused the
    request as a whole; the outbox halves the batch until it has found whose fault it is.
    """

    def __init__(
        self,
        message: str,
        *,
        failed: Sequence[Record] | None = None,
        refused: Sequence[Record] = (),
        retry: bool = True,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.failed = failed
        self.refused = refused
        self.retry = retry
        self.retry_after_s = retry_after_s
