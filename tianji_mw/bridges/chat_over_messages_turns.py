"""Chat messages as Anthropic's `system` and turns.

Anthropic wants a user turn first, alternating roles, no blank text, and all results of a tool round together at the
start of the next user turn. Source: Anthropic API reference, "Messages", "Tool use", "Extended thinking".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges import media, names, shape
from tianji_mw.bridges.base import Context
from tianji_mw.errors import InvalidRequest, UnsupportedParams

#: Stands in for the user where a conversation does not begin with one.
_FILLER: Final = "."
#: Anthropic sets no limit on ids; this one only keeps hashed ids short.
_ID_LIMIT: Final = 128

Block = dict[str, JSON]


class Turns:
    """Collects messages in order; `system` and `turns()` are the result. One per request."""

    __slots__ = ("_context", "_last_function", "_order", "_turns", "system")

    def __init__(self, context: Context) -> None:
        self.system: list[Block] = []
        self._context = context
        self._turns: list[tuple[str, list[Block]]] = []
        #: Place of each call of the latest assistant turn, by id.
        self._order: dict[str, int] = {}
        #: Id we gave to the latest legacy function call: those have none.
        self._last_function = ""

    def add(self, message: JSON, i: int) -> None:
        """One message. Raises InvalidRequest or UnsupportedParams naming its place."""
        where = f"messages[{i}]"
        message = shape.record(message)
        match message.get("role"):
            case "system" | "developer":
                blocks = _marked([_text(text) for text in shape.texts(message.get("content")) if text.strip()], message)
                if self._turns:
                    # Anthropic has one system prompt, ahead of everything: a later one keeps its place as a text.
                    self._append("user", blocks)
                else:
                    self.system.extend(blocks)
            case "user":
                self._append("user", _marked(_blocks(message.get("content"), where), message))
            case "assistant":
                self._append("assistant", _marked(self._assistant(message, where), message))
            case "tool":
                self._result(message, shape.string(message.get("tool_call_id")), where)
            case "function":
                self._result(message, self._last_function or f"call_{i}", where)
            case role:
                raise InvalidRequest(f"{where} has the unknown role {role!r}.", param=f"{where}.role")

    def turns(self) -> list[dict[str, JSON]]:
        """The turns, the first one a user's."""
        turns = self._turns
        if not turns or turns[0][0] != "user":
            turns = [("user", [_text(_FILLER)]), *turns]
        role, blocks = turns[-1]
        if role == "assistant" and blocks[-1].get("type") == "text":
            # A prefilled answer must not end in white space.
            blocks = [*blocks[:-1], {**blocks[-1], "text": blocks[-1]["text"].rstrip()}]
            turns = [*turns[:-1], (role, blocks)]
        return [{"role": role, "content": blocks} for role, blocks in turns]

    def _append(self, role: str, blocks: list[Block]) -> None:
        if not blocks:
            return
        if not self._turns or self._turns[-1][0] != role:
            self._turns.append((role, []))
            if role == "assistant":
                self._order = {}
        self._turns[-1][1].extend(blocks)
        for block in blocks:
            if block.get("type") == "tool_use":
                self._order[shape.string(block.get("id"))] = len(self._order)

    def _result(self, message: Block, call_id: str, where: str) -> None:
        block: Block = {"type": "tool_result", "tool_use_id": names.call_id(call_id, _ID_LIMIT)}
        content = message.get("content")
        if isinstance(content, str):
            block |= {"content": content} if content else {}
        elif found := _blocks(content, where):
            block["content"] = found
        if isinstance(message.get("is_error"), bool):
            block["is_error"] = message["is_error"]
        self._append("user", _marked([block], message))
        # Results first, in the order of the calls; a stable sort leaves the rest as it was.
        self._turns[-1][1].sort(key=self._place)

    def _place(self, block: Block) -> tuple[int, int]:
        if block.get("type") != "tool_result":
            return 1, 0
        return 0, self._order.get(shape.string(block.get("tool_use_id")), len(self._order))

    def _assistant(self, message: Block, where: str) -> list[Block]:
        # Only signed thinking is accepted back; `reasoning_content` alone has no signature and stays out.
        blocks = [
            dict(block)
            for block in shape.records(message.get("thinking_blocks"))
            if block.get("signature") or block.get("type") == "redacted_thinking"
        ]
        content = _blocks(message.get("content"), where)
        refusal = shape.string(message.get("refusal"))
        if not content and refusal.strip():
            content = [_text(refusal)]
        calls = [
            _use(shape.record(call.get("function")), shape.string(call.get("id")) or f"{where}_{j}", self._context)
            for j, call in enumerate(shape.records(message.get("tool_calls")))
        ]
        if isinstance(message.get("function_call"), dict):
            self._last_function = names.call_id(f"{where}_function", _ID_LIMIT)
            calls.append(_use(message["function_call"], self._last_function, self._context))
        return [*blocks, *content, *calls]


def split(messages: Sequence[JSON], context: Context) -> Turns:
    """All messages, in order."""
    turns = Turns(context)
    for i, message in enumerate(messages):
        turns.add(message, i)
    return turns


def _use(function: Block, call_id: str, context: Context) -> Block:
    return {
        "type": "tool_use",
        "id": names.call_id(call_id, _ID_LIMIT),
        "name": names.sent(shape.string(function.get("name")), context),
        "input": shape.arguments(function.get("arguments")),
    }


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _marked(blocks: list[Block], message: Block) -> list[Block]:
    """A message's `cache_control` goes to its last block: the prompt is cached up to there."""
    mark = message.get("cache_control")
    return [*blocks[:-1], {**blocks[-1], "cache_control": mark}] if mark and blocks else blocks


def _blocks(content: JSON, where: str) -> list[Block]:
    """The blocks of a `content`; blank texts are left out, because Anthropic refuses them."""
    if isinstance(content, str):
        return [_text(content)] if content.strip() else []
    if content is None:
        return []
    if not isinstance(content, list):
        raise InvalidRequest(f"{where}.content must be a string or a list.", param=f"{where}.content")
    found = [_block(part, f"{where}.content[{j}]") for j, part in enumerate(content)]
    return [block for block in found if block is not None]


def _block(part: JSON, where: str) -> Block | None:
    if isinstance(part, str):
        return _text(part) if part.strip() else None
    if not isinstance(part, dict):
        raise InvalidRequest(f"{where} must be an object.", param=where)
    match part.get("type"):
        case "text" | "refusal" as kind:
            text = shape.string(part.get(kind))
            block = _text(text) if text.strip() else None
        case "image_url":
            block = media.block_of_image(part, where)
        case "file":
            block = media.block_of_file(part, where)
        case "input_audio" | "video_url" | "audio" as kind:
            raise UnsupportedParams(f"This provider takes no {kind} content.", param=where)
        case _:
            # Anthropic's own block types (document, search_result, ...) and newer ones: the provider judges them.
            return dict(part)
    mark = part.get("cache_control")
    return {**block, "cache_control": mark} if block is not None and mark else block
