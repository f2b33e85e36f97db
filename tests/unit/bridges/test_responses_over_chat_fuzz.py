"""Responses over Chat: any upstream, however odd, gives a stream that keeps the protocol."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response

from tests.unit.bridges.responses import BRIDGE, check_order, context
from tianji_mw.bridges.base import Event
from tianji_mw.errors import UpstreamMalformed

CHUNKS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.text(max_size=4)
    | st.sampled_from(["stop", "length", "url_citation"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "tool_calls", "function", "error", "usage", "index", "id", "name"]
            )
            | st.sampled_from(
                ["arguments", "reasoning_content", "refusal", "annotations", "logprobs", "type", "message"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TOOL_DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "index": CHUNKS,
        "id": CHUNKS,
        "function": st.fixed_dictionaries({}, optional={"name": CHUNKS, "arguments": CHUNKS}),
    },
)
DELTAS = st.fixed_dictionaries(
    {},
    optional={
        "content": CHUNKS,
        "reasoning_content": CHUNKS,
        "refusal": CHUNKS,
        "annotations": st.lists(CHUNKS, max_size=2),
        "tool_calls": st.lists(TOOL_DELTAS, max_size=3),
    },
)
CHOICES = st.fixed_dictionaries(
    {"delta": DELTAS}, optional={"finish_reason": CHUNKS, "index": CHUNKS, "logprobs": CHUNKS}
)


@given(st.lists(CHUNKS | st.fixed_dictionaries({"choices": st.lists(CHOICES, max_size=2)}), max_size=6))
def test_streams_are_total_and_keep_the_protocol(chunks: list[Any]) -> None:
    bridge = BRIDGE.stream(context())
    events = [event.data for chunk in chunks for event in bridge.feed(Event(chunk))]
    events += [event.data for event in bridge.finish()]
    events = orjson.loads(orjson.dumps(events))
    if events[-1]["type"] != "response.failed":
        check_order(events)
    assert events[-1]["type"].split(".")[1] in ("completed", "incomplete", "failed")


@given(CHUNKS)
def test_answers_are_total(body: Any) -> None:
    try:
        answer = BRIDGE.answer(body, context())
    except UpstreamMalformed:
        return
    Response.model_validate(answer)
