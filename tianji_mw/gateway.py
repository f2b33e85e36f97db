"""The terminal app: takes a Call, finds its deployments, and lets an `Exchange` serve it.

`Gateway(deployments)` is a complete ASGI app by itself; the middlewares of a `Stack` go around it. It serves LLM routes
and `/v1/models`; every other path is a 404 in OpenAI's error shape.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Unpack

import orjson

from tianji_mw.apis import ALL
from tianji_mw.apis.base import openai_error
from tianji_mw.call import CALL_KEY, Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import MethodNotAllowed, RouteNotFound, TianjiError, UnknownModel
from tianji_mw.exchange import Exchange
from tianji_mw.plan import Plan
from tianji_mw.routes import Routes
from tianji_mw.routing.base import Deployment
from tianji_mw.routing.shuffle import shuffled
from tianji_mw.routing.table import Deployments
from tianji_mw.taps import send_error
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.apis.base import Api
    from tianji_mw.runtime import Runtime
    from tianji_mw.upstream import TransportOptions

log = logging.getLogger("tianji_mw.gateway")


class Gateway(LLMMiddleware):
    """The innermost layer.

    >>> app = Gateway.from_config("config.yaml")                    # doctest: +SKIP
    >>> fastapi_app.mount("/llm", app)                              # doctest: +SKIP
    """

    phase: ClassVar[int] = 1000

    def __init__(
        self,
        deployments: Deployments,
        *,
        always_include_usage: bool = False,
        upstream: TransportOptions | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        options.setdefault("routes", Routes(ALL))
        super().__init__(self._terminal, **options)
        self.deployments = deployments
        self._always_include_usage = always_include_usage
        self._upstream = upstream
        #: Bounded by the config: deployments are compared by identity.
        self._plans: dict[tuple[Deployment, Api], Plan] = {}

    @classmethod
    def from_config(cls, path: str | Path, *, env: Mapping[str, str] | None = None) -> ASGIApp:
        """The whole stack of a config file as one app, for mounting. Raises ConfigErrors naming file, line and key."""
        from tianji_mw.stack import Stack

        return Stack.from_config(path, env=env).app

    async def start(self, runtime: Runtime) -> None:
        runtime.send_through(self._upstream)

    async def on_request(self, call: Call) -> None:
        if self._always_include_usage and call.stream and call.api.name == "chat_completions":
            options = call.request.get("stream_options")
            if options is None or (isinstance(options, dict) and not options.get("include_usage")):
                call.edit()["stream_options"] = {**(options or {}), "include_usage": True}

    async def _terminal(self, scope: Scope, receive: Receive, send: Send) -> None:
        call: Call | None = scope.get(CALL_KEY)
        if call is None:
            await _refuse(scope, receive, send)
            return
        api = call.api
        try:
            if call.method not in api.methods and call.method.upper() not in api.methods:
                allowed = ", ".join(sorted(api.methods))
                raise MethodNotAllowed(f"This path takes {allowed}.", headers={"allow": allowed})
            if api.name == "models":
                await self._models(call, scope["path"], send)
            elif api.name == "passthrough":
                from tianji_mw.passthrough import PassThrough

                await PassThrough(call, self.deployments, send).run(scope, receive)
            else:
                deployment = call.deployment
                if deployment is None:  # there is no Routing layer
                    deployment = call.deployment = shuffled(self.deployments.serving(call.model), call)
                exchange = Exchange(call, self._plan(deployment, api), send)
                if call.on_abandoned is not None:  # routing watches the client, over all attempts
                    await exchange.run()
                else:
                    async with Watch(call):
                        await exchange.run()
        except TianjiError as error:
            # Nothing has been sent yet: an exchange answers its own failures.
            call.fail(error)
            await send_error(call, send, error)
        except Exception as error:
            if call.gone or call.closed:
                raise  # the answer was ended from outside: no fault of the gateway, and nobody to tell
            log.exception("call %s: the gateway failed", call.id)
            call.runtime.count("gateway_failures", type(error).__name__)
            call.fail(error)
            if call.status:
                raise
            await send_error(call, send, TianjiError("The gateway failed while it served this request."))

    def _plan(self, deployment: Deployment, api: Api) -> Plan:
        plan = self._plans.get((deployment, api))
        if plan is None:
            plan = self._plans[deployment, api] = Plan(deployment, api)
        return plan

    async def _models(self, call: Call, path: str, send: Send) -> None:
        """`GET /v1/models` and `/v1/models/{id}`: only names the caller may use."""
        team = call.identity.team if call.identity is not None else ""
        everybodys = call.identity is not None and call.identity.admin
        listed = self.deployments.names(None if everybodys else team)
        names = [n for n in listed if call.identity is None or call.identity.allows(n)]
        _, found, wanted = path.rpartition("/models/")
        anthropic = "anthropic-version" in call.headers
        shape = _anthropic_model if anthropic else _openai_model
        if found and wanted:
            self.deployments.serving(wanted, team)
            if call.identity is not None and not call.identity.allows(wanted):
                raise UnknownModel(f"The model '{wanted[:200]}' does not exist.", param="model")
            body: object = shape(wanted)
        elif anthropic:
            shown = [shape(name) for name in names]
            ends = {"first_id": names[0] if names else None, "last_id": names[-1] if names else None}
            body = {"data": shown, "has_more": False, **ends}
        else:
            body = {"object": "list", "data": [shape(name) for name in names]}
        await _send_json(send, 200, orjson.dumps(body))


def _openai_model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 1677610602, "owned_by": "tianji"}


def _anthropic_model(name: str) -> dict[str, object]:
    return {"type": "model", "id": name, "display_name": name, "created_at": "2023-02-28T18:56:42Z"}


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """What is no LLM request: a 404, or the end of a websocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "The gateway serves no websockets."})
        return
    error = RouteNotFound(f"The gateway has no route {scope['method']} {scope['path'][:200]}.")
    await _send_json(send, error.status, orjson.dumps(openai_error(error)))


async def _send_json(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
