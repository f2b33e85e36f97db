"""The `Callbacks` layer through HTTP: one record of every call, with what the contract says is in it, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.keep import Keep
from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.call import Call
from tianji_mw.callbacks.base import Callback, Record
from tianji_mw.callbacks.middleware import Callbacks
from tianji_mw.callbacks.record.snapshot import ContentRules
from tianji_mw.compose import compose
from tianji_mw.compose.callbacks import destinations_of
from tianji_mw.config import loads
from tianji_mw.config.blocks import VirtualKey
from tianji_mw.config.settings import Settings
from tianji_mw.driver import inner_layers
from tianji_mw.errors import ConfigError, ConfigErrors
from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block
from tianji_mw.redact import Secret
from tianji_mw.testing import FakeLLM, Reply, drive

KEEP = "tests.support.keep:Keep"
MASTER = "sk-master-0123456789"


class NoBird(Guardrail):
    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename") if "bluebird" in text else ALLOW


class Logged:
    """A gateway of a config, and what it logged."""

    def __init__(self, app: Any, tmp_path: Path) -> None:
        self.app = app
        self.folder = tmp_path
        self.layer = next(layer for layer in inner_layers(app) if isinstance(layer, Callbacks))

    async def call(self, body: dict[str, Any], *, path: str = "/v1/chat/completions", **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await drive(self.app, body, path=path, headers=named)

    def spooled(self) -> bytes:
        """Every byte of the spool."""
        assert self.layer.journal is not None
        self.layer.journal.flush()
        return b"".join(path.read_bytes() for path in (self.folder / "spool").rglob("*.log"))

    async def records(self, name: str = "Keep") -> list[dict[str, Any]]:
        """What came to the destination, when nothing waits any more."""
        if self.layer.journal is not None:
            self.layer.journal.flush()
        async with asyncio.timeout(10):
            while any(outbox.pending for outbox in self.layer.outboxes.values()):
                await asyncio.sleep(0.01)
        path = self.folder / f"{name}.jsonl"
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def logged(
    serve: Serve,
    tmp_path: Path,
    url: str,
    settings: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    **more: Any,
) -> Logged:
    """A gateway in front of `url`, whose calls are logged as the settings say; without them, to a file."""
    params = {"model": "openai/gpt-4o-2024", "api_base": f"{url}/v1", "api_key": "sk-provider-0123456789"}
    config = {
        "model_list": [{"model_name": "gpt-4o", "litellm_params": params}],
        "router_settings": {"num_retries": 0},
        "litellm_settings": {"callbacks": [KEEP], "spool_dir": str(tmp_path / "spool"), **(settings or {})},
        "callback_settings": {KEEP: {"path": str(tmp_path / "Keep.jsonl")}},
        **more,
    }
    app = compose(loads(orjson.dumps(config).decode(), env=env or {}), env=env or {}).app
    await serve(app)
    return Logged(app, tmp_path)


async def test_a_plain_answer(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    reply = Reply.json({**ANSWER, "id": "chatcmpl-7"})
    reply.headers["x-ratelimit-remaining-tokens"] = "99"
    llm.replies.append(reply)
    app = await logged(serve, tmp_path, llm.url)
    driven = await app.call(
        {**CHAT, "temperature": 0.5, "user": "u7", "metadata": {"tags": ["ml"], "trace_name": "x"}},
        user_agent="curl/8.5", x_team="red",
    )  # fmt: skip
    (record,) = await app.records()
    assert record["id"] == "chatcmpl-7"
    assert record["litellm_call_id"] == driven.headers["x-request-id"]
    assert record["call_type"] == "acompletion"
    assert record["stream"] is None
    assert record["status"] == "success"
    assert record["status_fields"] == {"llm_api_status": "success", "guardrail_status": "not_run"}
    assert (record["custom_llm_provider"], record["model"], record["model_group"]) == (
        "openai",
        "gpt-4o-2024",
        "gpt-4o",
    )
    assert record["api_base"] == f"{llm.url}/v1"
    assert (record["prompt_tokens"], record["completion_tokens"], record["total_tokens"]) == (3, 2, 5)
    assert record["messages"] == CHAT["messages"]
    assert record["response"]["choices"] == ANSWER["choices"]
    assert record["model_parameters"] == {"temperature": 0.5}
    assert record["request_tags"] == ["ml", "User-Agent: curl", "User-Agent: curl/8.5"]
    assert record["end_user"] == "u7"
    assert record["user_agent"] == "curl/8.5"
    assert record["startTime"] <= record["completionStartTime"] <= record["endTime"]
    assert record["response_time"] == pytest.approx(record["endTime"] - record["startTime"])
    assert record["metadata"]["requester_metadata"] == {"tags": ["ml"], "trace_name": "x"}
    assert record["metadata"]["requester_custom_headers"]["x-team"] == "red"
    assert record["metadata"]["user_api_key_request_route"] == "/v1/chat/completions"
    assert record["hidden_params"]["additional_headers"] == {"x_ratelimit_remaining_tokens": 99}
    assert record["error_str"] is record["error_information"] is None
    (attempt,) = record["tianji"]["attempts"]
    assert (attempt["model_id"], attempt["status_code"], attempt["error"]) == (record["model_id"], 200, None)
    assert record["tianji"]["trace_id"] == record["trace_id"] == record["litellm_call_id"].replace("-", "")


async def test_a_stream_is_logged_as_the_answer_that_it_amounts_to(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    llm.replies.append(Reply.events(*stream_of("Hel", "lo")))
    app = await logged(serve, tmp_path, llm.url)
    driven = await app.call(STREAM)
    assert driven.status == 200
    (record,) = await app.records()
    assert record["stream"] is True
    assert record["response"]["choices"][0]["message"]["content"] == "Hello"
    assert record["startTime"] < record["completionStartTime"] <= record["endTime"]
    assert record["response_time"] == pytest.approx(record["completionStartTime"] - record["startTime"])
    assert record["tianji"]["bytes_out"] == len(driven.body)


@pytest.mark.parametrize(
    ("body", "reply", "outcome", "error"),
    [
        (CHAT, Reply.json({"error": {"message": "no", "type": "x"}}, status=500), "upstream_error", "UpstreamError"),
        (CHAT, Reply(refuse=True), "upstream_error", "UpstreamUnreachable"),
        (STREAM, Reply.events(*stream_of("Hello"), cut_after=150), "truncated", "UpstreamTruncated"),
        ({**CHAT, "model": "unknown"}, None, "refused", "UnknownModel"),
        ({"model": "gpt-4o"}, None, "refused", "InvalidRequest"),
    ],
)
async def test_failures(
    llm: FakeLLM, serve: Serve, tmp_path: Path, body: dict[str, Any], reply: Reply | None, outcome: str, error: str
) -> None:
    if reply is not None:
        llm.replies.append(reply)
    app = await logged(serve, tmp_path, llm.url)
    await app.call(body)
    (record,) = await app.records()
    assert record["status"] == "failure"
    assert record["tianji"]["outcome"] == outcome
    assert record["error_information"]["error_class"] == error
    assert record["error_str"] == record["error_information"]["error_message"]
    if reply is not None:
        assert record["tianji"]["attempts"][0]["error"] == error
        assert record["error_information"]["llm_provider"] == "openai"


async def test_a_block_is_logged_with_the_guardrail_that_blocked(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    guardrail = {"guardrail": f"{__name__}:NoBird", "mode": ["pre_call"], "default_on": True}
    more = {"guardrails": [{"guardrail_name": "birds", "litellm_params": guardrail}]}
    app = await logged(serve, tmp_path, llm.url, **more)
    await app.call({**CHAT, "messages": [{"role": "user", "content": "the bluebird"}]})
    (record,) = await app.records()
    assert record["tianji"]["outcome"] == "blocked"
    assert record["status_fields"]["guardrail_status"] == "guardrail_intervened"
    (information,) = record["guardrail_information"]
    assert information["guardrail_name"] == "birds"
    assert information["guardrail_mode"] == "pre_call"
    assert information["violation_categories"] == ["codename"]
    assert information["duration"] > 0
    assert record["metadata"]["applied_guardrails"] == ["birds"]
    assert record["tianji"]["attempts"] == []


async def test_a_client_that_went_away_is_logged(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    llm.replies.append(Reply.events(*stream_of(*["word"] * 200), pause_s=0.01))
    app = await logged(serve, tmp_path, llm.url)
    await drive(app.app, STREAM, leave_after=3)
    (record,) = await app.records()
    assert record["tianji"]["outcome"] == "client_gone"
    assert record["response"]["choices"][0]["message"]["content"].startswith("word")


async def test_content_is_left_out_where_the_config_says_so(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    for reply in (Reply.json(ANSWER), Reply.events(*stream_of("canary-answer"))):
        llm.replies.append(reply)
    app = await logged(serve, tmp_path, llm.url, {"turn_off_message_logging": True})
    ask = {"messages": [{"role": "user", "content": "canary-question"}]}
    tool = {"type": "function", "function": {"name": "f", "description": "canary-tool"}}
    await app.call({**CHAT, **ask, "tools": [tool], "temperature": 1})
    await app.call({**STREAM, **ask})
    spooled = app.spooled()
    records = await app.records()
    assert [record["messages"] for record in records] == [[{"role": "user", "content": "redacted-by-litellm"}]] * 2
    assert records[0]["total_tokens"] == 5
    assert records[0]["model_parameters"]["temperature"] == 1
    assert b"canary" not in orjson.dumps(records)
    assert b"canary" not in spooled


@pytest.mark.parametrize(
    ("settings", "more", "headers", "redacted"),
    [
        ({}, {}, {}, False),
        ({}, {"turn_off_message_logging": True}, {}, True),
        ({}, {}, {"x_litellm_enable_message_redaction": "true"}, True),
        ({"turn_off_message_logging": True}, {"turn_off_message_logging": False}, {}, True),
        ({"turn_off_message_logging": True}, {}, {"litellm_disable_message_redaction": "true"}, True),
        ({"turn_off_message_logging": True, "allow_dynamic_message_logging": True}, {},
         {"litellm_disable_message_redaction": "true"}, False),
    ],
)  # fmt: skip
async def test_a_request_may_have_less_logged_and_more_only_where_that_is_allowed(
    llm: FakeLLM, serve: Serve, tmp_path: Path, settings: dict[str, Any], more: dict[str, Any],
    headers: dict[str, str], redacted: bool,
) -> None:  # fmt: skip
    llm.replies.append(Reply.json(ANSWER))
    app = await logged(serve, tmp_path, llm.url, settings)
    await app.call({**CHAT, **more}, **headers)
    (record,) = await app.records()
    assert (record["messages"] != CHAT["messages"]) is redacted
    assert "turn_off_message_logging" not in llm.requests[-1].json  # a wish to us is none to the provider


async def test_no_log_and_disabled_callbacks(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    for _ in range(3):
        llm.replies.append(Reply.json(ANSWER))
    app = await logged(serve, tmp_path, llm.url)
    await app.call({**CHAT, "no-log": True})
    await app.call(CHAT, x_litellm_disable_callbacks="other, Keep")
    await app.call({**CHAT, "user": "third"})
    assert [record["end_user"] for record in await app.records()] == ["third"]


async def test_the_operator_may_insist(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    for _ in range(2):
        llm.replies.append(Reply.json(ANSWER))
    insists = {"global_disable_no_log_param": True, "allow_dynamic_callback_disabling": False}
    app = await logged(serve, tmp_path, llm.url, insists)
    await app.call({**CHAT, "no-log": True})
    await app.call(CHAT, x_litellm_disable_callbacks="Keep")
    assert len(await app.records()) == 2


async def test_each_destination_gets_what_it_asked_for(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    llm.replies.append(Reply.json(ANSWER))
    llm.replies.append(Reply.json({"error": {"message": "no"}}, status=500))

    def to(name: str, **options: Any) -> dict[str, Any]:
        return {"type": KEEP, "name": name, "path": str(tmp_path / f"{name}.jsonl"), **options}

    configs = [
        to("good", events="success"), to("bad", event_types=["llm_api_failure"]), to("blind", message_logging=False),
        to("nobody", redact_user_api_key_info=True), to("never", sample_rate=0, failure_sample_rate=0),
        to("team", teams=["red"]), to("other", teams=["blue"]), to("model", models=["gpt-4o"]),
    ]  # fmt: skip
    keys = {"virtual_keys": [{"key": "sk-red-0123456789", "alias": "ci", "team": "red"}]}
    app = await logged(serve, tmp_path, llm.url, {"callbacks": [], "callback_configs": configs}, **keys)
    for _ in range(2):
        await app.call(CHAT, authorization="Bearer sk-red-0123456789")
    found = {one["name"]: await app.records(one["name"]) for one in configs}
    assert {name: len(records) for name, records in found.items()} == {
        "good": 1, "bad": 1, "blind": 2, "nobody": 2, "never": 0, "team": 2, "other": 0, "model": 2,
    }  # fmt: skip
    assert found["good"][0]["messages"] == CHAT["messages"]
    assert found["good"][0]["metadata"]["user_api_key_alias"] == "ci"
    assert found["blind"][0]["messages"][0]["content"] == "redacted-by-litellm"
    assert not [name for name in found["nobody"][0]["metadata"] if name.startswith("user_api_key")]


async def test_callbacks_of_one_key_and_of_one_team(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    for _ in range(3):
        llm.replies.append(Reply.json(ANSWER))
    of_key = {"callback_name": KEEP, "callback_type": "success", "callback_vars": {"path": str(tmp_path / "key.jsonl")}}
    keys = [
        {
            "key": "sk-one-0123456789",
            "alias": "one",
            "metadata": {"logging": [of_key], "turn_off_message_logging": True},
        },
        {"key": "sk-two-0123456789", "alias": "two", "team": "t2"},
    ]
    app = await logged(serve, tmp_path, llm.url, virtual_keys=keys)
    for key in ("one", "two", "two"):
        await app.call(CHAT, authorization=f"Bearer sk-{key}-0123456789")
    assert len(await app.records()) == 3
    (record,) = await app.records("key")
    assert record["metadata"]["user_api_key_alias"] == "one"
    assert record["metadata"]["user_api_key_auth_metadata"] == {"turn_off_message_logging": True}
    assert record["messages"][0]["content"] == "redacted-by-litellm"


async def test_the_trace_of_the_client_goes_on(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    llm.replies.append(Reply.json(ANSWER))
    app = await logged(serve, tmp_path, llm.url)
    await app.call(CHAT, traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    (record,) = await app.records()
    assert record["trace_id"] == record["tianji"]["trace_id"] == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert record["tianji"]["parent_span_id"] == "00f067aa0ba902b7"


async def test_images_are_cut_and_what_is_too_large_is_named(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    for _ in range(2):
        llm.replies.append(Reply.json(ANSWER))
    app = await logged(serve, tmp_path, llm.url, {"max_logged_mb": 0.1})
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "QUJD" * 90_000}}
    await app.call({**CHAT, "messages": [{"role": "user", "content": [image]}]})
    await app.call({**CHAT, "messages": [{"role": "user", "content": "x" * 200_000}]})
    first, second = await app.records()
    url = first["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,QUJD")
    assert url.endswith("(360000 characters of base64)")
    assert second["messages"] == {"truncated": True, "bytes": pytest.approx(200_000, rel=0.01)}


async def test_no_credential_is_in_a_record_or_in_the_spool(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    canary = "canary-secret-0123456789"
    llm.replies.append(Reply.json({"error": {"message": f"bad key sk-provider-0123456789 {canary[:3]}"}}, status=401))
    app = await logged(serve, tmp_path, llm.url, general_settings={"master_key": MASTER})
    await app.call(
        {**CHAT, "api_key": canary, "extra_headers": {"x": canary}},
        authorization=f"Bearer {MASTER}", x_api_key=canary, cookie=canary, x_my_auth=canary, x_goog_api_key=canary,
    )  # fmt: skip
    spooled = app.spooled()
    kept = orjson.dumps(await app.records())
    for secret in (canary, MASTER, "sk-provider-0123456789"):
        assert secret.encode() not in kept
        assert secret.encode() not in spooled


async def test_a_callback_that_fails_in_the_path_of_a_call_fails_no_call(
    llm: FakeLLM, serve: Serve, tmp_path: Path
) -> None:
    llm.replies.append(Reply.json(ANSWER))
    app = await logged(serve, tmp_path, llm.url, {"callbacks": [f"{__name__}:Broken", KEEP]})
    driven = await app.call(CHAT)
    assert driven.status == 200
    assert len(await app.records()) == 1
    runtime = app.layer.runtime
    assert runtime is not None
    assert runtime.counts["callback_errors", "Broken ZeroDivisionError"] == 2


class Broken(Callback):
    """Breaks wherever it can."""

    def on_request(self, call: Call) -> None:
        raise ZeroDivisionError

    def on_end(self, call: Call) -> None:
        raise ZeroDivisionError

    async def write(self, batch: Sequence[Record]) -> None: ...


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"callbacks": ["s33"]}, r"litellm_settings\.callbacks\[0\]: no plugin 's33'"),
        ({"callbacks": ["no name"]}, r"expected the name of a callback"),
        ({"callback_configs": [{"bucket": "x"}]}, r"callback_configs\[0\]: the entry has no `type`"),
        ({"callback_configs": [{"type": KEEP, "path": "/x", "colour": 1}]}, r"colour"),
        ({"callback_configs": [{"type": KEEP, "path": "/x", "sample_rate": 2}]}, r"sample_rate"),
        ({"callback_configs": [{"type": KEEP, "path": "/x", "name": "a"}, {"type": KEEP, "path": "/y", "name": "a"}]},
         r"two callbacks have the name 'a'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_config_is_named(settings: dict[str, Any], found: str) -> None:
    text = orjson.dumps({"litellm_settings": settings}).decode()
    with pytest.raises(ConfigErrors, match=found):
        compose(loads(text, env={}), env={})


async def test_it_may_be_built_in_python(llm: FakeLLM, serve: Serve, tmp_path: Path) -> None:
    llm.replies.append(Reply.json(ANSWER))
    gateway = compose(
        loads(orjson.dumps({"model_list": [{"model_name": "gpt-4o", "litellm_params": {
            "model": "openai/x", "api_base": f"{llm.url}/v1", "api_key": "k"}}]}).decode(), env={}), env={},
    ).app  # fmt: skip
    app = Callbacks(gateway, callbacks=[Keep(path=tmp_path / "Keep.jsonl")], spool=tmp_path / "spool")
    await serve(app)
    await drive(app, CHAT)
    assert len(await Logged(app, tmp_path).records()) == 1


@pytest.mark.parametrize("content", [True, False])
async def test_an_app_of_ones_own_is_logged_too(serve: Serve, tmp_path: Path, content: bool) -> None:
    async def chat(request: Request) -> Response:
        asked = await request.json()
        if asked.get("stream"):
            return StreamingResponse(iter(stream_of("Hel", "lo")), media_type="text/event-stream")
        return JSONResponse({**ANSWER, "id": "mine"})

    wrapped = Starlette(routes=[Route("/api/v1/chat/completions", chat, methods=["POST"])])
    app = Callbacks(wrapped, callbacks=[Keep(path=tmp_path / "Keep.jsonl")], content=ContentRules(content=content))
    await serve(app)
    own = Logged(app, tmp_path)
    await own.call(CHAT, path="/api/v1/chat/completions")
    await own.call(STREAM, path="/api/v1/chat/completions")
    plain, streamed = await own.records()
    assert (plain["total_tokens"], plain["tianji"]["attempts"]) == (5, [])
    if content:
        assert plain["id"] == "mine"
        assert streamed["response"]["choices"][0]["message"]["content"] == "Hello"
    assert plain["model_group"] == plain["model"] == "gpt-4o"


class Rotating(Secret):
    """A key of a secret manager."""

    @property
    def changes(self) -> bool:
        return True


@pytest.mark.parametrize("alias", ["acme", None])
def test_a_key_that_may_change_is_known_by_its_alias(tmp_path: Path, alias: str | None) -> None:
    entry = {"callback_name": KEEP, "callback_vars": {"path": str(tmp_path / "x.jsonl")}}
    key = VirtualKey(key=Rotating("sk-one"), alias=alias, metadata={"logging": [entry]})
    problems: list[ConfigError] = []
    found = destinations_of(Settings(virtual_keys=(key,)), {}, problems)
    if alias is None:
        assert "need its `alias`" in str(problems[0])
    else:
        assert (found[0].keys, found[0].key_hash) == ({"acme"}, "")
