"""The driver: counters, identity of bytes, joining of layers, refusals, and the life of a layer."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from starlette.middleware.gzip import GZipMiddleware

from tests.support.apps import SSEApp, json_app
from tests.support.stack import (
    ANSWER,
    CHAT,
    STREAM,
    Ends,
    Probe,
    Reader,
    Serve,
    delta,
    error_of,
    gateway,
    guarded,
    stream_of,
)
from tianji_mw.call import CALL_KEY, Call, Limits, current_call
from tianji_mw.driver import LLMMiddleware, inner_layers
from tianji_mw.errors import Blocked, OrderError, RateLimited
from tianji_mw.frames import FRAMES_KEY, Annotation
from tianji_mw.testing import FakeLLM, Reply, drive


def three_readers(app: Any, **options: Any) -> tuple[Reader, Any]:
    inner = Reader(app, **options)
    return inner, Reader(Reader(inner, **options), **options)


# --- the fast path


async def test_plain_answer_is_parsed_once_and_passes_byte_by_byte(llm: FakeLLM, serve: Serve) -> None:
    llm.replies.append(Reply.json(ANSWER))
    inner, app = three_readers(gateway(llm.url, fields={"model": "gpt-4o"}))
    body = b'{"model" : "gpt-4o",  "messages":[{"role":"user","content":"h\\u00e9"}], "unknown": 1.0}'
    driven = await drive(await serve(app), body)
    assert driven.status == 200
    assert driven.body == Reply.json(ANSWER).parts[0]
    assert llm.requests[0].body == body
    counters = inner.call.counters
    assert (counters.parsed, counters.decoded, counters.encoded) == (1, 1, 0)
    assert inner.call.usage.input_tokens == 3


async def test_stream_is_decoded_once_and_passes_byte_by_byte(llm: FakeLLM, serve: Serve) -> None:
    events = stream_of("Hel", "lo", " you")
    llm.replies.append(Reply.events(*events))
    inner, app = three_readers(gateway(llm.url))
    driven = await drive(await serve(app), STREAM)
    assert driven.body == b"".join(events)
    assert driven.complete
    counters = inner.call.counters
    assert (counters.parsed, counters.encoded) == (1, 0)
    assert counters.decoded == len(events) - 1  # all but `[DONE]`
    assert sum(len(batch) for batch in inner.batches) == len(events)
    assert inner.lasts == 1


async def test_events_cut_by_packets_still_arrive_byte_by_byte(llm: FakeLLM, serve: Serve) -> None:
    whole = b"".join(stream_of("Hel", "lo", "é" * 30))
    parts = [whole[i : i + 7] for i in range(0, len(whole), 7)]
    llm.replies.append(Reply.events(*parts))
    inner, app = three_readers(gateway(llm.url))
    driven = await drive(await serve(app), STREAM)
    assert driven.body == whole
    assert inner.call.counters.decoded == 5
    assert inner.call.counters.encoded == 0


async def test_only_the_model_name_changes_on_the_way_up(llm: FakeLLM, serve: Serve) -> None:
    llm.replies.append(Reply.json(ANSWER))
    body = b'{ "messages" : [ {"role":"user","content":"say \\"gpt-4o\\""} ] , "model":\n"gpt-4o" ,"x":[1.50,null]}'
    await drive(await serve(Reader(gateway(llm.url))), body)
    assert llm.requests[0].body == body.replace(b'\n"gpt-4o"', b'\n"gpt-4o-2024"')


async def test_untouched_layers_pass_the_very_bytes_object() -> None:
    parts = stream_of("a", "b", "c")
    parts[1] = parts[1] + delta("x")  # two events in one message
    app = SSEApp(parts)
    driven = await drive(Reader(Reader(app)), STREAM)
    assert [id(body) for body in driven.bodies[:-1]] == [id(part) for part in parts]


async def test_a_layer_without_frame_hooks_does_not_wrap_send() -> None:
    class Plain(LLMMiddleware):
        phase: ClassVar[int] = 500

    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(send)
        await json_app(ANSWER)(scope, receive, send)

    outer = Plain(Plain(app))
    await drive(outer, CHAT)
    assert type(seen[0]).__name__ == "Witness"


async def test_routes_that_are_no_llm_routes_are_left_alone() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((receive, send))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    driven = await drive(Reader(app), b"x", path="/health")
    assert driven.status == 204
    assert seen[0][1].__qualname__.startswith("drive.")
    assert "x-request-id" not in driven.headers


async def test_websockets_and_unknown_scopes_pass() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    layer = Reader(app)
    await layer({"type": "websocket", "path": "/v1/chat/completions"}, None, None)  # type: ignore[arg-type]
    await layer({"type": "strange"}, None, None)  # type: ignore[arg-type]
    assert seen == ["websocket", "strange"]


# --- edits


class Edit(LLMMiddleware):
    phase: ClassVar[int] = 500

    async def on_request(self, call: Call) -> None:
        call.edit()["temperature"] = 2


async def test_an_edit_is_rendered_once_and_fixes_the_length() -> None:
    app = json_app(ANSWER)
    driven = await drive(Edit(Edit(app)), CHAT)
    assert driven.status == 200
    assert app.requests == [b'{"model":"gpt-4o","messages":[{"role":"user","content":"hi"}],"temperature":2}']
    headers = dict(app.scopes[0]["headers"])
    assert headers[b"content-length"] == str(len(app.requests[0])).encode()
    assert app.scopes[0][CALL_KEY].counters.encoded == 1


async def test_a_chunked_upload_gets_a_length_after_an_edit() -> None:
    app = json_app(ANSWER)
    await drive(Edit(app), CHAT, headers={"transfer-encoding": "chunked"})
    names = [name for name, _ in app.scopes[0]["headers"]]
    assert b"transfer-encoding" not in names
    assert names.count(b"content-length") == 1


# --- refusals


class Refuse(LLMMiddleware):
    phase: ClassVar[int] = 400

    async def on_request(self, call: Call) -> None:
        raise RateLimited("Slow down.", headers={"Retry-After": "7", "x-odd": "a\r\nb: c"})


async def test_a_refusal_is_an_http_error_in_the_shape_of_the_api() -> None:
    app = json_app(ANSWER)
    outer = Ends(Probe(Refuse(app), allow_order=True))
    driven = await drive(outer, CHAT)
    assert driven.status == 429
    assert driven.json["error"]["type"] == "rate_limit_error"
    assert driven.headers["retry-after"] == "7"
    assert driven.headers["x-odd"] == "ab: c"
    assert not app.requests
    assert outer.outcomes == ["refused"]


async def test_a_refusal_is_seen_by_the_layers_outside() -> None:
    probe = Probe(Refuse(json_app(ANSWER)), allow_order=True)
    await drive(probe, CHAT)
    assert probe.heads == [429]
    assert probe.lasts == 1
    assert [f.kind for batch in probe.batches for f in batch] == ["error"]


async def test_closing_in_on_request_answers_too() -> None:
    class Close(LLMMiddleware):
        async def on_request(self, call: Call) -> None:
            call.close(Blocked("No."))

    app = json_app(ANSWER)
    outer = Ends(Close(app))
    driven = await drive(outer, CHAT)
    assert (driven.status, app.requests, outer.outcomes) == (400, [], ["blocked"])


async def test_a_hook_that_fails_before_the_app_never_lets_the_request_in() -> None:
    class Fails(LLMMiddleware):
        async def on_request(self, call: Call) -> None:
            raise KeyError("bug")

    app = json_app(ANSWER)
    outer = Ends(Fails(app))
    driven = await drive(outer, CHAT)
    assert isinstance(driven.error, KeyError)
    assert not app.requests
    assert outer.outcomes == ["error"]


# --- what the app sees


async def test_the_call_is_visible_in_the_scope_and_in_the_context() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope[CALL_KEY], current_call()))
        await json_app(ANSWER)(scope, receive, send)

    probe = Probe(app)
    driven = await drive(probe, CHAT)
    assert seen == [(probe.call, probe.call)]
    assert current_call() is None
    assert driven.headers["x-request-id"] == probe.call.id


async def test_the_response_gets_headers_of_the_call_once() -> None:
    class Mark(LLMMiddleware):
        async def on_request(self, call: Call) -> None:
            call.response_headers["x-tianji-cache"] = "miss\r\nx-evil: 1"

    app = json_app(ANSWER)
    app.head["headers"] += [(b"X-Request-Id", b"theirs"), (b"x-tianji-cache", b"theirs")]
    driven = await drive(Mark(app), CHAT)
    names = [name.lower() for name, _ in driven.messages[0]["headers"]]
    assert names.count(b"x-request-id") == names.count(b"x-tianji-cache") == 1
    assert driven.headers["x-tianji-cache"] == "missx-evil: 1"


async def test_nothing_inside_may_compress_or_send_files_past_the_layers() -> None:
    app = json_app(ANSWER)
    extensions = {"http.response.pathsend": {}, "http.response.zerocopysend": {}, "tls": {"version": 1}}
    probe = Reader(GZipMiddleware(app, minimum_size=1))
    driven = await drive(probe, CHAT, headers={"accept-encoding": "gzip"}, scope={"extensions": extensions})
    assert driven.json == ANSWER
    assert app.scopes[0]["extensions"] == {"tls": {"version": 1}}
    assert probe.call.headers["accept-encoding"] == "gzip"


async def test_an_early_layer_runs_before_the_body_is_read() -> None:
    class Early(LLMMiddleware):
        early: ClassVar[bool] = True
        loaded: ClassVar[list[bool]] = []

        async def on_request(self, call: Call) -> None:
            self.loaded.append(call.loaded)
            await call.load()
            self.loaded.append(call.loaded)

    app = json_app(ANSWER)
    driven = await drive(Early(Probe(app)), CHAT)
    assert driven.status == 200
    assert Early.loaded == [False, True]
    assert app.scopes[0][CALL_KEY].counters.parsed == 1


async def test_an_early_layer_reads_through_the_foreign_layer_outside_of_it() -> None:
    class Early(LLMMiddleware):
        early: ClassVar[bool] = True

        async def on_request(self, call: Call) -> None:
            await call.load()

    def rewrites(app: Any) -> Any:
        async def wrapped(scope: Any, receive: Any, send: Any) -> None:
            async def changed() -> Any:
                message = await receive()
                return {**message, "body": message.get("body", b"").replace(b'"hi"', b'"yo"')}

            await app(scope, changed, send)

        return wrapped

    inner = Early(json_app(ANSWER))
    outer = Early(rewrites(inner))

    class Passes(LLMMiddleware):
        early: ClassVar[bool] = True

    outer = Passes(rewrites(inner))  # type: ignore[assignment]
    driven = await drive(outer, CHAT)
    assert driven.status == 200
    assert inner.app.requests == [b'{"model":"gpt-4o","messages":[{"role":"user","content":"yo"}]}']


# --- order


def test_a_wrong_order_names_both_layers_and_the_consequence() -> None:
    with pytest.raises(OrderError, match=r"Ends \(phase 300\).*Put Ends outside"):
        Probe(Ends(json_app(ANSWER)))
    Probe(Ends(json_app(ANSWER)), allow_order=True)


def test_inner_layers_follows_foreign_apps() -> None:
    class Foreign:
        def __init__(self, app: Any) -> None:
            self.app = app

    inner = Probe(json_app(ANSWER))
    assert inner_layers(Foreign(Foreign(inner))) == [inner]
    loop = Foreign(None)
    loop.app = loop
    assert inner_layers(loop) == []


# --- limits reach the call


async def test_limits_of_the_outermost_layer_hold() -> None:
    app = Probe(Probe(json_app(ANSWER)), limits=Limits(max_body_bytes=10))
    assert (await drive(app, CHAT)).status == 413


async def test_annotations_that_are_not_serialisable_stay_on_the_message() -> None:
    driven = await drive(Reader(SSEApp(stream_of("a"))), STREAM)
    bodies = [m for m in driven.messages if m["type"] == "http.response.body"]
    assert all(isinstance(m[FRAMES_KEY], Annotation) for m in bodies)


async def test_a_guarded_stream_is_byte_identical(llm: FakeLLM, serve: Serve) -> None:
    events = stream_of("Hel", "lo", " you" * 40, "end")
    llm.replies.append(Reply.events(*events))
    driven = await drive(await serve(guarded(gateway(llm.url))), STREAM)
    assert driven.body == b"".join(events)


async def test_a_block_ends_the_stream_with_an_error_event(llm: FakeLLM, serve: Serve) -> None:
    llm.replies.append(Reply.events(*stream_of("x" * 90, "the blue", "bird flies"), pause_s=0.005))
    outer = Ends(guarded(gateway(llm.url)))
    driven = await drive(await serve(outer), STREAM)
    assert driven.status == 200
    assert error_of(driven.body)["code"] == "content_policy_violation"
    assert b"bird" not in driven.body
    assert outer.outcomes == ["blocked"]
