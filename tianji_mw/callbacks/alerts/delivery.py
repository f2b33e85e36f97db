"""`AlertCallback`: what all destinations of alerts share. It is their base, and no plugin.

One alert may have several targets: the addresses of webhooks, the recipients of mails. What a target has taken is
remembered, so that a batch that comes again goes only to those which are missing. It does no network I/O.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Generic, TypeVar

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.alerts.text import one_line
from tianji_mw.callbacks.base import Callback, NotDelivered, Record, RecordKind
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.alerts")

V = TypeVar("V")

#: Not sent unless `alert_types` names them: what LiteLLM has off by default, and what comes with every call.
OFF_BY_DEFAULT: Final = frozenset(
    {
        "user_spend_anomalies", "new_virtual_key_created", "virtual_key_updated", "virtual_key_deleted",
        "new_team_created", "team_updated", "team_deleted", "new_internal_user_created", "internal_user_updated",
        "internal_user_deleted", "spend_tracked", "guardrail_blocks",
    }
)  # fmt: skip
#: Failures in a row after which a target is left alone for the rest of the batch.
_ENOUGH: Final = 3
_REMEMBERED: Final = 20_000


class ServiceDown(NotDelivered):
    """The service behind all targets takes nothing at all: what is left of the batch is not tried."""


class Marks(Generic[V]):
    """A value for each of the latest keys; the oldest key is forgotten first."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable) -> V | None:
        return self._values.get(key)

    def set(self, key: Hashable, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._size:
            self._values.popitem(last=False)

    def drop(self, key: Hashable) -> None:
        self._values.pop(key, None)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(slots=True, frozen=True, eq=False)
class Told:
    """An alert as its record tells it."""

    record: Record
    kind: str
    level: str
    message: str
    key: str
    #: Seconds since 1970.
    at: float
    fields: Mapping[str, Any]

    @property
    def event(self) -> str:
        """The budget event; empty for other alerts."""
        event = self.fields.get("event")
        return event if isinstance(event, str) else ""


@dataclass(slots=True, frozen=True, eq=False)
class Group:
    """Equal alerts, which are sent as one."""

    key: Hashable
    members: list[Told]
    #: Whether a window holds for them: then the others are repetitions that nobody needs to count.
    once: bool = False

    @property
    def first(self) -> Told:
        return self.members[0]

    @property
    def count(self) -> int:
        return 1 if self.once else len(self.members)


@dataclass(slots=True)
class _Outcome:
    """What becomes of a batch."""

    failed: dict[str, Record] = field(default_factory=dict)
    refused: dict[str, Record] = field(default_factory=dict)
    #: The first reason to try again, and the first refusal.
    reasons: dict[bool, str] = field(default_factory=dict)
    pause_s: float | None = None

    def note(self, records: Sequence[Record], problem: NotDelivered) -> None:
        (self.failed if problem.retry else self.refused).update({record.id: record for record in records})
        self.reasons.setdefault(problem.retry, problem.message)
        if problem.retry_after_s is not None:
            self.pause_s = max(self.pause_s or 0.0, problem.retry_after_s)

    def settle(self) -> None:
        refused = [record for record in self.refused.values() if record.id not in self.failed]
        if self.failed or refused:
            failed = list(self.failed.values())
            message = "; ".join(dict.fromkeys(self.reasons.values()))
            raise NotDelivered(message, failed=failed, refused=refused, retry_after_s=self.pause_s)


class AlertCallback(Callback):
    """Base of destinations that alerts go to. Subclasses write `targets` and `deliver`."""

    kinds: ClassVar[frozenset[RecordKind]] = frozenset({"alert"})
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"proxy_base_url": ("PROXY_BASE_URL",)}
    aliases: ClassVar[Mapping[str, str]] = {"budget_alert_ttl": "budget_alert_ttl_s"}
    #: What the counters call it.
    title: ClassVar[str]

    #: Only one write at a time: two would not know of each other's alerts.
    concurrency: int = Field(default=1, ge=1, le=1)
    timeout_s: float = Field(default=120.0, gt=0, le=3600)
    #: The types to send; when empty, all but those that are off by default.
    alert_types: tuple[str, ...] = ()
    #: Seconds in which an equal budget alert is not sent again.
    budget_alert_ttl_s: float = Field(default=86_400.0, ge=0, le=31_622_400)
    #: Named in the messages, for people who have several gateways.
    proxy_base_url: str = ""
    #: Write every alert that was sent into the log.
    log_to_console: bool = False

    _runtime: Any = PrivateAttr(default=None)
    #: (record id, target): whether it was taken, or refused for ever.
    _done: Marks[bool] = PrivateAttr(default_factory=Marks)
    #: (key, target): when it was taken, in nanoseconds of the clock.
    _windows: Marks[int] = PrivateAttr(default_factory=Marks)
    #: (group key, target) that failed the last time.
    _failing: Marks[bool] = PrivateAttr(default_factory=lambda: Marks(1000))

    async def start(self, runtime: Runtime) -> None:
        await super().start(runtime)
        self._runtime = runtime

    @abstractmethod
    def targets(self, told: Told) -> Sequence[str]:
        """Where this alert goes; nowhere is well too."""

    @abstractmethod
    async def deliver(self, target: str, group: Group) -> None:
        """Send the alert to one target. Raises NotDelivered, with `retry=False` where this alert is never taken."""

    def wants(self, told: Told) -> bool:
        """Whether alerts of this type go here."""
        return told.kind in self.alert_types if self.alert_types else told.kind not in OFF_BY_DEFAULT

    def window_s(self, told: Told) -> float:
        """Seconds in which the same alert does not go to the same target again; 0 for no such thing."""
        return self.budget_alert_ttl_s if told.kind == "budget_alerts" else 0.0

    async def write(self, batch: Sequence[Record]) -> None:
        if self._runtime is None:
            raise NotDelivered(f"{self.title} was not started")
        outcome = _Outcome()
        waiting: dict[str, list[Told]] = {}
        for record in batch:
            told = read(record)
            if told is None:
                outcome.note([record], NotDelivered("the record is no alert", retry=False))
            elif self.wants(told):
                for target in dict.fromkeys(self.targets(told)):
                    waiting.setdefault(target, []).append(told)
        pairs = [(target, group) for target, told in waiting.items() for group in self._groups(target, told, outcome)]
        # What failed the last time comes last, so that it keeps nothing else from going.
        pairs.sort(key=lambda pair: self._failing.get((pair[1].key, pair[0])) is not None)
        await self._send(pairs, outcome)
        outcome.settle()

    def _groups(self, target: str, alerts: Sequence[Told], outcome: _Outcome) -> list[Group]:
        """What this target still has to get."""
        groups: dict[Hashable, Group] = {}
        now = self._runtime.clock()
        for told in alerts:
            taken = self._done.get((told.record.id, target))
            if taken is False:
                outcome.note([told.record], NotDelivered(f"{self.title} refused the alert before", retry=False))
            if taken is not None:
                continue
            window = self.window_s(told)
            last = self._windows.get((told.key, target)) if window else None
            if last is not None and now - last < window * 1e9:
                self._runtime.count("alerts_repeated", self.title)
                self._done.set((told.record.id, target), True)
                continue
            key = (told.key,) if window else _sameness(told)
            groups.setdefault(key, Group(key, [], once=bool(window))).members.append(told)
        return list(groups.values())

    async def _send(self, pairs: Sequence[tuple[str, Group]], outcome: _Outcome) -> None:
        in_a_row: Counter[str] = Counter()
        stopped: dict[str, NotDelivered] = {}
        down: NotDelivered | None = None
        for target, group in pairs:
            records = [told.record for told in group.members]
            if (stop := down or stopped.get(target)) is not None:
                outcome.note(records, stop)
                continue
            # A write that is cancelled ends here, and must not begin here the next time.
            self._failing.set((group.key, target), True)
            try:
                await self.deliver(target, group)
            except NotDelivered as problem:
                outcome.note(records, problem)
                if not problem.retry:
                    self._mark(target, group, taken=False)
                    continue
                in_a_row[target] += 1
                if isinstance(problem, ServiceDown):
                    down = problem
                elif problem.retry_after_s is not None or in_a_row[target] >= _ENOUGH:
                    stopped[target] = problem
            else:
                in_a_row[target] = 0
                self._mark(target, group, taken=True)

    def _mark(self, target: str, group: Group, *, taken: bool) -> None:
        self._failing.drop((group.key, target))
        for told in group.members:
            self._done.set((told.record.id, target), taken)
        if taken and group.once:
            self._windows.set((group.first.key, target), self._runtime.clock())
        if taken and self.log_to_console:
            log.info("%s: %s (%s): %s", self.title, group.first.kind, group.first.level, one_line(group.first.message))


def read(record: Record) -> Told | None:
    """The alert in a record; None for something else."""
    try:
        data = record.data
    except orjson.JSONDecodeError:
        return None
    if not isinstance(data, Mapping) or not isinstance(kind := data.get("kind"), str) or not kind:
        return None
    at, fields = data.get("time"), data.get("fields")
    is_time = isinstance(at, int | float) and math.isfinite(at) and 0 <= at < 253_402_300_800
    return Told(
        record=record,
        kind=kind,
        level=_text(data.get("level")) or "medium",
        message=_text(data.get("message")),
        key=_text(data.get("key")) or f"{kind}:{_text(data.get('message'))}",
        at=float(at) if is_time and at is not None else 0.0,
        fields=fields if isinstance(fields, Mapping) else {},
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _sameness(told: Told) -> Hashable:
    if told.event:
        return told.record.id  # each is an event of its own, and its fields have no place for a count
    shown = orjson.dumps(dict(told.fields), option=orjson.OPT_SORT_KEYS)
    return told.kind, told.level, told.message, shown
