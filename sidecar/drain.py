"""The end of a process: what was asked for by signal, and a hard stop for a process that does not end by itself.

It closes nothing; `server.run` does, following the three events.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

log = logging.getLogger("tianji_mw.sidecar")

#: A second signal ends the process within two seconds; the event loop gets this much of them.
FORCED_EXIT_S: Final = 1.7


class Drain:
    """How far the wish to end has gone: `requested`, `hurried` (no drain delay), `forced` (cut what runs).

    `with drain.signals(): ...` binds it to SIGTERM and SIGINT; tests and embedding code call the methods. The methods
    are for the event loop's thread only.
    """

    def __init__(self, *, interrupt: bool = True, follow: Callable[[Drain], None] | None = None) -> None:
        """`interrupt=False` ignores SIGINT: a terminal sends it to parent and workers alike, and a parent tells its
        workers itself. `follow` is called in the running loop to listen for other orders than signals.
        """
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self.forced = asyncio.Event()
        self._interrupt = interrupt
        self._follow = follow

    def request(self, *, hurry: bool = False) -> None:
        """Begin to drain. Asking again changes nothing, except that `hurry` ends the delay."""
        self.requested.set()
        if hurry:
            self.hurried.set()

    def force(self) -> None:
        """Give up on running requests."""
        self.request(hurry=True)
        self.forced.set()

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Handle signals meanwhile: the first drains, the second forces. SIGINT comes from a terminal and hurries.

        Python lets only the main thread have handlers; in others this does nothing.
        """
        if self._follow is not None:
            self._follow(self)
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        watchdog = Watchdog()
        met: list[int] = []

        def handle(number: int, frame: FrameType | None) -> None:
            # signal.signal and not loop.add_signal_handler: this also runs while a callback blocks the loop.
            met.append(number)
            if len(met) == 1:
                loop.call_soon_threadsafe(lambda: self.request(hurry=number == signal.SIGINT))
            else:
                watchdog.arm(FORCED_EXIT_S)
                loop.call_soon_threadsafe(self.force)

        before = {signal.SIGTERM: signal.signal(signal.SIGTERM, handle)}
        before[signal.SIGINT] = signal.signal(signal.SIGINT, handle if self._interrupt else signal.SIG_IGN)
        try:
            yield
        finally:
            watchdog.disarm()
            for number, handler in before.items():
                signal.signal(number, handler)


class Watchdog:
    """Ends the process when it is still there after the time it was given: a thread or task may ignore every wish."""

    def __init__(self, leave: Callable[[int], None] = os._exit) -> None:
        self._leave = leave
        self._timer: threading.Timer | None = None

    def arm(self, seconds: float) -> None:
        """Leave after `seconds`, instead of any time given before."""
        self.disarm()
        self._timer = threading.Timer(seconds, self._bite, (seconds,))
        self._timer.daemon = True
        self._timer.start()

    def disarm(self) -> None:
        """Let the process end by itself."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _bite(self, seconds: float) -> None:
        log.critical("the process did not end within %g s of the time it was given; leaving now", seconds)
        self._leave(1)


async def first_of(seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set, at most `seconds`; True if one was."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()
