"""A connection of a client, read strictly: deadlines, limits while reading, one request at a time.

One request at a time: bytes behind a complete request are dropped and the connection is closed after the answer
(RFC 9112, 9.3.2 lets a server do so). So a smuggled second request never gets an answer, and a pipelining client that
leaves is noticed: uvicorn tells only the newest of the queued requests.
Paths, bodies and their deadline are the app's. TLS and HTTP/2 end in front of this server.
"""

from __future__ import annotations

import asyncio
import math
import urllib.parse
from typing import TYPE_CHECKING, Any, Final, cast

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from sidecar.cycle import Cycle
from sidecar.limits import EdgeState
from sidecar.strict import Refused, answer, without_upgrade

if TYPE_CHECKING:
    from starlette.types import ASGIApp
    from uvicorn.config import Config
    from uvicorn.server import ServerState

# Where a connection stands. Order matters: up to _HEAD a head is expected.
_IDLE: Final = 0  # between requests, nothing received
_HEAD: Final = 1  # a head has begun
_BODY: Final = 2  # the head is complete, the body is not
_BUSY: Final = 3  # the request is complete, the app answers
_DROP: Final = 4  # whatever still comes is read and dropped

_LINGER_S: Final = 5.0
_MAX_DROPPED: Final = 1 << 20
#: Room for a chunk's size line (16 digits) and its three line ends.
_CHUNK_LINES: Final = 32


