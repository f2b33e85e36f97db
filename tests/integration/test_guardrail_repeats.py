"""Streams of the Responses API say each text up to four times: what is masked or forbidden is so in all of them."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest

from tests.integration.test_guardrails import config, served
from tests.support.stack import Serve
from tianji_mw.runs import Runs
from tianji_mw.testing import FakeLLM, Reply, drive

ASK = {"model": "gpt-4o", "input": "Who?", "stream": True}
MAIL = "ada@example.com"


def events(parts: list[str], told: str) -> list[bytes]:
    """A text in deltas, and the events that repeat it as `told`."""
    content = {"type": "output_text", "annotations": [], "text": told}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [content]}
    whole = {"id": "r", "object": "response", "status": "completed", "model": "m", "output": [item], "usage": None}
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    made: list[dict[str, Any]] = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        *({"type": "response.output_text.delta", **place, "delta": part} for part in parts),
        {"type": "response.output_text.done", **place, "text": told},
        {"type": "response.content_part.done", **place, "part": content},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return [b"event: %b\ndata: %b\n\n" % (one["type"].encode(), orjson.dumps(one)) for one in made]


def pii(**options: Any) -> dict[str, Any]:
    return {"name": "pii", "guardrail": "pii", "mode": "post_call", "default_on": True, **options}


@pytest.mark.parametrize("release", ["window", "sentence", "whole"])
@pytest.mark.parametrize("cuts", [[12], [3, 5, 20], list(range(1, 30))])
async def test_what_is_masked_is_masked_in_all(llm: FakeLLM, serve: Serve, release: str, cuts: list[int]) -> None:
    text = f"Write to {MAIL}. She is in."
    places = [0, *cuts, len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    app = await served(serve, config(llm.url, pii(release=release)))
    llm.replies.append(Reply.events(*events(parts, text)))
    driven = await drive(app, ASK, path="/v1/responses")
    assert driven.status == 200
    assert MAIL.encode() not in driven.body
    assert driven.body.count(b"Write to [EMAIL_ADDRESS]. She is in.") == 4
    assert b"response.completed" in driven.body


async def test_text_that_was_never_streamed_is_judged(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, pii(), {**pii(entities={"URL": "block"}), "name": "links"}))
    llm.replies.append(Reply.events(*events(["All ", "is well."], f"Write to {MAIL}.")))
    driven = await drive(app, ASK, path="/v1/responses")
    assert MAIL.encode() not in driven.body
    assert b"All " in driven.body
    (run,) = [run for run in app.ends[-1].note(Runs).values() if run.guardrail == "pii"]
    assert run.masked["EMAIL_ADDRESS"] >= 1
    assert run.scanned == run.delivered
    llm.replies.append(Reply.events(*events(["All ", "is well."], "See https://evil.example/x now.")))
    driven = await drive(app, ASK, path="/v1/responses")
    assert b"evil" not in driven.body
    assert b"content_policy_violation" in driven.body


async def test_what_is_clean_stays_as_it_is(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, pii()))
    made = events(["All ", "is ", "well."], "All is well.")
    llm.replies.append(Reply.events(*made))
    driven = await drive(app, ASK, path="/v1/responses")
    assert driven.body == b"".join(made)
    (run,) = app.ends[-1].note(Runs).values()
    assert run.scanned == run.delivered == len("All is well.")
