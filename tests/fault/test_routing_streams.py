"""Streams that break in the middle and go on elsewhere; copies of calls; apps that are asked again. Over real HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import CHAT, STREAM, delta, deployment, stream_of
from tianji_mw.call import current_call
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.testing import Reply, drive, started

GROUP = "gpt-4o"
GO_ON = {"enable_mid_stream_fallback_continuation": True}
PREFILL = {"supports_assistant_prefill": True}


def cut(*texts: str) -> Reply:
    """A stream that breaks off after these texts."""
    events = [delta(role="assistant"), *(delta(text) for text in texts), delta("never")]
    return Reply.events(*events, cut_after=sum(map(len, events[:-1])), reset=True)


def said(body: bytes) -> str:
    """The text of a chat stream."""
    out = ""
    for event in body.decode().split("\n\n"):
        if event.startswith("data: {"):
            data = orjson.loads(event.removeprefix("data: "))
            for choice in data.get("choices", ()):
                out += choice["delta"].get("content") or ""
    return out


def ordered(urls: Any) -> list[dict[str, Any]]:
    return [
        entry(GROUP, url, order=at + 1, info={"id": name, **PREFILL}) for at, (name, url) in enumerate(urls.items())
    ]


async def test_a_broken_stream_goes_on_where_it_stopped(tmp_path: Any) -> None:
    says = {"a": [cut("Once", " upon")], "b": [cut(" a ", "time, ")], "c": [Reply.events(*stream_of(" there", " was"))]}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=GO_ON) as routing:
        answer = await routing.ask({**STREAM, "max_tokens": 100})
        assert answer.status == 200
        assert said(answer.body) == "Once upon a time, there was"
        assert b'"error"' not in answer.body
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert answer.body.count(b"[DONE]") == 1
        assert answer.body.count(b'"role"') == 1
        for name, text in (("b", "Once upon"), ("c", "Once upon a time, ")):
            [request] = routing.llms[name].requests
            assert request.json["messages"] == [*STREAM["messages"], {"role": "assistant", "content": text}]
            assert 90 < request.json["max_tokens"] < 100
    [call] = routing.ends.ends
    assert call.outcome == "ok"
    assert [a.deployment.id for a in call.attempts] == ["a", "b", "c"]
    assert [a.failed for a in call.attempts] == [True, True, False]
    assert call.request["messages"] == STREAM["messages"]


async def test_it_goes_on_in_a_fallback_group(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry(GROUP, urls["a"], info={"id": "a"}), entry("other", urls["b"], info={"id": "b", **PREFILL}),
    ]  # fmt: skip
    says = {"a": [cut("Once")], "b": [Reply.events(*stream_of(" more"))]}
    settings = {**GO_ON, "fallbacks": [{GROUP: ["other"]}]}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert said((await routing.ask(STREAM)).body) == "Once more"


@pytest.mark.parametrize(
    "more", [{"tools": [{"type": "function", "function": {"name": "f"}}]}, {"response_format": {"type": "json_object"}}]
)
async def test_what_is_no_plain_text_ends_with_its_error(tmp_path: Any, more: dict[str, Any]) -> None:
    async with routed({"a": [cut("Once")], "b": ok}, ordered, tmp_path=tmp_path, router_settings=GO_ON) as routing:
        answer = await routing.ask({**STREAM, **more})
        assert b'"error"' in answer.body
        assert b"[DONE]" not in answer.body.partition(b'"error"')[0]
        assert routing.asked() == {"a": 1, "b": 0}


async def test_nobody_who_continues_leaves_the_error(tmp_path: Any) -> None:
    says = {"a": [cut("Once")], "b": fails(500), "c": fails(500)}
    async with routed(says, ordered, tmp_path=tmp_path, router_settings=GO_ON) as routing:
        answer = await routing.ask(STREAM)
        assert said(answer.body.partition(b'data: {"error"')[0]) == "Once"
        assert b'"error"' in answer.body
        assert routing.asked() == {"a": 1, "b": 1, "c": 1}
    assert routing.ends.ends[0].outcome in ("truncated", "upstream_error")


# --- copies


async def test_a_silent_model_gets_a_copy_and_nobody_notices(tmp_path: Any) -> None:
    models = lambda urls: [entry(GROUP, urls["a"], silent_model="new"), entry("new", urls["b"], silent_model=GROUP)]  # noqa: E731
    async with routed({"a": ok, "b": fails(500)}, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask({**STREAM, "num_retries": 0})
        assert answer.status == 200
        assert said(answer.body) == "Hello you"
        for _ in range(200):
            if len(routing.ends.ends) == 2:
                break
            await asyncio.sleep(0.01)
        # One copy, as a plain answer, and no copy of the copy.
        assert routing.asked() == {"a": 1, "b": 1}
        assert "stream" not in routing.llms["b"].requests[0].json
        copy = next(call for call in routing.ends.ends if call.model == "new")
        assert copy.request["litellm_metadata"]["is_silent_experiment"] is True


# --- an app of one's own


class Handler:
    """An app that uses the choice, and fails as often as it is told."""

    def __init__(self, *statuses: int, **headers: str) -> None:
        self.statuses, self.headers = list(statuses), {k.replace("_", "-"): v for k, v in headers.items()}
        self.chosen: list[str] = []
        self.bodies: list[bytes] = []

    async def answer(self, request: Request) -> Response:
        call = current_call()
        assert call is not None
        assert call.deployment is not None
        self.chosen.append(call.deployment.id)
        self.bodies.append(await request.body())
        status = self.statuses.pop(0) if self.statuses else 200
        return JSONResponse({"by": call.deployment.id}, status, {} if status == 200 else self.headers)


def around(handler: Handler, **options: Any) -> Routing:
    table = Deployments([deployment("http://127.0.0.1:1", id=name) for name in "ab"])
    app = Starlette(routes=[Route("/v1/chat/completions", handler.answer, methods=["POST"])])
    return Routing(app, table, **options)


async def test_an_app_uses_the_choice(tmp_path: Any) -> None:
    handler = Handler()
    async with started(around(handler)) as app:
        for _ in range(20):
            answer = await drive(app, CHAT)
            assert answer.json["by"] == answer.headers["x-litellm-model-id"] == handler.chosen[-1]
        assert set(handler.chosen) == {"a", "b"}
        assert (await drive(app, {**CHAT, "model": "unknown"})).status == 404


async def test_an_app_is_asked_again_only_when_it_says_so() -> None:
    for handler, asked in (
        (Handler(503), 1),
        (Handler(503, x_should_retry="true"), 2),
        (Handler(503, x_should_retry="false"), 1),
    ):
        async with started(around(handler)) as app:
            answer = await drive(app, CHAT)
            assert answer.status == (200 if asked == 2 else 503)
            assert len(handler.chosen) == asked
            assert len(set(handler.chosen)) == asked
            assert handler.bodies == [orjson.dumps(CHAT)] * asked


async def test_an_app_that_is_safe_is_asked_again() -> None:
    handler = Handler(500, 502)
    async with started(around(handler, retry_app=True, rules=RoutingRules(num_retries=3))) as app:
        answer = await drive(app, CHAT)
        assert answer.status == 200
        assert answer.headers["x-litellm-attempted-retries"] == "2"
        assert len(handler.chosen) == 3
