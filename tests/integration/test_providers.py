"""Providers over real HTTP, from a config to the exact bytes: a stack built from YAML's mapping before a `FakeLLM`.

`test_provider_params` has the fields of a request, `test_provider_answers` what a provider says.
"""

from __future__ import annotations

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, STREAM, stream_of
from tests.unit.providers.served import KEY, MESSAGE, Asker, Build, config, error
from tianji_mw.testing import FakeLLM, Reply, drive

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
