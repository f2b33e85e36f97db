"""Notices that the client went away while the gateway waits for a provider, and cancels that wait.

Our own server calls back (`channel.py`). Others tell of a disconnect only to those who ask (`receive`): that needs a
task of its own, and most short calls are over before it would matter, so the task starts after a moment.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from tianji_mw.call import ClientGone

if TYPE_CHECKING:
    from types import TracebackType

    from tianji_mw.call import Call

#: A disconnect is acted on within 200 ms; this leaves room.
START_AFTER_S: Final = 0.04


class Watch:
    """`async with Watch(call):` raises ClientGone inside of the block's awaits when the client disconnects."""

    __slots__ = ("_call", "_channel", "_fired", "_nested", "_task", "_watcher")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._channel = call.channel
        self._fired = False
        #: The call is watched already, further out.
        self._nested = False
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        if self._call.on_abandoned is not None:
            self._nested = True
            return
        self._task = asyncio.current_task(self._call.loop)
        self._call.on_abandoned = self._fire
        if self._channel is not None:
            self._channel.on_gone(self._gone)
        else:
            self._call.runtime.alarms.set(self, START_AFTER_S)

    def ring(self) -> None:
        """The call takes long enough to watch its client."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        await self._call.disconnected()
        if self._call.gone and not self._call.followers:
            self._fire()

    def _gone(self) -> None:
        if not self._call.complete:
            self._call.gone = True
            if not self._call.followers:
                self._fire()

    def _fire(self) -> None:
        if self._task is not None:
            self._fired = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nested:
            return
        self._call.on_abandoned = None
        if self._channel is not None:
            self._channel.on_gone(None)
        else:
            self._unwatch()
        if self._fired:
            await self._settle(kind)

    def _unwatch(self) -> None:
        self._call.runtime.alarms.clear(self)
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
        elif self._watcher is not None and not self._watcher.cancelled():
            self._watcher.exception()  # a channel that fails tells nothing of the client; the call goes on without it

    async def _settle(self, kind: type[BaseException] | None) -> None:
        """Our own cancel ends here, as ClientGone; one of somebody else goes on."""
        assert self._task is not None
        left = self._task.uncancel()
        delivered = kind is not None and issubclass(kind, asyncio.CancelledError)
        if not delivered:
            # The cancel was asked for and not yet delivered: take it here, where it belongs.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass
        if kind is None or (delivered and not left):
            raise ClientGone from None
