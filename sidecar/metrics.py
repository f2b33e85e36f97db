"""The metrics page of a process: what the suite counts, what became of log records, and the Prometheus callback's page.

Where that callback is in the config, its page is the first part: it has the same counts, summed over all workers.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response

from sidecar.edge import COUNTS_KEY
from sidecar.master_key import has_master_key
from sidecar.routing_metrics import routing_lines
from tianji_mw.driver import inner_layers

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.callbacks.middleware import Callbacks
    from tianji_mw.callbacks.prometheus import Prometheus
    from tianji_mw.redact import Secret
    from tianji_mw.runtime import Runtime

_TEXT: Final = "text/plain; version=0.0.4"
_END: Final = b"# EOF\n"


def callback_layers(app: ASGIApp) -> list[Callbacks]:
    """The layers of the stack that log."""
    from tianji_mw.callbacks.middleware import Callbacks

    return [layer for layer in inner_layers(app) if isinstance(layer, Callbacks)]


def prometheus_of(app: ASGIApp) -> Prometheus | None:
    """The first Prometheus callback of the stack."""
    from tianji_mw.callbacks.prometheus import Prometheus

    found = (one.callback for layer in callback_layers(app) for one in layer.destinations)
    return next((callback for callback in found if isinstance(callback, Prometheus)), None)


class MainMetrics:
    """`/metrics` on the main port, as LiteLLM has it, where the config has the callback `prometheus`.

    It asks for the master key, unless the config says that it is open or there is no such key.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime, key: Secret | None) -> None:
        self.app = app
        self._runtime = runtime
        self._key = key
        self._state: Mapping[str, Any] = {}
        prometheus = prometheus_of(app)
        self._shown = prometheus is not None
        if prometheus is not None:
            prometheus.watch_edge(self._edge)

    def _edge(self) -> Mapping[str, int]:
        found: Mapping[str, int] = self._state.get(COUNTS_KEY, {})
        return found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._state = scope.get("state", {})  # the server's own: what it puts there later is seen here
        if not self._shown or scope["type"] != "http" or scope["path"] not in ("/metrics", "/metrics/"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        response: Response = PlainTextResponse("the metrics need the master key\n", 401)
        if self._key is None or has_master_key(headers, self._key):
            response = await metrics_page(self.app, self._runtime, self._edge(), headers.get("accept", ""))
        await response(scope, receive, send)


async def metrics_page(app: ASGIApp, runtime: Runtime, edge: Mapping[str, int], accept: str) -> Response:
    """The page in Prometheus's text format 0.0.4, or in OpenMetrics where that was asked for and can be had."""
    lines = [line for layer in callback_layers(app) for line in _callback_lines(layer.report())]
    lines += routing_lines(app)
    prometheus = prometheus_of(app)
    if prometheus is None:
        return PlainTextResponse("\n".join([*_lines(runtime, edge), *lines]) + "\n", media_type=_TEXT)
    from tianji_mw.callbacks.metrics.store import StoreError

    try:
        page, content_type = await asyncio.to_thread(prometheus.render, accept)
    except StoreError as error:
        return PlainTextResponse(f"{error}\n", 503)
    ours = ("\n".join(lines) + "\n").encode()
    ended = page.endswith(_END)
    body = page.removesuffix(_END) + (_opened(ours) if ended else ours) + (_END if ended else b"")
    return Response(body, media_type=content_type)


def _opened(page: bytes) -> bytes:
    """Types of counters as OpenMetrics names them: without the `_total` of their samples."""
    return page.replace(b"_total counter\n", b" counter\n")


def _lines(runtime: Runtime, edge: Mapping[str, int]) -> Iterator[str]:
    yield "# TYPE tianji_inflight_calls gauge"
    yield f"tianji_inflight_calls {runtime.inflight}"
    yield "# TYPE tianji_draining gauge"
    yield f"tianji_draining {int(runtime.draining)}"
    yield "# TYPE tianji_degraded gauge"
    for who in sorted(runtime.degraded):
        yield f'tianji_degraded{{who="{_escaped(who)}"}} 1'
    yield "# TYPE tianji_calls_total counter"
    for (event, detail), count in sorted(runtime.counts.items()):
        if event == "calls":
            api, _, outcome = detail.partition(" ")
            yield f'tianji_calls_total{{api="{api}",outcome="{outcome}"}} {count}'
    yield "# TYPE tianji_events_total counter"
    for (event, detail), count in sorted(runtime.counts.items()):
        if event != "calls":
            yield f'tianji_events_total{{event="{event}",detail="{_escaped(detail)}"}} {count}'
    yield "# TYPE tianji_edge_total counter"
    for reason, count in sorted(edge.items()):
        yield f'tianji_edge_total{{reason="{reason}"}} {count}'
    yield "# TYPE process_max_resident_memory_bytes gauge"
    scale = 1 if sys.platform == "darwin" else 1024
    yield f"process_max_resident_memory_bytes {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}"


def _callback_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What became of the records of each destination, in this process."""
    yield "# TYPE tianji_callback_records_total counter"
    for name, found in report["destinations"].items():
        yield f'tianji_callback_records_total{{callback="{name}",result="delivered"}} {found["delivered"]}'
        for reason, count in found["dropped"].items():
            yield f'tianji_callback_records_total{{callback="{name}",result="{reason}"}} {count}'
    yield "# TYPE tianji_callback_records_pending gauge"
    for name, found in report["destinations"].items():
        yield f'tianji_callback_records_pending{{callback="{name}"}} {found["pending"]}'
    yield "# TYPE tianji_callback_up gauge"
    for name, found in report["destinations"].items():
        yield f'tianji_callback_up{{callback="{name}"}} {int(found["state"] != "down")}'
    if report["spool"]:
        yield "# TYPE tianji_spool_bytes gauge"
        yield f"tianji_spool_bytes {report['spool']['bytes']}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
