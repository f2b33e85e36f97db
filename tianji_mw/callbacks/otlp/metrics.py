"""The GenAI histograms: cumulative since the start of the process. No key, user, call or trace is an attribute.

Source: open-telemetry/semantic-conventions-genai (status: Development), metrics; LiteLLM's names where it has more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tianji_mw.callbacks.otlp import genai
from tianji_mw.callbacks.otlp.spans import Value, dicts, error_of, model_of, ns, operation_of, ours_of

if TYPE_CHECKING:
    from tianji_mw.callbacks.otlp.encode import Histogram

_DURATION: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_TOKENS: Final = tuple(4.0**at for at in range(14))
_FIRST: Final = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN: Final = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_COST: Final = (0.00001, 0.0001, 0.001, 0.01, 0.1, 1.0, 10.0)


class Instrument(NamedTuple):
    """One histogram."""

    name: str
    unit: str
    bounds: tuple[float, ...]
    description: str


#: What is measured, by what it measures; names are the conventions' of today, and stand here only.
INSTRUMENTS: Final[Mapping[str, Instrument]] = {
    "duration": Instrument("gen_ai.client.operation.duration", "s", _DURATION, "Duration of the call."),
    "tokens": Instrument("gen_ai.client.token.usage", "{token}", _TOKENS, "Tokens asked and answered."),
    "first_chunk": Instrument(
        "gen_ai.client.operation.time_to_first_chunk", "s", _FIRST, "Time to the first content of a stream."
    ),
    "served": Instrument("gen_ai.server.request.duration", "s", _DURATION, "Duration of the request to us."),
    "first_token": Instrument(
        "gen_ai.server.time_to_first_token", "s", _FIRST, "Time to the first token that we delivered."
    ),
    "per_token": Instrument(
        "gen_ai.server.time_per_output_token", "s", _PER_TOKEN, "Time for each token after the first one."
    ),
    "answered": Instrument(
        "gen_ai.client.response.duration", "s", _DURATION, "Duration of the last attempt at a provider."
    ),
    "cost": Instrument("gen_ai.usage.cost", "USD", _COST, "Price of the call."),
    "old_cost": Instrument("gen_ai.client.token.cost", "USD", _COST, "Price of the call."),
    "old_first_token": Instrument(
        "gen_ai.client.response.time_to_first_token", "s", _FIRST, "Time to the first token."
    ),
    "old_per_token": Instrument(
        "gen_ai.client.response.time_per_output_token", "s", _PER_TOKEN, "Time for each token."
    ),
}
#: Under which earlier name a value is counted too.
_EARLIER: Final[Mapping[str, str]] = {
    "cost": "old_cost",
    "first_token": "old_first_token",
    "per_token": "old_per_token",
}
#: Series of one histogram; further ones are one series together, as in OpenTelemetry's SDKs.
MAX_SERIES: Final = 2000
_OVERFLOW: Final = (("otel.metric.overflow", True),)

Key = tuple[tuple[str, Value], ...]


@dataclass(slots=True)
class _Series:
    counts: list[int]
    total: float = 0.0
    low: float = field(default=float("inf"))
    high: float = field(default=float("-inf"))

    def add(self, bounds: tuple[float, ...], value: float) -> None:
        # A value that equals a boundary belongs into the bucket below it.
        self.counts[bisect_left(bounds, value)] += 1
        self.total += value
        self.low, self.high = min(self.low, value), max(self.high, value)


class Meter:
    """Adds up what records say."""

    def __init__(self, start_ns: int, *, legacy: bool = False, max_series: int = MAX_SERIES) -> None:
        self._start_ns = start_ns
        self._legacy = legacy
        self._most = max_series
        self._series: dict[str, dict[Key, _Series]] = {what: {} for what in INSTRUMENTS}

    def observe(self, data: Mapping[str, Any]) -> None:
        """Add one call."""
        common = self._attributes(data)
        for what, value, more in _values(data):
            key = tuple({**common, **more}.items())
            names = (what, _EARLIER[what]) if self._legacy and what in _EARLIER else (what,)
            for name in names:
                self._of(name, key).add(INSTRUMENTS[name].bounds, value)

    def collect(self, now_ns: int) -> list[Histogram]:
        """All histograms that have a series, as they stand."""
        from tianji_mw.callbacks.otlp.encode import Histogram, Point

        found = []
        for what, series in self._series.items():
            if not series:
                continue
            instrument = INSTRUMENTS[what]
            points = [
                Point(
                    attributes=dict(key),
                    start_ns=self._start_ns,
                    time_ns=max(now_ns, self._start_ns),
                    bounds=instrument.bounds,
                    counts=tuple(one.counts),
                    total=one.total,
                    low=one.low,
                    high=one.high,
                )
                for key, one in series.items()
            ]
            found.append(
                Histogram(name=instrument.name, unit=instrument.unit, description=instrument.description, points=points)
            )
        return found

    def _of(self, what: str, key: Key) -> _Series:
        series = self._series[what]
        if key not in series and len(series) >= self._most:
            key = _OVERFLOW
        found = series.get(key)
        if found is None:
            found = series[key] = _Series([0] * (len(INSTRUMENTS[what].bounds) + 1))
        return found

    def _attributes(self, data: Mapping[str, Any]) -> dict[str, Value]:
        provider = genai.provider_of(data) or "unknown"
        found: dict[str, Value] = {
            "gen_ai.operation.name": operation_of(data),
            "gen_ai.provider.name": provider,
            "gen_ai.system": provider if self._legacy else None,
            "gen_ai.request.model": model_of(data) or None,
            "gen_ai.response.model": genai.response_model(data) or None,
            "error.type": error_of(data)[0] or None,
            **genai.server_of(data.get("api_base")),
        }
        return {name: value for name, value in found.items() if value is not None}


def _values(data: Mapping[str, Any]) -> Iterator[tuple[str, float, dict[str, Value]]]:
    start, end = ns(data.get("startTime")), ns(data.get("endTime"))
    if start and end >= start:
        yield "duration", (end - start) / 1e9, {}
        yield "served", (end - start) / 1e9, {}
    attempts = dicts(ours_of(data).get("attempts"))
    if attempts:
        sent, done = ns(attempts[-1].get("startTime")), ns(attempts[-1].get("endTime"))
        if sent and done >= sent:
            yield "answered", (done - sent) / 1e9, {}
    asked, answered = genai.counts(data)
    for kind, count in (("input", asked), ("output", answered)):
        if count:
            yield "tokens", count, {"gen_ai.token.type": kind}
    first = genai.first_chunk_s(data)
    if first is not None and start:
        yield "first_chunk", first, {}
        yield "first_token", first, {}
        left = (end - start) / 1e9 - first
        if answered is not None and answered > 1 and left >= 0:
            yield "per_token", left / (answered - 1), {}
    cost = genai.cost_of(data)
    if cost:
        yield "cost", cost, {}
