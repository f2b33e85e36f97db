"""What a callback is: a destination of log records, which takes them in batches. Ten lines make one.

>>> class Count(Callback):
...     async def write(self, batch):
...         for record in batch:
...             print(record.data["model"], record.data["total_tokens"])

Queues, retries, the spool and counters are the outbox's work: `write` delivers a batch, or says what it could not.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tianji_mw.apis.base import JSON

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.runtime import Runtime

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


class Callback(BaseModel):
    """Base of the destinations; a subclass's fields are its configuration, and construction has no side effect.

    `start` opens clients and raises SetupError for what is missing; a destination that is merely down stops no start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Which records it takes.
    kinds: ClassVar[frozenset[RecordKind]] = frozenset({"call"})
    #: Environment variables that fill a field which the config leaves out, in this order.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Other names of our fields, such as LiteLLM's; the class itself takes them.
    aliases: ClassVar[Mapping[str, str]] = {}
    #: Whether `on_request` or `on_end` are written; set by the class itself.
    in_path: ClassVar[bool] = False

    #: Records of one `write` at most, their bytes at most, and seconds that a record waits for others.
    batch_size: int = Field(default=512, ge=1, le=100_000)
    max_batch_bytes: int = Field(default=4 << 20, ge=1024, le=1 << 30)
    flush_interval_s: float = Field(default=5.0, ge=0.01, le=3600)
    #: Writes that are open at once, and seconds that one may take.
    concurrency: int = Field(default=1, ge=1, le=256)
    timeout_s: float = Field(default=30.0, gt=0, le=3600)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.in_path = cls.on_request is not Callback.on_request or cls.on_end is not Callback.on_end

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        if twice := [name for name, field in cls.aliases.items() if name in fields and field in fields]:
            raise ValueError(f"'{twice[0]}' and '{cls.aliases[twice[0]]}' are the same setting; write one of them")
        return {cls.aliases.get(name, name): value for name, value in fields.items()}

    async def start(self, runtime: Runtime) -> None:
        """Open what the destination needs; raise SetupError to stop the start."""

    async def aclose(self) -> None:
        """Close it again; also after a start that failed halfway. Nothing is written afterwards."""

    @abstractmethod
    async def write(self, batch: Sequence[Record]) -> None:
        """Deliver the batch, which is never empty. Raises NotDelivered for what was not taken.

        Any other exception means that nothing was taken, and that it is worth another attempt.
        """

    def on_request(self, call: Call) -> None:
        """Before the request goes on, in its path: keep it short, and never block. For headers to the upstream."""

    def on_end(self, call: Call) -> None:
        """After the answer, in the path of the call. For what cannot wait for a batch."""
