"""Where routing could leave a client without an answer, or let a call go where it must not. Over real HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, delta, deployment, stream_of
from tianji_mw.gateway import Gateway
from tianji_mw.providers.openai import OpenAI
from tianji_mw.redact import Secret
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.table import Deployments
from tianji_mw.secrets.middleware import Secrets
from tianji_mw.testing import FakeLLM, Reply, drive, started

GO_ON = {"enable_mid_stream_fallback_continuation": True, "num_retries": 0}
PREFILL = {"supports_assistant_prefill": True}
KEYS = [{"key": "sk-1234", "models": ["first"]}]
BEARER = {"authorization": "Bearer sk-1234"}


def ask(model: str, **more: Any) -> dict[str, Any]:
    return {**CHAT, "model": model, **more}


def groups(**names: str) -> Any:
    return lambda urls: [entry(name, urls[llm], info={"id": llm, **PREFILL}) for llm, name in names.items()]


def cut(*texts: str) -> Reply:
    events = [delta(role="assistant"), *(delta(text) for text in texts), delta("never")]
    return Reply.events(*events, cut_after=sum(map(len, events[:-1])), reset=True)


async def until(done: Any) -> None:
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("reply", [fails(500, text="lost"), lambda request: Reply(refuse=True)])
async def test_an_error_before_the_stream_has_begun_is_no_stream_to_go_on_with(tmp_path: Any, reply: Any) -> None:
    async with routed({"a": reply}, groups(a="first"), tmp_path=tmp_path, router_settings=GO_ON) as routing:
        answer = await routing.ask({**STREAM, "model": "first"})
        assert answer.status in (500, 502)
        assert answer.json["error"]["message"]
        assert answer.complete
        assert answer.error is None


async def test_a_stream_does_not_go_on_at_a_model_that_the_key_may_not_use(tmp_path: Any) -> None:
    says: dict[str, Any] = {"a": [cut("Once")], "b": ok}
    models = groups(a="first", b="second")
    async with routed(says, models, tmp_path=tmp_path, router_settings=GO_ON, virtual_keys=KEYS) as routing:
        body = {**STREAM, "model": "first", "fallbacks": ["second", "nobody", "b"]}
        answer = await routing.ask(body, headers=BEARER)
        assert b"Once" in answer.body
        assert b'"error"' in answer.body
        assert answer.complete
        assert routing.asked() == {"a": 1, "b": 0}


async def test_disable_fallbacks_holds_for_a_stream_that_goes_on(tmp_path: Any) -> None:
    says: dict[str, Any] = {"a": [cut("Once")], "b": ok}
    settings = {**GO_ON, "fallbacks": [{"first": ["second"]}]}
    async with routed(says, groups(a="first", b="second"), tmp_path=tmp_path, router_settings=settings) as routing:
        answer = await routing.ask({**STREAM, "model": "first", "disable_fallbacks": True})
        assert b'"error"' in answer.body
        assert routing.asked() == {"a": 1, "b": 0}


def mirrored(urls: Any) -> list[dict[str, Any]]:
    return [
        entry("first", urls["a"], silent_model="shadow"), entry("shadow", urls["b"]), entry("dear", urls["c"]),
    ]  # fmt: skip


async def test_an_unknown_model_is_not_found_where_others_are_mirrored(tmp_path: Any) -> None:
    async with routed({"a": ok, "b": ok, "c": ok}, mirrored, tmp_path=tmp_path) as routing:
        assert (await routing.ask(ask("nobody"))).status == 404


async def test_a_copy_goes_to_no_model_that_the_request_names(tmp_path: Any) -> None:
    """Nobody's key is behind it, so nobody would be asked whether it may."""
    says = {"a": ok, "b": fails(500), "c": ok}
    async with routed(says, mirrored, tmp_path=tmp_path, router_settings={"num_retries": 0}) as routing:
        for more in ({}, {"mock_testing_fallbacks": True}):
            assert (await routing.ask(ask("first", fallbacks=["dear"], **more))).status == 200
        await until(lambda: len([call for call in routing.ends.ends if call.model == "shadow"]) == 2)
        assert routing.asked() == {"a": 1, "b": 2, "c": 1}


async def test_a_wrong_list_is_refused_before_anything_is_sent(tmp_path: Any) -> None:
    async with routed({"a": fails(500)}, groups(a="first"), tmp_path=tmp_path) as routing:
        answer = await routing.ask(ask("first", fallbacks=[{"x": ["y"], "first": [1]}]))
        assert answer.status == 400
        assert routing.asked() == {"a": 0}


