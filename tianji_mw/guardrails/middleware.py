"""`Guardrails`: runs checks over what goes in and what comes out, on streams too. Fail closed.

The checks of one side run concurrently. What a check cannot read is refused, and counted: an answer that nobody could
check is not delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar, Unpack

from tianji_mw.call import Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import Blocked, TianjiError
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Guardrail, Side, Verdict
from tianji_mw.guardrails.release import Window
from tianji_mw.runtime import Runtime
from tianji_mw.taps import Batch

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class _Windows(dict["Guardrails", Window]):
    """The windows of one call: two sets of guardrails in one stack hold back each for itself."""


class Guardrails(LLMMiddleware):
    """Blocks requests and answers on a guardrail's word.

    >>> app.add_middleware(Guardrails, checks=[NoCodename()])       # doctest: +SKIP
    """

    phase: ClassVar[int] = 600
    order_reason: ClassVar[str] = "what it lets through must already be checked"

    def __init__(self, app: ASGIApp, *, checks: Sequence[Guardrail], **options: Unpack[LayerOptions]) -> None:
        super().__init__(app, **options)
        self._checks = tuple(checks)
        self._input = [check for check in checks if check.runs_on("input")]
        self._output = [check for check in checks if check.runs_on("output")]
        self._window = max((check.window for check in self._output), default=0)

    async def start(self, runtime: Runtime) -> None:
        for check in self._checks:
            await check.start(runtime)

    async def aclose(self) -> None:
        async with AsyncExitStack() as stack:  # closes them all, the last first, whatever one of them raises
            for check in self._checks:
                stack.push_async_callback(check.aclose)

    async def on_request(self, call: Call) -> None:
        if self._input and (field := call.api.unreadable(call.request)):
            call.runtime.count("unscannable_requests", call.api.name)
            raise Blocked(f"'{field}' holds token ids, which the guardrails cannot read; send text.")
        for part in call.api.texts(call.request):
            await self._judge(part.text, "input", call)

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        if not self._output or not call.api.buffered:
            return batch.frames
        if batch.form == "opaque" and batch.status >= 400:
            return batch.frames  # an error page of the wrapped app: no model wrote it
        for frame in batch.frames:
            if not frame.readable:
                call.runtime.count("unscannable_frames", call.api.name)
                raise Blocked("The answer holds content that the guardrails cannot read.")
        windows = call.note(_Windows)
        window = windows.get(self) or windows.setdefault(self, Window(self._window))
        for text in window.add(batch.frames):
            await self._judge(text, "output", call)
        return window.release(last=batch.last)

    async def _judge(self, text: str, side: Side, call: Call) -> None:
        checks = self._output if side == "output" else self._input
        if len(checks) == 1:
            verdicts: list[Verdict | BaseException] = [await self._ask(checks[0], text, call)]
        else:
            asked = (self._ask(check, text, call) for check in checks)
            verdicts = await asyncio.gather(*asked, return_exceptions=True)
        for check, verdict in zip(checks, verdicts, strict=True):
            if isinstance(verdict, BaseException):
                raise verdict
            if verdict.blocked:
                where = "request" if side == "input" else "answer"
                raise Blocked(
                    f"The {where} was blocked by the guardrail '{type(check).__name__}' ({verdict.category})."
                )

    async def _ask(self, check: Guardrail, text: str, call: Call) -> Verdict:
        try:
            async with asyncio.timeout(check.timeout_s):
                verdict = await check.check(text, call)
            if not isinstance(verdict, Verdict):
                raise TypeError(f"check() must return a Verdict, not {type(verdict).__name__}")
            return verdict
        except TianjiError:
            raise
        except Exception as error:
            # Plugin failsafe: a check that fails decides against the content.
            call.runtime.count("guardrail_failures", type(check).__name__)
            raise Blocked(
                f"The guardrail '{type(check).__name__}' failed, so the content was not let through."
            ) from error
