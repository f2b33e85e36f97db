"""`/health/liveliness` and `/health/readiness` on the main port: no key, no detail, no I/O.

Answered in front of the stack, so that a probe costs nothing and needs no identity.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.runtime import Runtime

_ALIVE: Final = b'"I\'m alive!"'
_READY: Final = b'{"status":"healthy"}'
_DRAINING: Final = b'{"status":"shutting_down"}'


class Health:
    """The two probes, and everything else to `app`."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (path := scope["path"]).startswith("/health/"):
            if path in ("/health/liveliness", "/health/liveness"):
                return await _answer(scope, send, 200, _ALIVE)
            if path == "/health/readiness":
                draining = self._runtime.draining
                return await _answer(scope, send, 503 if draining else 200, _DRAINING if draining else _READY)
        await self.app(scope, receive, send)


async def _answer(scope: Scope, send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
