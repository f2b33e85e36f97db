"""Every cut of a forbidden word, in every kind of frame, under every release policy: nothing of it leaves.

The suite runs each `STRIDE`th case; `make property` runs all of them, and prints their number.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from itertools import combinations_with_replacement, islice, product
from typing import Any, Final, NamedTuple

import orjson
import pytest

from tests.support.apps import SSEApp
from tianji_mw.apis import by_name
from tianji_mw.call import Call, Limits, open_call
from tianji_mw.frames import Frame, Reader
from tianji_mw.guardrails.base import ALLOW, Guardrail, Release, Span, Verdict, block, mask
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.release import Scan, Window
from tianji_mw.runtime import Runtime
from tianji_mw.testing import drive

FULL: Final = bool(os.environ.get("TIANJI_PROPERTY"))
STRIDE: Final = 1 if FULL else 97
WORD: Final = "s🐦kré"
TEXTS: Final = {"bad": f"Öl. Ab {WORD} c. D", "clean": "Öl. Ab s🐦kr c. Dé"}
POLICIES: Final[tuple[Release, ...]] = ("window", "sentence", "whole")


def _chat(name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {"choices": [{"index": 0, "delta": {name: text}}]}


def _tool(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": text}}]}}]}


def _block(kind: str, name: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {"type": "content_block_delta", "index": 0, "delta": {"type": kind, name: text}}


def _item(kind: str) -> Callable[[str], dict[str, Any]]:
    return lambda text: {"type": kind, "output_index": 0, "content_index": 0, "item_id": "i", "delta": text}


KINDS: Final[dict[str, tuple[str, Callable[[str], dict[str, Any]]]]] = {
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
    """One stream: its text is cut at two places, and its bytes into packets of `packet` bytes."""

    kind: str
    policy: Release
    text: str
    masks: bool
    cuts: tuple[int, int]
    packet: int
    crlf: bool

    @property
    def body(self) -> bytes:
        text, (a, b) = TEXTS[self.text], self.cuts
        make, end = KINDS[self.kind][1], "\r\n" if self.crlf else "\n"
        out = ""
        for part in filter(None, (text[:a], text[a:b], text[b:])):
            data = make(part)
            name = f"event: {data['type']}{end}" if "type" in data else ""
            out += f"{name}data: {orjson.dumps(data).decode()}{end}{end}"
        return out.encode()

    @property
    def packets(self) -> list[bytes]:
        body = self.body
        return [body[at : at + self.packet] for at in range(0, len(body), self.packet)]


def cases() -> Iterator[Case]:
    cuts = list(combinations_with_replacement(range(max(map(len, TEXTS.values())) + 1), 2))
    packets = (1, 7, 61, 1 << 16)
    for one in product(KINDS, POLICIES, TEXTS, (False, True), cuts, packets, (False, True)):
        yield Case(*one)


def call_of(kind: str) -> Call:
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    return open_call(by_name(KINDS[kind][0]), scope, _nothing, runtime=Runtime(), limits=Limits())


async def _nothing() -> Any:
    raise AssertionError("no body is read")


def window_of(policy: Release) -> Window:
    hold: Any = {"window": len(WORD), "sentence": 0, "whole": "all"}[policy]
    return Window(len(WORD), hold, sentences=policy == "sentence")


def spans_of(scan: Scan) -> list[Span]:
    return [Span(m.start(), m.end(), "W") for m in re.finditer(WORD, scan.text)]


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
        found = [spans_of(scan) for scan in scans]
        if any(found) and not (case.masks and window.replace(scans, found, last=case.policy != "window" or last)):
            return out, True
        out += window.release(last=last)
    return out, False


def check(case: Case, call: Call) -> None:
    frames, blocked = left_of(case, call)
    text, joined = TEXTS[case.text], "".join(frame.text for frame in frames)
    if case.text == "clean":
        assert (blocked, joined) == (False, text), case
        assert b"".join(frame.raw for frame in frames) == case.body, case
    elif case.masks:
        assert (blocked, joined) == (False, text.replace(WORD, "[W]")), case
    else:
        head = text.partition(WORD)[0]
        most = {"window": head, "sentence": "Öl. ", "whole": ""}[case.policy]
        assert blocked, case
        assert most.startswith(joined), case


@pytest.mark.timeout(900)
def test_at_every_cut_nothing_forbidden_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    began, number = time.monotonic(), 0
    calls = {kind: call_of(kind) for kind in KINDS}
    for case in islice(cases(), 0, None, STRIDE):
        check(case, calls[case.kind])
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
        found = [Span(m.start(), m.end(), "W") for m in re.finditer(WORD, text)]
        return ALLOW if not found else mask(*found) if self.masks else block("word")


PATHS: Final = {"chat_completions": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}
ASKED: Final = {"model": "m", "messages": [], "input": "", "max_tokens": 1, "stream": True}


@pytest.mark.timeout(900)
async def test_through_the_middleware(capsys: pytest.CaptureFixture[str]) -> None:
    number = 0
    for case in islice(cases(), 0, None, STRIDE * 13):
        entry = Entry(check=OfWord(mode=("post_call",), masks=case.masks), name="word", release=case.policy)
        driven = await drive(Guardrails(SSEApp(case.packets), checks=[entry]), ASKED, path=PATHS[KINDS[case.kind][0]])
        number += 1
        if case.text == "clean":
            assert (driven.status, driven.body) == (200, case.body), case
            continue
        assert WORD not in driven.body.decode(), case
        if case.masks:
            assert driven.status == 200, case
        else:  # before the first byte it is a status, after it the last event
            assert driven.status in (200, 400), case
            last = driven.body.rstrip().rpartition(b"\n\n")[2]
            assert b"blocked by the guardrail" in last, case
            assert not any(f'"{WORD[:n]}' in driven.body.decode() for n in range(2, len(WORD))), case
    if FULL:
        with capsys.disabled():
            print(f"{number} through the middleware")
