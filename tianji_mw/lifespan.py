"""Joins our own start and stop with the lifespan of the wrapped app, whatever that app makes of it.

Five cases: the app supports lifespan; it raises on it (Django); it takes the messages and never answers; its start
fails; the server sends no lifespan at all (mounted app, test transport), where the driver starts lazily at the first
request. Ours start first and stop last.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("tianji_mw.lifespan")

Hook = Callable[[], Awaitable[None]]


class _Silent(Exception):  # ends an app, reports nothing
    """Raised into an app that asks for a third message: it takes them and never answers."""


class Lifespan:
    """One run of the lifespan protocol around `app`.

    The start is over before the app hears of it, so no fault of ours travels through the app's code.
    """

    __slots__ = ("_answered", "_app", "_ended", "_failed", "_open", "_receive", "_send", "_start", "_stop", "_told")

    def __init__(self, app: ASGIApp, *, start: Hook, stop: Hook) -> None:
        self._app = app
        self._start = start
        self._stop = stop
        #: Messages that the app has heard: startup, shutdown.
        self._told = 0
        self._answered = self._failed = self._ended = self._open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        await receive()  # `lifespan.startup`: nothing else comes first
        self._open = True
        try:
            if await self._begin():
                await self._accompany(scope)
        finally:
            await self._close()

    async def _begin(self) -> bool:
        try:
            await self._start()
        except Exception as error:  # the server has to be told, else it serves without us
            await self._close()
            if not isinstance(error, SetupError):
                log.exception("the start failed")
            await self._answer({"type": "lifespan.startup.failed", "message": _sentence(error)})
            return False
        return True

    async def _accompany(self, scope: Scope) -> None:
        try:
            await self._app(scope, self._inner_receive, self._inner_send)
        except _Silent:
            pass
        except Exception as error:
            if self._answered:
                raise
            if isinstance(error, SetupError):
                await self._close()
                await self._answer({"type": "lifespan.startup.failed", "message": error.message})
                return
            log.debug("the wrapped app has no lifespan", exc_info=True)
        if self._failed or self._ended:
            return
        # The app has left early, or never joined: the rest of the protocol is ours.
        await self._answer({"type": "lifespan.startup.complete"})
        if self._told < 2:
            await self._receive()
        await self._end({"type": "lifespan.shutdown.complete"})

    async def _inner_receive(self) -> Message:
        self._told += 1
        if self._told == 1:
            return {"type": "lifespan.startup"}
        if self._told > 2:
            raise _Silent
        # It asks for the next message without having answered the first: it does not speak the protocol.
        await self._answer({"type": "lifespan.startup.complete"})
        return await self._receive()

    async def _inner_send(self, message: Message) -> None:
        kind = message["type"]
        if kind.startswith("lifespan.shutdown"):
            await self._end(message)
            return
        if kind == "lifespan.startup.failed":
            self._failed = True
            await self._close()
        await self._answer(message)

    async def _answer(self, message: Message) -> None:
        if not self._answered:
            self._answered = True
            await self._send(message)

    async def _end(self, message: Message) -> None:
        self._ended = True
        if not await self._close() and message["type"] == "lifespan.shutdown.complete":
            message = {"type": "lifespan.shutdown.failed", "message": "a middleware could not be closed; see the log"}
        await self._send(message)

    async def _close(self) -> bool:
        """Stop ours, once; False when that failed."""
        if self._open:
            self._open = False
            try:
                await self._stop()
            except Exception:  # plugin failsafe: what cannot be closed must not hide the app's own ending
                log.exception("a middleware could not be closed")
                return False
        return True


def _sentence(error: Exception) -> str:
    return error.message if isinstance(error, SetupError) else f"The start failed: {type(error).__name__}: {error}"
