"""Watches the records of calls and raises alerts: failures, slow answers, outages, blocks of guardrails, daily reports.

It delivers nothing itself; the alerts go through `Runtime.alert` to the destinations of alerts.

Source: LiteLLM's `alerting_args` and alert types.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final

import orjson
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from tianji_mw.alerts import Alert, Level
from tianji_mw.callbacks.alerts.calls import Outages, Seen, Try, seen
from tianji_mw.callbacks.alerts.delivery import OFF_BY_DEFAULT
from tianji_mw.callbacks.alerts.summaries import Digests, Report
from tianji_mw.callbacks.alerts.text import cut
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.alerting")

_SHOWN: Final = 500
#: Settings in `alerting_args` for those who deliver, and those of LiteLLM for what does not exist here.
_OF_OTHERS: Final = frozenset({"budget_alert_ttl", "log_to_console"})
_UNUSED: Final = frozenset(
    {
        "daily_spend_per_user_threshold", "monthly_spend_per_user_threshold", "spend_anomaly_multiplier",
        "spend_anomaly_baseline_days", "spend_anomaly_min_spend", "user_spend_check_interval",
    }
)  # fmt: skip


class Digest(BaseModel):
    """Whether alerts of a type are held back and summed up."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: bool = False
    digest_interval_s: float = Field(
        default=86_400.0, gt=0, le=31_622_400, validation_alias=AliasChoices("digest_interval_s", "digest_interval")
    )


