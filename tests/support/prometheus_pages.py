"""Pages of metrics, read with prometheus-client's own parsers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.runtime import Runtime

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"


class Shown:
    """What a page says."""

    def __init__(self, text: str, *, openmetrics: bool = False) -> None:
        self.text = text
        parse = openmetrics_families if openmetrics else text_string_to_metric_families
        families: Iterable[Metric] = parse(text)  # type: ignore[no-untyped-call]
        self.samples: list[Sample] = [sample for family in families for sample in family.samples]

    def of(self, name: str, **labels: str) -> list[Sample]:
        """The samples of this name with these labels among theirs; an empty one is one that is not there."""
        return [
            one
            for one in self.samples
            if one.name == name and all(one.labels.get(label, "") == value for label, value in labels.items())
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Their values together; 0 without any."""
        return sum(sample.value for sample in self.of(name, **labels))

    def labels(self, name: str) -> set[str]:
        """Names of the labels of a metric, of all its samples."""
        return {label for sample in self.of(name) for label in sample.labels}

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}


async def shown(prometheus: Prometheus, accept: str = "") -> Shown:
    """The page of now."""
    prometheus._pages = {}
    body, _ = await asyncio.to_thread(prometheus.render, accept)
    return Shown(body.decode(), openmetrics="openmetrics" in accept)


@asynccontextmanager
async def running(runtime: Runtime | None = None, **options: Any) -> AsyncIterator[Prometheus]:
    """The callback, started."""
    async with runtime or Runtime() as opened:
        prometheus = Prometheus(**options)
        await prometheus.start(opened)
        try:
            yield prometheus
        finally:
            await prometheus.aclose()
