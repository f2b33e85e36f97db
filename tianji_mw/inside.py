"""A request that this process sends through its own layers, such as one for an answer that nobody waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tianji_mw.call import CALL_KEY
from tianji_mw.taps import with_length

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Scope


async def send_inside(
    layer: ASGIApp,
    like: Scope,
    body: bytes,
    *,
    marks: Mapping[str, Any],
    without: frozenset[bytes] = frozenset(),
    answered: Callable[[int], None],
) -> None:
    """Send `body` to `layer` as a call of its own, with the headers of the request `like` apart from `without`.

    `marks` go into its scope, where no client can write; `answered` is told the status. Raises what the layer raises.
    """
    headers = [pair for pair in like["headers"] if pair[0] not in without]
    scope: Scope = {**like, "headers": with_length(headers, len(body)), **marks}
    scope.pop(CALL_KEY, None)
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # nobody leaves
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered(message["status"])

    await layer(scope, receive, send)