async def test_a_fallback_that_takes_no_such_call_is_passed_over(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("first", urls["a"]), entry("second", urls["b"], info={"team_id": "red"}), entry("third", urls["c"]),
    ]  # fmt: skip
    settings = {"num_retries": 0, "fallbacks": [{"first": ["second", "third"]}]}
    says = {"a": fails(500, text="first"), "b": ok, "c": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing:
        assert (await routing.ask(ask("first"))).headers["x-litellm-model-group"] == "third"
        answer = await routing.ask(ask("first", fallbacks=["second"]))
        assert (answer.status, answer.json["error"]["message"]) == (500, "first")


@pytest.mark.parametrize("wait", ["9" * 400 + "s", "1e400s", "-1s", 17, None])
async def test_no_wait_that_an_upstream_asks_for_is_a_fault_of_ours(tmp_path: Any, wait: Any) -> None:
    body = {"error": {"message": "no", "details": [{"retryDelay": wait}]}}
    says = dict.fromkeys("ab", lambda request: Reply.json(body, status=429))
    models = groups(a="first", b="first")
    async with routed(says, models, tmp_path=tmp_path, router_settings={"num_retries": 1}) as routing:
        assert (await routing.ask(ask("first"))).status == 429
        assert not any(routing.router.parallel.inflight.values())
        assert {routing.router.cooldowns.state(one) for one in routing.router.table.all} == {"open"}


async def test_a_clients_name_of_a_model_may_hold_anything(tmp_path: Any) -> None:
    async with routed({"a": ok}, lambda urls: [entry("*", urls["a"])], tmp_path=tmp_path) as routing:
        answer = await routing.ask(ask(" x\x01\x7f\r\nset-cookie: y "))
        assert answer.headers["x-litellm-model-group"] == "xset-cookie: y"


async def test_counting_tokens_is_no_stream_whatever_the_request_says(tmp_path: Any) -> None:
    says = {"a": lambda request: Reply.json({"input_tokens": 3})}
    models = lambda urls: [  # noqa: E731
        {
            "model_name": "first",
            "litellm_params": {"model": "anthropic/claude-x", "api_base": urls["a"], "api_key": "sk-up"},
        }
    ]
    async with routed(says, models, tmp_path=tmp_path) as routing:
        answer = await routing.ask(ask("first", stream=True), path="/v1/messages/count_tokens")
        assert answer.json == {"input_tokens": 3}


async def test_files_of_another_team_are_out_of_reach(tmp_path: Any) -> None:
    models = lambda urls: [  # noqa: E731
        entry("first", urls["a"], info={"team_id": "red"}), entry("second", urls["b"]),
    ]  # fmt: skip
    says = dict.fromkeys("ab", lambda request: Reply.json({"object": "list", "data": []}))
    async with routed(says, models, tmp_path=tmp_path) as routing:
        for path in ("/v1/files", "/v1/files?custom_llm_provider=openai"):
            path, _, query = path.partition("?")
            scope = {"query_string": query.encode()}
            answer = await drive(routing.app, b"", path=path, method="GET", scope=scope)
            assert answer.status == 200
        assert routing.asked() == {"a": 0, "b": 2}


class Renewed(Secret):
    """Is another one as soon as it was refused."""

    async def renew(self) -> bool:
        self._value = "sk-new-and-long"
        return True


async def test_a_request_sent_again_with_a_new_key_is_the_same_attempt() -> None:
    early = Reply.events(delta(role="assistant"), b'data: {"error":{"message":"overloaded","code":503}}\n\n')
    async with FakeLLM() as llm, FakeLLM(ok) as good:
        llm.replies += [Reply.json({"error": {"message": "no"}}, status=401), early]
        key = OpenAI(api_base=f"{llm.url}/v1", api_key=Renewed("sk-old-and-long"))
        table = Deployments([deployment(llm.url, id="a", provider=key, order=1), deployment(good.url, id="b", order=2)])
        ends = Ends(Routing(Gateway(table), table))
        async with started(ends) as app:
            answer = await drive(app, STREAM)
            assert answer.body == b"".join(stream_of("Hello", " you"))
            assert answer.headers["x-litellm-model-id"] == "b"
        [call] = ends.ends
        assert len(llm.requests) == 2
        assert [(one.deployment.id, one.failed, bool(one.ended)) for one in call.attempts] == [
            ("a", True, True), ("b", False, True),
        ]  # fmt: skip


# --- an app of one's own


def app_of(*handlers: Any) -> tuple[Starlette, list[int]]:
    """Each handler for one request, the last one for all others."""
    asked: list[int] = []

    async def answer(request: Request) -> Response:
        asked.append(1)
        response: Response = handlers[min(len(asked), len(handlers)) - 1]()
        return response

    return Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])]), asked


def raises() -> Response:
    raise RuntimeError("a bug")


def table() -> Deployments:
    return Deployments([deployment("http://127.0.0.1:1", id=name) for name in "ab"])


async def test_an_app_that_raises_has_answered_all_the_same() -> None:
    app, asked = app_of(raises)
    async with started(Routing(app, table())) as running:
        answer = await drive(running, CHAT)
        assert (answer.status, answer.body) == (500, b"Internal Server Error")
        assert len(asked) == 1


async def test_an_app_behind_a_layer_of_ours_is_still_an_app() -> None:
    app, asked = app_of(lambda: Response(status_code=503))
    async with started(Routing(Secrets(app), table(), rules=RoutingRules(num_retries=3))) as running:
        assert (await drive(running, CHAT)).status == 503
        assert len(asked) == 1


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_may_be_a_head(status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise TypeError("no lifespan")
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": []})

    async with started(Routing(app, table())) as running:
        answer = await drive(running, CHAT)
        assert (answer.status, answer.complete) == (status, True)


async def test_answers_that_are_no_json_pass_through() -> None:
    app, _ = app_of(lambda: Response(b"\xff\xfe\0", media_type="application/octet-stream"))
    async with started(Routing(app, table())) as running:
        answer = await drive(running, CHAT)
        assert (answer.status, answer.body) == (200, b"\xff\xfe\0")
        assert answer.headers["x-litellm-model-id"] in "ab"
        assert ANSWER is not None
