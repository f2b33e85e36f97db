"""The admin port: health with detail, metrics, the live stack and the redacted config. Loopback by default."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sidecar.edge import COUNTS_KEY
from tianji_mw.driver import inner_layers
from tianji_mw.stack import explain

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.callbacks.middleware import Callbacks
    from tianji_mw.config.settings import Settings
    from tianji_mw.runtime import Runtime


class Admin:
    """Handlers over one process's state."""

    def __init__(self, settings: Settings, app: ASGIApp, runtime: Runtime) -> None:
        self._settings = settings
        self._app = app
        self._runtime = runtime

    def routes(self) -> Starlette:
        """The ASGI app of the admin port."""
        return Starlette(
            routes=[
                Route("/health/liveliness", self.alive),
                Route("/health/liveness", self.alive),
                Route("/health/readiness", self.ready),
                Route("/metrics", self.metrics),
                Route("/-/stack", self.stack),
                Route("/-/config", self.config),
                Route("/-/callbacks", self.callbacks),
                Route("/-/secrets", self.secrets),
                Route("/-/secrets/refresh", self.refresh_secrets, methods=["POST"]),
            ]
        )

    async def alive(self, request: Request) -> Response:
        return JSONResponse("I'm alive!")

    async def ready(self, request: Request) -> Response:
        """Readiness with what it depends on."""
        runtime = self._runtime
        detail = {
            "status": "shutting_down" if runtime.draining else "degraded" if runtime.degraded else "healthy",
            "degraded": runtime.degraded,
            "inflight": runtime.inflight,
            "layers": [name for _, name in explain(self._app)],
            "background_restarts": runtime.restarts,
        }
        return JSONResponse(detail, 503 if runtime.draining else 200)

    async def metrics(self, request: Request) -> Response:
        """Prometheus text format 0.0.4."""
        edge = request.scope.get("state", {}).get(COUNTS_KEY, {})
        return PlainTextResponse("\n".join(self._lines(edge)) + "\n", media_type="text/plain; version=0.0.4")

    def _lines(self, edge: Mapping[str, int]) -> Iterator[str]:
        runtime = self._runtime
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
        for layer in callback_layers(self._app):
            yield from _callback_lines(layer.report())
        yield "# TYPE tianji_edge_total counter"
        for reason, count in sorted(edge.items()):
            yield f'tianji_edge_total{{reason="{reason}"}} {count}'
        yield "# TYPE process_max_resident_memory_bytes gauge"
        scale = 1 if sys.platform == "darwin" else 1024
        yield f"process_max_resident_memory_bytes {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}"

    async def stack(self, request: Request) -> Response:
        return JSONResponse([{"phase": phase, "layer": name} for phase, name in explain(self._app)])

    async def config(self, request: Request) -> Response:
        """The normalised config, secrets masked."""
        return JSONResponse(self._settings.normalised())

    async def callbacks(self, request: Request) -> Response:
        """Each destination: queue, spool, last error, delivered and dropped."""
        return JSONResponse([layer.report() for layer in callback_layers(self._app)])

    async def secrets(self, request: Request) -> Response:
        """Stores and secrets in use: state, age, version. Never a value."""
        resolver = self._settings.resolver
        stores = resolver.report() if resolver else {}
        listed = [
            {
                "store": entry.store.name,
                "path": entry.ref.path,
                "fields": sorted({handle.ref.field for handle in entry.handles if handle.ref.field}),
                "version": entry.value.version if entry.value else None,
                "fetched": entry.fetched or None,
                "expires": entry.value.expires if entry.value else None,
                "error": entry.error.message if entry.error else None,
            }
            for entry in (resolver.entries if resolver else ())
        ]
        return JSONResponse({"stores": stores, "secrets": listed})

    async def refresh_secrets(self, request: Request) -> Response:
        """Fetch all secrets anew, now."""
        if self._settings.resolver is not None:
            await self._settings.resolver.refresh()
        return await self.secrets(request)


def callback_layers(app: ASGIApp) -> list[Callbacks]:
    """The layers of the stack that log."""
    from tianji_mw.callbacks.middleware import Callbacks

    return [layer for layer in inner_layers(app) if isinstance(layer, Callbacks)]


def _callback_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """What became of the records of each destination."""
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
