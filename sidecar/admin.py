"""The admin port: health with detail, metrics, the live stack and the redacted config. Loopback by default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sidecar.edge import COUNTS_KEY
from sidecar.metrics import callback_layers, metrics_page
from tianji_mw.stack import explain

if TYPE_CHECKING:
    from starlette.types import ASGIApp

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
                *self._cache_routes(),
                *self._routing_routes(),
                Route("/-/secrets", self.secrets),
                Route("/-/secrets/refresh", self.refresh_secrets, methods=["POST"]),
            ]
        )

    def _cache_routes(self) -> list[Route]:
        if not self._settings.settings.cache:
            return []
        from sidecar.cache_routes import CacheRoutes, cache_of

        cache = cache_of(self._app)
        if cache is None:
            return []
        routes = CacheRoutes(cache, self._settings)
        return [
            Route("/-/cache", routes.report),
            Route("/-/cache/ping", routes.ping),
            Route("/-/cache/purge", routes.purge, methods=["POST"]),
        ]

    def _routing_routes(self) -> list[Route]:
        from sidecar.routing_routes import RoutingRoutes, routing_of

        routing = routing_of(self._app)
        if routing is None:
            return []
        routes = RoutingRoutes(routing)
        return [
            Route("/-/routing", routes.report),
            Route("/-/routing/explain", routes.explain),
            Route("/-/routing/health", routes.health),
        ]

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
        """Prometheus's text format, or OpenMetrics."""
        edge = request.scope.get("state", {}).get(COUNTS_KEY, {})
        return await metrics_page(self._app, self._runtime, edge, request.headers.get("accept", ""))

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
