"""Chat chunks in, Responses events out: the stream half of `ResponsesOverChat`.

Output items stand in the order in which they began. Thoughts end when something else begins, and later ones are a new
item; the message and the calls stay open until the end, because chunks of parallel calls may take turns. Only choice 0
counts: a response has one answer. The last events wait for `finish`, since usage comes after the finish reason.

Source: OpenAI API reference, "Streaming" (Chat) and "Streaming events" (Responses).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.apis.responses_events import Call, Events, Item, Message, Reasoning
from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.responses_over_chat_object import citation, failure, logprobs_of, response_object, usage_object
from tianji_mw.bridges.responses_over_chat_request import CUSTOM_TOOLS
from tianji_mw.bridges.shape import arguments, record, records, string, texts

_INCOMPLETE: Final[Mapping[str, str]] = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponsesStream:
    """State of one stream."""

    __slots__ = (
        *("_calls", "_context", "_done", "_events", "_items", "_latest"),
        *("_message", "_opened", "_reason", "_thoughts", "_usage"),
    )

    def __init__(self, context: Context) -> None:
        self._context = context
        self._events = Events()
        self._items: list[Item] = []
        self._message: Message | None = None
        self._thoughts: Reasoning | None = None
        self._calls: list[_PendingCall] = []
        #: The call that chunks with this index belong to now.
        self._latest: dict[int, _PendingCall] = {}
        self._opened = False
        self._done = False
        self._reason = ""
        self._usage: JSON = None

    @property
    def ended(self) -> bool:
        return bool(self._reason) or self._done

    def feed(self, event: Event) -> list[Event]:
        data = event.data
        if self._done or not isinstance(data, dict):
            return []
        if data.get("error"):
            return _named(self._fail(data["error"]))
        choices, usage = records(data.get("choices")), data.get("usage")
        if not choices and not isinstance(usage, dict):
            return []
        out = self._open()
        if isinstance(usage, dict):
            self._usage = usage_object(usage)
        for choice in choices:
            if choice.get("index") in (0, None):
                out += self._choice(choice)
        return _named(out)

    def finish(self) -> list[Event]:
        if self._done:
            return []
        self._done = True
        out = self._open()
        for call in self._calls:
            out += self._begin_call(call)
        incomplete = _INCOMPLETE.get(self._reason)
        for item in self._items:
            if item is self._thoughts or not isinstance(item, Reasoning):
                # What was being said when the limit struck is the last item.
                out += self._close(item, "incomplete" if incomplete and item is self._items[-1] else "completed")
        status = "incomplete" if incomplete else "completed"
        response = response_object(self._context, status) | {
            "output": [item.item for item in self._items],
            "usage": self._usage,
        }
        if incomplete:
            response["incomplete_details"] = {"reason": incomplete}
        out.append(self._events.make(f"response.{status}", response=response))
        return _named(out)

    # --- the pieces of a chunk

    def _choice(self, choice: Mapping[str, JSON]) -> list[JSON]:
        delta = record(choice.get("delta"))
        out: list[JSON] = []
        parts = delta.get("content")
        thoughts = string(delta.get("reasoning_content")) or string(delta.get("reasoning"))
        # Mistral sends reasoning as content parts of type `thinking`.
        thoughts += "".join(text for part in records(parts) for text in texts(part.get("thinking")))
        if thoughts:
            out += self._think(thoughts)
        text, refusal, notes = "".join(texts(parts)), string(delta.get("refusal")), records(delta.get("annotations"))
        if text or refusal or notes:
            out += self._say(text, refusal, notes, logprobs_of(choice.get("logprobs")))
        for i, call in enumerate(records(delta.get("tool_calls"))):
            out += self._call(call, i)
        self._reason = string(choice.get("finish_reason")) or self._reason
        return out

    def _think(self, text: str) -> list[JSON]:
        out: list[JSON] = []
        if self._thoughts is None:
            self._thoughts = Reasoning(self._events, len(self._items), self._id("rs"))
            out = self._add(self._thoughts)
        return out + self._thoughts.add(text)

    def _say(self, text: str, refusal: str, notes: list[dict[str, JSON]], logprobs: list[JSON]) -> list[JSON]:
        out = self._end_thoughts()
        if self._message is None:
            self._message = Message(self._events, len(self._items), self._id("msg"))
            out += self._add(self._message)
        if text:
            out += self._message.add("output_text", text, logprobs)
        for note in notes:
            if note.get("type") == "url_citation":
                out += self._message.annotate(citation(record(note.get("url_citation")) or note))
        if refusal:
            out += self._message.add("refusal", refusal)
        return out

    def _call(self, delta: Mapping[str, JSON], position: int) -> list[JSON]:
        out = self._end_thoughts()
        index, call_id = delta.get("index"), string(delta.get("id"))
        index = index if isinstance(index, int) else position
        call = self._latest.get(index)
        if call is None or (call_id and call.call_id and call_id != call.call_id):
            # A new id under a known index is a new call: some servers number all calls 0.
            call = self._latest[index] = _PendingCall()
            self._calls.append(call)
        function = record(delta.get("function"))
        call.call_id = call.call_id or call_id
        call.name = call.name or string(function.get("name"))
        call.pieces.append(string(function.get("arguments")))
        if call.name:
            out += self._begin_call(call)
        return out

    def _begin_call(self, call: _PendingCall) -> list[JSON]:
        """Opens the call's item when it has none, and sends what has come; a custom tool's input waits."""
        out: list[JSON] = []
        if call.item is None:
            custom = call.name in self._context.notes.get(CUSTOM_TOOLS, ())
            call_id = call.call_id or f"call_{self._context.call_id}_{len(self._items)}"
            if custom:
                head = {"id": self._id("ctc"), "type": "custom_tool_call"}
            else:
                head = {"id": self._id("fc"), "type": "function_call", "status": "in_progress"}
            call.item = Call(self._events, len(self._items), {**head, "call_id": call_id, "name": call.name})
            out = self._add(call.item)
        if call.item.item["type"] == "function_call" and (text := "".join(call.pieces)):
            call.pieces.clear()
            out += call.item.add(text)
        return out

    # --- items and the response

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._context.call_id}_{len(self._items)}"

    def _add(self, item: Item) -> list[JSON]:
        self._items.append(item)
        return item.open()

    def _end_thoughts(self) -> list[JSON]:
        thoughts, self._thoughts = self._thoughts, None
        return thoughts.close() if thoughts is not None else []

    def _close(self, item: Item, status: str) -> list[JSON]:
        out: list[JSON] = []
        if isinstance(item, Call) and item.empty:
            pieces = next(("".join(call.pieces) for call in self._calls if call.item is item), "")
            if item.item["type"] == "function_call":
                out = item.add("{}")  # a call without arguments; an empty string is no JSON
            else:
                found = arguments(pieces)
                out = item.add(string(found["input"]) if isinstance(found.get("input"), str) else pieces)
        return out + item.close(status)

    def _open(self) -> list[JSON]:
        if self._opened:
            return []
        self._opened = True
        kinds = ("response.created", "response.in_progress")
        return [self._events.make(kind, response=response_object(self._context, "in_progress")) for kind in kinds]

    def _fail(self, error: JSON) -> list[JSON]:
        out = self._open()
        self._done = True
        response = response_object(self._context, "failed") | {"error": failure(error)}
        return [*out, self._events.make("response.failed", response=response)]


class _PendingCall:
    """A call as it comes: its item begins when the name is known."""

    __slots__ = ("call_id", "item", "name", "pieces")

    def __init__(self) -> None:
        self.call_id = ""
        self.name = ""
        self.item: Call | None = None
        #: Arguments that were not sent yet.
        self.pieces: list[str] = []


def _named(events: list[JSON]) -> list[Event]:
    return [Event(event, event["type"]) for event in events]
