"""`Guardrails`: runs checks over what goes in and what comes out, on streams too. Fail closed.

The checks of one side run concurrently. What a check cannot read is refused, and counted: an answer that nobody could
check is not delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tianji_mw.call import Call
from tianji_mw.driver import LLMMiddleware
from tianji_mw.errors import Blocked, TianjiError
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Guardrail, Side
from tianji_mw.guardrails.release import Window
from tianji_mw.runtime import Runtime
from tianji_mw.taps import Batch

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Guardrails(LLMMiddleware):
    """Blocks requests and answers on a guardrail's word.

    >>> app.add_middleware(Guardrails, checks=[NoCodename()])       # doctest: +SKIP
    """

    phase: ClassVar[int] = 600
    order_reason: ClassVar[str] = "what it lets through must already be checked"

    def __init__(self, app: ASGIApp, *, checks: Sequence[Guardrail], **options: Any) -> None:
        super().__init__(app, **options)
        self._checks = tuple(checks)
        self._output = [check for check in checks if check.runs_on("output")]
        self._window = max((check.window for check in self._output), default=0)

    async def start(self, runtime: Runtime) -> None:
        for check in self._checks:
            await check.start(runtime)

    async def aclose(self) -> None:
        for check in reversed(self._checks):
            await check.aclose()

    async def on_request(self, call: Call) -> None:
        for part in call.api.texts(call.request):
            await self._judge(part.text, "input", call)

    async def on_frames(self, call: Call, batch: Batch) -> Sequence[Frame]:
        if not self._output or batch.form == "opaque":
            return batch.frames
        for frame in batch.frames:
            if not frame.readable:
                call.runtime.count("unscannable_frames", call.api.name)
                raise Blocked("The answer holds content that the guardrails cannot read.")
        window = call.notes.get(Window)
        if not isinstance(window, Window):
            window = call.notes[Window] = Window(self._window)
        if text := window.add(batch.frames):
            await self._judge(text, "output", call)
        return window.release(last=batch.last)

    async def _judge(self, text: str, side: Side, call: Call) -> None:
        checks = [check for check in self._checks if check.runs_on(side)]
        if len(checks) == 1:
            verdicts = [await self._ask(checks[0], text, call)]
        else:
            verdicts = await asyncio.gather(*(self._ask(check, text, call) for check in checks))
        for check, verdict in zip(checks, verdicts, strict=True):
            if verdict.blocked:
                where = "request" if side == "input" else "answer"
                raise Blocked(f"The {where} was blocked by the guardrail '{type(check).__name__}' ({verdict.category}).")

    async def _ask(self, check: Guardrail, text: str, call: Call) -> Any:
        try:
            return await check.check(text, call)
        except TianjiError:
            raise
        except Exception as error:  # noqa: BLE001 - plugin failsafe: a check that fails decides against the content
            call.runtime.count("guardrail_failures", type(check).__name__)
            raise Blocked(f"The guardrail '{type(check).__name__}' failed, so the content was not let through.") from error
