"""What an API says about tools: those that a request offers, and the calls in an answer, plain or while it streams.

Base classes of an API that has no tools; `chat_tools.py`, `messages_tools.py` and `responses_tools.py` override them.
Nothing here decides: who may use which tool is a guardrail's business. Reading is total: any JSON gives tools or none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import orjson

if TYPE_CHECKING:
    from tianji_mw.apis.base import JSON

#: Where something stands, as steps from the root; on streams, which call it is.
Place = tuple[str | int, ...]

#: Fields that make no sense, or are refused by providers, without the list that they speak of.
_COMPANIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "tools": ("tool_choice", "parallel_tool_calls"),
    "functions": ("function_call",),
}


class Tool(NamedTuple):
    """A tool that a request offers or asks for, or one call of it in an answer.

    `type` is `function` for what the client runs itself, `custom` for its tools with free text, `mcp`, or the
    provider's word for a tool of its own, which may have no name.
    """

    name: str
    type: str = "function"
    #: The arguments of a call as the model wrote them; None where there are none, as in requests.
    arguments: str | None = None
    place: Place = ()

    @property
    def text(self) -> str:
        """What a reader of texts would see of it."""
        return self.arguments or ""


class Growing:
    """One call of a stream while it grows, in every way in which a client may read it."""

    __slots__ = ("done", "id", "judged", "names", "pieces", "type", "wholes")

    def __init__(self, kind: str = "function", call_id: str = "") -> None:
        self.type = kind
        self.id = call_id
        self.names: list[str] = []
        self.pieces: list[str] = []
        #: Name and arguments as events say them that repeat the call as a whole.
        self.wholes: list[tuple[str, str | None]] = []
        self.done = False
        self.judged: set[tuple[str, str | None]] = set()

    def readings(self) -> Iterator[tuple[str, str | None]]:
        """Names with arguments, those judged before left out. Nearly always one, however often a call is repeated."""
        found = list(self.wholes)
        if self.names or self.pieces or not found:
            arguments = "".join(self.pieces) if self.pieces else found[-1][1] if found else None
            names = {"".join(self.names)}
            if len(self.names) > 1 and len(set(self.names)) == 1:  # some servers repeat the name in each event
                names.add(self.names[0])
            found += [(name, arguments) for name in sorted(names)]
        for reading in dict.fromkeys(found):
            if reading not in self.judged:
                self.judged.add(reading)
                yield reading


class CallStream:
    """The tool calls of one stream. One that holds none reads nothing."""

    __slots__ = ("calls", "refused", "told")

    def __init__(self) -> None:
        #: All calls so far, in the order in which they began.
        self.calls: dict[Place, Growing] = {}
        #: What is said in place of calls that were refused.
        self.refused: dict[Place, str] = {}
        self.told: set[Place] = set()

    def read(self, data: JSON, event: str) -> Sequence[Place]:
        """Take a frame in; the calls of which it holds parts, once for each part."""
        return ()

    @property
    def open(self) -> bool:
        """Whether a call waits for its rest."""
        return any(not call.done for call in self.calls.values())

    def due(self) -> list[Tool]:
        """What has to be judged and was not yet; `place` says of which call it is."""
        return [
            Tool(name, call.type, arguments, place)
            for place, call in self.calls.items()
            for name, arguments in call.readings()
        ]

    def rewrite(self, data: JSON, event: str, places: Sequence[Place]) -> list[tuple[JSON, str]] | None:
        """A frame without the calls that were refused, as frames with their events; None where it stays as it is.

        Frames come in their order, each with what `read` said of it. It may change `data`.
        """
        return None


class Tools:
    """How an API writes tools."""

    #: What `tool_choice` says when no tool may be called.
    none: ClassVar[JSON] = "none"
    call_stream: ClassVar[type[CallStream]] = CallStream

    def offers(self, request: Mapping[str, JSON]) -> Iterator[Tool]:
        """The tools that a request offers, and those that it forces. What was called before in it is none of them."""
        yield from ()

    def calls(self, answer: JSON) -> Iterator[Tool]:
        """The calls in a plain answer."""
        yield from ()

    def refuse(self, answer: JSON, refused: Mapping[Place, str]) -> None:
        """Take calls out of a plain answer; the model says the texts in their place."""

    def withdraw(self, request: dict[str, JSON], places: Sequence[Place]) -> None:
        """Take tools out of a request; what forced one of them asks for none."""
        for field in (str(place[0]) for place in places if len(place) == 1):
            if field in ("tool_choice", "function_call"):
                request[field] = self.none
            else:
                request.pop(field, None)
        for holder in {place[:-1] for place in places if len(place) > 1}:
            gone = {place[-1] for place in places if place[:-1] == holder}
            parent = at(request, holder[:-1])
            kept = [item for i, item in enumerate(parent[holder[-1]]) if i not in gone]
            if kept:
                parent[holder[-1]] = kept
            elif holder[0] == "tool_choice":
                request["tool_choice"] = self.none
            else:
                for name in (str(holder[0]), *_COMPANIONS.get(str(holder[0]), ())):
                    request.pop(name, None)


def at(root: JSON, place: Place) -> Any:
    """What stands at this place."""
    for step in place:
        root = root[step]
    return root


def items(value: JSON) -> Iterator[tuple[int, dict[str, JSON]]]:
    """The elements of a list by their places; one that is no object counts as an empty one, to be judged as such."""
    for i, item in enumerate(value if isinstance(value, list) else ()):
        yield i, item if isinstance(item, dict) else {}


def word(value: JSON) -> str:
    """A text; empty for anything else."""
    return value if isinstance(value, str) else ""


def number(value: JSON, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def as_text(value: JSON) -> str:
    """Arguments as text; nested too deeply to encode they are none, and a rule about arguments denies them."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return ""
