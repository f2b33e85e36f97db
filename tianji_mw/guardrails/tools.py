"""Shows guardrails the tools of requests and the calls of answers, and carries out what they say.

`ToolGate` holds a stream from the first part of a call until the call is complete: no part of it leaves before the
verdict. Text before and after flows on. It stands before the window of the texts, which sees what it lets through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tianji_mw.apis.tools import CallStream, Place, Tool
from tianji_mw.call import Call
from tianji_mw.errors import Blocked
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Side, Span, Verdict, mask
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.judge import judge
from tianji_mw.taps import Batch


def instead(category: str, text: str) -> Verdict:
    """The verdict that takes a tool away and lets the model say this text in its place."""
    return mask(Span(0, 0, category, text))


async def judge_offers(entries: Sequence[Entry], call: Call) -> None:
    """Ask about the tools of a request; those that nobody may use are taken out of it. Raises as `judge` does."""
    entries = _judges(entries, "input")
    if entries:
        refused = await _refused(entries, list(call.api.tools.offers(call.request)), "input", call)
        if refused:
            call.api.tools.withdraw(call.edit(), list(refused))


def _judges(entries: Sequence[Entry], side: Side) -> list[Entry]:
    """Those that judge tools. The class is asked first: nearly all are of a class that does not, on every call."""
    return [entry for entry in entries if "tools" in type(entry.check).subjects and entry.runs_on(side, "tools")]


async def _refused(entries: Sequence[Entry], tools: Sequence[Tool], side: Side, call: Call) -> dict[Place, str]:
    """The places of the tools that are taken away, with what is said instead."""
    found = await judge(entries, tools, side, call)
    characters = sum(len(tool.text) for tool in tools)
    for entry in entries if tools else ():
        entry.run(call, side).delivered += characters
    return {
        tool.place: "\n".join(dict.fromkeys(span.replacement or span.label for span in spans))
        for tool, spans in zip(tools, found, strict=True)
        if spans
    }


class ToolGate:
    """The tool calls of one answer, and the frames that wait for a verdict about them."""

    __slots__ = ("_entries", "_held", "_stream", "_waits", "_whole")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = entries
        #: Whether frames wait for the verdict, and whether all of the answer does.
        self._waits = any(entry.waits != "audit" for entry in entries)
        self._whole = any(entry.waits == "whole" for entry in entries)
        self._held: list[tuple[Frame, Sequence[Place]]] = []
        self._stream: CallStream | None = None

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> ToolGate | None:
        """The gate that these make together; None where nobody judges calls."""
        found = _judges(entries, "output")
        return cls(found) if found else None

    async def through(self, batch: Batch, call: Call) -> Sequence[Frame]:
        """Frames that may go on. Raises as `judge` does, and Blocked for a call that cannot be taken back."""
        if batch.form != "sse":
            for frame in batch.frames:
                await self._plain(frame, call)
            return batch.frames
        stream = self._stream
        if stream is None:
            stream = self._stream = call.api.tools.call_stream()
        out: list[Frame] = []
        for frame in batch.frames:
            places = stream.read(frame.data, frame.event)
            if self._waits and (places or self._held or self._whole):
                self._held.append((frame, places))
            else:
                out += _rewritten(stream, frame, places, call)
            if (places or self._held) and not self._whole and not stream.open:
                out += await self._verdict(stream, call)
        if batch.last:
            out += await self._verdict(stream, call)
        return batch.frames if out == batch.frames else out

    async def _plain(self, frame: Frame, call: Call) -> None:
        tools = call.api.tools
        refused = await _refused(self._entries, list(tools.calls(frame.data)), "output", call)
        if refused:
            tools.refuse(frame.data, refused)
            frame.edit(frame.data)

    async def _verdict(self, stream: CallStream, call: Call) -> list[Frame]:
        """Ask about the calls that are complete, and let go what waited for it."""
        due = stream.due()
        refused: Mapping[Place, str] = await _refused(self._entries, due, "output", call) if due else {}
        if refused and not self._waits:
            raise Blocked("The answer holds a tool call that has to be taken out, and a part of it has left.")
        stream.refused.update(refused)
        held, self._held = self._held, []
        return [made for frame, places in held for made in _rewritten(stream, frame, places, call)]


def _rewritten(stream: CallStream, frame: Frame, places: Sequence[Place], call: Call) -> Sequence[Frame]:
    """A frame as it leaves: itself, unless calls were refused."""
    made = stream.rewrite(frame.data, frame.event, places) if stream.refused else None
    if made is None:
        return (frame,)
    if len(made) == 1 and made[0][1] == frame.event:
        frame.edit(made[0][0])
        return (frame,)
    return [Frame.made(call, data, event) for data, event in made]
