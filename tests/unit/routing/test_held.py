"""What is held back of an answer, and what lets it go: every order of messages that an app may send."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pickers import plain
from tests.support.routing_core import Clock, call_of, runtime_of
from tianji_mw.errors import UpstreamTruncated
from tianji_mw.facts import Attempt
from tianji_mw.frames import FRAMES_KEY, Annotation, Frame
from tianji_mw.routing.held import Held

SSE, JSON = b"text/event-stream", b"application/json"
#: Events that open a stream of each API, and the first that says something.
OPENINGS: dict[str, tuple[list[Any], Any]] = {
    "chat_completions": (
        [{"choices": [], "prompt_filter_results": []}, {"choices": [{"delta": {"role": "assistant", "content": ""}}]}],
        {"choices": [{"delta": {"content": "Hi"}}]},
    ),
    "completions": ([{"choices": [{"text": ""}]}], {"choices": [{"text": "Hi"}]}),
    "messages": (
        [
            {"type": "message_start", "message": {"id": "x", "content": [], "usage": {"input_tokens": 3}}},
            {"type": "ping"},
            {"type": "content_block_start", "content_block": {"type": "text", "text": ""}},
            {"type": "ping"},
        ],
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hi"}},
    ),
    "responses": (
        [
            {"type": "response.created", "response": {"id": "x", "output": []}},
            {"type": "response.in_progress", "response": {"id": "x", "output": []}},
            {"type": "response.output_item.added", "item": {"type": "message", "content": []}},
            {"type": "response.content_part.added", "part": {"type": "output_text", "text": ""}},
        ],
        {"type": "response.output_text.delta", "delta": "Hi"},
    ),
}


class Stage:
    """A held answer, and what came through."""

    def __init__(self, api: str = "chat_completions", *, wins: bool = True) -> None:
        self.call = call_of(runtime_of(Clock()), api=api, stream=True)
        self.attempt = Attempt(plain(1)[0], 1)
        self.sent: list[Any] = []
        self.heads = 0
        self.wins = wins
        self.held = Held(self.call, self.attempt, self._send, self._committed)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    def _committed(self, attempt: Attempt, head: Any) -> bool:
        assert attempt is self.attempt
        assert not self.sent
        self.heads += 1
        return self.wins

    async def start(self, status: int = 200, kind: bytes = SSE) -> None:
        await self.held({"type": "http.response.start", "status": status, "headers": [(b"Content-Type", kind)]})

    async def body(self, body: bytes = b"", *, more: bool = True, frames: list[Any] | None = None) -> None:
        message: dict[str, Any] = {"type": "http.response.body", "body": body, "more_body": more}
        if frames is not None:
            made = [Frame.made(self.call, data) for data in frames]
            message["body"] = body = b"".join(frame.raw for frame in made)
            message[FRAMES_KEY] = Annotation(body, made)
        await self.held(message)


@pytest.mark.parametrize("api", OPENINGS)
async def test_events_that_only_open_a_stream_are_held(api: str) -> None:
    stage = Stage(api)
    await stage.start()
    opening, first = OPENINGS[api]
    for event in opening:
        await stage.body(frames=[event])
        assert stage.sent == []
        assert not stage.held.committed
    await stage.body(b": comment\n\n", frames=[])
    assert not stage.held.committed
    await stage.body(frames=[first])
    assert len(stage.sent) == 1 + len(opening) + 2
    assert stage.heads == 1
    await stage.body(frames=[first])
    assert stage.sent[-1]["body"]


@pytest.mark.parametrize("api", OPENINGS)
async def test_an_error_after_the_opening_goes_nowhere(api: str) -> None:
    stage = Stage(api)
    await stage.start()
    for event in OPENINGS[api][0]:
        await stage.body(frames=[event])
    stage.attempt.error = UpstreamTruncated("broke")
    await stage.body(frames=[{"type": "error", "error": {"message": "x"}}], more=False)
    assert stage.sent == []


async def test_a_stream_without_text_is_let_go_after_a_few_events() -> None:
    stage = Stage()
    await stage.start()
    for _ in range(8):
        await stage.body(frames=[{"choices": [], "audio": "?"}])
        assert stage.sent == []
    await stage.body(frames=[{"choices": [], "audio": "?"}])
    assert len(stage.sent) == 10


async def test_a_stream_that_ends_without_content_is_an_answer() -> None:
    stage = Stage()
    await stage.start()
    await stage.body(more=False)
    assert [message["type"] for message in stage.sent] == ["http.response.start", "http.response.body"]


@pytest.mark.parametrize("kind", [JSON, b"text/plain", b"audio/mpeg", b""])
async def test_a_plain_answer_goes_with_its_first_bytes(kind: bytes) -> None:
    stage = Stage()
    await stage.start(kind=kind)
    await stage.body()
    assert stage.sent == []
    await stage.body(b"x")
    assert len(stage.sent) == 3


@pytest.mark.parametrize("status", [400, 404, 429, 500, 503])
async def test_an_error_is_held_to_its_end(status: int) -> None:
    stage = Stage()
    await stage.start(status, JSON)
    await stage.body(b'{"error":')
    await stage.body(b"{}}", more=False)
    assert stage.sent == []
    assert stage.held.answered
    assert stage.held.status == status
    assert orjson.loads(stage.held.body) == {"error": {}}
    assert stage.held.headers == {"content-type": "application/json"}
    await stage.held.release()
    assert len(stage.sent) == 3
    assert not stage.held.answered


async def test_an_error_that_is_too_long_passes_through() -> None:
    stage = Stage()
    await stage.start(500, JSON)
    await stage.body(b"x" * (1 << 20))
    assert stage.sent == []
    await stage.body(b"x")
    assert len(stage.sent) == 3
    await stage.body(b"y", more=False)
    assert stage.sent[-1]["body"] == b"y"


async def test_other_bytes_than_the_frames_are_an_answer_of_somebody_else() -> None:
    stage = Stage()
    await stage.start()
    note = Annotation(b"other", [])
    await stage.held({"type": "http.response.body", "body": b"data", "more_body": True, FRAMES_KEY: note})
    assert stage.held.committed


async def test_files_and_trailers_let_everything_go() -> None:
    for kind in ("http.response.pathsend", "http.response.trailers", "http.response.push"):
        stage = Stage()
        await stage.start()
        await stage.held({"type": kind})
        assert [message["type"] for message in stage.sent] == ["http.response.start", kind]


async def test_nothing_is_let_go_where_nothing_was_sent() -> None:
    stage = Stage()
    await stage.held.release()
    assert (stage.held.committed, stage.heads, stage.held.headers, stage.held.body) == (False, 0, {}, b"")


async def test_the_loser_of_a_race_says_nothing_and_hears_no_fault() -> None:
    stage = Stage(wins=False)
    await stage.start(kind=JSON)
    await stage.body(b"x")
    assert stage.held.lost
    await stage.body(b"y", more=False)
    assert stage.sent == []
    assert stage.heads == 1


MESSAGES = st.lists(st.tuples(st.sampled_from([b"", b"x", b"data: {}\n\n"]), st.booleans(), st.booleans()), max_size=8)


@given(st.sampled_from([200, 201, 400, 500]), st.sampled_from([SSE, JSON]), MESSAGES, st.booleans())
def test_all_or_nothing_and_in_order(
    status: int, kind: bytes, parts: list[tuple[bytes, bool, bool]], broken: bool
) -> None:
    async def run() -> None:
        stage = Stage()
        await stage.start(status, kind)
        given_ = [{"type": "http.response.start"}]
        for body, last, framed in parts:
            stage.attempt.error = UpstreamTruncated("broke") if broken and last else None
            await stage.body(body, more=not last, frames=[] if framed else None)
            given_.append({"type": "http.response.body"})
            assert len(stage.sent) in (0, len(given_))
            assert bool(stage.sent) == stage.held.committed
        assert [one["type"] for one in stage.sent] in ([], [one["type"] for one in given_])
        assert stage.heads <= 1
        if status >= 400:
            assert not stage.held.committed

    asyncio.run(run())
