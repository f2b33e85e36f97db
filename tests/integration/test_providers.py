"""Providers over real HTTP, from a config to the exact bytes: a stack built from YAML's mapping before a `FakeLLM`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, DONE, STREAM, delta, error_of, stream_of
from tests.unit.providers.served import KEY, Asker, Build, config, error, stacks
from tianji_mw.driver import LLMMiddleware
from tianji_mw.testing import FakeLLM, Reply, drive

USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
MESSAGE: dict[str, Any] = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "Hello you"}],
    "usage": {"input_tokens": 3, "output_tokens": 2},
}  # fmt: skip
EMBEDDING = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "model": "e",
    "usage": {},
}
ASKED = {"model": "gpt-4o", "stream": True}
COMPLETION = {"choices": [{"text": "Hello", "index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": [], "usage": None}


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    async with stacks() as found:
        yield found


@pytest.fixture
def ask(llm: FakeLLM, build: Build) -> Asker:
    return Asker(llm, build)


# --- native: bytes in, bytes out


async def test_only_the_model_is_replaced(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    raw = b'{ "model" : "gpt-4o",\n "messages":[{"role":"user","content":"gpt-4o"}], "unknown_field": [1.0, 1e3] }'
    driven = await ask(raw)
    [request] = llm.requests
    assert request.body == raw.replace(b'"model" : "gpt-4o"', b'"model" : "gpt-4o-2024"')
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert driven.body == orjson.dumps(ANSWER)


async def test_no_client_header_reaches_the_provider_but_the_named_ones(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    given = {"authorization": "Bearer client", "cookie": "a=b", "x-own": "1", "openai-beta": "assistants=v2"}
    await drive(build(config(llm, extra_headers={"X-Team": "core"}, organization="org-1")), CHAT, headers=given)
    sent = llm.requests[0].headers
    assert {"cookie", "x-own"}.isdisjoint(sent)
    assert sent["authorization"] == f"Bearer {KEY}"
    assert (sent["openai-beta"], sent["x-team"], sent["openai-organization"]) == ("assistants=v2", "core", "org-1")


async def test_operators_header_wins_and_feature_lists_are_joined(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(MESSAGE)]
    beta = {"anthropic-beta": "a, b", "anthropic-version": "2024-01-01"}
    app = build(config(llm, model="anthropic/claude", extra_headers={"Anthropic-Beta": "b,c"}))
    body = {**CHAT, "max_tokens": 5}
    driven = await drive(app, body, path="/v1/messages", headers=beta)
    sent = llm.requests[0]
    assert driven.json == MESSAGE
    assert sent.path == "/v1/messages"
    assert (sent.headers["anthropic-beta"], sent.headers["anthropic-version"]) == ("a,b,c", "2024-01-01")
    assert (sent.headers["x-api-key"], "authorization" in sent.headers) == (KEY, False)


@pytest.mark.parametrize(("key", "header"), [("sk-ant-oat01-x", "authorization"), ("sk-ant-api-x", "x-api-key")])
async def test_anthropic_keys_and_version(ask: Asker, llm: FakeLLM, key: str, header: str) -> None:
    llm.replies = [Reply.json(MESSAGE)]
    driven = await ask(CHAT, model="anthropic/claude", api_key=key)
    sent = llm.requests[0].headers
    assert driven.json["choices"][0]["message"]["content"] == "Hello you"
    assert sent["anthropic-version"] == "2023-06-01"
    assert key in sent[header]


async def test_a_wildcard_takes_what_the_client_named(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER), Reply.json(ANSWER)]
    mapping = config(llm, model="openai/*", name="any/*")
    mapping["router_settings"] = {"model_group_alias": {"fast": "any/gpt-mini"}}
    app = build(mapping)
    for model in ("any/gpt-nano", "fast"):
        assert (await drive(app, {**CHAT, "model": model})).status == 200
    assert [request.json["model"] for request in llm.requests] == ["gpt-nano", "gpt-mini"]


# --- keys


@pytest.mark.parametrize(
    ("model", "variable"),
    [
        ("openai/x", "OPENAI_API_KEY"),
        ("anthropic/x", "ANTHROPIC_API_KEY"),
        ("groq/x", "GROQ_API_KEY"),
        ("sarvam/x", "SARVAM_API_KEY"),
    ],
)
async def test_without_a_key_nothing_is_sent(build: Build, model: str, variable: str) -> None:
    app = build({"model_list": [{"model_name": "my-model", "litellm_params": {"model": model}}]})
    driven = await drive(app, {**CHAT, "model": "my-model"})
    assert driven.status == 401
    assert (error(driven)["type"], error(driven)["code"]) == ("authentication_error", "missing_api_key")
    text = error(driven)["message"]
    assert variable in text
    assert "'my-model'" in text
    assert f"'{model.partition('/')[0]}'" in text


async def test_azure_without_a_key(ask: Asker, llm: FakeLLM) -> None:
    driven = await ask(CHAT, model="azure/dep", api_key=None)
    assert (driven.status, llm.requests) == (401, [])
    assert "AZURE_API_KEY" in error(driven)["message"]


@pytest.mark.parametrize("model", ["openai/x", "groq/x", "ollama/x", "openai_like/x"])
async def test_a_server_of_the_operators_own_needs_none(ask: Asker, llm: FakeLLM, model: str) -> None:
    llm.replies = [Reply.json(ANSWER)]
    driven = await ask(CHAT, model=model, api_key=None)
    assert driven.status == 200
    assert "authorization" not in llm.requests[0].headers


async def test_a_header_may_hold_the_key(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    driven = await ask(CHAT, model="azure/dep", api_key=None, extra_headers={"api-key": "k"})
    assert driven.status == 200
    assert llm.requests[0].headers["api-key"] == "k"


# --- azure


async def test_azure_end_to_end_with_a_token_from_the_environment(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json({"access_token": "tok-1", "expires_in": 3600}), Reply.json(ANSWER), Reply.json(ANSWER)]
    env = {"AZURE_TENANT_ID": "t", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s", "AZURE_AUTHORITY_HOST": llm.url}
    mapping = config(llm, model="azure/dep", api_key=None, api_base=llm.url, api_version="2024-10-21")
    mapping["environment_variables"] = env
    app = build(mapping)
    for _ in range(2):
        assert (await drive(app, {**CHAT, "max_tokens": 3})).status == 200
    assert [request.path for request in llm.requests] == [
        "/t/oauth2/v2.0/token",
        *["/openai/deployments/dep/chat/completions?api-version=2024-10-21"] * 2,
    ]
    assert llm.requests[1].headers["authorization"] == "Bearer tok-1"


async def test_azure_login_that_is_refused(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json({"error": "invalid_client"}, status=401)]
    login = {"tenant_id": "t", "client_id": "c", "client_secret": "secret-value"}
    mapping = config(llm, model="azure/dep", api_key=None, api_base=llm.url, **login)
    driven = await drive(build(mapping, {"AZURE_AUTHORITY_HOST": llm.url}), CHAT)
    assert driven.status == 401
    assert error(driven)["type"] == "authentication_error"
    assert "client secret of the provider 'azure'" in error(driven)["message"]
    assert b"secret-value" not in driven.body


async def test_azure_first_chunk_without_choices(build: Build, llm: FakeLLM) -> None:
    first = b'data: {"choices":[],"prompt_filter_results":[{"prompt_index":0,"content_filter_results":{}}]}\n\n'
    parts = [first, *stream_of("Hel", "lo")]
    llm.replies = [Reply.events(*parts), Reply.events(*parts), Reply.events(*parts)]
    app = build(config(llm, model="azure/dep", api_version="2024-10-21"))
    assert (await drive(app, STREAM)).body == b"".join(parts)
    assert b"Hel" in (await drive(app, {**STREAM, "max_tokens": 5}, path="/v1/messages")).body
    assert (
        b"response.completed"
        in (await drive(app, {"model": "gpt-4o", "input": "x", "stream": True}, path="/v1/responses")).body
    )


async def test_azure_content_filter_keeps_its_inner_error(build: Build, llm: FakeLLM) -> None:
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}
    body = {
        "error": {"message": "filtered", "type": None, "param": "prompt", "code": "content_filter", "innererror": inner}
    }
    llm.replies = [Reply.json(body, status=400), Reply.json(body, status=400)]
    app = build(config(llm, model="azure/dep", api_version="2024-10-21"))
    driven = await drive(app, CHAT)
    assert (driven.status, driven.body) == (400, orjson.dumps(body))
    bridged = await drive(app, {"model": "gpt-4o", "input": "x"}, path="/v1/responses")
    assert (bridged.status, error(bridged)["code"], error(bridged)["param"]) == (400, "content_filter", "prompt")


@pytest.mark.parametrize("model", ["openai/o3-mini", "azure/gpt-5-mini"])
async def test_reasoning_models_get_the_newer_limit(ask: Asker, llm: FakeLLM, model: str) -> None:
    llm.replies = [Reply.json(ANSWER)]
    await ask({**CHAT, "max_tokens": 5}, model=model)
    sent = llm.requests[0].json
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (5, False)


# --- a provider by config alone


async def test_a_users_provider(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    entry = {
        "base_url": f"{llm.url}/api", "api_key_env": "OWN_KEY", "headers": {"x-sub": "{api_key}"},
        "chat_path": "generate", "param_mappings": {"max_completion_tokens": "max_tokens"}, "drop_params": ["seed"],
    }  # fmt: skip
    mapping = {
        "model_list": [{"model_name": "m", "litellm_params": {"model": "own/big-1"}}],
        "general_settings": {"providers": {"own": entry}},
    }
    app = build(mapping, {"OWN_KEY": "own-key"})
    driven = await drive(app, {**CHAT, "model": "m", "max_completion_tokens": 7, "seed": 1})
    [request] = llm.requests
    assert request.path == "/api/generate"
    assert (request.headers["x-sub"], "authorization" in request.headers) == ("own-key", False)
    assert request.json == {"model": "big-1", "messages": CHAT["messages"], "max_tokens": 7}
    assert driven.headers["x-tianji-dropped-params"] == "seed"


# --- fields


async def test_defaults_drops_and_our_own_fields(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    tools = [{"type": "function", "function": {"name": "f", "strict": True}}]
    body = {
        **CHAT,
        "seed": 1,
        "tools": tools,
        "tags": ["x"],
        "num_retries": 2,
        "temperature": 1,
        "extra_body": {"top_k": 3},
    }
    params: dict[str, Any] = {
        "temperature": 0.1,
        "top_p": 0.5,
        "additional_drop_params": ["seed", "tools[*].function.strict"],
    }
    driven = await ask(body, extra_body={"own": True}, **params)
    assert llm.requests[0].json == {
        "model": "gpt-4o-2024", "messages": CHAT["messages"], "temperature": 1, "top_p": 0.5, "own": True, "top_k": 3,
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }  # fmt: skip
    assert driven.headers["x-tianji-dropped-params"] == "seed,tools[*].function.strict"


async def test_a_request_may_name_fields_to_drop(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    driven = await ask({**CHAT, "seed": 1, "user": "u", "additional_drop_params": ["seed"]})
    assert llm.requests[0].json == {"model": "gpt-4o-2024", "messages": CHAT["messages"], "user": "u"}
    assert driven.headers["x-tianji-dropped-params"] == "seed"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"extra_body": {"messages": []}}, "extra_body"),
        ({"extra_body": {"api_base": "http://x"}}, "extra_body"),
        ({"extra_body": "x"}, "extra_body"),
        ({"additional_drop_params": "seed"}, "additional_drop_params"),
        ({"additional_drop_params": ["."]}, "additional_drop_params"),
        ({"allowed_openai_params": [1]}, "allowed_openai_params"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"mock_response": {"a": 1}}, "mock_response"),
    ],
)
async def test_wrong_fields_of_ours_are_refused(ask: Asker, llm: FakeLLM, fields: dict[str, Any], param: str) -> None:
    driven = await ask({**CHAT, **fields})
    assert (driven.status, error(driven)["param"], llm.requests) == (400, param, [])


async def test_one_of_two_limits(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    await ask({**CHAT, "max_completion_tokens": 9}, max_tokens=5)
    sent = llm.requests[0].json
    assert (sent["max_completion_tokens"], "max_tokens" in sent) == (9, False)


async def test_chat_defaults_stay_out_of_embeddings(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(EMBEDDING)]
    body = {"model": "gpt-4o", "input": "x"}
    driven = await ask(body, path="/v1/embeddings", temperature=0.1, max_tokens=5)
    assert driven.status == 200
    assert llm.requests[0].json == {"model": "gpt-4o-2024", "input": "x"}


async def test_unsupported_fields_across_a_bridge(ask: Asker, llm: FakeLLM) -> None:
    body = {**CHAT, "logit_bias": {"1": 2}}
    refused = await ask(body, model="anthropic/claude")
    assert (refused.status, error(refused)["code"], error(refused)["param"]) == (
        400,
        "unsupported_parameter",
        "logit_bias",
    )
    assert not llm.requests
    llm.replies = [Reply.json(MESSAGE)] * 4
    for params, more in (({"drop_params": True}, {}), ({}, {"drop_params": True})):
        dropped = await ask({**body, **more}, model="anthropic/claude", **params)
        assert dropped.headers["x-tianji-dropped-params"] == "logit_bias"
        assert "logit_bias" not in llm.requests[-1].json
    for params, more in (
        ({"allowed_openai_params": ["logit_bias"]}, {}),
        ({"drop_params": True}, {"allowed_openai_params": ["logit_bias"]}),
    ):
        await ask({**body, **more}, model="anthropic/claude", **params)
        assert llm.requests[-1].json["logit_bias"] == {"1": 2}


async def test_allowing_what_a_bridge_translates_changes_nothing(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(MESSAGE)]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    await ask({**CHAT, "tools": tools}, model="anthropic/claude", allowed_openai_params=["tools", "messages"])
    assert llm.requests[0].json["tools"][0]["name"] == "f"


# --- mock_response


async def test_a_mocked_answer_asks_nobody(ask: Asker, llm: FakeLLM) -> None:
    driven = await ask({**CHAT, "mock_response": "It is mocked"})
    assert driven.json["choices"][0]["message"]["content"] == "It is mocked"
    streamed = await ask({**STREAM, "mock_response": "It is mocked"})
    assert b"mocked" in streamed.body
    assert streamed.body.endswith(DONE)
    native = await ask({**CHAT, "max_tokens": 1, "mock_response": "Hi"}, path="/v1/messages", model="anthropic/claude")
    assert native.json["content"] == [{"type": "text", "text": "Hi"}]
    assert not llm.requests


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("litellm.RateLimitError", 429, "rate_limit_exceeded"),
        ("litellm.InternalServerError", 500, None),
        ("litellm.ContextWindowExceededError", 400, "context_length_exceeded"),
    ],
)
async def test_mocked_errors(ask: Asker, text: str, status: int, code: str | None) -> None:
    for driven in (await ask({**CHAT, "mock_response": text}), await ask(STREAM, mock_response=text)):
        assert (driven.status, error(driven)["code"]) == (status, code)


# --- errors of the provider


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 408, 409, 413, 422, 424, 429, 500, 502, 503, 504, 529])
async def test_native_errors_pass_byte_for_byte(ask: Asker, llm: FakeLLM, status: int) -> None:
    raw = b'{ "error": {"message": "it\\u0020broke", "type": "t", "code": "c", "own": 1} }\n'
    limits = {
        "retry-after": "7",
        "retry-after-ms": "7000",
        "x-ratelimit-remaining-tokens": "0",
        "x-request-id": "r1",
        "server": "s",
    }
    llm.replies = [Reply(status=status, headers={"content-type": "application/json", **limits}, parts=[raw])]
    driven = await ask(CHAT)
    assert (driven.status, driven.body) == (status, raw)
    assert (driven.headers["retry-after"], driven.headers["retry-after-ms"]) == ("7", "7000")
    assert driven.headers["llm_provider-x-ratelimit-remaining-tokens"] == "0"
    assert driven.headers["llm_provider-x-request-id"] == "r1"
    assert "server" not in driven.headers


@pytest.mark.parametrize(
    ("status", "native", "message", "kind", "code"),
    [
        (400, "invalid_request_error", "prompt is too long: 9", "invalid_request_error", "context_length_exceeded"),
        (401, "authentication_error", "no", "authentication_error", "invalid_api_key"),
        (429, "rate_limit_error", "no", "rate_limit_error", "rate_limit_exceeded"),
        (529, "overloaded_error", "no", "api_error", None),
    ],
)
async def test_errors_across_a_bridge(
    ask: Asker, llm: FakeLLM, status: int, native: str, message: str, kind: str, code: str | None
) -> None:
    body = {"type": "error", "error": {"type": native, "message": message}}
    head = {"content-type": "application/json", "retry-after": "3"}
    llm.replies = [Reply(status=status, headers=head, parts=[orjson.dumps(body)])]
    driven = await ask(CHAT, model="anthropic/claude")
    assert (driven.status, error(driven)["type"], error(driven)["code"]) == (status, kind, code)
    assert error(driven)["message"] == message
    assert driven.headers["retry-after"] == "3"


@pytest.mark.parametrize("model", ["openai/x", "anthropic/x"])
async def test_an_echoed_key_is_masked(ask: Asker, llm: FakeLLM, model: str) -> None:
    llm.replies = [Reply.json({"error": {"message": f"Incorrect API key provided: {KEY}."}}, status=401)]
    driven = await ask(CHAT, model=model)
    assert driven.status == 401
    assert KEY.encode() not in driven.body
    assert error(driven)["message"] == "Incorrect API key provided: ********."


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b"\xff\xfe\x00", b'"text"', b'{"detail": "x"}'])
async def test_error_bodies_that_are_no_api_errors(ask: Asker, llm: FakeLLM, body: bytes) -> None:
    llm.replies = [Reply(status=503, headers={"content-type": "text/html"}, parts=[body])]
    driven = await ask(CHAT)
    assert (driven.status, error(driven)["type"]) == (503, "api_error")
    assert b"<html>" not in driven.body


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
async def test_redirects_are_refused(ask: Asker, llm: FakeLLM, status: int) -> None:
    llm.replies = [Reply(status=status, headers={"location": f"{llm.url}/elsewhere"})]
    driven = await ask(CHAT)
    assert (driven.status, len(llm.requests)) == (502, 1)
    assert str(status) in error(driven)["message"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"error": {"message": "no", "code": 429}}, 429, "429"),
        ({"error": {"message": "no", "code": "429"}}, 429, "429"),
        ({"error": {"message": "no", "type": "invalid_request_error"}}, 400, None),
        ({"error": {"message": "no", "code": "context_length_exceeded"}}, 400, "context_length_exceeded"),
        ({"object": "error", "message": "no", "type": "overloaded_error", "code": None}, 529, None),
        ({"error": "Rate limit reached"}, 429, "rate_limit_exceeded"),
        ({"error": {"message": "boom"}}, 502, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_inside_of_a_success(
    ask: Asker, llm: FakeLLM, body: Any, status: int, code: str | None, stream: bool
) -> None:
    llm.replies = [Reply.json(body)]
    driven = await ask({**CHAT, "stream": stream})
    assert driven.status == status
    assert error(driven)["message"] in ("no", "boom", "Rate limit reached")
    assert str(error(driven).get("code")) == str(code)


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(headers={"content-type": "text/html"}, parts=[b"<html>hi</html>"]), "no JSON object"),
        (Reply(headers={"content-type": "application/json"}), "empty answer"),
        (Reply(headers={"content-type": "application/json"}, parts=[b'{"choices": "\xff\xfe"}']), "no JSON object"),
        (Reply(headers={"content-type": "application/json"}, parts=[b'{"choices": [']), "no JSON object"),
        (
            Reply(headers={"content-type": "application/json", "content-encoding": "gzip"}, parts=[b"\x1f\x8b"]),
            "compressed answer",
        ),
        (Reply.json([ANSWER]), "no JSON object"),
        (Reply.json("text"), "no JSON object"),
        (Reply.json({"status": "ok"}), "none of chat_completions"),
        (Reply.json({}), "none of chat_completions"),
        (Reply(status=204), "empty answer"),
    ],
)
@pytest.mark.parametrize("model", ["openai/x", "openai/y"])
async def test_answers_that_are_none(ask: Asker, llm: FakeLLM, reply: Reply, text: str, model: str) -> None:
    llm.replies = [reply]
    driven = await ask({**CHAT, "stream": model == "openai/y"}, model=model)
    assert (driven.status, error(driven)["type"]) == (502, "api_error")
    assert text in error(driven)["message"]
    assert "'openai'" in error(driven)["message"]


async def test_a_wrong_content_type_does_not_matter_where_the_answer_is_right(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply(headers={"content-type": "text/plain"}, parts=[orjson.dumps(ANSWER)])]
    driven = await ask(CHAT)
    assert (driven.json, driven.headers["content-type"]) == (ANSWER, "application/json")


async def test_a_stream_that_nobody_asked_for(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.events(*stream_of("x"))]
    driven = await ask(CHAT)
    assert driven.status == 502
    assert "sent a stream, and a plain answer was asked for" in error(driven)["message"]


# --- deadlines


@pytest.mark.parametrize(
    ("body", "params"),
    [
        (CHAT, {"timeout": 0.2}),
        (STREAM, {"timeout": 60, "stream_timeout": 0.2}),
        ({**CHAT, "timeout": 0.2}, {}),
        ({**STREAM, "stream_timeout": 0.2}, {"timeout": 60}),
    ],
)
async def test_deadlines(ask: Asker, llm: FakeLLM, body: Any, params: dict[str, Any]) -> None:
    llm.replies = [Reply.json(ANSWER, delay_s=3)]
    driven = await ask(body, **params)
    assert (driven.status, error(driven)["type"]) == (408, "timeout_error")
    assert "0.2 s" in error(driven)["message"]


async def test_a_stream_that_stops_sending(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.events(*stream_of("a", "b"), pause_s=0.1), Reply.events(delta("a"), delta("b"), pause_s=0.0)]
    llm.replies[1].parts = [delta("a"), delta("b")]
    driven = await ask(STREAM, stream_timeout=5)
    assert driven.body == b"".join(stream_of("a", "b"))


async def test_a_request_cannot_lengthen_a_deadline(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER, delay_s=3)]
    driven = await ask({**CHAT, "timeout": 60}, timeout=0.2)
    assert driven.status == 408


# --- streams


async def test_an_untouched_stream_is_the_same_bytes(ask: Asker, llm: FakeLLM) -> None:
    parts = [b": ping\n\n", *stream_of("Hel", "lo"), b": bye\n\n"]
    llm.replies = [Reply.events(*parts)]
    driven = await ask(STREAM)
    assert driven.body == b"".join(parts)
    assert driven.headers["content-type"].startswith("text/event-stream")
    assert driven.headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize(
    ("tail", "added"),
    [
        ([delta(finish="stop")], DONE),
        ([delta(finish="stop"), USAGE], DONE),
        ([delta(finish="stop"), b"data: [DONE]"], b"\n\n"),
        ([delta(finish="stop"), b"data: [DONE]\n"], b"\n"),
        ([delta(finish="stop").rstrip()], b"\n\n" + DONE),
    ],
)
async def test_servers_that_end_without_the_end_marker(
    ask: Asker, llm: FakeLLM, tail: list[bytes], added: bytes
) -> None:
    parts = [delta("Hi"), *tail]
    llm.replies = [Reply.events(*parts)]
    driven = await ask(STREAM)
    assert driven.body == b"".join(parts) + added
    assert driven.complete


async def test_a_stream_that_breaks_off_ends_with_an_error(ask: Asker, llm: FakeLLM) -> None:
    for reply in (
        Reply.events(delta("Hi"), b'data: {"choi'),
        Reply.events(delta("Hi"), delta("x" * 99), cut_after=len(delta("Hi")) + 9),
    ):
        llm.replies = [reply]
        driven = await ask(STREAM)
        assert driven.status == 200
        assert driven.body.startswith(delta("Hi") + b'data: {"error"')
        assert error_of(driven.body)["type"] == "api_error"


@pytest.mark.parametrize("model", ["openai/x", "anthropic/x"])
@pytest.mark.parametrize(("kind", "status"), [("overloaded_error", 529), ("rate_limit_error", 429), ("odd", 502)])
async def test_an_error_as_first_event_has_a_true_status(
    ask: Asker, llm: FakeLLM, model: str, kind: str, status: int
) -> None:
    body = orjson.dumps({"type": "error", "error": {"type": kind, "message": f"no {KEY}"}})
    llm.replies = [Reply.events(b": hello\n\n", b"event: error\ndata: %b\n\n" % body)] * 2
    for path, more in (("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 1})):
        driven = await ask({**STREAM, **more}, model=model, path=path)
        assert (driven.status, error(driven)["message"]) == (status, "no ********")


async def test_an_error_as_first_event_of_a_bridged_response(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.events(b'data: {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}\n\n')]
    driven = await ask({"model": "gpt-4o", "input": "x", "stream": True}, model="groq/x", path="/v1/responses")
    llm.replies = [Reply.events(b'data: {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}\n\n')]
    bridged = await ask({"model": "gpt-4o", "input": "x", "stream": True}, model="deepseek/x", path="/v1/responses")
    assert (driven.status, bridged.status) == (429, 429)


async def test_an_error_in_the_middle_of_a_stream(ask: Asker, llm: FakeLLM) -> None:
    broken = b'data: {"error": {"message": "died", "code": 500}}\n\n'
    llm.replies = [Reply.events(delta("Hi"), broken)]
    driven = await ask(STREAM)
    assert driven.body == delta("Hi") + broken
    start = {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}}
    died = {"type": "error", "error": {"type": "overloaded_error", "message": f"died {KEY}"}}
    events = [b"event: %b\ndata: %b\n\n" % (e["type"].encode(), orjson.dumps(e)) for e in (start, died)]  # type: ignore[attr-defined]
    llm.replies = [Reply.events(*events)]
    bridged = await ask(STREAM, model="anthropic/claude")
    assert bridged.status == 200
    assert error_of(bridged.body)["message"] == "died ********"
    assert DONE not in bridged.body


# --- a stream was asked for, a plain answer came


@pytest.mark.parametrize(
    ("path", "body", "answer", "contains"),
    [
        ("/v1/chat/completions", STREAM, ANSWER, [b"Hello you", b'"finish_reason":"stop"', b"[DONE]"]),
        ("/v1/completions", {**ASKED, "prompt": "x"}, COMPLETION, [b"Hello", b"[DONE]"]),
        (
            "/v1/responses",
            {**ASKED, "input": "x"},
            RESPONSE,
            [b"event: response.created", b"event: response.completed"],
        ),
    ],
)
async def test_a_plain_answer_as_a_stream(
    ask: Asker, llm: FakeLLM, path: str, body: Any, answer: Any, contains: list[bytes]
) -> None:
    llm.replies = [Reply.json(answer)]
    driven = await ask(body, path=path)
    assert driven.headers["content-type"].startswith("text/event-stream")
    assert all(part in driven.body for part in contains)
    # Usage was not asked for: no chunk without choices.
    assert b'"choices":[]' not in driven.body


async def test_a_plain_message_as_a_stream(ask: Asker, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(MESSAGE), Reply.json(MESSAGE)]
    native = await ask({**STREAM, "max_tokens": 5}, model="anthropic/x", path="/v1/messages")
    assert b"event: message_stop" in native.body
    bridged = await ask({**STREAM, "stream_options": {"include_usage": True}}, model="anthropic/x")
    assert b"Hello you" in bridged.body
    assert b'"choices":[],"usage"' in bridged.body
    assert bridged.body.endswith(DONE)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/moderations"])
async def test_apis_that_never_stream(ask: Asker, llm: FakeLLM, path: str) -> None:
    llm.replies = [Reply.json({**EMBEDDING, "results": []})]
    driven = await ask({"model": "gpt-4o", "input": "x", "stream": True}, path=path)
    assert (driven.status, driven.headers["content-type"]) == (200, "application/json")
    assert llm.requests[0].headers["accept"] == "application/json"


# --- usage that a layer wants


class Ledger(LLMMiddleware):
    """Wants the usage of every stream."""

    phase = 400

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.tokens: list[tuple[int, int, str]] = []

    async def on_request(self, call: Any) -> None:
        call.want_usage = True

    async def on_end(self, call: Any) -> None:
        self.tokens.append((call.usage.input_tokens, call.usage.output_tokens, call.usage.source))


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_obfuscation": False}, "odd"])
async def test_usage_is_asked_for_and_taken_out_again(build: Build, llm: FakeLLM, options: Any) -> None:
    start = stream_of("Hi")[:-1]
    llm.replies = [Reply.events(*start, USAGE, DONE)]
    ledger = build(config(llm), around=Ledger)
    body = STREAM if options is None else {**STREAM, "stream_options": options}
    driven = await drive(ledger, body)
    assert driven.body == b"".join([*start, DONE])
    kept = options if isinstance(options, dict) else {}
    assert llm.requests[0].json["stream_options"] == {**kept, "include_usage": True}
    assert ledger.tokens == [(3, 2, "provider")]


async def test_usage_that_the_client_asked_for_stays(build: Build, llm: FakeLLM) -> None:
    parts = [*stream_of("Hi")[:-1], USAGE, DONE]
    llm.replies = [Reply.events(*parts)]
    driven = await drive(build(config(llm), around=Ledger), {**STREAM, "stream_options": {"include_usage": True}})
    assert driven.body == b"".join(parts)


async def test_usage_across_a_bridge_is_taken_out_again(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(MESSAGE), Reply.events(*anthropic_stream())]
    ledger = build(config(llm, model="anthropic/claude"), around=Ledger)
    for _ in range(2):
        driven = await drive(ledger, STREAM)
        assert driven.body.endswith(DONE)
        assert b'"choices":[]' not in driven.body
    assert ledger.tokens == [(3, 2, "provider")] * 2


def anthropic_stream() -> list[bytes]:
    from tianji_mw.apis import by_name

    return list(by_name("messages").split(MESSAGE))


async def test_plain_answers_are_not_asked_for_usage(build: Build, llm: FakeLLM) -> None:
    llm.replies = [Reply.json(ANSWER)]
    ledger = build(config(llm), around=Ledger)
    await drive(ledger, CHAT)
    assert "stream_options" not in llm.requests[0].json
    assert ledger.tokens == [(3, 2, "provider")]


async def test_always_include_stream_usage(build: Build, llm: FakeLLM) -> None:
    parts = [*stream_of("Hi")[:-1], USAGE, DONE]
    llm.replies = [Reply.events(*parts)]
    mapping = {**config(llm), "general_settings": {"always_include_stream_usage": True}}
    driven = await drive(build(mapping), STREAM)
    assert driven.body == b"".join(parts)
    assert llm.requests[0].json["stream_options"] == {"include_usage": True}
