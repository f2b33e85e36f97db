"""`Guardrails`: runs checks over what goes in and what comes out, on streams too. Fail closed.

The checks of one side run together; what they want replaced is replaced in the order of the config. What a check cannot
read is refused, and counted: an answer that nobody could check is not delivered.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar, Unpack

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import Blocked, InvalidRequest
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Guardrail, Said
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.judge import judge
from tianji_mw.guardrails.release import Scan, Window
from tianji_mw.guardrails.rewrite import put, replaced
from tianji_mw.runtime import Runtime
from tianji_mw.taps import Batch

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class _Chosen:
    """What runs on one call, and the part of its answer that is held back."""

    __slots__ = ("at_end", "entries", "live", "window")

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        output = [entry for entry in entries if entry.check.runs_on("output")]
        #: Asked about each part of a stream as it comes, and at its end about all of it.
        self.live = [entry for entry in output if entry.waits != "whole"]
        self.at_end = [entry for entry in output if entry.waits == "whole"]
        hold = max((entry.check.window for entry in self.live if entry.waits == "window"), default=0)
        size = max((entry.check.window for entry in self.live), default=0)
        self.window = Window(size, "all" if self.at_end else hold)


class _OfCall(dict["Guardrails", _Chosen]):
    """The choices of one call: two sets of guardrails in one stack choose and hold back each for itself."""


class Guardrails(LLMMiddleware):
    """Blocks requests and answers on a guardrail's word, or replaces pieces of them.

    >>> app.add_middleware(Guardrails, checks=[NoCodename()])       # doctest: +SKIP
    """

    phase: ClassVar[int] = 600
    order_reason: ClassVar[str] = "what it lets through must already be checked"

    def __init__(self, app: ASGIApp, *, checks: Sequence[Guardrail | Entry], **options: Unpack[LayerOptions]) -> None:
        super().__init__(app, **options)
        self._entries = [
            check if isinstance(check, Entry) else Entry(check=check, name=type(check).__name__) for check in checks
        ]
        self._names = {entry.name for entry in self._entries}
        self._always = [entry for entry in self._entries if entry.always]

    async def start(self, runtime: Runtime) -> None:
        for entry in self._entries:
            await entry.check.start(runtime)

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:  # closes them all, the last first, whatever one of them raises
            for entry in self._entries:
                stack.push_async_callback(entry.check.aclose)

    async def on_request(self, call: Call) -> None:
        chosen = call.note(_OfCall)[self] = _Chosen(self._choose(call))
        if chosen.entries:
            names = ",".join(entry.name for entry in chosen.entries).encode("ascii", "replace").decode()
            for header in ("x-litellm-applied-guardrails", "x-tianji-applied-guardrails"):
                before = call.response_headers.get(header)
                call.response_headers[header] = f"{before},{names}" if before else names
        entries = [entry for entry in chosen.entries if entry.check.runs_on("input")]
        if not entries:
            return
        if field := call.api.unreadable(call.request):
            call.runtime.count("unscannable_requests", call.api.name)
            raise Blocked(f"'{field}' holds token ids, which the guardrails cannot read; send text.")
        parts = list(call.api.texts(call.request))
        found = await judge(entries, [Said(part.text, part.role) for part in parts], "input", call)
        for part, spans in zip(parts, found, strict=True):
            if spans:
                put(call.edit(), part.path, replaced(part.text, spans))

    def _choose(self, call: Call) -> list[Entry]:
        """The entries that run: always, or named by the request or its key."""
        asked = set(_named(call.request.get("guardrails")))
        if unknown := asked - self._names:
            text = f"There is no guardrail '{min(unknown)[:100]}'."
            raise InvalidRequest(text, param="guardrails", code="unknown_guardrail")
        if call.identity is not None:
            asked |= set(_named(call.identity.metadata.get("guardrails")))
        if not asked:
            return self._always
        return [entry for entry in self._entries if entry.always or entry.name in asked]

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        chosen = call.note(_OfCall).get(self)
        if chosen is None or not (chosen.live or chosen.at_end) or not call.api.buffered:
            return batch.frames
        if batch.form == "opaque" and batch.status >= 400:
            return batch.frames  # an error page of the wrapped app: no model wrote it
        for frame in batch.frames:
            if not frame.readable:
                call.runtime.count("unscannable_frames", call.api.name)
                raise Blocked("The answer holds content that the guardrails cannot read.")
        window, last = chosen.window, batch.last
        await self._judge(chosen.live, window, window.add(batch.frames), call, last=last)
        if last and chosen.at_end:
            await self._judge(chosen.at_end, window, window.everything(), call, last=last)
        return chosen.window.release(last=batch.last)

    async def _judge(
        self, entries: Sequence[Entry], window: Window, scans: Sequence[Scan], call: Call, *, last: bool
    ) -> None:
        found = await judge(entries, [Said(scan.text, "assistant") for scan in scans], "output", call)
        if any(found) and not window.replace(scans, found, last=last):
            raise Blocked("The answer holds content that has to be replaced, and cannot be where it stands.")


def _named(value: JSON) -> list[str]:
    """Names in a `guardrails` list: texts, or mappings by name."""
    if not isinstance(value, list | tuple):
        return []
    return [name for item in value for name in (item if isinstance(item, dict) else [item]) if isinstance(name, str)]
