"""A plain Anthropic message as the events that a stream of it would have had.

Source: Anthropic API reference, "Streaming messages".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.apis.chat_completions import dicts


def events(answer: JSON) -> Iterator[dict[str, JSON]]:
    """The events that a stream of this answer would have had."""
    if answer.get("type") == "error":
        yield dict(answer)
        return
    found = answer.get("usage")
    usage = found if isinstance(found, dict) and found else {"input_tokens": 0, "output_tokens": 0}
    empty: dict[str, JSON] = {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {**usage, "output_tokens": 0},
    }
    yield {"type": "message_start", "message": {**answer, **empty}}
    for index, block in enumerate(dicts(answer.get("content"))):
        start, deltas = _block_events(block)
        yield {"type": "content_block_start", "index": index, "content_block": start}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    delta = {key: answer.get(key) for key in ("stop_reason", "stop_sequence")}
    delta |= {key: answer[key] for key in ("stop_details", "container") if key in answer}
    yield {"type": "message_delta", "delta": delta, "usage": usage}
    yield {"type": "message_stop"}


def _block_events(block: Mapping[str, JSON]) -> tuple[dict[str, JSON], list[dict[str, JSON]]]:
    """A block's start (emptied) and its deltas; block types that do not stream come whole in the start."""
    kind = block.get("type")
    deltas: list[dict[str, JSON]] = []
    if kind == "text":
        start = {**block, "text": ""}
        if block.get("citations") is not None:
            start["citations"] = []
            deltas = [{"type": "citations_delta", "citation": citation} for citation in dicts(block["citations"])]
        return start, [{"type": "text_delta", "text": block.get("text", "")}, *deltas]
    if kind == "thinking":
        deltas = [{"type": "thinking_delta", "thinking": block.get("thinking", "")}]
        if block.get("signature"):
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        return {**block, "thinking": "", "signature": ""}, deltas
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use"):
        arguments = orjson.dumps(block.get("input") or {}).decode()
        return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": arguments}]
    return dict(block), []
