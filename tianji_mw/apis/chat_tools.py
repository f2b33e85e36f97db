"""Tools in Chat Completions: `tools`, the older `functions`, and the `tool_calls` of choices.

A call that is refused leaves its choice, and what is said in its place is appended to the content.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.tools import CallStream, Growing, Place, Tool, Tools, items, number, word

_CALLED: Final = ("tool_calls", "function_call")


def _named(tool: Mapping[str, JSON], place: Place) -> Tool:
    """A tool or a call: its type, and the name that stands in the member of that type."""
    kind = word(tool.get("type")) or ("custom" if isinstance(tool.get("custom"), dict) else "function")
    inner = tool.get(kind)
    if not isinstance(inner, dict):
        inner = tool["function"] if isinstance(tool.get("function"), dict) else {}
    arguments = inner.get("input" if kind == "custom" else "arguments")
    return Tool(
        word(inner.get("name")) or word(tool.get("name")),
        kind,
        arguments if isinstance(arguments, str) else None,
        place,
    )


def _function(value: JSON, place: Place) -> Iterator[Tool]:
    if isinstance(value, dict):
        yield _named({"function": value}, place)


class ChatCalls(CallStream):
    """The calls of a chat stream, by choice, index and number: some servers give all calls the same index."""

    __slots__ = ("_said", "_slots")

    def __init__(self) -> None:
        super().__init__()
        self._slots: dict[tuple[int, int], tuple[int, str]] = {}
        #: Choices that have said something.
        self._said: set[int] = set()

    def read(self, data: JSON, event: str) -> Sequence[Place]:
        found: list[Place] = []
        for i, choice in items(data.get("choices") if isinstance(data, dict) else None):
            at, delta = number(choice.get("index"), i), choice.get("delta")
            if isinstance(delta, dict):
                if delta.get("content"):
                    self._said.add(at)
                if delta.get("tool_calls") or delta.get("function_call"):
                    found += self._parts(at, delta)
            if choice.get("finish_reason"):
                for place, call in self.calls.items():
                    call.done = call.done or place[0] == at
        return found

    def _parts(self, choice: int, delta: Mapping[str, JSON]) -> Iterator[Place]:
        for j, call in items(delta.get("tool_calls")):
            place = self._place(choice, number(call.get("index"), j), call)
            self._add(place, _named(call, place), call)
            yield place
        for tool in _function(delta.get("function_call"), (choice, "function_call")):
            self._add(tool.place, tool, {})
            yield tool.place

    def _place(self, choice: int, index: int, call: Mapping[str, JSON]) -> Place:
        count, current = self._slots.get((choice, index), (0, ""))
        new = word(call.get("id"))
        if new and current and new != current and _named(call, ()).name:
            count += 1
        self._slots[choice, index] = (count, new or current)
        return (choice, index, count)

    def _add(self, place: Place, tool: Tool, call: Mapping[str, JSON]) -> None:
        grown = self.calls.setdefault(place, Growing(tool.type))
        grown.done = False
        if call.get("type") or call.get("custom"):
            grown.type = tool.type
        if tool.name:
            grown.names.append(tool.name)
        if tool.arguments is not None:
            grown.pieces.append(tool.arguments)

    def rewrite(self, data: JSON, event: str, places: Sequence[Place]) -> list[tuple[JSON, str]] | None:
        if not isinstance(data, dict):
            return None
        left, changed = iter(places), False
        for i, choice in items(data.get("choices")):
            at, delta = number(choice.get("index"), i), choice.get("delta")
            if isinstance(delta, dict) and (delta.get("tool_calls") or delta.get("function_call")):
                self._without(at, delta, left)
                changed = True
            if choice.get("finish_reason") in _CALLED and not self._kept(at):
                choice["finish_reason"], changed = "stop", True
        return [(data, event)] if changed else None

    def _kept(self, choice: int) -> list[Place]:
        return [place for place in self.calls if place[0] == choice and place not in self.refused]

    def _without(self, choice: int, delta: dict[str, JSON], places: Iterator[Place]) -> None:
        kept = [place for place in self._kept(choice) if place[1] != "function_call"]
        new: list[Place] = []
        calls = []
        for _, call in items(delta.get("tool_calls")):
            place = next(places)
            if place in self.refused:
                new.append(place)
            else:
                calls.append({**call, "index": kept.index(place)})
        if new and not calls:
            del delta["tool_calls"]
        elif calls:
            delta["tool_calls"] = calls
        if isinstance(delta.get("function_call"), dict) and (place := next(places)) in self.refused:
            del delta["function_call"]
            new.append(place)
        for place in new:
            if place not in self.told:
                self.told.add(place)
                self._say(choice, delta, self.refused[place])

    def _say(self, choice: int, delta: dict[str, JSON], text: str) -> None:
        content = delta.get("content")
        if isinstance(content, list):  # some servers say texts as typed parts
            content.append({"type": "text", "text": text})
        else:
            delta["content"] = word(content) + ("\n\n" if choice in self._said else "") + text
        self._said.add(choice)


class ChatTools(Tools):
    """The tools of Chat Completions."""

    call_stream: ClassVar[type[CallStream]] = ChatCalls

    def offers(self, request: Mapping[str, JSON]) -> Iterator[Tool]:
        for i, tool in items(request.get("tools")):
            yield _named(tool, ("tools", i))
        for i, function in items(request.get("functions")):
            yield _named({"function": function}, ("functions", i))
        choice = request.get("tool_choice")
        if isinstance(choice, dict):
            allowed = choice.get("allowed_tools")
            if choice.get("type") == "allowed_tools" and isinstance(allowed, dict):
                for i, tool in items(allowed.get("tools")):
                    yield _named(tool, ("tool_choice", "allowed_tools", "tools", i))
            else:
                yield _named(choice, ("tool_choice",))
        yield from _function(request.get("function_call"), ("function_call",))
        if request.get("web_search_options") is not None:
            yield Tool("", "web_search", None, ("web_search_options",))

    def calls(self, answer: JSON) -> Iterator[Tool]:
        for i, choice in items(answer.get("choices") if isinstance(answer, dict) else None):
            message = choice.get("message")
            if isinstance(message, dict):
                for j, call in items(message.get("tool_calls")):
                    yield _named(call, ("choices", i, "message", "tool_calls", j))
                yield from _function(message.get("function_call"), ("choices", i, "message", "function_call"))

    def refuse(self, answer: JSON, refused: Mapping[Place, str]) -> None:
        for i, choice in items(answer.get("choices")):
            texts = [text for place, text in refused.items() if place[1] == i]
            if not texts:
                continue
            message = choice["message"]
            place: Place = ("choices", i, "message", "tool_calls")
            calls = [call for j, call in items(message.pop("tool_calls", None)) if (*place, j) not in refused]
            if calls:
                message["tool_calls"] = calls
            if ("choices", i, "message", "function_call") in refused:
                del message["function_call"]
            content, said = message.get("content"), "\n\n".join(texts)
            if isinstance(content, list):
                content.append({"type": "text", "text": said})
            else:
                message["content"] = f"{content}\n\n{said}" if content else said
            if not calls and not message.get("function_call") and choice.get("finish_reason") in _CALLED:
                choice["finish_reason"] = "stop"
