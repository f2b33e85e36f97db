"""What runs on one call: guardrails before it, beside it and on its answer, and what of the answer is held back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from tianji_mw.call import Call
from tianji_mw.errors import Blocked
from tianji_mw.guardrails.base import Said
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.judge import judge
from tianji_mw.guardrails.release import Scan, Window
from tianji_mw.guardrails.tools import ToolGate
from tianji_mw.runs import Run


class Chosen:
    """The guardrails of one call in one layer.

    What only watches (`dry_run`, `logging_only`) runs beside the call, and `end` waits for it; so does a check
    `during_call`, for which the answer waits.
    """

    __slots__ = (
        "_output", "_tasks", "afterwards", "at_end", "before", "by_sentence", "during", "entries", "gate", "input",
        "left", "live", "window",
    )  # fmt: skip

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = entries
        self.input = [entry for entry in entries if entry.runs_on("input")]
        self.before = [entry for entry in self.input if entry.moment == "before"]
        output = self._output = [entry for entry in entries if entry.runs_on("output")]
        late = [entry for entry in output if entry.waits == "audit" and entry.check.release == "whole"]
        #: Asked about each part of a stream as it comes; about each sentence; at its end about all of it, before or
        #: while it leaves.
        self.live = [entry for entry in output if entry.waits in ("audit", "window") and entry not in late]
        self.by_sentence = [entry for entry in output if entry.waits == "sentence"]
        self.at_end = [entry for entry in output if entry.waits == "whole"]
        self.at_end += [entry for entry in late if entry.moment != "aside"]
        self.afterwards = [entry for entry in late if entry.moment == "aside"]
        size = max((entry.check.window for entry in (*self.live, *self.by_sentence)), default=0)
        hold = max((entry.check.window for entry in self.live if entry.waits == "window"), default=0)
        whole = any(entry.waits == "whole" for entry in output)
        self.window = Window(size, "all" if whole else hold, sentences=bool(self.by_sentence), keep=bool(late))
        #: Characters of the answer that have left.
        self.left = 0
        #: The question that the answer waits for.
        self.during: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[Any]] = []
        self.gate = ToolGate.of(entries)

    @property
    def judges_answers(self) -> bool:
        """Whether anything looks at the answer."""
        return bool(self._output) or self.gate is not None

    def begin(self, said: Sequence[Said], call: Call) -> None:
        """Ask what runs beside the call about the request."""
        if len(self.before) == len(self.input):
            return
        if during := [entry for entry in self.input if entry.moment == "during"]:
            self.during = asyncio.create_task(self._during(during, said, call))
        if aside := [entry for entry in self.input if entry.moment == "aside"]:
            self.watch(judge(aside, said, "input", call))

    def watch(self, question: Coroutine[Any, Any, object]) -> None:
        """Let it run beside the call."""
        self._tasks.append(asyncio.create_task(question))

    async def _during(self, entries: Sequence[Entry], said: Sequence[Said], call: Call) -> None:
        if any(await judge(entries, said, "input", call)):
            raise Blocked("The request holds content that had to be replaced, and was already on its way.")

    async def verdict(self) -> None:
        """Wait for the question that runs beside the call. Raises what ends it."""
        task, self.during = self.during, None
        if task is not None:
            await task

    def sent(self, said: Sequence[Said], call: Call) -> None:
        """Record that the request goes on."""
        characters = sum(len(one.text) for one in said)
        for entry in self.input:
            run = entry.run(call, "input")
            run.delivered += characters
            run.partial = entry.newest_only or bool(entry.skip_roles)

    def runs(self, call: Call) -> list[Run]:
        """The records of what judges the answer."""
        return [entry.run(call, "output") for entry in self._output]

    async def end(self, call: Call) -> None:
        """Wait for what watches; give up what nobody waits for any more."""
        if self.during is not None:
            self.during.cancel()
            with suppress(asyncio.CancelledError, Blocked):
                await self.during
        for task in self._tasks:
            await task


def spoken(scans: Sequence[Scan]) -> list[Said]:
    """Texts of an answer."""
    return [Said(scan.text, "assistant", scan.seen) for scan in scans]
