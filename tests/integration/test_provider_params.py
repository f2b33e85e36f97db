"""What fields of a request and of a deployment do before a provider: defaults, drops, mocks, deadlines, usage."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.stack import ANSWER, CHAT, DONE, STREAM, delta, stream_of
from tests.unit.providers.served import EMBEDDING, MESSAGE, USAGE, Asker, Build, config, error
from tianji_mw.driver import LLMMiddleware
from tianji_mw.testing import FakeLLM, Reply, drive

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
