"""The same three LLM endpoints in five frameworks, and a layer that leaves a mark: did it run before the endpoint?

Endpoints take every method, as a Django view does unless told otherwise. They are `/v1/chat/completions`, the same
below `/api`, and a bare `/embeddings`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tianji_mw import current_call
from tianji_mw.call import Call
from tianji_mw.driver import LLMMiddleware

#: What ran: the endpoint, and whether our layer had seen the request.
HITS: list[tuple[str, bool]] = []
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]
CHAT, PREFIXED, BARE = "/v1/chat/completions", "/api/v1/chat/completions", "/embeddings"


class Mark:
    """The note of a guarded call."""


class Guard(LLMMiddleware):
    phase = 600

    async def on_request(self, call: Call) -> None:
        call.note(Mark)


def hit(name: str) -> dict[str, str]:
    """An endpoint ran."""
    call = current_call()
    HITS.append((name, call is not None and Mark in call.notes))
    return {"hit": name}


def starlette(inside: bool = False) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse
    from starlette.routing import Mount, Route

    def route(path: str, name: str) -> Route:
        async def endpoint(request: Any) -> JSONResponse:
            return JSONResponse(hit(name))

        return Route(path, endpoint, methods=METHODS)

    app = Starlette(routes=[route(CHAT, CHAT), route(BARE, BARE), Mount("/api", routes=[route(CHAT, PREFIXED)])])
    return _add(app, inside)


def fastapi(inside: bool = False, root_path: str = "") -> Any:
    from fastapi import APIRouter, FastAPI

    app, router = FastAPI(root_path=root_path), APIRouter(prefix="/api")

    async def chat() -> dict[str, str]:
        return hit(CHAT)

    async def bare() -> dict[str, str]:
        return hit(BARE)

    async def prefixed() -> dict[str, str]:
        return hit(PREFIXED)

    app.add_api_route(CHAT, chat, methods=METHODS)
    app.add_api_route(BARE, bare, methods=METHODS)
    router.add_api_route(CHAT, prefixed, methods=METHODS)
    app.include_router(router)
    return _add(app, inside)


def litestar(inside: bool = False) -> Any:
    from litestar import Litestar, Router, route
    from litestar.enums import HttpMethod
    from litestar.middleware import DefineMiddleware

    methods = [m for m in HttpMethod if m.value in METHODS and m.value not in ("OPTIONS", "HEAD")]

    def handler(path: str, name: str) -> Any:
        async def endpoint() -> dict[str, str]:
            return hit(name)

        endpoint.__name__ = "endpoint_" + name.strip("/").replace("/", "_")
        return route(path, http_method=methods, status_code=200)(endpoint)

    middleware = [DefineMiddleware(Guard)] if inside else []
    handlers = [handler(CHAT, CHAT), handler(BARE, BARE), Router("/api", route_handlers=[handler(CHAT, PREFIXED)])]
    return Litestar(route_handlers=handlers, middleware=middleware, openapi_config=None)


def quart(inside: bool = False) -> Any:
    from quart import Blueprint, Quart

    app, blueprint = Quart("routes"), Blueprint("api", "api", url_prefix="/api")

    def view(name: str) -> Callable[[], Any]:
        async def endpoint() -> dict[str, str]:
            return hit(name)

        return endpoint

    app.add_url_rule(CHAT, "chat", view(CHAT), methods=METHODS, strict_slashes=False)
    app.add_url_rule(BARE, "bare", view(BARE), methods=METHODS, strict_slashes=False)
    blueprint.add_url_rule(CHAT, "prefixed", view(PREFIXED), methods=METHODS)
    app.register_blueprint(blueprint)
    if inside:
        app.asgi_app = Guard(app.asgi_app)  # type: ignore[method-assign]
    return app


def django(inside: bool = False) -> Any:
    from tests.interop.apps import django_app

    return django_app.application()


#: Builders of the apps; those in `INSIDE` can also take the layer as their own middleware.
APPS: dict[str, Callable[..., Any]] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "litestar": litestar,
    "quart": quart,
    "django": django,
}
INSIDE = ("starlette", "fastapi", "litestar", "quart")


def guarded(framework: str, inside: bool = False) -> Any:
    """The app with the layer around it, or in it."""
    return APPS[framework](inside=True) if inside else Guard(APPS[framework]())


def _add(app: Any, inside: bool) -> Any:
    if inside:
        app.add_middleware(Guard)
    return app
