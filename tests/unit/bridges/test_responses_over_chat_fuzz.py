"""Responses over Chat: any upstream, however odd, gives a stream that keeps the protocol."""

from __future__ import annotations

from typing import Any, get_args

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent

from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.responses_over_chat import ResponsesOverChat
from tianji_mw.errors import UpstreamMalformed

BRIDGE = ResponsesOverChat()
#: The SDK's model of each event, by its type.
MODELS = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}


def context(**more: Any) -> Context:
    return Context(call_id="abc", model="alias", created=1700000000, **more)


def check_order(events: list[dict[str, Any]]) -> None:
    """The rules of the protocol: numbers, one open and one close per item, deltas only between, ids that stay."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    open_items: dict[int, str] = {}
    for event in events:
        MODELS[event["type"]].model_validate(event)
        index = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert index not in open_items
            open_items[index] = event["item"]["id"]
        elif event["type"] == "response.output_item.done":
            assert open_items[index] == event["item"]["id"]
            open_items[index] = ""
        elif "item_id" in event:
            assert open_items[index] == event["item_id"]
    assert not any(open_items.values())


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
