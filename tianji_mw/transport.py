"""The stack in front of an SDK, in process: `AsyncOpenAI(http_client=stack.httpx_client())`. No extra hop, no socket.

An httpx transport that hands each request to an ASGI app and streams the answer back as it is produced (httpx's own
ASGITransport waits for the whole body). A queue of one message keeps backpressure. SDKs are moving from httpx to
httpx2; the two differ in name only here, so the module is a parameter.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message

Flavour = Literal["httpx", "httpx2"]

_END: Final = None


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
        exchange = _Exchange(await request.aread())
        task = asyncio.create_task(exchange.run(self._app, _scope(request)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            status, headers = await exchange.head
        except BaseException:
            task.cancel()
            raise
        return self._library.Response(status, headers=headers, stream=self._body_class(exchange))

    async def _start(self) -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        messages: list[Message] = [{"type": "lifespan.startup"}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await self._shutdown.wait()
            return {"type": "lifespan.shutdown"}

        async def send(message: Message) -> None:
            if message["type"].startswith("lifespan.startup") and not ready.done():
                failed = message["type"].endswith("failed")
                ready.set_result(message.get("message", "the app failed to start") if failed else "")

        async def run() -> None:
            await self._app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)

        task = asyncio.create_task(run())
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and (problem := ready.result()):
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

    def __init__(self, body: bytes) -> None:
        self.head: asyncio.Future[tuple[int, list[tuple[bytes, bytes]]]] = asyncio.get_running_loop().create_future()
        self._parts: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(maxsize=1)
        self._closed = asyncio.Event()
        self._body: bytes | None = body

    async def run(self, app: ASGIApp, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the answer, which raises it
            if self.head.done():
                await self._parts.put(error)
            else:
                self.head.set_exception(error)
        else:
            if not self.head.done():
                self.head.set_exception(RuntimeError("the app sent no response"))
            await self._parts.put(_END)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._closed.is_set():
            raise OSError("the client has closed the response")
        if message["type"] == "http.response.start":
            self.head.set_result((message["status"], list(message.get("headers", ()))))
        elif message["type"] == "http.response.body" and message.get("body"):
            await self._parts.put(message["body"])

    async def part(self) -> bytes | Exception | None:
        return await self._parts.get()

    def close(self) -> None:
        """The reader has had enough: a waiting `put` gets its place, the next `send` raises."""
        self._closed.set()
        while not self._parts.empty():
            self._parts.get_nowait()


class _Body:
    """The response's body; mixed with the client library's stream class, which it insists on."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (part := await self._exchange.part()) is not None:
            if isinstance(part, Exception):
                raise part
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
        "state": {},
    }
