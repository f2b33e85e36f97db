"""What the servers carry: the gateway, and below `/own` a wrapped app. `UPSTREAM` names the provider's address."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.interop.apps import llm
from tests.interop.apps.guard import NoCodename
from tests.interop.support import MASTER_KEY, UPSTREAM_KEY
from tianji_mw import Authentication, Gateway, Guardrails, Secret, Stack
from tianji_mw.providers.openai import OpenAI
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.table import Deployments
from tianji_mw.upstream import Deadlines

#: How streams of the wrapped app ended.
ENDED: list[str] = []


def stack(terminal: Any) -> Any:
    layers = [Middleware(Authentication, master_key=MASTER_KEY), Middleware(Guardrails, checks=[NoCodename()])]
    return Stack(layers, terminal).app


async def chat(request: Request) -> Response:
    asked = await request.json()
    if not asked.get("stream"):
        return JSONResponse(llm.answer(asked))

    async def events() -> AsyncIterator[bytes]:
        try:
            for event in llm.events(asked):
                await asyncio.sleep(0.05)
                yield event
            ENDED.append("complete")
        except BaseException as error:
            ENDED.append(type(error).__name__)
            raise

    return StreamingResponse(events(), media_type="text/event-stream")


async def state(request: Request) -> Response:
    return JSONResponse(ENDED)


class ExtraKeys:
    """Puts keys into every ASGI message that no server knows, one of them with a value that no serialiser takes."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            await send({**message, "x.extra": object(), "x.text": "unknown"})

        await self.app(scope, receive, marked)


def gateway() -> Any:
    provider = OpenAI(api_base=os.environ["UPSTREAM"] + "/v1", api_key=Secret(UPSTREAM_KEY))
    deployment = Deployment(id="a", model_name="public", model="hidden", provider=provider, deadlines=Deadlines())
    return Gateway(Deployments([deployment]))


own = Starlette(routes=[Route("/own/v1/chat/completions", chat, methods=["POST"]), Route("/own/state", state)])
_gateway, _own = ExtraKeys(stack(gateway())), ExtraKeys(stack(own))


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Both behind one port."""
    inner = _own if scope["type"] == "http" and scope["path"].startswith("/own/") else _gateway
    await inner(scope, receive, send)
