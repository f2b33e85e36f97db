"""Builds the events of a Responses stream: numbers them, and keeps the items they describe in step.

Used wherever a stream is made rather than passed on: `Responses.split` and the bridges. It reads no streams, does no
I/O, and knows nothing of where the pieces come from.

Source: OpenAI API reference, "Streaming events" of the Responses API: an item is added, its parts are added, filled by
deltas and done, and then the item is done; every event has the next `sequence_number`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.chat_completions import dicts

#: The field that holds a part's text, by the part's type.
_TEXT_OF: Final[Mapping[str, str]] = {"output_text": "text", "refusal": "refusal"}
#: The field that holds a call's payload and the stem of its events, by the item's type.
_PAYLOAD_OF: Final[Mapping[str, tuple[str, str]]] = {
    "function_call": ("arguments", "response.function_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
}


class Events:
    """The counter of one stream.

    >>> events = Events()
    >>> events.make("response.created"), events.make("response.in_progress")["sequence_number"]
    ({'type': 'response.created', 'sequence_number': 0}, 1)
    """

    __slots__ = ("_next",)

    def __init__(self, first: int = 0) -> None:
        self._next = first

    def make(self, kind: str, **fields: JSON) -> dict[str, JSON]:
        """The next event."""
        event = {"type": kind, "sequence_number": self._next, **fields}
        self._next += 1
        return event


class Item:
    """One output item while it grows. `item` is its JSON, complete once `close` was called."""

    __slots__ = ("_at", "_events", "index", "item")

    def __init__(self, events: Events, index: int, item: dict[str, JSON]) -> None:
        self._events = events
        self.index = index
        self.item = item
        self._at: dict[str, JSON] = {"item_id": item["id"], "output_index": index}

    def open(self) -> list[JSON]:
        """The event that announces the item; its lists are still empty."""
        empty = {key: [] if isinstance(value, list) else value for key, value in self.item.items()}
        return [self._events.make("response.output_item.added", output_index=self.index, item=empty)]

    def close(self, status: str = "completed") -> list[JSON]:
        """The events that end the item with this status."""
        events = self._finish_parts()
        if "status" in self.item:
            self.item["status"] = status
        events.append(self._events.make("response.output_item.done", output_index=self.index, item=self.item))
        return events

    def _finish_parts(self) -> list[JSON]:
        return []


class Message(Item):
    """The assistant's visible answer: parts of text or refusal."""

    __slots__ = ("_pieces",)

    def __init__(self, events: Events, index: int, item_id: str) -> None:
        item = {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        super().__init__(events, index, item)
        # Pieces are joined once, at the end: adding to a growing string would cost its square.
        self._pieces: list[list[str]] = []

    def begin(self, kind: str) -> JSON:
        """The event that opens a new part, `output_text` or `refusal`."""
        part: dict[str, JSON] = {"type": kind, _TEXT_OF[kind]: ""}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": []}
        self._pieces.append([])
        self.item["content"].append(part)
        return self._part_event("response.content_part.added", part=_copy(part))

    def add(self, kind: str, delta: str, logprobs: Sequence[JSON] = ()) -> list[JSON]:
        """The events for more text of this kind; opens a part when the last one is of the other kind."""
        content = self.item["content"]
        events = [] if content and content[-1]["type"] == kind else [self.begin(kind)]
        self._pieces[-1].append(delta)
        if kind == "output_text":
            content[-1]["logprobs"].extend(logprobs)
            events.append(self._part_event("response.output_text.delta", delta=delta, logprobs=list(logprobs)))
        else:
            events.append(self._part_event("response.refusal.delta", delta=delta))
        return events

    def annotate(self, annotation: JSON) -> list[JSON]:
        """The events for a citation in the text."""
        content = self.item["content"]
        events = [] if content and content[-1]["type"] == "output_text" else [self.begin("output_text")]
        notes = content[-1]["annotations"]
        notes.append(annotation)
        fields = {"annotation": annotation, "annotation_index": len(notes) - 1}
        return [*events, self._part_event("response.output_text.annotation.added", **fields)]

    def _part_event(self, kind: str, index: int = -1, **fields: JSON) -> JSON:
        index = len(self._pieces) - 1 if index < 0 else index
        return self._events.make(kind, **self._at, content_index=index, **fields)

    def _finish_parts(self) -> list[JSON]:
        events = []
        for i, (part, pieces) in enumerate(zip(self.item["content"], self._pieces, strict=True)):
            field = _TEXT_OF[part["type"]]
            fields = {field: "".join(pieces)}
            part |= fields
            if part["type"] == "output_text":
                fields["logprobs"] = part["logprobs"]
            events.append(self._part_event(f"response.{part['type']}.done", i, **fields))
            events.append(self._part_event("response.content_part.done", i, part=part))
        return events


class Call(Item):
    """A call of a function or of a custom tool."""

    __slots__ = ("_field", "_pieces", "_stem")

    def __init__(self, events: Events, index: int, head: Mapping[str, JSON]) -> None:
        self._field, self._stem = _PAYLOAD_OF[head["type"]]
        super().__init__(events, index, {**head, self._field: ""})
        self._pieces: list[str] = []

    @property
    def empty(self) -> bool:
        return not self._pieces

    def add(self, delta: str) -> list[JSON]:
        """The event for more of the payload."""
        self._pieces.append(delta)
        return [self._events.make(f"{self._stem}.delta", **self._at, delta=delta)]

    def _finish_parts(self) -> list[JSON]:
        self.item[self._field] = "".join(self._pieces)
        fields = {"name": self.item["name"], self._field: self.item[self._field]}
        return [self._events.make(f"{self._stem}.done", **self._at, **fields)]


class Reasoning(Item):
    """What the model thought, as one summary text."""

    __slots__ = ("_pieces",)

    def __init__(self, events: Events, index: int, item_id: str) -> None:
        super().__init__(events, index, {"id": item_id, "type": "reasoning", "status": "in_progress", "summary": []})
        self._pieces: list[str] = []

    def add(self, delta: str) -> list[JSON]:
        """The events for more thoughts."""
        events = []
        if not self._pieces:
            part = {"type": "summary_text", "text": ""}
            events.append(
                self._events.make("response.reasoning_summary_part.added", **self._at, summary_index=0, part=part)
            )
        self._pieces.append(delta)
        kind = "response.reasoning_summary_text.delta"
        return [*events, self._events.make(kind, **self._at, summary_index=0, delta=delta)]

    def _finish_parts(self) -> list[JSON]:
        if not self._pieces:
            return []
        text = "".join(self._pieces)
        part = {"type": "summary_text", "text": text}
        self.item["summary"] = [part]
        at = {**self._at, "summary_index": 0}
        return [
            self._events.make("response.reasoning_summary_text.done", **at, text=text),
            self._events.make("response.reasoning_summary_part.done", **at, part=part),
        ]


def item_events(events: Events, index: int, item: Mapping[str, JSON]) -> list[JSON]:
    """The events of one finished item: opened empty, filled by deltas, and closed as it stands in the answer."""
    kind, item_id = item.get("type"), str(item.get("id") or f"item_{index}")
    made: list[JSON]
    grown: Item
    if kind == "message":
        grown = message = Message(events, index, item_id)
        made = message.open()
        for part in dicts(item.get("content")):
            field = "refusal" if part.get("type") == "refusal" else "text"
            made.append(message.begin("refusal" if field == "refusal" else "output_text"))
            made += message.add("refusal" if field == "refusal" else "output_text", str(part.get(field) or ""))
    elif kind in ("function_call", "custom_tool_call"):
        payload = "arguments" if kind == "function_call" else "input"
        head = {"name": "", "call_id": "", **item, "id": item_id}
        grown = call = Call(events, index, head)
        made = [*call.open(), *call.add(str(item.get(payload) or ""))]
    elif kind == "reasoning":
        grown = thoughts = Reasoning(events, index, item_id)
        made = thoughts.open()
        for part in dicts(item.get("summary")) or dicts(item.get("content")):
            made += thoughts.add(str(part.get("text") or ""))
    else:
        at = {"output_index": index, "item": item}
        return [events.make("response.output_item.added", **at), events.make("response.output_item.done", **at)]
    made += grown.close()
    made[-1]["item"] = {**item, "id": item_id}
    return made


def _copy(part: Mapping[str, JSON]) -> dict[str, JSON]:
    """A part as it is now; its lists will grow."""
    return {key: list(value) if isinstance(value, list) else value for key, value in part.items()}
