"""One small request to a deployment, to see whether it works: of its mode, by its own provider, past all layers.

It decides nothing and remembers nothing; `health.py` does. Images, audio, realtime and batches cost too much for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson

from tianji_mw import redact
from tianji_mw.apis import by_name
from tianji_mw.call import Call, Limits, open_call
from tianji_mw.errors import InvalidRequest, TianjiError, UpstreamTimeout
from tianji_mw.exchange import Exchange
from tianji_mw.plan import Plan
from tianji_mw.routing.failure import Failure, failure_of
from tianji_mw.upstream import Deadlines

if TYPE_CHECKING:
    from starlette.types import Message, Scope

    from tianji_mw.apis.base import JSON, Api
    from tianji_mw.routing.base import Deployment
    from tianji_mw.runtime import Runtime

#: Seconds for an answer, where the deployment says nothing.
USUAL_S: Final = 60.0
#: A login before it may take so long.
_LOGIN_S: Final = 10.0
#: The least that every API takes as a limit.
_TOKENS: Final = 16
_LONGEST: Final = 500
#: API and request of each mode, as `model_info.mode` names them.
_REQUESTS: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "chat": ("chat_completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": _TOKENS}),
    "completion": ("completions", {"prompt": "Hi", "max_tokens": _TOKENS}),
    "embedding": ("embeddings", {"input": ["Hi"]}),
    "responses": ("responses", {"input": "Hi", "max_output_tokens": _TOKENS}),
    "moderation": ("moderations", {"input": "Hi"}),
    "rerank": ("rerank", {"query": "Hi", "documents": ["Hi"]}),
}
#: Parts of a model's name that tell its mode, where the config does not. What cannot be asked cheaply is no mode here.
_NAMED: Final[Mapping[str, str]] = {
    "embed": "embedding", "rerank": "rerank", "moderation": "moderation", "whisper": "audio", "transcribe": "audio",
    "tts": "audio", "audio": "audio", "dall-e": "image", "image": "image", "sora": "video", "realtime": "realtime",
    "gpt-3.5-turbo-instruct": "completion", "codex": "responses", "ocr": "ocr",
}  # fmt: skip


class Probe(NamedTuple):
    """How a request went. `skipped` says why none was sent."""

    seconds: float = 0.0
    error: str = ""
    failure: Failure | None = None
    skipped: str = ""


def mode_of(deployment: Deployment) -> tuple[str, bool]:
    """What the deployment is, and whether that is only a guess."""
    if deployment.mode:
        return deployment.mode, False
    name = (deployment.health_model or deployment.model).lower()
    return next((mode for part, mode in _NAMED.items() if part in name), "chat"), True


def unasked(deployment: Deployment) -> str:
    """Why no request can be made for it; empty where one can."""
    mode, _ = mode_of(deployment)
    if mode not in _REQUESTS:
        return f"the mode '{mode}' is not checked: it would cost too much"
    if "*" in (deployment.health_model or deployment.model):
        return "a pattern has no model of its own; set model_info.health_check_model"
    return ""


async def probe(deployment: Deployment, runtime: Runtime) -> Probe:
    """Ask it. What fails is in the result; raises only what a plugin raises."""
    if skipped := unasked(deployment):
        return Probe(skipped=skipped)
    name, request = _REQUESTS[mode_of(deployment)[0]]
    seconds = deployment.health_timeout_s or USUAL_S
    limits = Deadlines(connect_s=min(deployment.deadlines.connect_s, seconds), first_byte_s=seconds, total_s=seconds)
    model = deployment.health_model or deployment.model
    target = replace(deployment, model=model, deadlines=limits, stream_deadlines=None)
    call = await call_of(by_name(name), {"model": deployment.model_name, **request}, runtime)
    call.deployment = target
    began = runtime.clock()
    try:
        plan = Plan(target, call.api)
        async with asyncio.timeout(seconds + _LOGIN_S):
            await Exchange(call, plan, _nowhere).run()
    except TimeoutError:
        call.fail(UpstreamTimeout(f"The provider '{target.provider.name}' gave no answer within {seconds:g} s."))
    except InvalidRequest as error:
        return Probe(skipped=error.message)  # its provider does not serve this API
    except TianjiError as error:
        call.fail(error)
    return _told(call, target, (runtime.clock() - began) / 1e9)


async def call_of(
    api: Api, request: Mapping[str, JSON], runtime: Runtime, headers: Mapping[str, str] | None = None
) -> Call:
    """A call that no client has made. Raises InvalidRequest for a request that is not of the API's shape."""
    pairs = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in (headers or {}).items()]
    scope: Scope = {"type": "http", "method": "POST", "path": api.paths[0].lstrip("*"), "headers": pairs}
    body = orjson.dumps(request)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    call = open_call(api, scope, receive, runtime=runtime, limits=Limits())
    call.loop = asyncio.get_running_loop()
    call.on_abandoned = _nobody  # there is no client who could leave, so none is watched
    await call.load(receive)
    return call


async def _nowhere(message: Message) -> None:
    """Nobody reads the answer."""


def _nobody() -> None:
    """Nobody gives the call up."""


def _told(call: Call, target: Deployment, seconds: float) -> Probe:
    error = call.error
    if error is None:
        return Probe(seconds)
    text = error.message if isinstance(error, TianjiError) else type(error).__name__
    failure = failure_of(error, call.attempts[-1].status if call.attempts else 0, {}, b"", call)
    return Probe(seconds, redact.text(text, target.provider.secrets)[:_LONGEST], failure)
