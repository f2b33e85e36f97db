"""The stack in front of an SDK, in process: `AsyncOpenAI(http_client=stack.httpx_client())`. No extra hop, no socket.

An httpx transport that hands each request to an ASGI app and streams bodies both ways as they are produced (httpx's
own ASGITransport waits for the whole answer). A buffer of one message keeps backpressure. It acts as a server does:
background tasks run after the answer, an answer that stops short is an error, a closed response is a disconnect. SDKs
are moving from httpx to httpx2; the two differ in name only here, so the module is a parameter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import anyio

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

log = logging.getLogger("tianji_mw.transport")

Flavour = Literal["httpx", "httpx2"]


def client(app: ASGIApp, flavour: Flavour | None = None, **options: Any) -> Any:
    """An `AsyncClient` whose requests are served by `app`; pass it to an SDK as `http_client`.

    `flavour` names the client library of the SDK; without it httpx2 is taken where it is installed, else httpx.
    """
    library = import_module(flavour or ("httpx2" if find_spec("httpx2") else "httpx"))
    options.setdefault("base_url", "http://tianji")
    options.setdefault("timeout", library.Timeout(None))
    return library.AsyncClient(transport=StackTransport(app, library), **options)


class StackTransport:
    """Serves requests from an ASGI app. The app's lifespan starts at the first request and ends with `aclose`."""

    def __init__(self, app: ASGIApp, library: Any) -> None:
        self._app = app
        self._library = library
        self._tasks: set[asyncio.Task[None]] = set()
        self._lifespan: asyncio.Task[None] | None = None
        self._shutdown = asyncio.Event()
        self._lock = asyncio.Lock()
        #: What the app left in its lifespan's state; each request gets a copy, as from a server.
        self._state: dict[str, Any] = {}
        self._body_class = type("StackBody", (_Body, library.AsyncByteStream), {})

    async def __aenter__(self) -> StackTransport:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def handle_async_request(self, request: Any) -> Any:
        """One request to the app; the response's body is read as the app produces it."""
        async with self._lock:
            if self._lifespan is None:
                await self._start()
        exchange = _Exchange(request, self._library)
        task = asyncio.create_task(exchange.run(self._app, {**_scope(request), "state": dict(self._state)}))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            status, headers = await exchange.in_time(exchange.head)
        except BaseException:
            task.cancel()
            exchange.close()
            raise
        return self._library.Response(status, headers=headers, stream=self._body_class(exchange))

    async def _start(self) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        shutdown = self._shutdown = asyncio.Event()
        self._state = {}
        messages: list[Message] = [{"type": "lifespan.startup"}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await shutdown.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"].startswith("lifespan.startup") and not ready.done():
                failed = message["type"].endswith("failed")
                ready.set_result((message.get("message") or "the app failed to start") if failed else "")

        async def run() -> None:
            try:
                await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": self._state}, receive, send)
            except Exception as error:  # noqa: BLE001 - an app may raise on a scope it does not know
                log.debug("the app has no lifespan, or it failed: %r", error)

        task = asyncio.create_task(run())
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and (problem := ready.result()):
            task.cancel()
            raise RuntimeError(problem)
        self._lifespan = task

    async def aclose(self) -> None:
        """Cancel what still runs and end the app's lifespan."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lifespan is not None:
            self._shutdown.set()
            await asyncio.gather(self._lifespan, return_exceptions=True)
            self._lifespan = None


class _Exchange:
    """One request: the app's messages on one side, the response's head and body on the other."""

    def __init__(self, request: Any, library: Any) -> None:
        self.head: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._library = library
        self._patience: float | None = request.extensions.get("timeout", {}).get("read")
        self._writer, self._reader = anyio.create_memory_object_stream[bytes](1)
        #: Set when the answer is complete, or when the reader has closed it.
        self._over = asyncio.Event()
        self._complete = False
        self._left: int | None = None
        self._error: Exception | None = None
        self._body: bytes | None = None
        self._upload: AsyncIterator[bytes] | None = None
        try:
            self._body = request.content
        except library.RequestNotRead:
            self._upload = aiter(request.stream)

    async def run(self, app: ASGIApp, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the answer, which raises it
            self._error = error
            if self._over.is_set():
                log.debug("the app failed after its answer had ended: %r", error)
        finally:
            self._writer.close()
            if not self.head.done():
                self.head.set_exception(self._error or self._broken("the app sent no response"))

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._upload is not None:
            chunk = await anext(self._upload, None)
            if chunk is None:
                self._upload = None
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._complete:
            return
        if self._over.is_set():
            raise OSError("the client has closed the response")
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            length = next((v for k, v in headers if k.lower() == b"content-length"), b"")
            bodiless = self._request.method == "HEAD" or message["status"] in (204, 304)
            self._left = int(length) if length.isdigit() and not bodiless else None
            if not self.head.done():
                self.head.set_result((message["status"], headers))
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                await self._put(bytes(body))
            if not message.get("more_body", False):
                self._complete = not self._left
                self._over.set()
                self._writer.close()

    async def _put(self, body: bytes) -> None:
        if self._left is not None:
            self._left -= len(body)
        try:
            await self._writer.send(body)
        except anyio.BrokenResourceError:
            raise OSError("the client has closed the response") from None

    async def in_time(self, waiting: Any) -> Any:
        """What `waiting` gives, within the read timeout of the request."""
        try:
            async with asyncio.timeout(self._patience):
                return await waiting
        except TimeoutError:
            text = f"the app sent nothing within {self._patience:g} s"
            raise self._library.ReadTimeout(text, request=self._request) from None

    async def part(self) -> bytes | None:
        """The next bytes of the answer, None at its end. Raises the app's error, or that the answer stopped short."""
        try:
            part: bytes = await self.in_time(self._reader.receive())
        except anyio.EndOfStream:
            if self._complete:
                return None
            raise self._error or self._broken("the app ended its answer before it was complete") from None
        return part

    def _broken(self, text: str) -> Exception:
        error: Exception = self._library.RemoteProtocolError(text, request=self._request)
        return error

    def close(self) -> None:
        """The reader has had enough: a waiting `send` and every later one raises, `receive` tells of a disconnect."""
        self._over.set()
        self._reader.close()


class _Body:
    """The response's body; mixed with the client library's stream class, which it insists on."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._exchange.part()) is not None:
            yield part

    async def aclose(self) -> None:
        self._exchange.close()


def _scope(request: Any) -> Message:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(k.lower(), v) for k, v in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }
