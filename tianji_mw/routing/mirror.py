"""Mirrored calls: a copy of a deployment's calls goes to another group, to see how it would do. Nobody waits for it.

The copy is a call of its own, from the logging layer inwards: it is recorded, with `is_silent_experiment` in its
metadata, and no key is charged for it. It never changes the call it is a copy of, and is itself not mirrored.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw.driver import inner_layers
from tianji_mw.inside import send_inside
from tianji_mw.routing.wishes import FALLBACKS, MOCKED

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope

    from tianji_mw.call import Call

log = logging.getLogger("tianji_mw.routing")

#: Key of the scope of such a call. Only this process can set it.
MIRROR_KEY: Final = "tianji_mw.routing.mirror"
#: Copies on their way; above it they are left out, and counted.
_MOST: Final = 100
#: Fields that the copy does not have: a stream nobody reads, and a way to models that the client may not use.
_LEFT_OUT: Final = frozenset({"stream", "stream_options", *FALLBACKS, *MOCKED})
#: The phase of the logging layer: what stands outside of it asks who calls, and nobody does.
_FROM_PHASE: Final = 300


class Mirrors:
    """The copies on their way. `layer`: the routing layer, where there is no layer outside of it."""

    def __init__(self, layer: ASGIApp) -> None:
        self._layer = layer
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, call: Call, groups: tuple[str, ...]) -> None:
        """Send a copy of the call to each of these groups."""
        assert call.origin is not None
        outer, scope = call.origin
        if MIRROR_KEY in scope:
            return
        for group in groups:
            if len(self._tasks) >= _MOST:
                call.runtime.count("mirrors_left_out", group)
                continue
            task = asyncio.create_task(self._run(_entry(outer) or self._layer, scope, call, group))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Give up those that run."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, layer: ASGIApp, outer: Scope, call: Call, group: str) -> None:
        def answered(status: int) -> None:
            call.runtime.count("mirrors", f"{group} {status // 100}xx")

        try:
            await send_inside(layer, outer, _body(call, group), marks={MIRROR_KEY: call.id}, answered=answered)
        except Exception:  # plugin failsafe: an app of somebody else's; nobody waits for this call
            call.runtime.count("mirrors", f"{group} failed")
            log.exception("a mirrored call failed")


def _body(call: Call, group: str) -> bytes:
    """The same request for another group, as a plain answer."""
    request = {key: value for key, value in call.request.items() if key not in _LEFT_OUT}
    metadata = request.get("litellm_metadata")
    said = metadata if isinstance(metadata, dict) else {}
    own = {"is_silent_experiment": True, "mirror_of": call.id}
    return orjson.dumps({**request, "model": group, "litellm_metadata": {**said, **own}})


def _entry(outer: ASGIApp) -> ASGIApp | None:
    """The outermost layer that asks nobody who they are."""
    return next((layer for layer in inner_layers(outer) if layer.phase >= _FROM_PHASE), None)
