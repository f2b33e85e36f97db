"""Tools in Anthropic's Messages: `tools`, `mcp_servers`, and the `tool_use` blocks of answers.

A block that is refused becomes a text block in its place, so that no other block changes its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.tools import CallStream, Growing, Place, Tool, Tools, as_text, items, number, word

_CALLS: Final = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})


def _block(block: Mapping[str, JSON], place: Place) -> Tool:
    """A call. Tools that the provider runs have no type of their own here: their name is as good."""
    name, kind = word(block.get("name")), block.get("type")
    given = block.get("input")
    return Tool(
        name,
        "function" if kind == "tool_use" else "mcp" if kind == "mcp_tool_use" else name,
        as_text(given) if given is not None else None,
        place,
    )


def _is_call(block: Mapping[str, JSON]) -> bool:
    return word(block.get("type")) in _CALLS


class MessageCalls(CallStream):
    """The calls of a Messages stream, by the number of their block."""

    __slots__ = ()

    def read(self, data: JSON, event: str) -> Sequence[Place]:
        if not isinstance(data, dict):
            return ()
        kind = data.get("type") or event
        place: Place = (number(data.get("index"), -1),)
        if kind == "content_block_start":
            block = data.get("content_block")
            if isinstance(block, dict) and _is_call(block):
                self._begin(place, block)
                return (place,)
        elif kind == "content_block_delta":
            delta = data.get("delta")
            if isinstance(delta, dict) and delta.get("type") == "input_json_delta":
                self.calls.setdefault(place, Growing()).pieces.append(word(delta.get("partial_json")))
                return (place,)
        elif kind == "content_block_stop":
            if place in self.calls:
                self.calls[place].done = True
                return (place,)
        elif kind == "message_start":
            return list(self._started(data.get("message")))
        return ()

    def _begin(self, place: Place, block: Mapping[str, JSON]) -> Growing:
        tool = _block(block, place)
        grown = self.calls.setdefault(place, Growing(tool.type, word(block.get("id"))))
        grown.done = False
        grown.names.append(tool.name)
        if block.get("input"):
            # Pieces that follow would replace it: together they are no JSON, which fits no rule about arguments.
            grown.pieces.append(tool.text)
        return grown

    def _started(self, message: JSON) -> Iterator[Place]:
        for i, block in items(message.get("content") if isinstance(message, dict) else None):
            if _is_call(block):
                self._begin((i,), block).done = True
                yield (i,)

    def rewrite(self, data: JSON, event: str, places: Sequence[Place]) -> list[tuple[JSON, str]] | None:
        kind = (data.get("type") or event) if isinstance(data, dict) else ""
        if kind == "message_delta":
            delta = data.get("delta")
            if isinstance(delta, dict) and delta.get("stop_reason") == "tool_use" and not self._kept():
                delta["stop_reason"] = "end_turn"
                return [(data, event)]
        elif kind == "message_start" and any(place in self.refused for place in places):
            content = data["message"]["content"]
            for i, _ in items(content):
                if (i,) in self.refused:
                    content[i] = {"type": "text", "text": self.refused[i,]}
            return [(data, event)]
        elif kind in ("content_block_start", "content_block_delta", "content_block_stop"):
            return self._in_place((number(data.get("index"), -1),), data.get("content_block"))
        return None

    def _kept(self) -> bool:
        return any(call.type == "function" and place not in self.refused for place, call in self.calls.items())

    def _in_place(self, place: Place, block: JSON) -> list[tuple[JSON, str]] | None:
        if isinstance(block, dict) and (of := word(block.get("tool_use_id"))):
            # The result of a call that was refused goes with it.
            texts = [text for at, text in self.refused.items() if at in self.calls and self.calls[at].id == of]
            if texts:
                self.refused[place] = texts[0]
        text = self.refused.get(place)
        if text is None:
            return None
        if place in self.told:
            return []
        self.told.add(place)
        at = {"index": place[0]}
        made: list[JSON] = [
            {"type": "content_block_start", **at, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", **at, "delta": {"type": "text_delta", "text": text}},
            {"type": "content_block_stop", **at},
        ]
        return [(one, one["type"]) for one in made]


class MessagesTools(Tools):
    """The tools of Messages."""

    none: ClassVar[JSON] = {"type": "none"}
    call_stream: ClassVar[type[CallStream]] = MessageCalls

    def offers(self, request: Mapping[str, JSON]) -> Iterator[Tool]:
        for i, tool in items(request.get("tools")):
            kind = word(tool.get("type"))
            name = word(tool.get("name")) or word(tool.get("mcp_server_name"))
            kind = "mcp" if kind == "mcp_toolset" else "function" if kind in ("", "custom") else kind
            yield Tool(name, kind, None, ("tools", i))
        for i, server in items(request.get("mcp_servers")):
            yield Tool(word(server.get("name")), "mcp", None, ("mcp_servers", i))
        choice = request.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") == "tool":
            name = word(choice.get("name"))
            # It may name a tool of the provider: the type is the one that the list says.
            kinds = [tool.type for tool in self.offers({"tools": request.get("tools")}) if tool.name == name]
            yield Tool(name, kinds[0] if kinds else "function", None, ("tool_choice",))

    def calls(self, answer: JSON) -> Iterator[Tool]:
        for i, block in items(answer.get("content") if isinstance(answer, dict) else None):
            if _is_call(block):
                yield _block(block, ("content", i))

    def refuse(self, answer: JSON, refused: Mapping[Place, str]) -> None:
        content = answer["content"]
        texts = {word(content[place[1]].get("id")): text for place, text in refused.items()}
        for i, block in enumerate(content):
            text = refused.get(("content", i))
            if text is None and isinstance(block, dict):
                text = texts.get(word(block.get("tool_use_id")) or "-")
            if text is not None:
                content[i] = {"type": "text", "text": text}
        kept = any(isinstance(block, dict) and block.get("type") == "tool_use" for block in content)
        if not kept and answer.get("stop_reason") == "tool_use":
            answer["stop_reason"] = "end_turn"
