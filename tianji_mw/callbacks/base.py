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
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from tianji_mw.plugins import PluginSettings
from tianji_mw.records import NotDelivered, Record, RecordKind

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.runtime import Runtime
__all__ = ["Callback", "NotDelivered", "Record", "RecordKind"]


class Callback(PluginSettings):
    """Base of the destinations; a subclass's fields are its configuration, and construction has no side effect.

    `start` opens clients and raises SetupError for what is missing; a destination that is merely down stops no start.
    """

    #: Which records it takes.
    kinds: ClassVar[frozenset[RecordKind]] = frozenset({"call"})
    #: Keys of LiteLLM that have no effect here, and why; they are left out with a warning.
    no_effect: ClassVar[Mapping[str, str]] = {}
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

    @property
    def ordered(self) -> bool:
        """Whether nothing may go before a record that failed; one write is open at a time then."""
        return False

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
