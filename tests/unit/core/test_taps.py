"""What happens to the messages of an answer: early ends, holding of the head, lengths, foreign layers in between."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson
import pytest
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from tests.support.apps import SSEApp, json_app
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Probe, Reader, delta, error_of, stream_of
from tianji_mw.call import Call, current_call
from tianji_mw.driver import LLMMiddleware
from tianji_mw.errors import Blocked, RateLimited
from tianji_mw.frames import FRAMES_KEY, Frame
from tianji_mw.taps import Batch, Closed, Head
from tianji_mw.testing import drive


class Stop(LLMMiddleware):
    """Ends the answer at the frame that says `bad`; `how` is close, raise, or bug."""

    phase: ClassVar[int] = 600

    def __init__(self, app: Any, how: str = "close", hold: bool = False, **options: Any) -> None:
        super().__init__(app, **options)
        self.how, self.hold, self.held = how, hold, list[Frame]()

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        if any("bad" in frame.text for frame in batch.frames):
            if self.how == "raise":
                raise Blocked("Not this.")
            if self.how == "bug":
                raise KeyError("a bug in a plugin")
            call.close(Blocked("Not this."))
        if self.hold:
            self.held += batch.frames
            return self.held if batch.last else ()
        return batch.frames


class StubbornApp:
    """Catches what `send` raises, and flushes all the same: what an app must not be able to do."""

    def __init__(self, parts: Sequence[bytes]) -> None:
        self.parts = parts
        self.errors: list[BaseException] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        messages: list[Any] = [head]
        messages += [{"type": "http.response.body", "body": part, "more_body": True} for part in self.parts]
        messages += [{"type": "http.response.body", "body": b"data: flushed\n\n", "more_body": False}] * 2
        for message in messages:
            try:
                await send(message)
            except Exception as error:
                self.errors.append(error)


@pytest.mark.parametrize("how", ["close", "raise", "bug"])
@pytest.mark.parametrize("hold", [False, True])
async def test_block_is_not_seen_by_the_inner_app(how: str, hold: bool) -> None:
    app = StubbornApp([delta("good "), delta("bad "), delta("secret")])
    outer = Ends(Stop(app, how, hold))
    driven = await drive(outer, STREAM)
    assert driven.error is None
    assert b"bad" not in driven.body
    assert b"secret" not in driven.body
    assert b"flushed" not in driven.body
    assert driven.complete
    assert [type(error) for error in app.errors] == [Closed] * 3  # the blocked message itself was taken
    assert sum(m["type"] == "http.response.start" for m in driven.messages) == 1
    if hold:
        assert driven.status == (500 if how == "bug" else 400)
        assert "good" not in driven.body.decode()
    else:
        assert driven.status == 200
        assert error_of(driven.body)["message"]
    assert outer.outcomes == ["error" if how == "bug" else "blocked"]


async def test_a_bug_in_a_hook_is_counted_and_its_text_is_not_shown() -> None:
    app = Stop(SSEApp([delta("bad")]), "bug")
    driven = await drive(app, STREAM)
    assert app.runtime is not None
    assert app.runtime.counts["hook_failures", "Stop"] == 1
    assert b"plugin" not in driven.body


@pytest.mark.parametrize("outer_first", [True, False])
async def test_the_layer_outside_sees_the_end_that_an_inner_layer_wrote(outer_first: bool) -> None:
    parts = [delta("good"), delta("bad")] if outer_first else [delta("bad")]
    probe = Probe(Stop(SSEApp(parts)), allow_order=True)
    driven = await drive(probe, STREAM)
    assert probe.lasts == 1
    assert [frame.kind for batch in probe.batches for frame in batch][-1] == "error"
    assert driven.body.endswith(probe.batches[-1][-1].raw)


async def test_on_start_may_refuse_the_answer() -> None:
    class NoServerErrors(LLMMiddleware):
        async def on_start(self, call: Call, head: Head) -> None:
            if head.status >= 500:
                raise RateLimited("Try again.")

    outer = Ends(NoServerErrors(json_app({"x": 1}, status=503)))
    driven = await drive(outer, CHAT)
    assert (driven.status, driven.json["error"]["message"]) == (429, "Try again.")
    assert outer.outcomes == ["blocked"]


async def test_a_layer_without_a_channel_closes_the_call_from_outside_its_hooks() -> None:
    calls: list[Call] = []

    class Remember(LLMMiddleware):
        async def on_request(self, call: Call) -> None:
            calls.append(call)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        await send({"type": "http.response.body", "body": delta("a"), "more_body": True})
        calls[0].close(RateLimited("Budget spent."))
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.body", "body": delta("b"), "more_body": True})
        with pytest.raises(Closed):
            await send({"type": "http.response.body", "body": delta("c"), "more_body": False})

    driven = await drive(Remember(app), STREAM)
    assert driven.error is None
    assert driven.body.startswith(delta("a"))
    assert error_of(driven.body)["message"] == "Budget spent."
    assert calls[0].outcome == "blocked"


# --- the head


async def test_the_head_waits_for_the_first_released_bytes() -> None:
    seen: list[int] = []

    class Hold(LLMMiddleware):
        async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
            seen.append(call.status)
            return batch.frames if len(seen) > 2 else ()

    await drive(Hold(SSEApp([delta("a"), delta("b"), delta("c"), delta("d")])), STREAM)
    assert seen == [0, 0, 0, 200, 200]


@pytest.mark.parametrize("status", [204, 304])
async def test_answers_without_a_body_keep_their_head(status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"5"), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})

    outer = Ends(Reader(app), allow_order=True)
    driven = await drive(outer, CHAT)
    assert (driven.status, driven.body, driven.complete) == (status, b"", True)
    assert driven.headers["content-length"] == "5"
    assert outer.outcomes == ["ok"]


async def test_an_empty_200_keeps_its_head() -> None:
    driven = await drive(Reader(SSEApp([], content_type="application/json")), CHAT)
    assert (driven.status, driven.body, driven.complete) == (200, b"", True)


async def test_an_answer_that_never_began_its_body_is_an_http_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        await send({"type": "http.response.body", "body": b"data: {", "more_body": True})

    outer = Ends(Reader(app), allow_order=True)
    driven = await drive(outer, STREAM)
    assert (driven.status, driven.complete) == (502, True)
    assert outer.outcomes == ["truncated"]


async def test_a_plain_answer_that_stops_short_breaks_the_connection() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"audio/mp3")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    outer = Ends(app)
    driven = await drive(outer, CHAT)
    assert isinstance(driven.error, ConnectionError)
    assert not driven.complete
    assert outer.outcomes == ["truncated"]


# --- lengths


class Rewrite(LLMMiddleware):
    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        for frame in batch.frames:
            if isinstance(frame.data, dict) and frame.text:
                frame.edit(orjson.loads(frame.raw.removeprefix(b"data: ").replace(b"Hello", b"Good day, Hello")))
        return batch.frames


async def test_the_length_follows_an_edited_answer() -> None:
    driven = await drive(Reader(Rewrite(Reader(json_app(ANSWER)))), CHAT)
    assert driven.json["choices"][0]["message"]["content"] == "Good day, Hello you"
    assert driven.headers["content-length"] == str(len(driven.body))


async def test_an_edited_stream_reaches_the_next_layer_decoded() -> None:
    probe = Reader(Rewrite(SSEApp([delta("Hello"), delta(finish="stop")])))
    driven = await drive(probe, STREAM)
    assert b"Good day, Hello" in driven.body
    assert probe.batches[0][0].text == "Good day, Hello"
    assert probe.call.counters.encoded == 1


async def test_a_stream_with_a_length_loses_it_where_a_layer_may_end_it() -> None:
    body = b"".join(stream_of("a"))
    app = SSEApp([body], headers=[(b"content-length", b"%d" % len(body))])
    driven = await drive(Reader(app), STREAM)
    assert driven.body == body
    assert "content-length" not in driven.headers
    assert (await drive(Ends(app), STREAM)).headers["content-length"] == str(len(body))


async def test_a_whole_answer_in_pieces_is_one_frame() -> None:
    body = orjson.dumps(ANSWER)
    probe = Reader(SSEApp([body[:10], body[10:50], body[50:]], content_type="application/json; charset=utf-8"))
    driven = await drive(probe, CHAT)
    assert driven.body == body
    assert [len(batch) for batch in probe.batches] == [1]
    assert probe.batches[0][0].text == "Hello you"
    assert probe.call.usage.output_tokens == 2


async def test_opaque_bodies_pass_chunk_by_chunk() -> None:
    probe = Reader(SSEApp([b"\xff\x00", b"\xfe"], content_type="audio/mpeg"))
    driven = await drive(probe, CHAT)
    assert driven.bodies == [b"\xff\x00", b"\xfe", b""]


# --- foreign middlewares in between


class Foreign:
    """A pure ASGI middleware that rewrites bodies; `every` rewrites each n-th response message only."""

    def __init__(
        self, app: Any, *, request: tuple[bytes, bytes] = (b"", b""), swap: Any = None, every: int = 1
    ) -> None:
        self.app, self.request, self.swap, self.every = app, request, swap, every

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        count = 0

        async def changed_receive() -> Any:
            message = await receive()
            if message["type"] == "http.request" and self.request[0]:
                message = {**message, "body": message["body"].replace(*self.request)}
            return message

        async def changed_send(message: Any) -> None:
            nonlocal count
            if message["type"] == "http.response.body" and self.swap is not None:
                count += 1
                if count % self.every == 0:
                    message = {**message, "body": message["body"].replace(*self.swap)}
            await send(message)

        await self.app(scope, changed_receive, changed_send)


async def test_a_foreign_layer_that_rewrites_the_request_is_heard_by_the_layers_inside() -> None:
    app = json_app(ANSWER)
    inner = Probe(app)
    seen_outside = Probe(Foreign(inner, request=(b'"hi"', b'"censored"')))
    driven = await drive(seen_outside, CHAT)
    assert driven.status == 200
    assert app.requests[0].endswith(b'"censored"}]}')
    assert inner.call.request["messages"][0]["content"] == "censored"
    assert inner.call.counters.parsed == 2


async def test_a_foreign_layer_that_changes_nothing_costs_no_second_parse() -> None:
    inner = Probe(json_app(ANSWER))
    await drive(Probe(Foreign(inner)), CHAT)
    assert inner.call.counters.parsed == 1


async def test_a_foreign_rewrite_that_breaks_the_request_is_refused() -> None:
    app = json_app(ANSWER)
    driven = await drive(Probe(Foreign(Probe(app), request=(b"[", b"<"))), CHAT)
    assert (driven.status, app.requests) == (400, [])


@pytest.mark.parametrize("every", [1, 2, 3])
async def test_a_foreign_layer_that_rewrites_the_answer_makes_the_next_one_decode_again(every: int) -> None:
    texts = ["Hello", "Hello", "Hello", "Hello"]
    inner = Reader(SSEApp(stream_of(*texts)))
    outer = Reader(Foreign(inner, swap=(b"Hello", b"Bye"), every=every))
    driven = await drive(outer, STREAM)
    seen_inside = [frame.text for batch in inner.batches for frame in batch]
    seen_outside = [frame.text for batch in outer.batches for frame in batch]
    assert seen_inside == ["", *texts, "", ""]
    expected = ["Bye" if (i + 2) % every == 0 else "Hello" for i in range(4)]
    assert seen_outside == ["", *expected, "", ""]
    assert driven.body == b"".join(stream_of(*expected))


async def test_a_foreign_layer_that_cuts_the_stream_anew_loses_nothing() -> None:
    class Chop:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def chop(message: Any) -> None:
                body = message.get("body", b"")
                if message["type"] != "http.response.body" or len(body) < 2:
                    await send(message)
                    return
                await send({"type": "http.response.body", "body": body[:9], "more_body": True})
                await send({"type": "http.response.body", "body": body[9:], "more_body": message["more_body"]})

            await self.app(scope, receive, chop)

    parts = stream_of("Hello", "you")
    outer = Reader(Chop(Reader(SSEApp(parts))))
    driven = await drive(outer, STREAM)
    assert driven.body == b"".join(parts)
    assert "".join(frame.text for batch in outer.batches for frame in batch) == "Helloyou"


async def test_gzip_outside_compresses_what_the_layers_let_through() -> None:
    app = GZipMiddleware(Reader(json_app(ANSWER)), minimum_size=1)
    driven = await drive(app, CHAT, headers={"accept-encoding": "gzip"})
    assert driven.headers["content-encoding"] == "gzip"
    assert orjson.loads(gzip.decompress(driven.body)) == ANSWER


async def test_base_http_middleware_in_between_keeps_the_call() -> None:
    seen: list[Any] = []

    class Old(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            seen.append(current_call())
            return await call_next(request)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_call())
        await SSEApp(stream_of("a", "b"))(scope, receive, send)

    inner = Reader(app)
    outer = Reader(Old(inner))
    driven = await drive(outer, STREAM)
    assert driven.body == b"".join(stream_of("a", "b"))
    assert seen == [outer.call, outer.call]
    assert inner.call is outer.call
    assert outer.call.outcome == "ok"


@pytest.mark.parametrize("where", ["inside", "outside"])
async def test_base_http_middleware_does_not_hide_a_block(where: str) -> None:
    class Old(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    app = SSEApp([delta("good"), delta("bad"), delta("secret")])
    stack = Stop(Old(app)) if where == "inside" else Old(Stop(app))
    driven = await drive(stack, STREAM)
    assert b"secret" not in driven.body
    assert error_of(driven.body)["code"] == "content_policy_violation"


async def test_annotations_ride_on_messages_only_where_a_layer_decoded() -> None:
    driven = await drive(Ends(SSEApp(stream_of("a"))), STREAM)
    assert not any(FRAMES_KEY in message for message in driven.messages)
