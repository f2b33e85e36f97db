"""How a call ends: the `Witness` notes what really left, `conclude` ends what was begun and runs every `on_end`.

The outermost layer holds both. No stream ends in silence, and no cancellation reaches an `on_end`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import anyio

from tianji_mw.errors import TianjiError, UpstreamTruncated
from tianji_mw.frames import Form, form_of
from tianji_mw.taps import Closed, RawHeaderList, bodiless, header, send_error, send_error_end, with_headers

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.driver import LLMMiddleware

log = logging.getLogger("tianji_mw.witness")

#: Longest time that the end of an answer, and each `on_end`, may take once the request itself is over.
END_DEADLINE_S: Final = 2.0


class Broken(ConnectionError):
    """Raised to the server for a plain answer that stopped short: only a broken connection tells the client."""


class Witness:
    """The `send` channel of the outermost layer: notes what really left, and never lets a stream end in silence."""

    __slots__ = ("_call", "_form", "_send", "_started")

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._form: Form = "opaque"
        self._started = False

    async def __call__(self, message: Message) -> None:
        call = self._call
        if call.closed:
            if call.ended_by is self:
                raise Closed("the answer was ended by a middleware")
            if call.ended_by is None:
                # Closed by a layer that has no channel of its own in this answer.
                call.ended_by = self
                await self._end(call.error)
                return
        try:
            await self._send(self._noted(message))
        except OSError:
            self._lost()
            raise

    def _lost(self) -> None:
        self._call.gone = True
        self._call.complete = False

    async def _pass(self, message: Message) -> None:
        try:
            await self._send(self._noted(message))
        except OSError:
            self._lost()
            raise

    def _noted(self, message: Message) -> Message:
        """The message as it leaves; the call learns of it."""
        call = self._call
        kind = message["type"]
        if kind == "http.response.body":
            body = message.get("body", b"")
            if body:
                if not call.bytes_out:
                    call.timings.first_client_byte = call.runtime.clock()
                call.bytes_out += len(body)
                if call.kept is not None:
                    call.kept.take(body, call.runtime.clock())
            if not message.get("more_body", False):
                call.complete = not call.gone
                call.timings.end = call.runtime.clock()
        elif kind == "http.response.start":
            self._started = True
            call.status = message["status"]
            headers: RawHeaderList = message.get("headers", ())
            self._form = form_of(header(headers, b"content-type"))
            if call.kept is not None:
                call.kept.start(self._form, headers)
            if call.response_headers:
                headers = with_headers(headers, call.response_headers)
            own = (b"x-request-id", call.id.encode("latin-1"))
            message = {**message, "headers": [*[pair for pair in headers if pair[0].lower() != own[0]], own]}
        return message

    @property
    def open(self) -> bool:
        """Whether an answer has begun that is not at its end."""
        return self._started and not self._call.complete and not self._call.gone

    async def fail(self) -> None:
        """An exception leaves the call: a stream that has begun gets its terminal error event first."""
        if self.open:
            await self._end(TianjiError("The server failed while it produced this answer."))

    async def finish(self) -> None:
        """The inner app has returned. Plain answers stay open when they stopped short: the driver breaks them off."""
        call = self._call
        if self.open and bodiless(call, call.status):
            await self._pass({"type": "http.response.body", "body": b"", "more_body": False})
        elif self.open:
            await self._end(UpstreamTruncated("The answer broke off before its end."))

    async def _end(self, error: BaseException | None) -> None:
        call = self._call
        if not isinstance(error, TianjiError):
            return
        call.fail(error)
        try:
            if self._started:
                await send_error_end(call, self._pass, error, self._form)
            else:
                await send_error(call, self._pass, error)
        except OSError:
            call.gone = True


async def shielded(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end whatever is cancelled meanwhile: a task of its own, since `Task.cancel` knows no shield."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        with anyio.CancelScope(shield=True):  # a scope that was cancelled asks again at every turn of the loop
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((task,))
        raise


async def conclude(call: Call, witness: Witness) -> None:
    """End the answer where it has no end yet, then run every `on_end`, innermost first, each under its deadline."""
    deadline = END_DEADLINE_S
    try:
        if witness.open:
            async with asyncio.timeout(deadline):
                await witness.finish()
    except Exception:  # the finaliser: nobody is left to answer, and the layers must hear of the end
        call.runtime.count("finish_failures", call.api.name)
        log.exception("call %s: its answer could not be ended", call.id)
    if not call.timings.end:
        call.timings.end = call.runtime.clock()
    call.settle()
    for layer in reversed(call.enders):
        if layer.ends_at_once:
            end_at_once(layer, call)
            continue
        name = type(layer).__name__
        limit = call.runtime.alarms.within(deadline)
        try:
            with limit:
                await layer.on_end(call)
        except Exception:  # the finaliser: the answer has left, so a fault here is counted, not raised
            if limit.rang:
                call.runtime.count("on_end_timeouts", name)
                log.error("call %s: %s.on_end took longer than %g s", call.id, name, deadline)
            else:
                call.runtime.count("on_end_failures", name)
                log.exception("call %s: %s.on_end failed", call.id, name)


def end_all_at_once(call: Call) -> None:
    """The end of a call whose answer has left in full, and whose layers wait for nothing: no task is needed."""
    call.settle()
    for layer in reversed(call.enders):
        end_at_once(layer, call)


def end_at_once(layer: LLMMiddleware, call: Call) -> None:
    """Run an `on_end_now`, which waits for nothing, and so can neither be cancelled nor be late."""
    try:
        layer.on_end_now(call)
    except Exception:  # the finaliser: the answer has left, so a fault here is counted, not raised
        name = type(layer).__name__
        call.runtime.count("on_end_failures", name)
        log.exception("call %s: %s.on_end_now failed", call.id, name)
