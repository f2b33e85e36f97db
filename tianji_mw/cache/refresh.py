"""A new answer for an entry that is stale: a call of its own through the whole stack, so that it is counted and logged.

Nobody waits for it, and it is the caller's request once more: its key pays for it, and every layer sees it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from tianji_mw.call import CALL_KEY
from tianji_mw.taps import with_length

if TYPE_CHECKING:
    from starlette.types import Message, Scope

    from tianji_mw.call import Call

log = logging.getLogger("tianji_mw.cache")

#: Key of the scope of such a call: the entry that it is for. Only this process can set it.
REFRESH_KEY: Final = "tianji_mw.cache.refresh"


async def ask_again(call: Call, key: str) -> None:
    """Ask again what this call asks, and have the answer kept under `key`."""
    assert call.origin is not None
    layer, outer = call.origin
    body = call.body
    headers = with_length([pair for pair in outer["headers"] if pair[0] != b"cache-control"], len(body))
    scope: Scope = {**outer, "headers": headers, REFRESH_KEY: key}
    scope.pop(CALL_KEY, None)
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] != 200:
            call.runtime.count("cache_refresh_failures", call.api.name)

    try:
        await layer(scope, receive, send)
    except Exception:  # plugin failsafe: an app of somebody else's; nobody waits for this call
        call.runtime.count("cache_refresh_failures", call.api.name)
        log.exception("an answer of the cache could not be fetched anew")
