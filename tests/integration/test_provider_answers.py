"""What a provider says, as the client gets it: errors, answers that are none, streams."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, DONE, STREAM, delta, error_of, stream_of
from tests.unit.providers.served import EMBEDDING, KEY, MESSAGE, USAGE, Asker, error
from tianji_mw.testing import FakeLLM, Reply

ASKED = {"model": "gpt-4o", "stream": True}
COMPLETION = {"choices": [{"text": "Hello", "index": 0, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
RESPONSE = {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": [], "usage": None}


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
    # No content has left: it is still an error with a status of its own.
    assert bridged.status == 503
    assert bridged.json["error"]["message"] == "died ********"


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
