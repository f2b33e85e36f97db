"""A call as guardrails see it, without a server: nothing is sent and nothing is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tianji_mw.apis import by_name
from tianji_mw.call import Call, Limits, open_call
from tianji_mw.identity.base import Identity
from tianji_mw.runtime import Runtime


def a_call(
    api: str = "chat_completions",
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    identity: Identity | None = None,
    request: dict[str, Any] | None = None,
) -> Call:
    """A call of this API. To read its body is an error."""

    async def receive() -> Any:
        raise AssertionError("no guardrail reads the body")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": list(headers)}
    call = open_call(by_name(api), scope, receive, runtime=Runtime(), limits=Limits())
    call.identity, call._request = identity, request
    return call
