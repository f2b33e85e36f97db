"""Reading the request: limits, deadlines, strict JSON, replay, and the rules of closing and outcomes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from tests.support.apps import SSEApp, json_app
from tests.support.stack import ANSWER, CHAT, Ends, Probe
from tianji_mw.apis import by_name
from tianji_mw.call import Call, Limits, Timings, open_call
from tianji_mw.errors import (
    BodyTooLarge,
    NoDeployment,
    RateLimited,
    ReceiveTimeout,
    TianjiError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTruncated,
)
from tianji_mw.runtime import Runtime
from tianji_mw.testing import drive


def call_over(
    messages: Sequence[Any], *, headers: Any = (), limits: Limits | None = None, path: str = "/v1/chat/completions"
) -> Call:
    queue = list(messages)

    async def receive() -> Any:
        if queue:
            return queue.pop(0)
        await asyncio.sleep(60)
        return None

    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    return open_call(by_name("chat_completions"), scope, receive, runtime=Runtime(), limits=limits or Limits())


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


GOOD = b'{"model":"m","messages":[]}'


# --- limits


@pytest.mark.parametrize("length", ["1000", "9" * 18, "9" * 5000])
async def test_a_declared_length_over_the_limit_is_refused_unread(length: str) -> None:
    call = call_over([], headers=[(b"content-length", length.encode())], limits=Limits(max_body_bytes=100))
    with pytest.raises(BodyTooLarge, match="larger than 100 bytes"):
        await call.load()


@pytest.mark.parametrize(
    "messages", [[part(b"x" * 101)], [part(b"x" * 60, True), part(b"x" * 60)], [part(b"x" * 20, True)] * 9]
)
async def test_a_body_over_the_limit_is_refused_as_it_arrives(messages: list[Any]) -> None:
    with pytest.raises(BodyTooLarge):
        await call_over(messages, limits=Limits(max_body_bytes=100)).load()


@pytest.mark.parametrize("length", ["", "abc", "-5", "27"])
async def test_a_body_at_the_limit_is_taken(length: str) -> None:
    call = call_over(
        [part(GOOD)], headers=[(b"content-length", length.encode())], limits=Limits(max_body_bytes=len(GOOD))
    )
    await call.load()
    assert call.body == GOOD


@pytest.mark.parametrize("messages", [[], [part(b"{", True)]])
async def test_a_body_that_does_not_arrive_is_given_up(messages: list[Any]) -> None:
    with pytest.raises(ReceiveTimeout, match=r"0\.02 s"):
        await call_over(messages, limits=Limits(receive_timeout_s=0.02)).load()


@pytest.mark.parametrize("cuts", [1, 2, 7])
async def test_parts_are_joined(cuts: int) -> None:
    pieces = [GOOD[i : i + cuts] for i in range(0, len(GOOD), cuts)]
    driven = await drive(app := Probe(json_app(ANSWER)), body_parts=pieces)
    assert driven.status == 200
    assert app.call.body == GOOD


@pytest.mark.parametrize("kind", [bytearray, memoryview])
async def test_servers_may_hand_over_any_buffer(kind: Any) -> None:
    call = call_over([part(kind(GOOD))])
    await call.load()
    assert call.body == GOOD
    assert type(call.body) is bytes


# --- what is no request


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[1]",
        b'"text"',
        b'{"model":"m","messages":[],"x":NaN}',
        b'{"model":"m","messages":[],"x":1e999}',
        b'\xef\xbb\xbf{"model":"m","messages":[]}',
        b'{"model":"a","messages":[],"model":"b"}',
        b'{"model":"a","messages":[{"role":"user","content":"a","content":"b"}]}',
        b'{"model":"a", "messages":[], "\\u006dodel":"b"}',
        b'{"model":"m","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","messages":[],"x":' + b"[" * 400 + b"]" * 400 + b"}",
        b'{"model":"m","messages":[],"x":' + b"9" * (1 << 20) + b"}",
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":"text"}',
        b'{"model":"m","messages":[1]}',
        b'{"model":"m"}',
        b'{"model":1,"messages":[]}',
        b'{"model":"m","messages":[],"stream":"yes"}',
        b'{"model":"m","messages":[]} trailing',
        b'{"' + b"k" * 100_000 + b'":1,"' + b"k" * 100_000 + b'":2,"messages":[]}',
    ],
    ids=range(22),
)
async def test_what_is_no_request_is_a_400_at_once(body: bytes) -> None:
    app = json_app(ANSWER)
    outer = Ends(app)
    began = time.perf_counter()
    driven = await drive(outer, body)
    assert time.perf_counter() - began < 1.0
    assert (driven.status, driven.error, app.requests) == (400, None, [])
    assert driven.json["error"]["type"] == "invalid_request_error"
    assert len(driven.body) < 1000
    assert outer.outcomes == ["refused"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "deflate", "gzip, identity"])
async def test_compressed_requests_are_refused(encoding: str) -> None:
    driven = await drive(Probe(json_app(ANSWER)), CHAT, headers={"content-encoding": encoding})
    assert driven.status == 415


async def test_http_errors_of_the_limits() -> None:
    limits = Limits(max_body_bytes=10, receive_timeout_s=0.02)
    assert (await drive(Probe(json_app(ANSWER), limits=limits), CHAT)).status == 413

    async def stuck() -> Any:
        await asyncio.sleep(60)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await Probe(json_app(ANSWER), limits=limits)(scope, stuck, send)
    assert sent[0]["status"] == 408


# --- replay


async def test_the_body_is_given_once_and_then_what_the_server_says() -> None:
    call = call_over([part(GOOD), {"type": "http.disconnect"}])
    await call.load()
    assert await call.receive() == part(GOOD)
    assert await call.receive() == {"type": "http.disconnect"}
    assert call.gone
    call.rewind()
    assert await call.receive() == part(GOOD)


async def test_waiting_for_a_disconnect_ends_when_the_call_is_closed() -> None:
    call = call_over([part(GOOD)])
    await call.load()
    await call.receive()
    waiting = asyncio.ensure_future(call.receive())
    await asyncio.sleep(0)
    call.close(RateLimited("stop"))
    assert await waiting == {"type": "http.disconnect"}
    assert not call.gone
    assert (await call.receive())["type"] == "http.disconnect"


async def test_a_model_in_the_path_is_put_into_the_request() -> None:
    call = call_over([part(b'{"messages":[]}')], path="/openai/deployments/gpt-4o/chat/completions")
    await call.load()
    assert call.model == "gpt-4o"
    assert call.body == b'{"messages":[],"model":"gpt-4o"}'
    assert call.edited


def test_editing_before_loading_is_an_error_with_a_cure() -> None:
    call = call_over([])
    with pytest.raises(RuntimeError, match=r"await call\.load"):
        call.edit()
    assert (call.model, call.stream, dict(call.request)) == ("", False, {})


# --- outcomes


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (RateLimited("x"), "blocked"),
        (UpstreamTimeout("x"), "timeout"),
        (UpstreamTruncated("x"), "truncated"),
        (UpstreamMalformed("x"), "upstream_error"),
        (NoDeployment("x"), "upstream_error"),
        (TianjiError("x"), "error"),
    ],
)
def test_a_closed_call_tells_why(error: TianjiError, outcome: str) -> None:
    call = call_over([])
    call.close(error)
    call.close(TianjiError("a second reason"))
    call.fail(KeyError())
    assert (call.settle(), call.error) == (outcome, error)


def test_the_first_reason_stays_and_a_complete_answer_cannot_fail() -> None:
    call = call_over([])
    first = UpstreamTimeout("x")
    call.fail(first)
    call.fail(KeyError())
    assert call.error is first
    other = call_over([])
    other.complete, other.status = True, 200
    other.fail(KeyError())
    assert other.settle() == "ok"


def test_notes_are_made_once_and_private_to_their_type() -> None:
    call = call_over([])
    assert call.note(Timings) is call.note(Timings)
    assert repr(call) == f"Call({call.id}, chat_completions, running)"


async def test_apps_that_read_slowly_get_the_body_of_an_edited_request() -> None:
    class Edit(Probe):
        async def on_request(self, call: Call) -> None:
            call.edit()["messages"] = [{"role": "user", "content": "é" * 3}]

    app = SSEApp([b"{}"], content_type="application/json")
    await drive(Edit(app), CHAT)
    assert len(app.requests[0]) == int(dict(app.scopes[0]["headers"])[b"content-length"])
