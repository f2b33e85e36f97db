"""Notices that the client went away while the gateway waits for a provider, and cancels that wait.

A server tells of a disconnect only to those who ask (`receive`). Asking needs a task of its own, and most short calls
are over before it would matter: the task starts after a moment.
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

    __slots__ = ("_call", "_fired", "_task", "_watcher")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._fired = False
        self._task: asyncio.Task[object] | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self._task = asyncio.current_task()
        self._call.runtime.alarms.set(self, START_AFTER_S)

    def ring(self) -> None:
        """The call takes long enough to watch its client."""
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        await self._call.disconnected()
        if self._call.gone and self._task is not None:
            self._fired = True
            self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call.runtime.alarms.clear(self)
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
        elif self._watcher is not None and not self._watcher.cancelled():
            self._watcher.exception()  # a channel that fails tells nothing of the client; the call goes on without it
        if self._fired and self._task is not None:
            left = self._task.uncancel()
            delivered = kind is not None and issubclass(kind, asyncio.CancelledError)
            if not delivered:
                # The cancel was asked for and not yet delivered: take it here, where it belongs.
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    pass
            # Somebody else may have cancelled as well: that goes on.
            if kind is None or (delivered and not left):
                raise ClientGone from None
