"""Writes the page that Prometheus reads, in its text format 0.0.4 or in OpenMetrics 1.0.0 (with exemplars). No plugin.

prometheus-client could write it too, at 70 us for each line (measured), and its threads make the event loop wait; with
labels that are written once, when their series begins, it is less than a tenth. Its parsers check the page in tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from tianji_mw.callbacks.metrics.catalogue import Catalogue, Metric
from tianji_mw.callbacks.metrics.store import Stored, StoreError, written
from tianji_mw.callbacks.metrics.tally import SUM

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

OPENMETRICS: Final = "application/openmetrics-text"
_TYPES: Final = {
    False: "text/plain; version=0.0.4; charset=utf-8",
    True: f"{OPENMETRICS}; version=1.0.0; charset=utf-8",
}
_SERIES: Final = "tianji_metrics_series"
_NAME_OF: Final = itemgetter(0)


def page_of(
    catalogue: Catalogue, stored: Iterator[Stored], gauges: Mapping[str, Mapping[str, float]], *, openmetrics: bool
) -> tuple[bytes, str]:
    """The page with all metrics that have a series, and its content type."""
    parts: list[bytes] = []
    sizes: dict[str, float] = {}
    for name, found in groupby(stored, _NAME_OF):
        series = list(found)
        sizes[name] = float(len(series))
        parts.append("".join(_lines(catalogue[name], series, openmetrics=openmetrics)).encode())
    counted = (
        {} if _SERIES not in catalogue else {written(catalogue[_SERIES], (name,)): size for name, size in sizes.items()}
    )
    for name, values in {**gauges, _SERIES: counted}.items():
        if values:
            series = [Stored(name, labels, {SUM: value}, {}) for labels, value in values.items()]
            parts.append("".join(_lines(catalogue[name], series, openmetrics=openmetrics)).encode())
    if openmetrics:
        parts.append(b"# EOF\n")
    return b"".join(parts), _TYPES[openmetrics]


def _lines(metric: Metric, series: Sequence[Stored], *, openmetrics: bool) -> Iterator[str]:
    name = family = metric.name
    if metric.kind == "counter":
        name = f"{name.removesuffix('_total')}_total"
        family = name.removesuffix("_total") if openmetrics else name
    kind = metric.kind if metric.kind in ("counter", "histogram") else "gauge"
    yield f"# HELP {family} {metric.help}\n# TYPE {family} {kind}\n"
    if metric.kind == "histogram":
        bounds = [*(repr(float(bound)) for bound in metric.buckets), "+Inf"]
        for one in series:
            yield from _histogram(one, bounds, openmetrics=openmetrics)
        return
    for one in series:
        yield f"{name}{{{one.labels}}} {one.cells[SUM]!r}\n" if one.labels else f"{name} {one.cells[SUM]!r}\n"


def _histogram(one: Stored, bounds: Sequence[str], *, openmetrics: bool) -> Iterator[str]:
    """Buckets with all that is at or below their bound; in OpenMetrics with the exemplar of each that has one."""
    name, labels, cells, exemplars = one
    head = f"{name}_bucket{{{labels},le=" if labels else f"{name}_bucket{{le="
    reached = 0.0
    for number, bound in enumerate(bounds, SUM + 1):
        reached += cells.get(number, 0.0)
        if openmetrics and number in exemplars:
            trace_id, value, at = exemplars[number].split(" ")
            yield f'{head}"{bound}"}} {reached!r} # {{trace_id="{trace_id}"}} {value} {at}\n'
        else:
            yield f'{head}"{bound}"}} {reached!r}\n'
    around = f"{{{labels}}}" if labels else ""
    yield f"{name}_count{around} {reached!r}\n{name}_sum{around} {cells.get(SUM, 0.0)!r}\n"


class MetricsApp:
    """An ASGI app with the page, for a route or a mount: `Route("/metrics", prometheus.metrics_app())`.

    It asks nobody who they are.
    """

    def __init__(self, render: Callable[[str], tuple[bytes, str]]) -> None:
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        accept = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        status = 200
        try:
            body, content_type = await asyncio.to_thread(self._render, accept)
        except StoreError as error:
            status, body, content_type = 503, f"{error}\n".encode(), "text/plain; charset=utf-8"
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
