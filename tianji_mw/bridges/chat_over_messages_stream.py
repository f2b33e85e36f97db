"""Anthropic's stream events as chat completion chunks.

It emits JSON only; `[DONE]` is the gateway's. Source: Anthropic API reference, "Streaming messages"; OpenAI API
reference, "Chat" (the chunk object).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import names, shape
from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.chat_and_messages import chat_error, chat_usage, finish_reason
from tianji_mw.bridges.chat_over_messages_tools import JSON_TOOL, LEGACY

#: Note: the client asked for a usage chunk (`stream_options.include_usage`).
INCLUDE_USAGE: Final = "include_usage"
#: Note: the gateway wants a usage chunk, whatever the client asked for.
WANT_USAGE: Final = "want_usage"


@dataclass(slots=True)
class _Block:
    """One open content block."""

    kind: Literal["text", "thinking", "tool", "json", "ignored"]
    #: Number of the tool call in the whole stream.
    tool: int = 0
    #: Thinking text so far, or tool input that came whole with the start.
    text: str = ""
    signature: str = ""
    #: Whether input fragments came.
    filled: bool = False


class ChatOverMessagesStream:
    """State of one stream. Total: what is no Anthropic event gives nothing."""

    __slots__ = (
        "_blocks", "_context", "_finished", "_formatted", "_head", "_held", "_json_tool", "_over", "_tools", "_usage",
        "ended", "failed",
    )  # fmt: skip

    def __init__(self, context: Context) -> None:
        self._context = context
        #: Facts that every chunk repeats; None before the first one.
        self._head: dict[str, JSON] | None = None
        self._blocks: dict[JSON, _Block] = {}
        self._tools = 0
        self._usage: dict[str, JSON] = {}
        self._finished = False
        self._over = False
        self._json_tool = context.notes.get(JSON_TOOL)
        #: Text that waits: it is the answer only if the model does not call the tool of the response format.
        self._held: list[str] = []
        self._formatted = False
        #: The stream came to its `message_stop`.
        self.ended = False
        #: The stream was broken off by an error event, which has been passed on.
        self.failed = False

    def feed(self, event: Event) -> Sequence[Event]:
        data = event.data
        if self._over or not isinstance(data, dict):
            return []
        match data.get("type") or event.name:
            case "message_start":
                return self._start(shape.record(data.get("message")))
            case "content_block_start" if not self._finished:
                return self._open(_key(data), shape.record(data.get("content_block")))
            case "content_block_delta" if not self._finished:
                return self._delta(_key(data), shape.record(data.get("delta")))
            case "content_block_stop" if not self._finished:
                return self._close(_key(data))
            case "message_delta":
                self._count(data.get("usage"))
                native = shape.record(data.get("delta")).get("stop_reason")
                return self._finish(native) if isinstance(native, str) else []
            case "message_stop":
                self._over = self.ended = True
                return self._finish(None)
            case "error":
                self._over = self.failed = True
                return [Event({"error": chat_error(data.get("error"))})]
        return []

    def finish(self) -> Sequence[Event]:
        """The usage chunk, where somebody wants it."""
        notes = self._context.notes
        if not self.ended or not self._usage or not (notes.get(INCLUDE_USAGE) or notes.get(WANT_USAGE)):
            return []
        return [Event({**(self._head or {}), "choices": [], "usage": chat_usage(self._usage)})]

    # --- chunks

    def _chunk(self, delta: dict[str, JSON]) -> Event:
        return Event({**(self._head or {}), "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def _chunks(self, *deltas: dict[str, JSON]) -> list[Event]:
        """Chunks for these deltas, after the role chunk where that is still missing."""
        return [*self._start({}), *map(self._chunk, deltas)]

    def _start(self, message: dict[str, JSON]) -> list[Event]:
        self._count(message.get("usage"))
        if self._head is not None:
            return []
        self._head = {
            "id": shape.string(message.get("id")) or f"chatcmpl-{self._context.call_id}",
            "object": "chat.completion.chunk",
            "created": self._context.created,
            "model": shape.string(message.get("model")) or self._context.model,
        }
        return [self._chunk({"role": "assistant", "content": ""})]

    def _count(self, usage: JSON) -> None:
        # Counts are cumulative; the last event repeats the input's only sometimes.
        self._usage |= {key: value for key, value in shape.record(usage).items() if value is not None}

    # --- blocks

    def _open(self, key: int, found: dict[str, JSON]) -> list[Event]:
        match found.get("type"):
            case "text":
                self._blocks[key] = _Block("text")
                return self._text(shape.string(found.get("text")))
            case "thinking":
                block = self._blocks[key] = _Block("thinking", signature=shape.string(found.get("signature")))
                return self._think(block, shape.string(found.get("thinking")))
            case "redacted_thinking":
                self._blocks[key] = _Block("ignored")
                return self._chunks({"thinking_blocks": [dict(found)]})
            case "tool_use":
                return self._open_tool(key, found)
        # Tools that run at the provider: the client has nothing to do for them.
        self._blocks[key] = _Block("ignored")
        return []

    def _open_tool(self, key: int, found: dict[str, JSON]) -> list[Event]:
        given = shape.dumps(found.get("input") or {})
        if self._json_tool is not None and found.get("name") == self._json_tool:
            self._formatted = True  # whatever text stands beside it would break the format
            self._held.clear()
            self._blocks[key] = _Block("json", text=given)
            return []
        legacy = self._context.notes.get(LEGACY)
        if legacy and self._tools:
            self._blocks[key] = _Block("ignored")  # a message holds one `function_call`
            return []
        block = self._blocks[key] = _Block("tool", tool=self._tools, text=given)
        self._tools += 1
        function = {"name": names.restored(shape.string(found.get("name")), self._context), "arguments": ""}
        if legacy:
            return self._chunks({"function_call": function})
        opening = {"id": shape.string(found.get("id")), "type": "function", "function": function}
        return self._chunks({"tool_calls": [{"index": block.tool, **opening}]})

    def _delta(self, key: int, delta: dict[str, JSON]) -> list[Event]:
        block = self._blocks.get(key)
        match delta.get("type"):
            case "text_delta":
                return self._text(shape.string(delta.get("text")))
            case "thinking_delta":
                return self._think(block, shape.string(delta.get("thinking")))
            case "signature_delta" if block is not None:
                block.signature += shape.string(delta.get("signature"))
            case "input_json_delta" if block is not None:
                return self._input(block, shape.string(delta.get("partial_json")))
        return []

    def _text(self, text: str) -> list[Event]:
        if not text or self._formatted:
            return []
        if self._json_tool is not None:
            self._held.append(text)
            return []
        return self._chunks({"content": text})

    def _think(self, block: _Block | None, text: str) -> list[Event]:
        if block is not None:
            block.text += text
        return self._chunks({"reasoning_content": text}) if text else []

    def _input(self, block: _Block, text: str) -> list[Event]:
        if not text or block.kind not in ("tool", "json"):
            return []
        block.filled = True
        if block.kind == "json":
            return self._chunks({"content": text})
        if self._context.notes.get(LEGACY):
            return self._chunks({"function_call": {"arguments": text}})
        return self._chunks({"tool_calls": [{"index": block.tool, "function": {"arguments": text}}]})

    def _close(self, key: int) -> list[Event]:
        block = self._blocks.pop(key, None)
        if block is None:
            return []
        if block.kind in ("tool", "json") and not block.filled:
            return self._input(block, block.text)  # no fragment came: what the start held, or "{}"
        if block.kind == "thinking" and block.signature:
            # The whole block, as the client must send it back; its text has gone out as `reasoning_content`.
            whole = {"type": "thinking", "thinking": block.text, "signature": block.signature}
            return self._chunks({"thinking_blocks": [whole]})
        return []

    def _finish(self, native: str | None) -> list[Event]:
        if self._finished:
            return []
        self._finished = True
        out = [event for key in list(self._blocks) for event in self._close(key)]
        if self._held:
            out += self._chunks({"content": "".join(self._held)})
        reason = finish_reason(native, bool(self._tools))
        if reason == "tool_calls" and self._context.notes.get(LEGACY):
            reason = "function_call"
        choice: dict[str, JSON] = {"index": 0, "delta": {}, "finish_reason": reason}
        if native is not None:
            choice["provider_specific_fields"] = {"native_finish_reason": native}
        return [*out, *self._start({}), Event({**(self._head or {}), "choices": [choice]})]


def _key(data: dict[str, JSON]) -> int:
    index = data.get("index")
    return index if isinstance(index, int) else -1
