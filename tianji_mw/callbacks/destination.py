"""One configured destination: the callback, its name, which calls it hears of, and how records are delivered to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.record.redaction import without_content, without_key_info
from tianji_mw.callbacks.record.trace_context import TraceContext, trace_context
from tianji_mw.delivery import Delivery, OnFailure
from tianji_mw.records import Record
from tianji_mw.tags import tags_of

if TYPE_CHECKING:
    from tianji_mw.call import Call

Events = Literal["all", "success", "failure"]
_SCALE: Final = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Destination:
    """A callback of the config. Empty filters let everything through."""

    callback: Callback
    name: str
    events: Events = "all"
    #: False: records go there without what was asked and answered, or without whose key it was.
    content: bool = True
    key_info: bool = True
    #: Share of the calls that went well, decided by the trace, so that all calls of a trace are in or out; and of those
    #: that failed.
    sample_rate: float = 1.0
    failure_sample_rate: float = 1.0
    #: Public model names, teams, aliases of keys and tags of which the call must have one.
    models: frozenset[str] = frozenset()
    teams: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    #: Only the calls of this one key: its hash.
    key_hash: str = ""
    on_failure: OnFailure = "spool"
    max_retries: int = 5
    retry_delay_s: float = 0.5

    @property
    def takes_calls(self) -> bool:
        """Whether it hears of calls; destinations of alerts do not."""
        return "call" in self.callback.kinds

    @property
    def filtered(self) -> bool:
        """Whether it depends on more of a call than whether it went well."""
        sampled = self.sample_rate < 1 or self.failure_sample_rate < 1
        return bool(self.models or self.teams or self.keys or self.tags or self.key_hash) or sampled

    def hears(self, *, well: bool) -> bool:
        """Whether it hears of calls that went well, or failed."""
        return self.takes_calls and self.events != ("failure" if well else "success")

    def wants(self, call: Call, *, well: bool) -> bool:
        """Whether it hears of this call."""
        if not self.hears(well=well):
            return False
        rate = self.sample_rate if well else self.failure_sample_rate
        if rate < 1 and int(_trace_id(call)[-8:], 16) >= rate * _SCALE:
            return False
        identity = call.identity
        if self.key_hash and (identity is None or identity.key_hash != self.key_hash):
            return False
        if self.keys and (identity is None or identity.alias not in self.keys):
            return False
        if self.teams and (identity is None or identity.team not in self.teams):
            return False
        return (not self.models or call.model in self.models) and (
            not self.tags or not self.tags.isdisjoint(tags_of(call))
        )

    @property
    def delivery(self) -> Delivery:
        """How its outbox works."""
        callback = self.callback
        return Delivery(
            batch_size=callback.batch_size,
            max_batch_bytes=callback.max_batch_bytes,
            flush_interval_s=callback.flush_interval_s,
            concurrency=1 if callback.ordered else callback.concurrency,
            ordered=callback.ordered,
            timeout_s=callback.timeout_s,
            on_failure=self.on_failure,
            max_retries=self.max_retries,
            backoff_s=self.retry_delay_s,
        )

    async def write(self, batch: Sequence[Record]) -> None:
        """Deliver a batch, without what this destination shall not see. Raises what the callback raises."""
        if self.content and self.key_info:
            await self.callback.write(batch)
            return
        await self.callback.write([self._redacted(record) for record in batch])

    def _redacted(self, record: Record) -> Record:
        if record.kind != "call":
            return record
        data = dict(record.data)
        if not self.content:
            data = without_content(data)
        if not self.key_info:
            data = without_key_info(data)
        return Record.of(record.id, data)


def _trace_id(call: Call) -> str:
    noted = call.notes.get(TraceContext)
    return (noted if isinstance(noted, TraceContext) else trace_context(call.headers, call.id)).trace_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which destinations hear of a call: decided once where nothing is filtered."""

    destinations: Sequence[Destination]
    _fixed: dict[bool, tuple[str, ...]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if not any(one.filtered for one in self.destinations):
            for well in (True, False):
                self._fixed[well] = tuple(one.name for one in self.destinations if one.hears(well=well))

    def __call__(self, call: Call, *, well: bool, without: frozenset[str]) -> tuple[str, ...]:
        """Their names, without these."""
        found = self._fixed.get(well)
        if found is None:
            found = tuple(one.name for one in self.destinations if one.wants(call, well=well))
        return tuple(name for name in found if name not in without) if without else found
