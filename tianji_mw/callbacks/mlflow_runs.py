"""Sums of calls for an MLflow run: one run stands for a process and a day, and never for a call. Pure.

Source: MLflow's REST API, `runs/log-batch` and its limits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final

from tianji_mw.callbacks.otlp.spans import model_of
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: Models with sums of their own; the rest is `other`. A batch takes 1,000 metrics.
_MODELS: Final = 100
_SEEN: Final = 20_000
_UNFIT: Final = re.compile(r"[^\w\-. /]")


@dataclass(slots=True)
class _Sums:
    calls: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float = 0.0
    seconds: float = 0.0
    slowest: float = 0.0

    def add(self, record: Record) -> None:
        used = content.usage(record)
        start, end = content.times(record)
        self.calls += 1
        self.failures += record.data.get("status") == "failure"
        self.prompt_tokens += used.input
        self.completion_tokens += used.output
        self.cost_usd += content.cost(record)
        self.seconds += end - start
        self.slowest = max(self.slowest, end - start)

    def values(self) -> dict[str, float]:
        return {
            "calls": self.calls,
            "failures": self.failures,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
            "response_time_mean_s": self.seconds / max(self.calls, 1),
            "response_time_max_s": self.slowest,
        }


@dataclass(slots=True)
class Totals:
    """Everything that was counted for one run. `add` counts a record once, however often it comes."""

    all: _Sums = field(default_factory=_Sums)
    models: dict[str, _Sums] = field(default_factory=dict)
    step: int = 0
    _seen: dict[str, None] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Count it, unless it is known."""
        if record.id in self._seen:
            return
        self._seen[record.id] = None
        if len(self._seen) > _SEEN:
            del self._seen[next(iter(self._seen))]
        self.all.add(record)
        name = _UNFIT.sub("_", model_of(record.data))[:200].strip("/. ") or "unknown"
        if name not in self.models and len(self.models) >= _MODELS:
            name = "other"
        self.models.setdefault(name, _Sums()).add(record)

    def metrics(self, timestamp_ms: int) -> list[dict[str, Any]]:
        """All sums as they stand, as the metrics of one `log-batch`."""
        self.step += 1
        named = dict(self.all.values())
        for model, sums in self.models.items():
            named |= {f"model/{model}/{key}": value for key, value in sums.values().items()}
        return [
            {"key": key, "value": value, "timestamp": timestamp_ms, "step": self.step} for key, value in named.items()
        ]
