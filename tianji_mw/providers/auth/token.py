"""A bearer token that renews itself: fetched when first asked for, renewed in the background before it expires.

It knows no provider: the fetch is handed in. One fetch runs at a time; callers wait for it only when there is no usable
token. Nothing is started at construction, so a provider can hold one before there is an event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from tianji_mw.errors import TianjiError
from tianji_mw.redact import Secret

log = logging.getLogger("tianji_mw.providers.auth")

#: Renew when this share of a token's life is over, or so many seconds before its end, whichever is earlier.
_RENEW_AFTER: Final = 0.8
_RENEW_BEFORE_S: Final = 300.0
#: A token is not used in its last seconds: the request must still arrive.
_MARGIN_S: Final = 10.0
#: Pause after a renewal that failed, while the old token is still good.
_PAUSE_S: Final = 15.0


class Issued(NamedTuple):
    """A token as its issuer gave it."""

    token: Secret
    lifetime_s: float


class TokenSource:
    """One token.

    >>> async def fetch() -> Issued:
    ...     return Issued(Secret("t-1"), 3600)
    >>> asyncio.run(TokenSource(fetch).get()).reveal()
    't-1'
    """

    __slots__ = ("_clock", "_expires", "_fetch", "_renew", "_task", "_token")

    def __init__(self, fetch: Callable[[], Awaitable[Issued]], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._token: Secret | None = None
        self._renew = 0.0
        self._expires = 0.0
        self._task: asyncio.Task[Secret] | None = None

    @property
    def current(self) -> Secret | None:
        """The last token, perhaps expired; for redaction."""
        return self._token

    async def get(self) -> Secret:
        """A token that is good now. Raises what the fetch raises when there is none."""
        token, now = self._token, self._clock()
        if token is not None and now < self._expires:
            if now >= self._renew:
                self._start()
            return token
        # Shielded: a caller who gives up must not take the token away from the others.
        return await asyncio.shield(self._start())

    def _start(self) -> asyncio.Task[Secret]:
        task = self._task
        # A task of a loop that has ended is never done.
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = self._task = asyncio.create_task(self._refresh(), name="tianji:token")
            task.add_done_callback(_seen)
        return task

    async def _refresh(self) -> Secret:
        try:
            issued = await self._fetch()
        except TianjiError as error:
            self._renew = self._clock() + _PAUSE_S
            if self._token is not None and self._clock() < self._expires:
                log.warning("a token could not be renewed; the old one is used until it expires: %s", error.message)
            raise
        now, life = self._clock(), issued.lifetime_s
        self._renew = now + min(life * _RENEW_AFTER, max(life - _RENEW_BEFORE_S, life / 2))
        self._expires = now + max(life - _MARGIN_S, life / 2)
        self._token = issued.token
        return issued.token


def _seen(task: asyncio.Task[Secret]) -> None:
    """Whoever waits gets the exception; with nobody waiting it was logged, and is not 'never retrieved'."""
    if not task.cancelled():
        task.exception()
