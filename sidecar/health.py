"""The outermost app of the main port: `/health/liveliness` and `/health/readiness`, without key, detail or I/O.

Answered in front of the stack, so that a probe costs nothing and needs no identity. It also owns the process's
`Runtime`, which all layers inside join.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tianji_mw.driver import RUNTIME_KEY
from tianji_mw.lifespan import Lifespan

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.runtime import Runtime

_ALIVE: Final = b'"I\'m alive!"'
_READY: Final = b'{"status":"healthy"}'
#: Still ready: what is degraded serves on, and a restart would not help.
_DEGRADED: Final = b'{"status":"degraded"}'
_DRAINING: Final = b'{"status":"shutting_down"}'


class Health:
    """The two probes, and everything else to `app`."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        path = scope["path"] if kind == "http" else ""
        if path in ("/health/liveliness", "/health/liveness"):
            await _answer(scope, send, 200, _ALIVE)
        elif path == "/health/readiness":
            runtime = self._runtime
            body = _DRAINING if runtime.draining else _DEGRADED if runtime.degraded else _READY
            await _answer(scope, send, 503 if runtime.draining else 200, body)
        elif kind == "lifespan":
            scope = {**scope, RUNTIME_KEY: self._runtime}
            await Lifespan(self.app, start=_nothing, stop=self._runtime.aclose)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


async def _nothing() -> None:
    """The runtime opens its resources when they are asked for."""


async def _answer(scope: Scope, send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
