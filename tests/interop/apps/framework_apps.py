"""One own LLM endpoint in each framework, under Authentication and Guardrails, with a lifespan that leaves notes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import BackgroundTasks, Body, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from litestar.params import JSONBody
from starlette.middleware import Middleware

from tests.interop.apps import llm
from tests.interop.apps.guard import NoCodename
from tests.interop.support import MASTER_KEY
from tianji_mw import Authentication, Guardrails, LLMMiddleware, Runtime, Stack, current_call

PATH = "/own/v1/chat/completions"
#: What happened, in order.
NOTES: list[str] = []


class Living(LLMMiddleware):
    """A layer with resources."""

    phase = 300

    async def start(self, runtime: Runtime) -> None:
        NOTES.append("layer starts")

    async def aclose(self) -> None:
        NOTES.append("layer stops")


LAYERS = [
    Middleware(Authentication, master_key=MASTER_KEY),
    Middleware(Living),
    Middleware(Guardrails, checks=[NoCodename()]),
]


def caller() -> None:
    """Note who calls, as an endpoint of the app sees it."""
    call = current_call()
    llm.SEEN.append(call.identity.alias if call is not None and call.identity is not None else None)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    NOTES.append("app starts")
    yield
    NOTES.append("app stops")


async def events(asked: dict[str, Any]) -> AsyncIterator[bytes]:
    for event in llm.events(asked):
        yield event


def starlette(inside: bool) -> Any:
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def chat(request: Request) -> Response:
        asked = await request.json()
        caller()
        if asked.get("stream"):
            return StreamingResponse(events(asked), media_type="text/event-stream")
        return JSONResponse(llm.answer(asked))

    async def health(request: Request) -> Response:
        return PlainTextResponse("fine")

    routes = [Route(PATH, chat, methods=["POST"]), Route("/health", health)]
    return Starlette(routes=routes, lifespan=lifespan, middleware=LAYERS if inside else [])


def fastapi(inside: bool) -> Any:
    app = FastAPI(lifespan=lifespan)

    def later() -> None:
        call = current_call()
        assert call is not None
        NOTES.append(f"background after {call.bytes_out} bytes, complete: {call.complete}")

    @app.post(PATH, response_model=None)
    async def chat(tasks: BackgroundTasks, asked: Annotated[dict[str, Any], Body()]) -> Any:
        caller()
        said = asked["messages"][-1]["content"]
        if said == "teapot":
            raise HTTPException(418, "short and stout")
        if said == "own error":
            raise LookupError(said)
        if said == "crash":
            raise RuntimeError(said)
        tasks.add_task(later)
        if asked.get("stream"):
            return StreamingResponse(events(asked), media_type="text/event-stream", background=tasks)
        return llm.answer(asked)

    @app.post("/sync/v1/chat/completions")
    def in_a_thread(asked: dict[str, Any]) -> dict[str, Any]:
        caller()
        return llm.answer(asked)

    @app.get("/health")
    async def health() -> str:
        return "fine"

    @app.exception_handler(LookupError)
    async def handled(request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({"handled": str(error)}, 409)

    if inside:
        for layer in reversed(LAYERS):
            app.add_middleware(layer.cls, *layer.args, **layer.kwargs)
    return app


def litestar(inside: bool) -> Any:
    from litestar import Litestar, get, post
    from litestar.middleware import DefineMiddleware
    from litestar.response import Response, Stream

    # Litestar takes the media type of a stream from its handler.
    @post(PATH, status_code=200, media_type="text/event-stream")
    async def chat(data: JSONBody[dict[str, Any]]) -> Any:
        caller()
        return Stream(events(data)) if data.get("stream") else Response(llm.answer(data), media_type="application/json")

    @get("/health")
    async def health() -> str:
        return "fine"

    middleware = [DefineMiddleware(layer.cls, *layer.args, **layer.kwargs) for layer in LAYERS] if inside else []
    return Litestar([chat, health], middleware=middleware, lifespan=[lifespan], openapi_config=None)


def quart(inside: bool) -> Any:
    from quart import Quart, Response, request

    app = Quart("own")

    @app.post(PATH)
    async def chat() -> Any:
        asked = await request.get_json()
        caller()
        if asked.get("stream"):
            return Response(events(asked), mimetype="text/event-stream")
        return llm.answer(asked)

    @app.get("/health")
    async def health() -> str:
        return "fine"

    @app.before_serving
    async def start() -> None:
        NOTES.append("app starts")

    @app.after_serving
    async def stop() -> None:
        NOTES.append("app stops")

    if inside:
        app.asgi_app = Stack(LAYERS).wrap(app.asgi_app)  # type: ignore[assignment, method-assign]
    return app


def django(inside: bool) -> Any:
    from tests.interop.apps import django_app

    return django_app.application()


APPS: dict[str, Callable[[bool], Any]] = {
    "starlette": starlette,
    "fastapi": fastapi,
    "litestar": litestar,
    "quart": quart,
    "django": django,
}


def wrapped(framework: str, inside: bool) -> Any:
    """The app with the layers around it, or in it."""
    app = APPS[framework](inside)
    return app if inside else Stack(LAYERS).wrap(app)
