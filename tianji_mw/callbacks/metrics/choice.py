"""Which metrics are on the page, and with which labels: the settings, applied to the tables. No plugin."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pydantic import BaseModel, ConfigDict

from tianji_mw.callbacks.metrics.catalogue import (
    CLIENT_LABELS,
    LATENCY,
    LENGTH_LABELED,
    LITELLM,
    OF_CALLS,
    OF_PROCESSES,
    UNCUSTOMED,
    Catalogue,
    Metric,
)

log = logging.getLogger("tianji_mw.callbacks.prometheus")

_TOTAL_REQUESTS: Final = "litellm_proxy_total_requests_metric"
_FAILED_REQUESTS: Final = "litellm_proxy_failed_requests_metric"
#: Names that the format keeps for itself.
_RESERVED: Final = frozenset({"le", "quantile"})


class Group(BaseModel):
    """LiteLLM's `prometheus_metrics_config`: metrics that are on the page, and labels that they have (none: all)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    group: str = ""
    metrics: tuple[str, ...]
    include_labels: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The settings that decide about names."""

    litellm: bool = True
    groups: tuple[Group, ...] = ()
    without_metrics: frozenset[str] = frozenset()
    without_labels: frozenset[str] = frozenset()
    client_labels: bool = False
    end_user: bool = False
    key: bool = False
    stream: bool = False
    rate_limits: bool = False
    length: bool = False
    custom: tuple[str, ...] = ()
    buckets: tuple[float, ...] = LATENCY

    def catalogue(self) -> Catalogue:
        """The metrics by name."""
        known = {metric.name for metric in (*OF_CALLS, *OF_PROCESSES, *LITELLM)}
        named = {name for group in self.groups for name in group.metrics}
        if unknown := sorted((named | self.without_metrics) - known):
            log.warning("prometheus: these metrics are not exposed in any case: %s", ", ".join(unknown))
        chosen = [*map(self._ours, OF_CALLS), *OF_PROCESSES, *(self._theirs() if self.litellm else ())]
        return {metric.name: metric for metric in chosen if metric.name not in self.without_metrics}

    def _ours(self, metric: Metric) -> Metric:
        without = self.without_labels if self.key else self.without_labels | {"key"}
        return self._made(metric, [label for label in metric.labels if label not in without])

    def _theirs(self) -> Iterator[Metric]:
        for metric in LITELLM:
            groups = [group for group in self.groups if metric.name in group.metrics]
            if self.groups and not groups:
                continue
            listed = [label for group in groups for label in group.include_labels or ()]
            narrowed = bool(groups) and all(group.include_labels is not None for group in groups)
            yield self._made(metric, list(self._labels(metric, listed, narrowed=narrowed)))

    def _labels(self, metric: Metric, listed: Sequence[str], *, narrowed: bool) -> Iterator[str]:
        """The labels of a metric of LiteLLM's; the ones that a group names are there though they are off."""
        off = set() if self.client_labels else set(CLIENT_LABELS)
        if not self.end_user:
            off.add("end_user")
        for label in dict.fromkeys((*metric.labels, *self._more(metric))):
            wanted = label in listed if narrowed else label not in off
            if wanted and label not in self.without_labels:
                yield label

    def _more(self, metric: Metric) -> Iterator[str]:
        if metric.name == _TOTAL_REQUESTS and self.stream:
            yield "stream"
        if metric.name == _FAILED_REQUESTS and self.rate_limits:
            yield from ("rate_limit_category", "rate_limit_type")
        if metric.name in LENGTH_LABELED and self.length:
            yield "input_sequence_length"
        if metric.name not in UNCUSTOMED:
            yield from self.custom

    def _made(self, metric: Metric, labels: Sequence[str]) -> Metric:
        buckets = self.buckets if metric.buckets is LATENCY else metric.buckets
        return replace(metric, labels=tuple(labels), buckets=buckets)


def label_name(text: str) -> str:
    """A name that Prometheus takes: letters, digits and `_`, no digit first, not two `_` first, and none of its own."""
    name = re.sub(r"[^a-zA-Z0-9_]", "_", text) or "_"
    if name.startswith("__"):
        name = "_" + name.lstrip("_")
    return f"_{name}" if name[0].isdigit() or name in _RESERVED else name
