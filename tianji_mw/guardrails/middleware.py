"""`Guardrails`: runs checks over what goes in and what comes out, on streams too. Fail closed.

The checks of one side run together; what they want replaced is replaced in the order of the config. What a check cannot
read is refused, and counted: an answer that nobody could check is not delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar, Unpack

from tianji_mw.call import Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import Blocked
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Guardrail, Said
from tianji_mw.guardrails.choose import Choice
from tianji_mw.guardrails.chosen import Chosen, spoken
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.judge import judge
from tianji_mw.guardrails.policy import version_of
from tianji_mw.guardrails.release import Scan, Window
from tianji_mw.guardrails.rewrite import put, replaced
from tianji_mw.guardrails.tools import judge_offers
from tianji_mw.runtime import Runtime
from tianji_mw.taps import Batch

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class _OfCall(dict["Guardrails", Chosen]):
    """The choices of one call: two sets of guardrails in one stack choose and hold back each for itself."""


class Guardrails(LLMMiddleware):
    """Blocks requests and answers on a guardrail's word, or replaces pieces of them.

    >>> app.add_middleware(Guardrails, checks=[NoCodename()])       # doctest: +SKIP

    `by_model`: names of guardrails that run on calls of a model, by its name, which may hold `*`.
    """

    phase: ClassVar[int] = 600
    order_reason: ClassVar[str] = "what it lets through must already be checked"

    def __init__(
        self,
        app: ASGIApp,
        *,
        checks: Sequence[Guardrail | Entry],
        by_model: Mapping[str, Sequence[str]] | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        self._entries = [
            check if isinstance(check, Entry) else Entry(check=check, name=type(check).__name__) for check in checks
        ]
        self._versions: dict[tuple[int, ...], str] = {}
        self._choice = Choice(self._entries, by_model or {})
        # Only what runs beside a call has to be waited for at its end.
        self._ends = any(entry.moment != "before" or entry.modes_by_tag for entry in self._entries)

    async def start(self, runtime: Runtime) -> None:
        for entry in self._entries:
            await entry.check.start(runtime)

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:  # closes them all, the last first, whatever one of them raises
            for entry in self._entries:
                stack.push_async_callback(entry.check.aclose)

    async def on_request(self, call: Call) -> None:
        chosen = call.note(_OfCall)[self] = Chosen(self._choice(call))
        if chosen.entries:
            call.vary["guardrails"] = call.vary.get("guardrails", "") + self._version(chosen.entries)
            names = ",".join(entry.name for entry in chosen.entries).encode("ascii", "replace").decode()
            for header in ("x-litellm-applied-guardrails", "x-tianji-applied-guardrails"):
                before = call.response_headers.get(header)
                call.response_headers[header] = f"{before},{names}" if before else names
        await judge_offers(chosen.entries, call)
        if not chosen.input:
            return
        if field := call.api.unreadable(call.request):
            call.runtime.count("unscannable_requests", call.api.name)
            raise Blocked(f"'{field}' holds token ids, which the guardrails cannot read; send text.")
        parts = list(call.api.texts(call.request))
        said = [Said(part.text, part.role) for part in parts]
        chosen.begin(said, call)
        found = await judge(chosen.before, said, "input", call)
        for part, spans in zip(parts, found, strict=True):
            if spans:
                put(call.edit(), part.path, replaced(part.text, spans))
        chosen.sent(said, call)

    def _version(self, entries: Sequence[Entry]) -> str:
        """The version of the policy that these entries are; of few sets, so it is made once for each."""
        chosen = tuple(map(id, entries))
        version = self._versions.get(chosen)
        if version is None:
            version = version_of(entries)
            if all(entry in self._entries for entry in entries) and len(self._versions) < 1024:
                self._versions[chosen] = version
        return version

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        chosen = call.note(_OfCall).get(self)
        if chosen is not None and chosen.during is not None:
            await chosen.verdict()
        if chosen is None or not chosen.judges_answers or not call.api.buffered:
            return batch.frames
        if batch.form == "opaque" and batch.status >= 400:
            return batch.frames  # an error page of the wrapped app: no model wrote it
        for frame in batch.frames:
            if not frame.readable:
                call.runtime.count("unscannable_frames", call.api.name)
                raise Blocked("The answer holds content that the guardrails cannot read.")
        window, last = chosen.window, batch.last
        scans = window.add(batch.frames if chosen.gate is None else await chosen.gate.through(batch, call))
        await self._judge(chosen.live, window, scans, call, last=last, fresh=window.added)
        if chosen.by_sentence:
            sentences, fresh = window.sentences(last=last)
            await self._judge(chosen.by_sentence, window, sentences, call, last=True, fresh=fresh)
        if last and chosen.at_end:
            everything = window.everything()
            await self._judge(chosen.at_end, window, everything, call, last=last, fresh=window.left + window.held)
        if last and chosen.afterwards:
            chosen.watch(
                judge(chosen.afterwards, spoken(window.everything()), "output", call, window.left + window.held)
            )
        frames, left = window.release(last=last), window.left
        for run in chosen.runs(call) if left != chosen.left else ():
            run.delivered += left - chosen.left
        chosen.left = left
        return frames

    async def _judge(
        self, entries: Sequence[Entry], window: Window, scans: Sequence[Scan], call: Call, *, last: bool, fresh: int
    ) -> None:
        found = await judge(entries, spoken(scans), "output", call, fresh)
        if any(found) and not window.replace(scans, found, last=last):
            raise Blocked("The answer holds content that has to be replaced, and cannot be where it stands.")

    async def on_end(self, call: Call) -> None:
        chosen = call.note(_OfCall).get(self)
        if chosen is not None:
            await chosen.end(call)
