"""Alerts that sum up: digests, which hold equal alerts back and tell how many they were, and the daily report. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from tianji_mw.alerts import Alert
from tianji_mw.callbacks.alerts.calls import Seen

_MOST: Final = 1000
_SHOWN: Final = 5


@dataclass(slots=True)
class _Bucket:
    """Alerts of one type, model and API base."""

    first: Alert
    until: int
    began: float
    last: float
    count: int = 0


class Digests:
    """Alerts that wait for the end of their interval. The oldest goes early when there are too many kinds of them."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._buckets: OrderedDict[tuple[str, str, str], _Bucket] = OrderedDict()

    def add(self, alert: Alert, *, count: int, at: float, now: int, interval_s: float) -> list[Alert]:
        """Hold it back; what has to go because of it. `now`: nanoseconds of the clock."""
        of = (alert.kind, str(alert.fields.get("model", "")), str(alert.fields.get("api_base", "")))
        bucket = self._buckets.get(of)
        if bucket is None:
            bucket = self._buckets[of] = _Bucket(alert, now + int(interval_s * 1e9), at, at)
        bucket.count += count
        bucket.last = max(bucket.last, at)
        return [_digest(self._buckets.popitem(last=False)[1])] if len(self._buckets) > self._most else []

    def due(self, now: int) -> list[Alert]:
        """The digests whose interval is over."""
        over = [of for of, bucket in self._buckets.items() if bucket.until <= now]
        return [_digest(self._buckets.pop(of)) for of in over]

    def all(self) -> list[Alert]:
        """What is held back, for the end."""
        buckets, self._buckets = self._buckets, OrderedDict()
        return [_digest(bucket) for bucket in buckets.values()]


def _digest(bucket: _Bucket) -> Alert:
    alert = bucket.first
    span = f"{_when(bucket.began)} to {_when(bucket.last)}"
    message = f"Digest, {span}: {bucket.count} times\nFor example: {alert.message}"
    fields = {**alert.fields, "count": bucket.count, "first": bucket.began, "last": bucket.last}
    return Alert(kind=alert.kind, level=alert.level, message=message, fields=fields)


def _when(at: float) -> str:
    return datetime.fromtimestamp(min(max(at, 0.0), 253_402_300_799.0), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@dataclass(slots=True)
class _Day:
    """What one deployment did."""

    model: str
    calls: int = 0
    failed: int = 0
    seconds: float = 0.0
    tokens: int = 0


class Report:
    """Counts for the daily report, of the latest deployments."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._days: OrderedDict[str, _Day] = OrderedDict()

    def note(self, call: Seen) -> None:
        """Count a call."""
        day = self._days.get(call.deployment)
        if day is None:
            day = self._days[call.deployment] = _Day(call.model)
            if len(self._days) > self._most:
                self._days.popitem(last=False)
        self._days.move_to_end(call.deployment)
        day.calls += 1
        day.failed += call.failed
        day.seconds += 0.0 if call.failed else call.seconds
        day.tokens += call.tokens

    def alert(self) -> Alert | None:
        """The report, which begins anew; None when there was no call."""
        days, self._days = self._days, OrderedDict()
        if not days:
            return None
        calls, failed = sum(day.calls for day in days.values()), sum(day.failed for day in days.values())
        lines = [f"{calls} calls, {failed} failed, {sum(day.tokens for day in days.values())} tokens"]
        worst = sorted((d for d in days.items() if d[1].failed), key=lambda d: -d[1].failed)[:_SHOWN]
        if worst:
            lines.append("Most failures:")
            lines.extend(f"- {day.model} ({name}): {day.failed} of {day.calls}" for name, day in worst)
        slow = sorted((d for d in days.items() if d[1].seconds), key=lambda d: -_average(d[1]))[:_SHOWN]
        if slow:
            lines.append("Slowest on average:")
            lines.extend(f"- {day.model} ({name}): {_average(day):.2f} s" for name, day in slow)
        return Alert(kind="daily_reports", level="low", message="\n".join(lines))


def _average(day: _Day) -> float:
    return day.seconds / max(day.calls - day.failed, 1)
