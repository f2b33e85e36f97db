"""Endpoints of the sidecar's own on the main port ask for the master key; without one only the admin port has them."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.redact import Secret

Handler = Callable[[Request], Awaitable[Response]]


def has_master_key(headers: Headers, key: Secret) -> bool:
    """In `Authorization: Bearer` or `x-api-key`; compared in constant time. Nobody has a key that is not there yet."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    given = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    return key.ready and hmac.compare_digest(given.encode(), key.reveal().encode())


class KeyedRoutes:
    """Endpoints by method and path, in front of `app`. `admin`: where the admin port has the same."""

    def __init__(
        self, app: ASGIApp, handlers: Mapping[tuple[str, str], Handler], key: Secret | None, *, admin: str
    ) -> None:
        self.app = app
        self._handlers = handlers
        self._key, self._admin = key, admin

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = None
        if scope["type"] == "http":
            handler = self._handlers.get((scope["method"], scope["path"].rstrip("/")))
        if handler is None:
            await self.app(scope, receive, send)
            return
        if self._key is None:
            text = f"set general_settings.master_key to use this, or ask the admin port ({self._admin})"
            response = refused(text, 403)
        elif not self._key.ready:
            response = refused("the master key is not available yet; try again in a moment", 503)
        elif not has_master_key(Headers(scope=scope), self._key):
            response = refused("this needs the master key", 401)
        else:
            response = await handler(Request(scope, receive))
        await response(scope, receive, send)


def refused(message: str, status: int) -> Response:
    """An error in OpenAI's shape."""
    kind = "authentication_error" if status in (401, 403) else "server_error"
    if status in (400, 404):
        kind = "invalid_request_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": None, "code": None}}, status)
