"""Every cut of a forbidden word, in every kind of frame, under every release policy: nothing of it leaves.

The suite runs each `STRIDE`th case; `make property` runs all of them, and prints their number.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, combinations_with_replacement, islice, product
from typing import Any, Final, NamedTuple

import pytest

from tests.support.apps import SSEApp
from tests.support.calls import a_call
from tests.support.stack import Ends
from tianji_mw.call import Call
from tianji_mw.frames import Frame, Reader
from tianji_mw.guardrails.base import ALLOW, Guardrail, Release, Span, Verdict, block, mask
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.release import Window
from tianji_mw.runs import Runs
from tianji_mw.testing import drive

FULL: Final = bool(os.environ.get("TIANJI_PROPERTY"))
STRIDE: Final = 1 if FULL else 61
#: Of the cases, those that go through the middleware as well.
SHARE: Final = 13
WORD: Final = "s🐦kré"
TEXTS: Final = {"bad": f"Öl. Ab {WORD} c. D", "clean": "Öl. Ab s🐦kr c. Dé"}
#: What stands in another choice, block or item between the parts.
OTHER: Final = "ü. s🐦 "
POLICIES: Final[tuple[Release, ...]] = ("window", "sentence", "whole")
#: A text, and whether the word in it is replaced.
WAYS: Final = (("bad", False), ("bad", True), ("clean", False))
CUTS: Final = list(combinations_with_replacement(range(max(map(len, TEXTS.values())) + 1), 2))
INSIDE: Final = (TEXTS["bad"].index(WORD) + 1, TEXTS["bad"].index(WORD) + 3)


def _chat(name: str) -> Callable[[str, int], dict[str, Any]]:
    return lambda text, at: {"choices": [{"index": at, "delta": {name: text}}]}


def _tool(text: str, at: int) -> dict[str, Any]:
    return {"choices": [{"index": at, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}]}


def _block(kind: str, name: str) -> Callable[[str, int], dict[str, Any]]:
    return lambda text, at: {"type": "content_block_delta", "index": at, "delta": {"type": kind, name: text}}


def _item(kind: str) -> Callable[[str, int], dict[str, Any]]:
    return lambda text, at: {"type": kind, "output_index": at, "content_index": 0, "item_id": "i", "delta": text}


KINDS: Final[dict[str, tuple[str, Callable[[str, int], dict[str, Any]]]]] = {
    "content": ("chat_completions", _chat("content")),
    "reasoning": ("chat_completions", _chat("reasoning_content")),
    "arguments": ("chat_completions", _tool),
    "text": ("messages", _block("text_delta", "text")),
    "thinking": ("messages", _block("thinking_delta", "thinking")),
    "input": ("messages", _block("input_json_delta", "partial_json")),
    "output": ("responses", _item("response.output_text.delta")),
    "function": ("responses", _item("response.function_call_arguments.delta")),
}


class Case(NamedTuple):
    """One stream, its text cut at two places."""

    kind: str
    policy: Release
    way: tuple[str, bool]
    cuts: tuple[int, int]
    #: Bytes of a packet; a negative number is the one place at which the bytes are cut.
    packet: int
    end: str = "\n"
    #: Its JSON writes `é` as `\\u00e9`.
    escaped: bool = False
    #: Parts of another text of the same answer come between.
    between: bool = False

    @property
    def text(self) -> str:
        return TEXTS[self.way[0]]

    @property
    def clean(self) -> bool:
        return self.way[0] == "clean"

    @property
    def masks(self) -> bool:
        return self.way[1]

    @property
    def body(self) -> bytes:
        text, (a, b) = self.text, self.cuts
        make, end, out = KINDS[self.kind][1], self.end, ""
        for part in filter(None, (text[:a], text[a:b], text[b:])):
            for data in (make(part, 0), make(OTHER, 1)) if self.between else (make(part, 0),):
                name = f"event: {data['type']}{end}" if "type" in data else ""
                out += f"{name}data: {json.dumps(data, ensure_ascii=self.escaped)}{end}{end}"
        return out.encode()

    @property
    def packets(self) -> list[bytes]:
        body = self.body
        if self.packet < 0:
            return [body[: -self.packet], body[-self.packet :]]
        return [body[at : at + self.packet] for at in range(0, len(body), self.packet)]


def cases() -> Iterator[Case]:
    every = product(KINDS, POLICIES, WAYS, CUTS, (1, 7, 61, 1 << 16), ("\n", "\r\n"))
    among = product(KINDS, POLICIES, WAYS, CUTS, (1, 1 << 16))
    return chain(
        (Case(*one) for one in every),
        (Case(*one, between=True) for one in among),
        at_every_byte(),
    )


def at_every_byte() -> Iterator[Case]:
    """The word is cut into three parts, and the bytes of the stream into two packets, anywhere."""
    for kind, policy, way, (end, escaped) in product(
        KINDS, POLICIES, WAYS, (("\n", False), ("\r\n", False), ("\n", True))
    ):
        case = Case(kind, policy, way, INSIDE, 1, end, escaped)
        for at in range(1, len(case.body)):
            yield case._replace(packet=-at)


def window_of(policy: Release) -> Window:
    hold: Any = {"window": len(WORD), "sentence": 0, "whole": "all"}[policy]
    return Window(len(WORD), hold, sentences=policy == "sentence")


def spans_of(text: str) -> list[Span]:
    return [Span(m.start(), m.end(), "W") for m in re.finditer(WORD, text)]


def left_of(case: Case, call: Call) -> tuple[list[Frame], bool]:
    """What leaves, and whether the stream was blocked."""
    window, reader, out = window_of(case.policy), Reader(call, "sse"), list[Frame]()
    packets = [*case.packets, b""]
    for at, packet in enumerate(packets):
        last = at == len(packets) - 1
        frames = reader.feed(packet, not last)
        if not frames and not last:
            continue
        scans = window.add(frames)
        if case.policy == "sentence":
            scans, _ = window.sentences(last=last)
        elif case.policy == "whole":
            scans = window.everything() if last else []
        found = [spans_of(scan.text) for scan in scans]
        if any(found) and not (case.masks and window.replace(scans, found, last=case.policy != "window" or last)):
            return out, True
        out += window.release(last=last)
    return out, False


def joined(frames: Iterable[Frame]) -> list[str]:
    """What a client joins: the text, and the other one."""
    texts = ["", ""]
    for frame in frames:
        if frame.text:
            data: Any = frame.data
            one = data["choices"][0] if "choices" in data else data
            texts[one.get("output_index", one.get("index"))] += frame.text
    return texts


def check(case: Case, frames: Sequence[Frame], blocked: bool) -> None:
    text, other = joined(frames)
    most = {"window": case.text.partition(WORD)[0], "sentence": "Öl. ", "whole": ""}[case.policy]
    if case.clean:
        assert not blocked, case
        assert b"".join(frame.raw for frame in frames) == case.body, case
    elif case.masks and not (blocked and case.between and case.policy != "whole"):
        assert (blocked, text) == (False, case.text.replace(WORD, "[W]")), case
        assert other == OTHER * (other.count(OTHER) if case.between else 0), case
    elif case.between and case.policy == "window":  # the other text may push a beginning of the word out
        assert blocked, case
        assert f"{most}{WORD[:-1]}".startswith(text), case
    else:
        assert blocked, case
        assert most.startswith(text), case


@pytest.mark.timeout(900)
def test_at_every_cut_nothing_forbidden_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    began, number = time.monotonic(), 0
    calls = {kind: a_call(KINDS[kind][0]) for kind in KINDS}
    for case in islice(cases(), 0, None, STRIDE):
        check(case, *left_of(case, calls[case.kind]))
        number += 1
    if FULL:
        assert number >= 100_000
        with capsys.disabled():
            print(f"\n{number} cases in {time.monotonic() - began:.0f} s")


class OfWord(Guardrail):
    """Blocks or masks the word."""

    window = len(WORD)
    masks: bool = False

    async def check(self, text: str, call: Call) -> Verdict:
        found = spans_of(text)
        return ALLOW if not found else mask(*found) if self.masks else block("word")


PATHS: Final = {"chat_completions": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
ASKED: Final = {"model": "m", "messages": [], "input": "", "max_tokens": 1, "stream": True}


@pytest.mark.timeout(900)
async def test_through_the_middleware(capsys: pytest.CaptureFixture[str]) -> None:
    """What the client has is the same, and the record says so."""
    began, number = time.monotonic(), 0
    for case in islice(cases(), 0, None, STRIDE * SHARE):
        entry = Entry(check=OfWord(mode=("post_call",), masks=case.masks), name="word", release=case.policy)
        app = Ends(Guardrails(SSEApp(case.packets), checks=[entry]), allow_order=True)
        driven = await drive(app, ASKED, path=PATHS[KINDS[case.kind][0]])
        frames = list[Frame]()
        if driven.status == 200:
            reader = Reader(a_call(KINDS[case.kind][0]), "sse")
            frames = reader.feed(driven.body, False)
        # Before the first byte a block is a status, after it the last event.
        blocked = driven.status == 400 or (not case.clean and b"blocked by the guardrail" in frames[-1].raw)
        blocked = blocked or (case.between and case.masks and b"has to be replaced" in frames[-1].raw)
        check(case, frames, blocked)
        (run,) = app.ends[0].note(Runs).values()
        characters = sum(map(len, joined(frames)))
        if case.masks and not blocked:
            characters += len(WORD) - len("[W]")
        assert (run.delivered, run.unscanned, run.failed) == (characters, "", 0), case
        assert run.status == ("success" if case.clean else "guardrail_intervened"), case
        number += 1
    if FULL:
        with capsys.disabled():
            print(f"{number} through the middleware in {time.monotonic() - began:.0f} s")
