"""Guardrails on requests, answers and streams: what is forbidden never leaves, what is clean leaves as it came."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.apps import SSEApp, json_app
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, NoCodename, delta, error_of, guarded, stream_of
from tests.unit.core.test_call import call_over
from tianji_mw.call import Call
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.release import Window, pieces
from tianji_mw.runtime import Runtime
from tianji_mw.testing import drive

WORD = "bluebird"


def joined(body: bytes, field: str = "content", index: int = 0) -> str:
    """What a client puts together from a stream."""
    out = ""
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            for choice in orjson.loads(event[6:]).get("choices", ()):
                if choice.get("index", 0) == index:
                    out += choice["delta"].get(field) or ""
    return out


# --- the window


@pytest.mark.parametrize("cut", range(1, len(WORD)))
@pytest.mark.parametrize("lead", ["", "x" * 30, "y" * 200])
async def test_a_word_cut_anywhere_never_leaves(cut: int, lead: str) -> None:
    app = SSEApp(stream_of(lead, f"the {WORD[:cut]}", f"{WORD[cut:]} flies", "z" * 300))
    outer = Ends(guarded(app))
    driven = await drive(outer, STREAM)
    assert WORD not in joined(driven.body)
    assert error_of(driven.body)["code"] == "content_policy_violation"
    assert outer.outcomes == ["blocked"]


@settings(max_examples=100, deadline=None)
@given(st.text("bluebirdx ", max_size=60), st.text("bluebird ", max_size=90), st.lists(st.integers(1, 9), max_size=60))
def test_no_chunking_lets_the_word_out(lead: str, tail: str, sizes: list[int]) -> None:
    text = lead + WORD + tail
    texts, at = [], 0
    for size in [*sizes, len(text)]:
        texts.append(text[at : at + size])
        at += size
    driven = asyncio.run(drive(guarded(SSEApp(stream_of(*texts))), STREAM))
    assert WORD not in joined(driven.body)
    assert driven.status == 400 or error_of(driven.body)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=10), st.lists(st.integers(1, 200), max_size=20))
def test_clean_text_leaves_byte_by_byte(texts: list[str], sizes: list[int]) -> None:
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    whole = b"".join(stream_of(*texts))
    parts, at = [], 0
    for size in [*sizes, len(whole)]:
        parts.append(whole[at : at + size])
        at += size
    driven = asyncio.run(drive(guarded(SSEApp(parts)), STREAM))
    assert WORD in "".join(texts) or driven.body == whole


@pytest.mark.parametrize(
    ("first", "between", "second"),
    [
        (delta("blue"), delta(reasoning_content="so"), delta("bird")),
        (delta("blue"), delta("X", index=1), delta("bird")),
        (delta("blue", reasoning_content="a"), b": ping\n\n", delta("bird", reasoning_content="b")),
        (delta(reasoning_content="blue"), delta("X"), delta(reasoning_content="bird")),
    ],
    ids=["reasoning between", "another choice between", "two fields at once", "in the reasoning"],
)
async def test_what_a_client_joins_is_checked_as_it_is_joined(first: bytes, between: bytes, second: bytes) -> None:
    if b'"index":1' in between:
        between = between.replace(b'"index":0', b'"index":1').replace(b',"index":1}', b"}")
    driven = await drive(guarded(SSEApp([first, between, second, delta(finish="stop")])), STREAM)
    assert driven.status == 400


def test_parallel_tool_calls_are_separate_channels() -> None:
    def call(index: int, arguments: str) -> dict[str, Any]:
        return {
            "choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}}]
        }

    window = Window(20)
    texts: list[str] = []
    for data in (call(0, "blue"), call(1, "other"), call(0, "bird")):
        texts = [scan.text for scan in window.add([Frame.made(call_over([]), data)])]
    assert "bluebird" in texts


def test_channels_hold_only_what_is_part_of_the_text() -> None:
    data = {"id": "x", "model": "bluebird-9", "index": 3, "delta": {"type": "text_delta", "text": "hello"}}
    assert list(pieces(data, "hello")) == [(("", 3, "delta", "text"), ("delta", "text"), "hello")]
    assert list(pieces(None, "a")) == []
    assert list(pieces([1, "a"], "a")) == [(("", 1), (1,), "a")]


async def test_the_name_of_a_model_is_no_text() -> None:
    parts = [part.replace(b'"m"', b'"bluebird-9"') for part in stream_of("hello")]
    driven = await drive(guarded(SSEApp(parts)), STREAM)
    assert driven.body == b"".join(parts)


async def test_what_stays_back_is_no_more_than_the_window() -> None:
    seen: list[str] = []

    class Spy:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def note(message: Any) -> None:
                seen.append(joined(message.get("body", b"")))
                await send(message)

            await self.app(scope, receive, note)

    await drive(Spy(guarded(SSEApp(stream_of(*["x" * 10] * 20)))), STREAM)
    assert len("".join(seen[:-1])) >= 200 - NoCodename.window - 10


# --- requests and plain answers


async def test_a_forbidden_request_does_not_reach_the_app() -> None:
    app = json_app(ANSWER)
    driven = await drive(guarded(app), {**CHAT, "messages": [{"role": "user", "content": "the BlueBird"}]})
    assert (driven.status, app.requests) == (400, [])
    assert "NoCodename" in driven.json["error"]["message"]
    assert WORD not in driven.body.decode().lower()


async def test_a_forbidden_plain_answer_does_not_leave() -> None:
    answer = orjson.loads(orjson.dumps(ANSWER).replace(b"Hello", b"bluebird"))
    driven = await drive(guarded(json_app(answer)), CHAT)
    assert driven.status == 400
    assert driven.headers["content-length"] == str(len(driven.body))


# --- what cannot be read


@pytest.mark.parametrize(
    ("parts", "kind"),
    [
        ([b"data: bluebird\n\n"], "text/event-stream"),
        ([b"bluebird"], "application/json"),
        ([b"bluebird"], "text/plain"),
        ([b"bluebird"], "application/x-ndjson"),
        ([b"\x1f\x8b bluebird"], "application/json"),
    ],
)
async def test_what_nobody_can_read_is_not_delivered(parts: list[bytes], kind: str) -> None:
    layer = guarded(SSEApp(parts, content_type=kind))
    driven = await drive(layer, STREAM)
    assert driven.status == 400
    assert WORD not in driven.body.decode()
    assert layer.runtime is not None
    assert layer.runtime.counts["unscannable_frames", "chat_completions"] == 1


async def test_an_error_page_of_the_app_is_not_taken_for_an_answer() -> None:
    driven = await drive(guarded(SSEApp([b"Internal Server Error"], content_type="text/plain", status=500)), CHAT)
    assert (driven.status, driven.body) == (500, b"Internal Server Error")


async def test_an_empty_answer_without_a_type_passes() -> None:
    driven = await drive(guarded(SSEApp([], content_type="")), CHAT)
    assert (driven.status, driven.body) == (200, b"")


# --- checks that misbehave


class Raises(Guardrail):
    async def check(self, text: str, call: Call) -> Verdict:
        raise KeyError(text)


class Hangs(Guardrail):
    timeout_s: float = 0.02

    async def check(self, text: str, call: Call) -> Verdict:
        await asyncio.sleep(60)
        return ALLOW


class Nonsense(Guardrail):
    async def check(self, text: str, call: Call) -> Verdict:
        return None  # type: ignore[return-value]


class Unfinished(Guardrail):
    """Has no `check` at all."""


@pytest.mark.parametrize("check", [Raises, Hangs, Nonsense, Unfinished])
@pytest.mark.parametrize("mode", ["pre_call", "post_call"])
@pytest.mark.parametrize("company", [0, 1])
async def test_a_check_that_fails_decides_against_the_content(check: type[Guardrail], mode: str, company: int) -> None:
    app = SSEApp(stream_of("fine")[1:])
    checks = [check(mode=(mode,)), *[NoCodename()] * company]
    layer = Guardrails(app, checks=checks)
    driven = await drive(layer, STREAM)
    assert driven.status == 503  # a failure, and no judgement of the content
    assert b"fine" not in driven.body
    assert bool(app.requests) is (mode == "post_call")
    assert layer.runtime is not None
    assert layer.runtime.counts["guardrail_failures", check.__name__] == 1


async def test_the_checks_of_one_side_run_together() -> None:
    running: list[int] = []

    class Slow(Guardrail):
        sides: ClassVar[frozenset[Any]] = frozenset({"input"})

        async def check(self, text: str, call: Call) -> Verdict:
            running.append(1)
            while len(running) < 3:
                await asyncio.sleep(0)
            return ALLOW

    driven = await drive(Guardrails(json_app(ANSWER), checks=[Slow(), Slow(), Slow()]), CHAT)
    assert driven.status == 200


async def test_two_sets_of_guardrails_keep_their_own_windows() -> None:
    class NoRedbird(NoCodename):
        word: str = "redbird"

    events = stream_of("x" * 100, "y" * 100)
    app = Guardrails(guarded(SSEApp(events)), checks=[NoRedbird()])
    assert (await drive(app, STREAM)).body == b"".join(events)
    blocked = Guardrails(guarded(SSEApp(stream_of("a red", "bird")[1:])), checks=[NoRedbird()])
    assert (await drive(blocked, STREAM)).status == 400


# --- configuration and life


def test_modes_choose_the_side() -> None:
    both = NoCodename()
    assert both.runs_on("input")
    assert both.runs_on("output")
    assert not NoCodename(mode=("pre_call",)).runs_on("output")
    assert NoCodename(mode=("during_call",)).runs_on("input")
    assert block("x", why="y") == Verdict(True, "x", (), {"why": "y"})
    with pytest.raises(ValueError, match="extra"):
        NoCodename(wrod="x")  # type: ignore[call-arg]


async def test_every_check_is_closed_whatever_one_of_them_does() -> None:
    log: list[str] = []

    class Opens(NoCodename):
        name: str

        async def start(self, runtime: Runtime) -> None:
            log.append(f"start {self.name}")

        async def aclose(self) -> None:
            log.append(f"close {self.name}")
            if self.name == "b":
                raise OSError("stuck")

    layer = Guardrails(json_app(ANSWER), checks=[Opens(name=name) for name in "abc"])
    await layer.start(Runtime())
    with pytest.raises(OSError, match="stuck"):
        await layer.aclose()
    assert log == ["start a", "start b", "start c", "close c", "close b", "close a"]
