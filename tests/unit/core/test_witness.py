"""How a call ends: `on_end` exactly once whatever happens, with the right outcome, out of reach of cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.apps import SSEApp, json_app
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Probe, Serve, delta, error_of, gateway, guarded, stream_of
from tianji_mw import witness
from tianji_mw.call import Call
from tianji_mw.driver import LLMMiddleware
from tianji_mw.errors import Blocked, RateLimited
from tianji_mw.testing import FakeLLM, Reply, drive
from tianji_mw.upstream import Deadlines


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def once(*layers: Ends) -> list[str | None]:
    assert all(len(layer.ends) == 1 for layer in layers)
    assert len({id(layer.ends[0]) for layer in layers}) == 1
    return [layer.outcomes[0] for layer in layers]


# --- outcomes, with an app of the user's


async def test_a_normal_end() -> None:
    inner = Ends(SSEApp(stream_of("a")))
    outer = Ends(inner)
    await drive(outer, STREAM)
    assert once(inner, outer) == ["ok", "ok"]
    timings = outer.ends[0].timings
    assert 0 < timings.received <= timings.first_client_byte <= timings.end


async def test_an_error_status_of_the_app() -> None:
    outer = Ends(json_app({"error": {"message": "x"}}, status=503))
    await drive(outer, CHAT)
    assert once(outer) == ["error"]


async def test_a_refusal_and_the_layers_it_did_not_reach() -> None:
    class Refuse(LLMMiddleware):
        phase = 400

        async def on_request(self, call: Call) -> None:
            raise RateLimited("no")

        async def on_end(self, call: Call) -> None:
            ended.append(call.outcome)

    ended: list[Any] = []
    inside = Ends(json_app(ANSWER))
    outer = Ends(Refuse(inside, allow_order=True))
    await drive(outer, CHAT)
    assert once(outer) == ["refused"]
    assert ended == ["refused"]
    assert not inside.ends


async def test_an_exception_of_the_app_before_its_answer() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("bug")

    outer = Ends(Ends(app))
    driven = await drive(outer, CHAT)
    assert isinstance(driven.error, KeyError)
    assert not driven.messages
    assert once(outer, outer.app) == ["error", "error"]  # type: ignore[arg-type]


async def test_an_exception_of_the_app_in_its_stream_ends_it_with_an_error_event() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        await send({"type": "http.response.body", "body": delta("a"), "more_body": True})
        raise KeyError("secret detail")

    outer = Ends(Probe(app), allow_order=True)
    driven = await drive(outer, STREAM)
    assert isinstance(driven.error, KeyError)
    assert driven.complete
    assert "secret" not in error_of(driven.body)["message"]
    assert once(outer) == ["error"]


async def test_a_stream_that_stops_in_silence_gets_an_error_event() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        await send({"type": "http.response.body", "body": delta("a"), "more_body": True})

    outer = Ends(app)
    driven = await drive(outer, STREAM)
    assert driven.complete
    assert error_of(driven.body)["message"] == "The answer broke off before its end."
    assert once(outer) == ["truncated"]


async def test_what_the_app_does_after_its_answer_does_not_change_the_outcome() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await json_app(ANSWER)(scope, receive, send)
        raise KeyError("a background task")

    outer = Ends(app)
    driven = await drive(outer, CHAT)
    assert isinstance(driven.error, KeyError)
    assert once(outer) == ["ok"]


async def test_a_client_that_leaves_while_it_sends() -> None:
    outer = Ends(json_app(ANSWER))
    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await outer(scope, receive, send)
    assert once(outer) == ["client_gone"]


async def test_a_client_that_leaves_in_the_stream() -> None:
    outer = Ends(Probe(SSEApp(stream_of("a", "b", "c", "d"))), allow_order=True)
    driven = await drive(outer, STREAM, leave_after=2)
    assert driven.error is None
    assert len(driven.bodies) == 2
    assert once(outer) == ["client_gone"]


# --- outcomes, with the gateway


@pytest.mark.parametrize(
    ("reply", "outcome", "status"),
    [
        (Reply.json(ANSWER), "ok", 200),
        (Reply.json({"error": {"message": "overloaded"}}, status=503), "upstream_error", 503),
        (Reply(refuse=True), "upstream_error", 502),
        (Reply.json(ANSWER, delay_s=5), "timeout", 408),
        (Reply.json(ANSWER, cut_after=20), "truncated", 502),
        (Reply(headers={"content-type": "text/html"}, parts=[b"<html>"]), "upstream_error", 502),
    ],
)
async def test_outcomes_of_plain_calls(llm: FakeLLM, serve: Serve, reply: Reply, outcome: str, status: int) -> None:
    llm.replies.append(reply)
    inner = Ends(gateway(llm.url, fields={"deadlines": Deadlines(first_byte_s=0.1)}))
    outer = await serve(Ends(inner))
    driven = await drive(outer, CHAT)
    assert driven.status == status
    assert once(inner, outer) == [outcome, outcome]
    assert driven.complete


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (Reply.events(*stream_of("a")), "ok"),
        (Reply.events(*stream_of("a"), cut_after=200), "truncated"),
        (Reply.events(delta("a"), b'data: {"error":{"message":"x"}}\n\n', pause_s=0.01), "upstream_error"),
        (Reply.events(delta("a"), delta("b"), pause_s=0.01), "truncated"),
        (Reply.events(*stream_of("y" * 80, "bluebird"), pause_s=0.01), "blocked"),
        (Reply(headers={"content-type": "text/event-stream"}, parts=[delta("a"), delta("b")], pause_s=0.3), "timeout"),
    ],
)
async def test_outcomes_of_streams(llm: FakeLLM, serve: Serve, reply: Reply, outcome: str) -> None:
    llm.replies.append(reply)
    deadlines = Deadlines(between_bytes_s=0.1)
    outer = await serve(Ends(guarded(gateway(llm.url, fields={"deadlines": deadlines}))))
    driven = await drive(outer, STREAM)
    assert once(outer) == [outcome]
    assert driven.complete
    if outcome != "ok":
        assert driven.status >= 400 or error_of(driven.body)["message"]


# --- cancellation


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancelled_request_task_still_ends_its_call(times: int) -> None:
    finished: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        await send({"type": "http.response.body", "body": delta("a"), "more_body": True})
        await asyncio.sleep(60)

    async def slow(call: Call) -> None:
        await asyncio.sleep(0.02)
        finished.append("yes")

    inner = Ends(app, slow)
    outer = Ends(inner, slow)
    task = asyncio.create_task(drive(outer, STREAM))
    await settle()
    for _ in range(times):
        task.cancel()
        await settle()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == ["yes", "yes"]
    assert once(inner, outer) == ["client_gone", "client_gone"]


async def test_a_cancel_in_the_middle_of_on_end_does_not_reach_it() -> None:
    reached, finished = asyncio.Event(), []

    async def slow(call: Call) -> None:
        reached.set()
        await asyncio.sleep(0.02)
        finished.append(call.outcome)

    task = asyncio.create_task(drive(Ends(json_app(ANSWER), slow), CHAT))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert finished == ["ok"]


async def test_an_interrupted_judgement_lets_nothing_follow() -> None:
    class Judge(LLMMiddleware):
        async def on_frames(self, call: Call, batch: Any) -> Any:
            if any("bad" in frame.text for frame in batch.frames):
                await asyncio.sleep(60)
            return batch.frames

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({**SSEApp([]).head})
        try:
            async with asyncio.timeout(0.01):
                await send({"type": "http.response.body", "body": delta("bad"), "more_body": True})
        except TimeoutError:
            await send({"type": "http.response.body", "body": delta("flushed"), "more_body": False})

    driven = await drive(Ends(Judge(app)), STREAM)
    assert b"flushed" not in driven.body
    assert b"bad" not in driven.body


# --- layers whose on_end is bad


async def test_one_bad_on_end_does_not_keep_the_others_from_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "END_DEADLINE_S", 0.02)

    async def fails(call: Call) -> None:
        raise KeyError("bug")

    async def hangs(call: Call) -> None:
        await asyncio.sleep(60)

    layers: list[Ends] = []
    app: Any = json_app(ANSWER)
    for then in (None, fails, hangs, None):
        app = Ends(app, then)
        layers.append(app)
    driven = await drive(app, CHAT)
    assert driven.json == ANSWER
    assert driven.error is None
    assert once(*layers) == ["ok"] * 4
    assert app.runtime.counts["on_end_failures", "Ends"] == 1
    assert app.runtime.counts["on_end_timeouts", "Ends"] == 1


async def test_a_layer_whose_on_request_raised_is_ended_too() -> None:
    class Both(Ends):
        async def on_request(self, call: Call) -> None:
            raise Blocked("no")

    layer = Both(json_app(ANSWER))
    await drive(layer, CHAT)
    assert once(layer) == ["blocked"]


async def test_the_call_is_still_current_in_on_end() -> None:
    from tianji_mw.call import current_call

    seen: list[Any] = []

    async def look(call: Call) -> None:
        seen.append(current_call() is call)

    await drive(Ends(json_app(ANSWER), look), CHAT)
    assert seen == [True]


async def test_a_server_whose_send_fails_oddly_does_not_keep_on_end_from_running() -> None:
    outer = Ends(SSEApp(stream_of("a")))

    async def receive() -> Any:
        return {"type": "http.request", "body": b'{"model":"m","messages":[],"stream":true}'}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise RuntimeError("the server is confused")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    with pytest.raises(RuntimeError, match="confused"):
        await outer(scope, receive, send)
    assert once(outer) == ["error"]
