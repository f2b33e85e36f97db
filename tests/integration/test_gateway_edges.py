"""Corners of the gateway that several concerns share, through a whole stack."""

from __future__ import annotations

from typing import Any

import pytest

from examples.plugins.no_codename import NoCodename
from tests.unit.providers.served import Build, config
from tianji_mw import Authentication, Guardrails
from tianji_mw.testing import FakeLLM, Reply, drive

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hello"}]}
CHUNK = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}\n\n'
STOP = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]]])
async def test_token_ids_do_not_pass_a_guardrail_of_text(llm: FakeLLM, build: Build, prompt: Any) -> None:
    guarded = build(config(llm), around=lambda app: Guardrails(app, checks=[NoCodename()]))
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        driven = await drive(guarded, {"model": "gpt-4o", field: prompt}, path=path)
        assert driven.status == 400
        assert driven.json["error"]["message"].startswith(f"'{field}' holds token ids")
    assert llm.requests == []


async def test_a_bridged_text_completion_stream_ends_with_done(llm: FakeLLM, build: Build) -> None:
    llm.replies.append(Reply.events(CHUNK + STOP + b"data: [DONE]\n\n"))
    app = build(config(llm, model="groq/llama"))
    driven = await drive(app, {"model": "gpt-4o", "prompt": "Hello", "stream": True}, path="/v1/completions")
    assert driven.status == 200
    assert driven.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("options", ["yes", 7, [1]])
async def test_odd_stream_options_never_crash(llm: FakeLLM, build: Build, options: Any) -> None:
    llm.replies.append(Reply.json({"error": {"message": "bad stream_options"}}, status=400))
    app = build(config(llm) | {"general_settings": {"always_include_stream_usage": True}})
    driven = await drive(app, {**CHAT, "stream": True, "stream_options": options})
    assert driven.error is None
    assert driven.status == 400


async def test_a_client_learns_no_address_of_a_provider(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    async with FakeLLM() as gone:
        app = build(config(gone))
    driven = await drive(app, CHAT)
    assert driven.status == 502
    assert "127.0.0.1" not in driven.body.decode()
    assert "is not reachable" in driven.json["error"]["message"]
    # The operator's log does name it.
    assert any("127.0.0.1" in r.getMessage() for r in caplog.records if r.name == "tianji_mw.upstream")


async def test_a_restricted_key_may_not_leave_the_model_out(llm: FakeLLM, build: Build) -> None:
    keys = [{"key": "sk-a", "models": ["gpt-4o"]}]
    app = build(config(llm) | {"virtual_keys": keys})
    headers = {"authorization": "Bearer sk-a"}
    for body in ({"messages": CHAT["messages"]}, {**CHAT, "model": "other"}, {**CHAT, "model": ["gpt-4o"]}):
        driven = await drive(app, body, headers=headers)
        assert driven.status in (400, 403)
    assert llm.requests == []


async def test_one_wrong_key_is_refused_before_the_body_is_read(llm: FakeLLM, build: Build) -> None:
    app = build(config(llm), around=lambda inner: Authentication(inner, master_key="sk-1"))
    driven = await drive(app, b"\xff not even JSON", headers={"authorization": "Bearer nope"})
    assert driven.status == 401


async def test_a_deployment_without_weight_gets_no_call_while_another_has_one(build: Build) -> None:
    answer = {"id": "1", "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}}]}
    async with FakeLLM(lambda r: Reply.json(answer)) as heavy, FakeLLM(lambda r: Reply.json(answer)) as light:
        entries = [config(heavy, weight=3)["model_list"][0], config(light)["model_list"][0]]
        app = build({"model_list": entries, "router_settings": {"routing_strategy": "simple-shuffle"}})
        statuses = [(await drive(app, CHAT)).status for _ in range(20)]
        await app.runtime.aclose()
    assert statuses == [200] * 20
    assert (len(heavy.requests), len(light.requests)) == (20, 0)


@pytest.mark.parametrize(
    ("general", "sentence"), [({"max_event_bytes": 200}, "200 bytes"), ({"max_answer_bytes": 1000}, "1000 bytes")]
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_the_limits_of_a_stream_hold_with_and_without_a_bridge(
    llm: FakeLLM, build: Build, path: str, general: dict[str, int], sentence: str
) -> None:
    long = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 300)
    llm.replies.append(Reply.events(*[CHUNK, *[long] * 5, STOP, b"data: [DONE]\n\n"], pause_s=0.01))
    app = build(config(llm) | {"general_settings": general})
    driven = await drive(app, {**CHAT, "stream": True, "max_tokens": 9}, path=path)
    assert sentence in driven.body.decode()
    assert b"[DONE]" not in driven.body
    assert b"message_stop" not in driven.body
