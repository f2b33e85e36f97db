"""Tools in the Responses API: `tools` of any type, and the items of an answer that call them.

An item that is refused becomes a message in its place, so that no other item changes its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.responses_events import Events, item_events
from tianji_mw.apis.tools import CallStream, Growing, Place, Tool, Tools, as_text, items, number, word

#: Where a call has its arguments, where it is not `arguments`.
_PAYLOAD: Final[Mapping[str, str]] = {"custom_tool_call": "input"}
_TYPES: Final[Mapping[str, str]] = {
    "function_call": "function", "custom_tool_call": "custom", "mcp_approval_request": "mcp",
}  # fmt: skip
#: What only repeats the deltas before it.
_REPEATS: Final[Mapping[str, str]] = {
    "response.function_call_arguments.done": "arguments",
    "response.mcp_call_arguments.done": "arguments",
    "response.custom_tool_call_input.done": "input",
}
_DELTAS: Final = frozenset(kind.removesuffix("done") + "delta" for kind in _REPEATS)


def _is_call(item: Mapping[str, JSON]) -> bool:
    """Whether this item is a call: by its type's name, so that those newer than this file are judged too."""
    kind = word(item.get("type"))
    return kind.endswith("_call") or kind == "mcp_approval_request"


def _item(item: Mapping[str, JSON], place: Place) -> Tool:
    """A call; of the provider's own tools the type without `_call`, and what they do as arguments."""
    kind = word(item.get("type"))
    given = item.get(_PAYLOAD.get(kind, "arguments"))
    if given is None and kind not in _TYPES:
        given = item.get("action")
    return Tool(
        word(item.get("name")),
        _TYPES.get(kind) or kind.removesuffix("_call"),
        given if isinstance(given, str) else None if given is None else as_text(given),
        place,
    )


def _said(item: JSON, place: Place, text: str) -> dict[str, JSON]:
    """A message in place of a call."""
    found = word(item.get("id")) if isinstance(item, dict) else ""
    return {
        "id": f"msg_{found or place[-1]}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": text, "annotations": []}],
    }


class ResponseCalls(CallStream):
    """The calls of a Responses stream, by the number of their item. Events repeat each of them up to three times."""

    __slots__ = ("_items", "_shift")

    def __init__(self) -> None:
        super().__init__()
        #: By how much the numbers of events differ from those of the upstream.
        self._shift = 0
        #: The messages that stand in place of items.
        self._items: dict[Place, dict[str, JSON]] = {}

    def read(self, data: JSON, event: str) -> Sequence[Place]:
        if not isinstance(data, dict):
            return ()
        kind, place = word(data.get("type") or event), (number(data.get("output_index"), -1),)
        if kind in ("response.output_item.added", "response.output_item.done"):
            item = data.get("item")
            if isinstance(item, dict) and _is_call(item):
                self._take(place, item, done=kind.endswith("done"))
                return (place,)
        elif kind in _DELTAS:
            self.calls.setdefault(place, Growing()).pieces.append(word(data.get("delta")))
            return (place,)
        elif kind in _REPEATS:
            call = self.calls.setdefault(place, Growing())
            call.wholes.append((word(data.get("name")) or "".join(call.names), word(data.get(_REPEATS[kind]))))
            return (place,)
        elif isinstance(response := data.get("response"), dict):
            return [(i,) for i, item in items(response.get("output")) if _is_call(item) and self._take((i,), item)]
        return ()

    def _take(self, place: Place, item: Mapping[str, JSON], *, done: bool = True) -> Growing:
        tool = _item(item, place)
        call = self.calls.setdefault(place, Growing(tool.type))
        call.type, call.done = tool.type, done
        if done:
            call.wholes.append((tool.name, tool.arguments))
        else:
            call.names.append(tool.name)
            if tool.arguments:
                call.pieces.append(tool.arguments)
        return call

    def rewrite(self, data: JSON, event: str, places: Sequence[Place]) -> list[tuple[JSON, str]] | None:
        if not isinstance(data, dict):
            return None
        place = (number(data.get("output_index"), -1),)
        if place in self.refused and "output_index" in data:
            return self._in_place(place, data)
        response = data.get("response")
        changed = bool(self._shift) and "sequence_number" in data
        if isinstance(response, dict):
            for i, item in items(response.get("output")):
                if (i,) in self.refused:
                    response["output"][i] = self._items.get((i,)) or _said(item, (i,), self.refused[i,])
                    changed = True
        if changed and "sequence_number" in data:
            data["sequence_number"] = number(data["sequence_number"], 0) + self._shift
        return [(data, event)] if changed else None

    def _in_place(self, place: Place, data: Mapping[str, JSON]) -> list[tuple[JSON, str]]:
        self._shift -= 1
        if place in self.told:
            return []
        self.told.add(place)
        said = self._items[place] = _said(data.get("item"), place, self.refused[place])
        first = number(data.get("sequence_number"), 0) + self._shift + 1
        made = item_events(Events(first), number(place[0], 0), said)
        self._shift += len(made)
        return [(one, one["type"]) for one in made]


class ResponsesTools(Tools):
    """The tools of Responses."""

    call_stream: ClassVar[type[CallStream]] = ResponseCalls

    def offers(self, request: Mapping[str, JSON]) -> Iterator[Tool]:
        for i, tool in items(request.get("tools")):
            yield _offer(tool, ("tools", i))
        choice = request.get("tool_choice")
        if isinstance(choice, dict):
            if choice.get("type") == "allowed_tools":
                for i, tool in items(choice.get("tools")):
                    yield _offer(tool, ("tool_choice", "tools", i))
            else:
                yield _offer(choice, ("tool_choice",))

    def calls(self, answer: JSON) -> Iterator[Tool]:
        for i, item in items(answer.get("output") if isinstance(answer, dict) else None):
            if _is_call(item):
                yield _item(item, ("output", i))

    def refuse(self, answer: JSON, refused: Mapping[Place, str]) -> None:
        output = answer["output"]
        for place, text in refused.items():
            output[place[1]] = _said(output[place[1]], place, text)


def _offer(tool: Mapping[str, JSON], place: Place) -> Tool:
    name = tool.get("server_label") if tool.get("type") == "mcp" else tool.get("name")
    return Tool(word(name), word(tool.get("type")), None, place)
