"""Streams that break: cut at every byte, malformed, oversized, silent. The client always learns of it."""

from __future__ import annotations

import gc
from typing import Any

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Serve, anthropic, delta, gateway, guarded, stream_of
from tianji_mw.apis import by_name
from tianji_mw.call import Limits
from tianji_mw.testing import Driven, FakeLLM, Reply, drive
from tianji_mw.upstream import Deadlines


def event(name: str, **data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps({"type": name, **data}))


CHAT_EVENTS = [delta(role="assistant"), delta("Hé"), delta(finish="stop"), b"data: [DONE]\n\n"]
MESSAGES_EVENTS = [
    event(
        "message_start",
        message={"id": "m", "type": "message", "role": "assistant", "content": [], "model": "c", "usage": {}},
    ),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hé"}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}),
    event("message_stop"),
]
RESPONSE = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": []}
RESPONSES_EVENTS = [
    event("response.created", sequence_number=0, response={**RESPONSE, "status": "in_progress"}),
    event("response.output_text.delta", sequence_number=1, item_id="i", output_index=0, content_index=0, delta="Hé"),
    event("response.completed", sequence_number=2, response=RESPONSE),
]
COMPLETIONS_EVENTS = [
    b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":"H","finish_reason":null}]}\n\n',
    b'data: {"id":"c","object":"text_completion","choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
MESSAGES = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stream": True}

#: Client's API, its path, request, the provider's API on the wire, and its stream.
WIRES: dict[str, tuple[str, str, dict[str, Any], str, list[bytes]]] = {
    "chat": ("chat_completions", "/v1/chat/completions", STREAM, "openai", CHAT_EVENTS),
    "messages": ("messages", "/v1/messages", MESSAGES, "anthropic", MESSAGES_EVENTS),
    "responses": (
        "responses", "/v1/responses", {"model": "gpt-4o", "input": "hi", "stream": True}, "openai", RESPONSES_EVENTS,
    ),
    "completions": (
        "completions", "/v1/completions", {"model": "gpt-4o", "prompt": "hi", "stream": True}, "openai",
        COMPLETIONS_EVENTS,
    ),
    "chat over messages": ("chat_completions", "/v1/chat/completions", STREAM, "anthropic", MESSAGES_EVENTS),
    "messages over chat": ("messages", "/v1/messages", MESSAGES, "openai", CHAT_EVENTS),
}  # fmt: skip


def told(driven: Driven, api: str) -> str:
    """What the client learns: 'ok', 'error', or 'nothing', which must never be."""
    if driven.status >= 400:
        return "error" if driven.complete and driven.json["error"] else "nothing"
    if not driven.complete:
        return "nothing"
    events = [part + b"\n\n" for part in driven.body.split(b"\n\n") if part.strip()]
    kinds = [(kind, data) for kind, data in map(_parsed, events)]
    if any(_is_error(kind, data) for kind, data in kinds[-2:]):
        return "error"
    proper = by_name(api)
    return (
        "ok"
        if any(proper.is_end(raw, data, kind) for raw, (kind, data) in zip(events, kinds, strict=True))
        else "nothing"
    )


def _parsed(raw: bytes) -> tuple[str, Any]:
    from tianji_mw.apis import sse

    name, payload = sse.parse(raw)
    try:
        return name, orjson.loads(payload or b"null")
    except orjson.JSONDecodeError:
        return name, None


def _is_error(name: str, data: Any) -> bool:
    return isinstance(data, dict) and (bool(data.get("error")) or data.get("type") in ("error", "response.failed"))


def stack(llm: FakeLLM, wire: str, *, limits: Limits | None = None, guard: bool = False) -> Ends:
    provider = anthropic(llm.url) if wire == "anthropic" else None
    inner: Any = gateway(llm.url, provider=provider, fields={"deadlines": Deadlines(between_bytes_s=2.0)})
    return Ends(guarded(inner) if guard else inner, limits=limits)


@pytest.mark.slow
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("name", WIRES)
async def test_a_stream_cut_at_every_byte_is_never_a_silent_success(
    llm: FakeLLM, serve: Serve, name: str, guard: bool
) -> None:
    api, path, request, wire, events = WIRES[name]
    app = await serve(stack(llm, wire, guard=guard))
    whole = b"".join(events)
    # Past the event that completes the answer, nothing is missing that a client waits for.
    proper = by_name("messages" if wire == "anthropic" else api if name != "messages over chat" else "chat_completions")
    done, complete_at = 0, len(whole)
    for raw in events:
        kind, data = _parsed(raw)
        done += len(raw)
        if proper.is_end(raw, data, kind):
            complete_at = done - 2
            break
    for cut in range(len(whole) + 1):
        llm.replies.append(Reply.events(whole, cut_after=cut))
        driven = await drive(app, request, path=path)
        outcome = app.outcomes[-1]
        where = f"cut after {cut} of {len(whole)}: {driven.status} {driven.body[-200:]!r}"
        if cut < complete_at:
            assert told(driven, api) == "error", where
            assert outcome == "truncated", where
        else:
            assert told(driven, api) in ("ok", "error"), where
            assert outcome in ("ok", "truncated"), where
    assert len(app.outcomes) == len(whole) + 1


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize("guard", [False, True])
async def test_a_whole_stream_is_a_success(llm: FakeLLM, serve: Serve, name: str, guard: bool) -> None:
    api, path, request, wire, events = WIRES[name]
    app = await serve(stack(llm, wire, guard=guard))
    llm.replies.append(Reply.events(*events))
    driven = await drive(app, request, path=path)
    assert (told(driven, api), app.outcomes) == ("ok", ["ok"])
    if " over " not in name:
        assert driven.body == b"".join(events)


@pytest.mark.parametrize("name", WIRES)
async def test_a_block_in_a_stream_is_the_apis_own_error_event(llm: FakeLLM, serve: Serve, name: str) -> None:
    api, path, request, wire, events = WIRES[name]
    app = await serve(stack(llm, wire, guard=True))
    parts = [part.replace("Hé".encode(), b"bluebird").replace(b'"text":"H"', b'"text":"bluebird"') for part in events]
    llm.replies.append(Reply.events(*parts, pause_s=0.01))
    driven = await drive(app, request, path=path)
    assert told(driven, api) == "error"
    assert b"bluebird" not in driven.body
    assert app.outcomes == ["blocked"]


@pytest.mark.parametrize("name", WIRES)
@pytest.mark.parametrize(
    "part",
    [b"data: {nonsense\n\n", b"data: " + b"x" * 5000, b"data: " + b"x" * 5000 + b"\n\n", b"\xff\xfe\n\n" * 3],
    ids=["no JSON", "a line without end", "a huge event", "no text"],
)
async def test_malformed_streams(llm: FakeLLM, serve: Serve, name: str, part: bytes) -> None:
    api, path, request, wire, events = WIRES[name]
    app = await serve(stack(llm, wire, limits=Limits(max_event_bytes=4000)))
    llm.replies.append(Reply.events(events[0], part, pause_s=0.01))
    driven = await drive(app, request, path=path)
    assert told(driven, api) == "error"
    assert app.outcomes[0] in ("upstream_error", "truncated")


@pytest.mark.parametrize("name", ["chat", "messages", "chat over messages"])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(headers={"content-type": "text/html"}, parts=[b"<html>"]),
        Reply(headers={"content-type": "application/json"}),
        Reply(headers={"content-type": "application/json"}, parts=[b"[]"]),
        Reply(headers={"content-type": "application/json"}, parts=[b'{"a":']),
        Reply(headers={"content-type": "application/json"}, parts=[b"\xff\xff"]),
        Reply(headers={"content-type": "text/event-stream"}),
        Reply(headers={"content-type": "text/event-stream"}, parts=[b"<html>"]),
        Reply(),
        Reply(status=302, headers={"location": "/x"}),
        Reply(garbage=b"nonsense\r\n\r\n"),
    ],
    ids=["html", "empty", "array", "half", "no text", "no event", "html stream", "nothing", "redirect", "garbage"],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_success_that_is_none_is_a_true_error(
    llm: FakeLLM, serve: Serve, name: str, reply: Reply, stream: bool
) -> None:
    api, path, request, wire, _ = WIRES[name]
    app = await serve(stack(llm, wire))
    llm.replies.append(reply)
    driven = await drive(app, {**request, "stream": stream}, path=path)
    assert driven.error is None
    assert told(driven, api) == "error"
    assert driven.status in (200, 502)
    assert app.outcomes[0] in ("upstream_error", "truncated")


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_over_the_limit(llm: FakeLLM, serve: Serve, stream: bool) -> None:
    app = await serve(stack(llm, "openai", limits=Limits(max_answer_bytes=2000)))
    many = stream_of(*["word"] * 50)
    llm.replies.append(Reply.events(*many) if stream else Reply.json({**ANSWER, "x": "y" * 3000}))
    driven = await drive(app, STREAM if stream else CHAT)
    assert told(driven, "chat_completions") == "error"
    assert app.outcomes == ["upstream_error"]