class Alerting(Callback):
    """Raises `llm_exceptions`, `llm_too_slow`, `outage_alerts`, `region_outage_alerts`, `guardrail_blocks`, reports.

    >>> Alerting(slow_after_s=60, alert_types=["llm_too_slow", "outage_alerts"])
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"report_every_s": ("SLACK_DAILY_REPORT_FREQUENCY",)}
    aliases: ClassVar[Mapping[str, str]] = {
        "alerting_threshold": "slow_after_s",
        "alert_type_config": "digests",
        "daily_report_frequency": "report_every_s",
        "report_check_interval": "check_every_s",
        "outage_alert_ttl": "outage_window_s",
        "region_outage_alert_ttl": "region_outage_window_s",
        "minor_outage_alert_threshold": "minor_outage_failures",
        "major_outage_alert_threshold": "major_outage_failures",
        "max_outage_alert_list_size": "outage_failures_kept",
    }

    #: The types to raise; when empty, all but those that are off by default.
    alert_types: tuple[str, ...] = ()
    #: By type.
    digests: dict[str, Digest] = Field(default_factory=dict)
    #: An answer that took longer, from request to last byte, is too slow.
    slow_after_s: float = Field(default=300.0, gt=0, le=86_400)
    #: Failures of one deployment within the window that make an outage.
    outage_window_s: float = Field(default=60.0, gt=0, le=86_400)
    minor_outage_failures: int = Field(default=5, ge=1, le=10_000)
    major_outage_failures: int = Field(default=10, ge=1, le=10_000)
    #: The same for all deployments of a provider's region, two at least.
    region_outage_window_s: float = Field(default=60.0, gt=0, le=86_400)
    #: Failures that are remembered for each; at least as many as a threshold needs.
    outage_failures_kept: int = Field(default=10, ge=1, le=10_000)
    report_every_s: float = Field(default=43_200.0, ge=1, le=31_622_400)
    #: How often it looks whether a report or a digest is due.
    check_every_s: float = Field(default=300.0, ge=0.01, le=86_400)

    #: LiteLLM's form: the settings above by its names. What others use is left to them.
    alerting_args: dict[str, Any] = Field(default_factory=dict)

    _runtime: Any = PrivateAttr(default=None)
    _digests: Any = PrivateAttr(default_factory=Digests)
    _report: Any = PrivateAttr(default_factory=Report)
    _outages: Any = PrivateAttr(default=None)
    _regions: Any = PrivateAttr(default=None)
    #: When the next report is due, in nanoseconds of the clock.
    _report_at: int = PrivateAttr(default=0)

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, fields: Any) -> Any:
        """The settings in `alerting_args` become fields, unless they also stand beside it."""
        args = fields.get("alerting_args") if isinstance(fields, dict) else None
        if not isinstance(args, dict):
            return fields
        if unknown := args.keys() - cls.aliases.keys() - _OF_OTHERS - _UNUSED:
            raise ValueError(f"alerting_args: unknown setting {min(map(str, unknown))!r}")
        own = {cls.aliases[name]: value for name, value in args.items() if name in cls.aliases}
        beside = {cls.aliases.get(name, name): value for name, value in fields.items() if name != "alerting_args"}
        return {**own, **beside, "alerting_args": {name: args[name] for name in args if name in _UNUSED}}

    async def start(self, runtime: Runtime) -> None:
        if self.alerting_args:
            log.warning("alerting_args: %s have no effect", ", ".join(sorted(self.alerting_args)))
        minor, major, kept = self.minor_outage_failures, self.major_outage_failures, self.outage_failures_kept
        self._outages = Outages(self.outage_window_s, minor=minor, major=major, kept=kept)
        self._regions = Outages(self.region_outage_window_s, minor=minor, major=major, kept=kept, least=2)
        self._runtime = runtime
        self._report_at = runtime.clock() + int(self.report_every_s * 1e9)
        runtime.spawn("alerting", self._look)

    async def aclose(self) -> None:
        """What digests hold back goes out now."""
        runtime, self._runtime = self._runtime, None
        for alert in self._digests.all():
            runtime.alert(alert)

    async def _look(self) -> None:
        while (runtime := self._runtime) is not None:
            await runtime.sleep(self.check_every_s)
            self.tick()

    def tick(self) -> None:
        """Send the digests and the report that are due."""
        if self._runtime is None:
            return
        now = self._runtime.clock()
        for alert in self._digests.due(now):
            self._runtime.alert(alert)
        if now >= self._report_at:
            self._report_at = now + int(self.report_every_s * 1e9)
            report = self._report.alert()
            if report is not None and self._wants("daily_reports"):
                self._runtime.alert(report)

    async def write(self, batch: Sequence[Record]) -> None:
        if self._runtime is None:
            raise NotDelivered("alerting was not started")
        calls = [call for record in batch if (call := self._read(record)) is not None]
        for call in calls:
            self._report.note(call)
        for found in (self._failures(calls), self._slow(calls), self._blocks(calls), self._outages_of(calls)):
            for alert, count, at in found:
                self._raise(alert, count, at)
        self.tick()

    def _read(self, record: Record) -> Seen | None:
        try:
            data = record.data
        except orjson.JSONDecodeError:
            data = {}
        if not isinstance(data, Mapping) or not data:
            self._runtime.count("alerting_unreadable", "")
            return None
        return seen(data)

    def _wants(self, kind: str) -> bool:
        return kind in self.alert_types if self.alert_types else kind not in OFF_BY_DEFAULT

    def _raise(self, alert: Alert, count: int, at: float) -> None:
        if not self._wants(alert.kind):
            return
        digest = self.digests.get(alert.kind)
        if digest is None or not digest.digest:
            self._runtime.alert(alert)
            return
        now = self._runtime.clock()
        for early in self._digests.add(alert, count=count, at=at, now=now, interval_s=digest.digest_interval_s):
            self._runtime.alert(early)

    # --- what is found: the alert, how many calls it stands for, and when

    def _failures(self, calls: Iterable[Seen]) -> list[tuple[Alert, int, float]]:
        """One for equal failures of a batch: in an outage there are thousands."""
        groups: dict[tuple[str, ...], list[Seen]] = {}
        for call in calls:
            if call.failed:
                of = (call.deployment, call.model, call.api_base, call.error_class, call.error_code)
                groups.setdefault(of, []).append(call)
        found = []
        for group in groups.values():
            call = group[0]
            what = " ".join(part for part in (call.error_class, call.error_code) if part) or "no reason given"
            message = f"LLM call failed: {what}"
            if call.error_text:
                message += f"\n{cut(call.error_text, _SHOWN)}"
            found.append(_alert("llm_exceptions", "high", message, call, group))
        return found

    def _slow(self, calls: Iterable[Seen]) -> list[tuple[Alert, int, float]]:
        groups: dict[str, list[Seen]] = {}
        for call in calls:
            if not call.failed and call.seconds > self.slow_after_s:
                groups.setdefault(call.deployment, []).append(call)
        found = []
        for group in groups.values():
            slowest = max(group, key=lambda call: call.seconds)
            message = f"Answers are slow: {slowest.seconds:.2f} s, and more than {self.slow_after_s:g} s is too slow"
            found.append(_alert("llm_too_slow", "low", message, slowest, group))
        return found

    def _blocks(self, calls: Iterable[Seen]) -> list[tuple[Alert, int, float]]:
        groups: dict[str, list[Seen]] = {}
        for call in calls:
            for name in call.blocked_by:
                groups.setdefault(name, []).append(call)
        return [
            _alert("guardrail_blocks", "medium", f"The guardrail '{name}' blocked a call", group[0], group)
            for name, group in groups.items()
        ]

    def _outages_of(self, calls: Iterable[Seen]) -> list[tuple[Alert, int, float]]:
        """In the order of time: calls end in another order than their attempts."""
        found = []
        least = {"minor": self.minor_outage_failures, "major": self.major_outage_failures}
        for one in sorted((one for call in calls for one in call.tries), key=lambda one: one.at):
            if severity := self._outages.note(one.deployment, one.at, one.deployment):
                what = f"{least[severity]} failures of '{one.model}' within {self.outage_window_s:g} s"
                message = f"{severity.capitalize()} outage: {what}, the last {one.code}"
                found.append(_outage("outage_alerts", severity == "major", message, one))
            region = one.region
            if region and (severity := self._regions.note((one.provider, region), one.at, one.deployment)):
                what = f"failures of {one.provider} in {region} within {self.region_outage_window_s:g} s"
                message = f"{severity.capitalize()} region outage: {least[severity]} {what}, by several deployments"
                found.append(_outage("region_outage_alerts", severity == "major", message, one))
        return found


def _alert(kind: str, level: Level, message: str, call: Seen, group: Sequence[Seen]) -> tuple[Alert, int, float]:
    fields: dict[str, Any] = {"model": call.model, "deployment": call.deployment, "api_base": call.api_base}
    if len(group) > 1:
        fields["calls"] = len(group)
    alert = Alert(kind=kind, level=level, message=message, fields=fields)
    return alert, len(group), max(one.at for one in group)


def _outage(kind: str, major: bool, message: str, one: Try) -> tuple[Alert, int, float]:
    fields: dict[str, Any] = {"model": one.model, "deployment": one.deployment, "api_base": one.api_base}
    if kind == "region_outage_alerts":
        fields = {"provider": one.provider, "region": one.region}
    return Alert(kind=kind, level="high" if major else "medium", message=message, fields=fields), 1, one.at
