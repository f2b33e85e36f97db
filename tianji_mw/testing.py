"""Test tools, public: `FakeLLM`, a real HTTP upstream with scripted answers and faults, and `drive`, a raw ASGI client.

Users test their plugins with these; the suite's own tests use nothing else. Loopback only.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message


@dataclass(slots=True, kw_only=True)
class Reply:
    """One scripted answer. `parts` are written one by one, `pause_s` apart; `cut_after` breaks the connection off.

    >>> Reply.json({"id": "x"}).status
    200
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: Sequence[bytes] = ()
    #: Seconds before the head, and before each part.
    delay_s: float = 0.0
    pause_s: float = 0.0
    #: Send the body chunked (as servers stream) instead of with a length.
    chunked: bool = False
    #: Close the connection after so many bytes of the body; with `reset`, by a TCP reset.
    cut_after: int | None = None
    reset: bool = False
    #: Close before sending anything.
    refuse: bool = False
    #: Send these bytes in the place of an HTTP answer, and close.
    garbage: bytes | None = None
    #: Close in silence after a complete answer that promised to keep the connection.
    hang_up: bool = False

    @classmethod
    def json(cls, body: object, **options: Any) -> Reply:
        """A plain JSON answer."""
        return cls(headers={"content-type": "application/json"}, parts=[orjson.dumps(body)], **options)

    @classmethod
    def events(cls, *parts: bytes, **options: Any) -> Reply:
        """A stream of server-sent events, one write per part."""
        return cls(headers={"content-type": "text/event-stream"}, parts=parts, chunked=True, **options)


@dataclass(slots=True, frozen=True)
class Received:
    """One request as it came over the wire."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class FakeLLM:
    """An HTTP upstream on a free loopback port.

    >>> async with FakeLLM() as llm:                                 # doctest: +SKIP
    ...     llm.replies.append(Reply.json({"id": "1"}))
    ...     print(llm.url, llm.requests)
    """

    def __init__(self, default: Callable[[Received], Reply] | None = None) -> None:
        #: Answers in order; when they run out, `default` is asked.
        self.replies: list[Reply] = []
        self.requests: list[Received] = []
        #: Connections that the other side closed while an answer was being written.
        self.dropped = 0
        self.open_connections = 0
        self.connections = 0
        self._default = default or (lambda request: Reply.json({"error": {"message": "no reply scripted"}}, status=500))
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> FakeLLM:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_connections += 1
        self.connections += 1
        try:
            while (request := await _read_request(reader)) is not None:
                self.requests.append(request)
                reply = self.replies.pop(0) if self.replies else self._default(request)
                if not await self._write(reply, request, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.dropped += 1
        finally:
            self.open_connections -= 1
            writer.close()

    async def _write(
        self, reply: Reply, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Send one answer; False when the connection is finished with it."""
        if reply.refuse:
            return False
        if not await self._pause(reply.delay_s, reader):
            return False
        if reply.garbage is not None:
            writer.write(reply.garbage)
            await writer.drain()
            return False
        headers = {"connection": "keep-alive", **reply.headers}
        if reply.chunked:
            headers["transfer-encoding"] = "chunked"
        else:
            headers.setdefault("content-length", str(sum(len(part) for part in reply.parts)))
        head = f"HTTP/1.1 {reply.status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in headers.items()) + "\r\n"
        writer.write(head.encode("latin-1"))
        if not await self._write_body(reply, reader, writer):
            return False
        if reply.cut_after is not None:
            if reply.reset:
                # SO_LINGER with zero seconds makes the close a reset.
                raw: socket.socket = writer.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if reply.chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not reply.hang_up

    async def _write_body(self, reply: Reply, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """The parts, up to the cut; False when the client hung up."""
        left = reply.cut_after
        for part in reply.parts:
            if reply.pause_s and not await self._pause(reply.pause_s, reader):
                return False
            piece = part if left is None else part[:left]
            if piece:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
                await writer.drain()
            if left is not None:
                left -= len(piece)
                if left <= 0:
                    break
        return True

    async def _pause(self, seconds: float, reader: asyncio.StreamReader) -> bool:
        """Wait, and notice when the client hangs up meanwhile."""
        if seconds:
            ends = asyncio.ensure_future(reader.read(1))
            ends.add_done_callback(lambda task: task.cancelled() or task.exception())  # a reset is a way of hanging up
            done, _ = await asyncio.wait({ends}, timeout=seconds)
            if done:
                self.dropped += 1
                return False
            ends.cancel()
            await asyncio.gather(ends, return_exceptions=True)
        return True


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *rest = head.decode("latin-1").split("\r\n")
    method, path, _ = line.split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (item.partition(":") for item in rest if item)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readuntil(b"\r\n")
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, path, headers, body)


@dataclass(slots=True)
class Driven:
    """What an app sent for one request."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int:
        return next((m["status"] for m in self.messages if m["type"] == "http.response.start"), 0)

    @property
    def headers(self) -> dict[str, str]:
        start = next((m for m in self.messages if m["type"] == "http.response.start"), {"headers": ()})
        return {k.decode("latin-1"): v.decode("latin-1") for k, v in start["headers"]}

    @property
    def bodies(self) -> list[bytes]:
        return [m.get("body", b"") for m in self.messages if m["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def complete(self) -> bool:
        return any(m["type"] == "http.response.body" and not m.get("more_body") for m in self.messages)

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


@asynccontextmanager
async def started(app: ASGIApp) -> AsyncIterator[ASGIApp]:
    """The app with its lifespan around the block, as a server runs it. Raises RuntimeError when the start fails.

    >>> async with started(app):                                     # doctest: +SKIP
    ...     await drive(app, {"model": "m", "messages": []})
    """
    told: asyncio.Queue[Message] = asyncio.Queue()
    said: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    task = asyncio.ensure_future(app(scope, told.get, said.put))
    try:
        await told.put({"type": "lifespan.startup"})
        answer = await said.get()
        if answer["type"] != "lifespan.startup.complete":
            raise RuntimeError(answer.get("message", "the app did not start"))
        yield app
        await told.put({"type": "lifespan.shutdown"})
        await said.get()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def drive(
    app: ASGIApp,
    body: object = None,
    *,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: dict[str, str] | None = None,
    body_parts: Sequence[bytes] | None = None,
    leave_after: int | None = None,
    scope: dict[str, Any] | None = None,
) -> Driven:
    """Send one request to an ASGI app, message by message, without a server.

    `leave_after` disconnects the client after that many body messages. An exception of the app is kept in `error`.
    """
    raw = body if isinstance(body, bytes) else orjson.dumps(body) if body is not None else b""
    parts = list(body_parts) if body_parts is not None else [raw]
    sent: list[Message] = [
        {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
    ]
    sent.reverse()
    driven, left = Driven(), asyncio.Event()

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if left.is_set():
            raise OSError("the client has left")
        driven.messages.append(message)
        if leave_after is not None and len(driven.bodies) >= leave_after:
            left.set()
        await asyncio.sleep(0)

    pairs = {"content-type": "application/json", "content-length": str(sum(map(len, parts))), **(headers or {})}
    try:
        await app({**_scope(method, path, pairs), **(scope or {})}, receive, send)
    except Exception as error:  # noqa: BLE001 - kept for the test to look at
        driven.error = error
    left.set()
    return driven


def _scope(method: str, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("latin-1", "replace"),
        "query_string": b"",
        "root_path": "",
        "headers": [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 12345),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
