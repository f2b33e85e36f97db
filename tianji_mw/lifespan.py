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


class Lifespan:
    """One run of the lifespan protocol around `app` (None for a terminal app that has none of its own)."""

    __slots__ = ("_answered", "_app", "_heard", "_start", "_started", "_stop")

    def __init__(self, app: ASGIApp | None, *, start: Hook, stop: Hook) -> None:
        self._app = app
        self._start = start
        self._stop = stop
        self._heard: list[str] = []
        self._answered = False
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        failed = False

        async def inner_receive() -> Message:
            if len(self._heard) == 1 and not self._answered:
                # It asks for the next message without having answered the first: it does not speak the protocol.
                await self._answer(send, {"type": "lifespan.startup.complete"})
            return await self._hear(receive)

        async def inner_send(message: Message) -> None:
            nonlocal failed
            if message["type"] == "lifespan.startup.failed":
                failed = True
                await self._close()
            elif message["type"].startswith("lifespan.shutdown"):
                await self._close()
            await self._answer(send, message)

        try:
            if self._app is not None:
                await self._app(scope, inner_receive, inner_send)
        except SetupError as error:
            await self._close()
            if self._answered:
                raise
            await self._answer(send, {"type": "lifespan.startup.failed", "message": error.message})
            return
        except Exception:
            if self._answered or len(self._heard) > 1:
                await self._close()
                raise
            log.debug("the wrapped app has no lifespan", exc_info=True)
        if failed:
            return
        await self._carry_on_alone(receive, send)

    async def _carry_on_alone(self, receive: Receive, send: Send) -> None:
        """Play the rest of the protocol for an app that left early or never joined."""
        if not self._heard:
            try:
                await self._hear(receive)
            except SetupError as error:
                await self._answer(send, {"type": "lifespan.startup.failed", "message": error.message})
                return
        if not self._answered:
            await self._answer(send, {"type": "lifespan.startup.complete"})
        if self._started:
            if len(self._heard) == 1:
                await self._hear(receive)
            await self._close()
            await send({"type": "lifespan.shutdown.complete"})

    async def _hear(self, receive: Receive) -> Message:
        message = await receive()
        self._heard.append(message["type"])
        if message["type"] == "lifespan.startup":
            # Marked before the call: what a failed start has opened is closed as well.
            self._started = True
            try:
                await self._start()
            except SetupError:
                await self._close()
                raise
        return message

    async def _answer(self, send: Send, message: Message) -> None:
        if message["type"].startswith("lifespan.startup"):
            if self._answered:
                return
            self._answered = True
        await send(message)

    async def _close(self) -> None:
        if self._started:
            self._started = False
            await self._stop()
