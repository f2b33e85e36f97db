"""Ingress mode's terminal: a reverse proxy of everything to one app. The middlewares outside of it guard LLM routes.

Bodies stream both ways. Paths that proxies and frameworks read differently are refused: what the middlewares judged
must be what the app gets.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, ClassVar, Final, Unpack
from urllib.parse import urlsplit

import orjson

from tianji_mw.apis.base import openai_error
from tianji_mw.call import CALL_KEY, Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import InvalidRequest, TianjiError
from tianji_mw.upstream import Deadlines, UpstreamRequest
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tianji_mw.runtime import Runtime
    from tianji_mw.upstream import TransportOptions, UpstreamResponse

#: Headers of one hop (RFC 9110, section 7.6.1), and those that the next request sets anew.
_HOP: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade", "content-length", "accept-encoding", "expect", "host",
    }
)  # fmt: skip
#: What no client writes by accident: dot segments (also encoded), backslashes, control bytes.
_AMBIGUOUS: Final = re.compile(rb"(?i)/(?:\.|%2e){1,2}(?:[/;?]|%2f|$)|\\|%5c|%00|[\x00-\x20\x7f]")


class ReverseProxy(LLMMiddleware):
    """Everything to `address`, e.g. `http://127.0.0.1:8000`."""

    phase: ClassVar[int] = 1000
    #: The app behind it is another process, which cannot see what routing has chosen.
    uses_deployments: ClassVar[bool] = False

    def __init__(
        self,
        address: str,
        *,
        deadlines: Deadlines | None = None,
        upstream: TransportOptions | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(self._forward, **options)
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise ValueError(f"--app-upstream must be an address such as http://127.0.0.1:8000, not {address!r}")
        self._address = address.rstrip("/")
        self._upstream = upstream
        self._host = parts.netloc.rpartition("@")[2]
        self._deadlines = deadlines or Deadlines()

    async def start(self, runtime: Runtime) -> None:
        runtime.send_through(self._upstream)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "The sidecar passes no websockets on."})
        if scope["type"] != "http":
            return
        call: Call | None = scope.get(CALL_KEY)
        try:
            response = await self._send_on(call, scope, receive)
        except TianjiError as error:
            if call is not None:
                call.fail(error)
            await _refuse(call, send, error)
            return
        try:
            if call is None:
                await _relay(response, send)
            else:
                async with Watch(call):
                    await _relay(response, send)
        finally:
            response.close()

    async def _send_on(self, call: Call | None, scope: Scope, receive: Receive) -> UpstreamResponse:
        path = scope.get("raw_path") or scope["path"].encode()
        if _AMBIGUOUS.search(path):
            raise InvalidRequest("This path is not passed on: write it without dot segments and backslashes.")
        query = scope["query_string"]
        url = self._address + path.decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        headers = self._headers(scope)
        body: bytes | AsyncIterator[bytes] = b""
        if call is not None and call.loaded:
            body = call.body
            headers.append(("content-length", str(len(body))))
        elif length := _content_length(scope):
            headers.append(("content-length", length))
            body = _stream(receive) if length != "0" else b""
        elif any(key == b"transfer-encoding" for key, _ in scope["headers"]):
            body = _stream(receive)
        assert self.runtime is not None
        request = UpstreamRequest(scope["method"], url, headers, body, self._deadlines)
        return await self.runtime.transport.send(request)

    def _headers(self, scope: Scope) -> list[tuple[str, str]]:
        """The client's headers without hop headers, and where it came from."""
        pairs = [(k.decode("latin-1").lower(), v.decode("latin-1")) for k, v in scope["headers"]]
        named = {name.strip() for k, v in pairs if k == "connection" for name in v.lower().split(",")}
        kept = [(k, v) for k, v in pairs if k not in _HOP and k not in named and not k.startswith("x-tianji-")]
        client = scope.get("client")
        if client:
            before = next((v for k, v in kept if k == "x-forwarded-for"), "")
            kept = [(k, v) for k, v in kept if k != "x-forwarded-for"]
            kept.append(("x-forwarded-for", f"{before}, {client[0]}" if before else client[0]))
        host = next((v for k, v in pairs if k == "host"), self._host)
        return [("host", host), ("accept-encoding", "identity"), *kept]


async def _relay(response: UpstreamResponse, send: Send) -> None:
    hop = {name.encode() for name in _HOP} - {b"content-length"}
    headers = [(k, v) for k, v in response.headers if k not in hop]
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    try:
        while chunk := await response.chunk():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
    except TianjiError as error:
        # The head has left: leaving the body short makes the server break the connection, which a client notices.
        raise ConnectionResetError("the app broke off in the middle of its answer") from error
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _refuse(call: Call | None, send: Send, error: TianjiError) -> None:
    body = call.api.error(error, call.id) if call is not None else orjson.dumps(openai_error(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _content_length(scope: Scope) -> str:
    return next((v.decode("latin-1") for k, v in scope["headers"] if k == b"content-length"), "")


async def _stream(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise ConnectionResetError("the client left during its upload")
        if body := message.get("body", b""):
            yield body
        if not message.get("more_body", False):
            return
