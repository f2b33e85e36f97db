"""A new answer for an entry that is stale: a call of its own through the whole stack, so that it is counted and logged.

Nobody waits for it, and it is the caller's request once more: its key pays for it, and every layer sees it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from tianji_mw.inside import send_inside

if TYPE_CHECKING:
    from tianji_mw.call import Call

log = logging.getLogger("tianji_mw.cache")

#: Key of the scope of such a call: the entry that it is for. Only this process can set it.
REFRESH_KEY: Final = "tianji_mw.cache.refresh"
#: Headers by which a client may keep its answer out of the cache: the new one is for all.
_CONTROLS: Final = frozenset({b"cache-control"})


async def ask_again(call: Call, key: str) -> None:
    """Ask again what this call asks, and have the answer kept under `key`."""
    assert call.origin is not None
    layer, outer = call.origin

    def answered(status: int) -> None:
        if status != 200:
            call.runtime.count("cache_refresh_failures", call.api.name)

    try:
        await send_inside(layer, outer, call.body, marks={REFRESH_KEY: key}, without=_CONTROLS, answered=answered)
    except Exception:  # plugin failsafe: an app of somebody else's; nobody waits for this call
        call.runtime.count("cache_refresh_failures", call.api.name)
        log.exception("an answer of the cache could not be fetched anew")
