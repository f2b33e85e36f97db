"""What a batch of records adds to the metrics, before it is written to the store. No plugin."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, NamedTuple

from tianji_mw.callbacks.metrics.catalogue import Catalogue, Metric

#: The number of a histogram's sum among its cells; its buckets follow, each by itself. Others have this cell alone.
SUM: Final = 0

Labels = tuple[str, ...]


class Example(NamedTuple):
    """The trace of a call that a number comes from, and when it was, in seconds since 1970."""

    trace_id: str
    at: float


class Series:
    """Changes of one series. Counters and histograms add up; of a gauge of the kind `last` the last value stays."""

    __slots__ = ("cells", "exemplars", "metric")

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.cells: dict[int, float] = {}
        #: Of buckets: trace, value and time, with blanks between.
        self.exemplars: dict[int, tuple[Example, float]] = {}

    def add(self, value: float, example: Example | None) -> None:
        cells, metric = self.cells, self.metric
        if metric.kind == "last":
            cells[SUM] = value
            return
        cells[SUM] = cells.get(SUM, 0.0) + value
        if metric.kind == "histogram":
            bucket = bisect_left(metric.buckets, value) + 1
            cells[bucket] = cells.get(bucket, 0.0) + 1.0
            if example is not None:
                self.exemplars[bucket] = (example, value)

    def exemplar(self, cell: int) -> str:
        """Trace, value and time, with blanks between; empty without one."""
        if cell not in self.exemplars:
            return ""
        (trace_id, at), value = self.exemplars[cell]
        return f"{trace_id} {value!r} {at!r}"


class Tally:
    """Changes by metric and label values."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.series: dict[tuple[str, Labels], Series] = {}
        #: Series by label values of a subject and metric: most records of a batch are about the same few.
        self._subjects: dict[Labels, dict[Labels, Series | None]] = {}

    def writer(self, values: Mapping[str, str], example: Example | None = None) -> Writer:
        """Adds for one subject with these label values: a call, an attempt, a guardrail."""
        known = self._subjects.setdefault(tuple(values.values()), {})
        return Writer(self, known, values, example)

    def find(self, name: str, values: Mapping[str, str]) -> Series | None:
        """The series of a metric with these values; None for a metric that is switched off."""
        metric = self._catalogue.get(name)
        if metric is None:
            return None
        key = (name, tuple([values.get(label) or metric.missing for label in metric.labels]))
        return self.series.setdefault(key, Series(metric))


class Writer:
    """Adds to the series of one subject."""

    __slots__ = ("_example", "_known", "_tally", "_values")

    def __init__(
        self,
        tally: Tally,
        known: dict[Labels, Series | None],
        values: Mapping[str, str],
        example: Example | None,
    ) -> None:
        self._tally = tally
        self._known = known
        self._values = values
        self._example = example

    def add(self, name: str, value: float | None, **more: str) -> None:
        """Nothing happens without a value, or with a metric that is switched off. `more`: labels besides."""
        if value is None:
            return
        key = (name, *more.values()) if more else (name,)
        if key in self._known:
            series = self._known[key]
        else:
            series = self._known[key] = self._tally.find(name, {**self._values, **more})
        if series is not None:
            series.add(value, self._example)

    def count(self, name: str, value: float | None, **more: str) -> None:
        """`add` for counters: zero makes no series."""
        if value:
            self.add(name, value, **more)
