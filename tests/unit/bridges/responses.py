"""What the tests of `ResponsesOverChat` share: requests, and the rules that each stream keeps."""

from __future__ import annotations

from typing import Any, get_args

from openai.types.responses import ResponseStreamEvent

from tests.unit.bridges.support import kept
from tianji_mw.bridges.base import Context
from tianji_mw.bridges.responses_over_chat import ResponsesOverChat

BRIDGE = ResponsesOverChat()
#: The SDK's model of each event, by its type.
MODELS = {
    get_args(model.model_fields["type"].annotation)[0]: model for model in get_args(get_args(ResponseStreamEvent)[0])
}
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


def context(**more: Any) -> Context:
    return Context(call_id="abc", model="alias", created=1700000000, **more)


def request(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    return kept(BRIDGE.request, {"model": "m", "input": "x", **body}, ctx or context())


def messages(*items: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = request({"input": list(items)}, context(**more))["messages"]
    return found


def result(call_id: str, output: Any = "r") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


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