async def test_an_error_as_the_first_event_is_an_http_error(llm: FakeLLM, serve: Serve) -> None:
    app = await serve(stack(llm, "openai"))
    llm.replies.append(Reply.events(b'data: {"error":{"message":"slow down","code":"429"}}\n\n'))
    driven = await drive(app, STREAM)
    assert driven.status == 429


@pytest.mark.slow
async def test_many_calls_leave_nothing_behind(llm: FakeLLM, serve: Serve) -> None:
    import asyncio

    app = await serve(stack(llm, "openai", guard=True))

    def reply(request: Any) -> Reply:
        return Reply.events(*stream_of("a", "b")) if request.json.get("stream") else Reply.json(ANSWER)

    llm._default = reply

    async def batch(count: int) -> None:
        for _ in range(count // 20):
            await asyncio.gather(
                *(drive(app, STREAM if i % 2 else CHAT, leave_after=2 if i % 5 == 1 else None) for i in range(20))
            )

    await batch(400)
    app.ends.clear()
    app.outcomes.clear()
    llm.requests.clear()
    gc.collect()
    before, tasks = len(gc.get_objects()), len(asyncio.all_tasks())
    await batch(10_000)
    app.ends.clear()
    app.outcomes.clear()
    llm.requests.clear()
    await asyncio.sleep(0.1)
    gc.collect()
    assert len(gc.get_objects()) - before < 500
    assert len(asyncio.all_tasks()) - tasks <= 40  # the fake's own connections, one task each
    assert llm.open_connections <= 20
    assert app.runtime is not None
    assert app.runtime.inflight == 0