class StrictProtocol(asyncio.Protocol):
    """One client connection. `EdgeServer` calls `expire` when `deadline` or `send_deadline` (loop time) has passed.

    Deadlines are plain numbers and one sweep per tick checks them all: a timer per request costs more than the rest.
    The constructor's arguments are those that `uvicorn.Server` gives.
    """

    transport: asyncio.Transport
    flow: FlowControl

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.loop = _loop or asyncio.get_running_loop()
        self.edge = cast("EdgeState", server_state)
        self.limits = self.edge.limits
        self.tasks = self.edge.tasks
        self.parser = self._new_parser()
        self.cycle: Cycle | None = None
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.deadline = math.inf
        self.send_deadline = math.inf
        self._app = cast("ASGIApp", config.loaded_app)
        self._app_state = app_state
        self._server: tuple[str, int | None] | None = None
        self._client: tuple[str, int] | None = None
        self._phase = _IDLE
        self._head_bytes = 0
        self._dropped = 0
        self._refused: Refused | None = None
        self._unstarted: Cycle | None = None
        # A chunked body: bytes taken in, and bytes accounted for by head, size lines and content.
        self._chunked = False
        self._raw = 0
        self._explained = 0

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # llhttp would refuse what follows `connection: close`; here it is dropped, and the first request answered.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # --- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self.flow = FlowControl(self.transport)
        self._server = get_local_addr(self.transport)
        self._client = get_remote_addr(self.transport)
        self.edge.connections.add(cast("Any", self))
        self.deadline = self.loop.time() + self.limits.header_timeout_s
        most = self.limits.max_connections
        if most is not None and len(self.edge.connections) > most:
            self._refuse(503, "too many connections", ((b"retry-after", b"1"),))

    def connection_lost(self, error: Exception | None) -> None:
        self.edge.connections.discard(cast("Any", self))
        self._phase = _DROP
        cycle = self.cycle
        if cycle is not None and not cycle.complete:
            cycle.client_left()
        self.flow.resume_writing()
        self.transport.close()

    def data_received(self, data: bytes) -> None:
        phase = self._phase
        if phase <= _HEAD:
            self._take_head(data)
        elif phase == _BODY:
            self._feed(data)
        else:
            self._drop(data)
        cycle = self._unstarted
        if cycle is not None:
            # Only now: a body that is malformed in the same packet must not reach the app at all.
            self._unstarted = None
            task = cycle.task = self.loop.create_task(cycle.run(self._app))
            self.tasks.add(task)

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self.send_deadline = self.loop.time() + self.limits.send_timeout_s

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        self.send_deadline = math.inf

    # --- the server's side

    def expire(self, now: float) -> None:
        """A deadline has passed: end the connection in the way its state asks for."""
        if self.send_deadline <= now:
            self.edge.count("send_timeout")
            self.transport.abort()
        elif self._phase == _HEAD:
            self.edge.count("header_timeout")
            self._refuse(408, "the request head took too long")
        elif self._phase == _IDLE and not self.transport.get_write_buffer_size():
            self.transport.close()
        else:
            # Lingering or closing, and the other side still sends or still does not read.
            self.transport.abort()

    def drain(self) -> None:
        """From now on every answer ends its connection."""
        if self.cycle is not None:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """No more requests: close if idle; a request of which something has come is still served."""
        self.drain()
        if self._phase == _IDLE:
            self._close()
        elif self._phase == _HEAD:
            self.deadline = min(self.deadline, self.loop.time() + 2.0)

    # --- the parser's side

    def on_message_begin(self) -> None:
        if self._phase > _HEAD:
            self._second_request()
            raise Refused(400, "a second request before the first was answered")
        self._phase = _HEAD
        self._chunked = False
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if parser.should_upgrade() and parser.get_method() != b"CONNECT":
            return  # `feed_data` raises HttpParserUpgrade next
        headers, version = self.headers, parser.get_http_version()
        try:
            seen = self.limits.head.check(headers, self.url, version)
            raw_path, _, query = self.url.partition(b"?")
            path = raw_path.decode("ascii")
        except Refused as refused:
            self._refused = refused
            raise
        # Trailers come through `on_header` too and must not join the headers an app has already judged.
        self.headers = []
        self._phase = _BODY
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self._server,
            "client": self._client,
            "scheme": "http",
            "method": parser.get_method().decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": headers,
            "state": self._app_state.copy(),
        }
        if b"transfer-encoding" in seen:
            self._chunked = True
            self._raw = self._head_bytes
            self._explained = len(self.url) + 24 + sum(len(name) + len(value) + 4 for name, value in headers)
        keep_alive = version == "1.1" and not self.edge.draining and parser.should_keep_alive()
        self.cycle = self._unstarted = Cycle(self, scope, keep_alive=keep_alive, expects_continue=b"expect" in seen)

    def on_chunk_header(self) -> None:
        self._explained += _CHUNK_LINES

    def on_body(self, body: bytes) -> None:
        cycle = self.cycle
        assert cycle is not None
        if self._chunked:
            self._explained += len(body)
        if cycle.add(body):
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._phase != _BODY or self.cycle is None:
            return  # an upgrade request, about to be read again without its upgrade
        self._phase = _BUSY
        self.cycle.body_ended()

    # --- the cycle's side

    def on_response_complete(self) -> None:
        self.edge.total_requests += 1
        if self.transport.is_closing():
            self._close()
            return
        self.flow.resume_reading()
        if self.cycle is not None and self.cycle.linger:
            self._linger()
            return
        self._phase = _IDLE
        self._head_bytes = 0
        self.deadline = self.loop.time() + self.limits.keep_alive_s

    # --- reading

    def _take_head(self, data: bytes) -> None:
        """Feed no more than the head may be long; go on with the rest once the head is complete."""
        if self._phase == _IDLE:
            # uvicorn's keep-alive timer ends at the first byte; here it gives way to the deadline for the whole head.
            self.deadline = self.loop.time() + self.limits.header_timeout_s
        room = self.limits.max_header_bytes - self._head_bytes
        if len(data) <= room:
            self._feed(data)
            if self._phase <= _HEAD:
                self._phase = _HEAD
                self._head_bytes += len(data)
                return
        else:
            view = memoryview(data)
            self._feed(view[:room])
            if self._phase <= _HEAD:
                self._refuse(431, f"the request head is larger than {self.limits.max_header_bytes} bytes")
                return
            if self._phase == _BODY:
                self._feed(view[room:])
            else:
                self._drop(view[room:])
        if self._phase != _DROP:
            self.deadline = math.inf

    def _feed(self, data: bytes | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if self._phase != _DROP:
                refused = self._refused or Refused(400, str(error) or "malformed request")
                self._refuse(refused.status, refused.message)
                return
        if self._chunked:
            self._raw += len(data)
            if self._raw - self._explained > self.limits.max_chunk_extension_bytes:
                self._refuse(400, "chunk extensions or trailers are too large")

    def _ignore_upgrade(self, rest: bytes | memoryview) -> None:
        """Read the request again without its wish to upgrade, which a server may ignore (RFC 9110, 7.8).

        llhttp ends an upgrade request at its head, so its body would be taken for the next request. Java's HttpClient
        asks for h2c with every first request, POST with a body included.
        """
        parser = self.parser
        head = without_upgrade(parser.get_method(), self.url, parser.get_http_version(), self.headers)
        self.parser = self._new_parser()
        self._phase = _IDLE
        self._head_bytes = 0
        self._feed(head)
        if self._phase == _BODY:
            self._feed(rest)
        elif self._phase == _BUSY:
            self._drop(rest)

    def _drop(self, data: bytes | memoryview) -> None:
        """Bytes nobody will read. A stray line end after a body is an old client's habit, anything else pipelining."""
        if self._phase == _BUSY:
            if bytes(data).strip(b"\r\n"):
                self._second_request()
            return
        self._dropped += len(data)
        if self._dropped > _MAX_DROPPED and self.deadline == math.inf:
            self.transport.abort()

    def _second_request(self) -> None:
        self.edge.count("pipelined")
        self.drain()
        self._phase = _DROP

    # --- ending

    def _refuse(self, status: int, message: str, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """Answer with an error and end the connection; an app that already runs for this request sees a disconnect."""
        self.edge.count(f"refused_{status}")
        self._unstarted = None
        cycle = self.cycle
        if cycle is not None and not cycle.complete:
            cycle.client_left()
            if cycle.started:
                self.transport.abort()
                return
        self.transport.write(answer(status, message, (*self.edge.default_headers, *extra)))
        if status == 408:
            self._close()  # a client that trickles gets no more seconds
        else:
            self._linger()

    def _linger(self) -> None:
        """Say that we are done, then read and drop until the client is done as well, or a few seconds."""
        self._phase = _DROP
        self.deadline = self.loop.time() + _LINGER_S
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self._close()

    def _close(self) -> None:
        """Close once everything is written; a client that reads nothing gets `send_timeout_s` for that."""
        self.transport.close()
        self._phase = _DROP
        self.deadline = self.loop.time() + self.limits.send_timeout_s
