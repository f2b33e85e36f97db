"""Chat completion chunks as Anthropic's named stream events.

Chat chunks have no blocks: a block is opened at the first piece of its kind, and closed when another kind or another
tool begins. Source: Anthropic API reference, "Streaming messages"; OpenAI API reference, "Chat" (the chunk object).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import names, shape
from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.chat_and_messages import messages_error, messages_usage, stop_reason

_LATE: Final = "The provider mixed the arguments of several tool calls, which this API cannot express."


class MessagesOverChatStream:
    """State of one stream. Total: what is no chunk gives nothing."""

    __slots__ = (
        "_block", "_context", "_filled", "_index", "_out", "_over", "_reason", "_refused", "_started", "_tool_id",
        "_tool_index", "_tools", "_usage", "ended", "failed",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._context = context
        self._out: list[Event] = []
        self._started = False
        self._over = False
        #: Kind of the open block, and its number (the last one's when none is open).
        self._block: Literal["", "text", "thinking", "tool"] = ""
        self._index = -1
        #: The open (or last) tool call as the upstream tells it from others, and whether arguments came.
        self._tool_id = ""
        self._tool_index: JSON = None
        self._filled = False
        self._tools = 0
        self._refused = False
        self._reason: JSON = None
        self._usage: dict[str, JSON] = {}
        #: A finish reason came.
        self.ended = False
        #: The stream was broken off by an error, which has been passed on.
        self.failed = False

    def feed(self, event: Event) -> Sequence[Event]:
        data = event.data
        if self._over or not isinstance(data, dict):
            return []
        if data.get("error"):
            return self._fail(messages_error(data["error"]))
        usage, choices = data.get("usage"), data.get("choices")
        if isinstance(usage, dict):
            self._usage = usage
        if isinstance(choices, list):
            self._start(data)
            for choice in shape.records(choices):
                # Other choices have no place in a message; some servers leave the index out.
                if choice.get("index", 0) in (0, None) and not self.ended and not self._over:
                    self._choice(choice)
        return self._take()

    def finish(self) -> Sequence[Event]:
        """The closing events; they wait for the upstream's end, because usage comes after the finish reason."""
        if not self.ended or self._over:
            return []
        self._over = True
        reason = stop_reason(self._reason, self._tools > 0)
        delta = {"stop_reason": "refusal" if self._refused and reason == "end_turn" else reason, "stop_sequence": None}
        self._emit({"type": "message_delta", "delta": delta, "usage": messages_usage(self._usage)})
        self._emit({"type": "message_stop"})
        return self._take()

    # --- events

    def _emit(self, data: dict[str, JSON]) -> None:
        self._out.append(Event(data, data["type"]))

    def _take(self) -> list[Event]:
        out, self._out = self._out, []
        return out

    def _fail(self, error: dict[str, JSON]) -> list[Event]:
        self._over = self.failed = True
        self.ended = False
        self._emit({"type": "error", "error": error})
        return self._take()

    def _start(self, chunk: dict[str, JSON]) -> None:
        if self._started:
            return
        self._started = True
        message: dict[str, JSON] = {
            "id": client_id(chunk.get("id"), self._context),
            "type": "message",
            "role": "assistant",
            "model": shape.string(chunk.get("model")) or self._context.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": messages_usage({}),
        }
        self._emit({"type": "message_start", "message": message})
        self._emit({"type": "ping"})

    # --- choices

    def _choice(self, choice: dict[str, JSON]) -> None:
        delta = shape.record(choice.get("delta"))
        self._thoughts(delta)
        refusal = shape.string(delta.get("refusal"))
        self._refused |= bool(refusal)
        self._piece("text", "text_delta", "text", "".join(shape.texts(delta.get("content"))) + refusal)
        for call in shape.records(delta.get("tool_calls")):
            self._call(call)
        if isinstance(delta.get("function_call"), dict):
            # The form before `tool_calls`: one call, without an id.
            self._call({"index": -1, "id": f"call_{self._context.call_id}", "function": delta["function_call"]})
        if choice.get("finish_reason") and not self._over:
            self._reason = choice["finish_reason"]
            self.ended = True
            self._close()

    def _thoughts(self, delta: dict[str, JSON]) -> None:
        text = shape.string(delta.get("reasoning_content")) or shape.string(delta.get("reasoning"))
        self._piece("thinking", "thinking_delta", "thinking", text)
        for block in shape.records(delta.get("thinking_blocks")):
            if block.get("type") == "redacted_thinking":
                self._open("", dict(block))
                self._emit({"type": "content_block_stop", "index": self._index})
                continue
            signature = shape.string(block.get("signature"))
            # A signed block repeats the text that came before it; others repeat this delta's, or are all there is.
            if not text and not (signature and self._block == "thinking"):
                self._piece("thinking", "thinking_delta", "thinking", shape.string(block.get("thinking")))
            if signature:
                if self._block != "thinking":
                    self._open("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                self._delta({"type": "signature_delta", "signature": signature})

    def _piece(self, kind: Literal["text", "thinking"], delta: str, field: str, text: str) -> None:
        if not text:
            return
        if self._block != kind:
            empty: dict[str, JSON] = {"signature": ""} if kind == "thinking" else {}
            self._open(kind, {"type": kind, field: "", **empty})
        self._delta({"type": delta, field: text})

    def _call(self, call: dict[str, JSON]) -> None:
        """A piece of a tool call: its opening, its arguments, or all at once."""
        if self._over:
            return
        function, given, index = shape.record(call.get("function")), shape.string(call.get("id")), call.get("index")
        name, text = shape.string(function.get("name")), shape.string(function.get("arguments"))
        if isinstance(function.get("arguments"), dict):
            text = shape.dumps(function["arguments"])
        if not self._continues(given, index, name):
            if not name:
                if text:
                    # Blocks are sequential: a piece for a closed one would be lost, and the call with it.
                    self._fail_late()
                return
            self._tool_id, self._tool_index = given, index
            block_id = names.client_call_id(given, self._tools, self._context)
            self._tools += 1
            name = names.restored(name, self._context)
            self._open("tool", {"type": "tool_use", "id": block_id, "name": name, "input": {}})
        if text:
            self._filled = True
            self._delta({"type": "input_json_delta", "partial_json": text})

    def _continues(self, given: str, index: JSON, name: str) -> bool:
        """Whether a piece belongs to the open tool call. Servers differ in what they repeat: index, id, name."""
        if self._block != "tool" or index not in (None, self._tool_index):
            return False
        if index is None and not given and name:
            return not self._filled
        return not given or given == self._tool_id or not name

    def _fail_late(self) -> None:
        self._over = self.failed = True
        self._emit({"type": "error", "error": {"type": "api_error", "message": _LATE}})

    # --- blocks

    def _open(self, kind: Literal["", "text", "thinking", "tool"], block: dict[str, JSON]) -> None:
        self._close()
        self._block = kind
        self._index += 1
        self._filled = False
        self._emit({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, JSON]) -> None:
        self._emit({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> None:
        if not self._block:
            return
        if self._block == "tool" and not self._filled:
            self._delta({"type": "input_json_delta", "partial_json": "{}"})
        self._emit({"type": "content_block_stop", "index": self._index})
        self._block = ""


def client_id(found: JSON, context: Context) -> str:
    """A message id as Anthropic's clients know them."""
    value = shape.string(found) or context.call_id
    return value if value.startswith("msg_") else f"msg_{value}"
