"""The Transport over httpx with HTTP/2, for https upstreams: many exchanges share a connection.

A server that offers no HTTP/2 is spoken to in HTTP/1.1. It costs more per request than the lean client: it is for
upstreams that limit connections. Proxies have their own transport.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import httpcore
import httpx

from tianji_mw.errors import (
    MissingExtra,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamTruncated,
    UpstreamUnreachable,
)
from tianji_mw.upstream.address import address_of
from tianji_mw.upstream.base import HEADERS_LIMIT, TransportOptions, UpstreamRequest, fault, read_whole, reason, sooner
from tianji_mw.upstream.connect import make_context

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN: Final = re.compile(r"[\r\n\0]")
_CORE_ERRORS: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException)


class Http2Transport:
    """Raises MissingExtra where `h2` is not installed."""

    def __init__(self, options: TransportOptions | None = None) -> None:
        try:
            import h2  # noqa: F401
        except ImportError:
            raise MissingExtra("h2", "http2") from None
        self._options = options or TransportOptions()
        self._client: httpx.AsyncHTTPTransport | None = None
        #: Exchanges that are being given up; kept, as a task nobody holds may vanish.
        self._ending: set[asyncio.Task[None]] = set()

    def _open(self) -> httpx.AsyncHTTPTransport:
        options = self._options
        given = options.ssl_context
        limits = httpx.Limits(
            max_connections=options.max_connections,
            max_keepalive_connections=options.max_connections,
            keepalive_expiry=options.keep_alive_s,
        )
        context = given if isinstance(given, ssl.SSLContext) else make_context(given)
        self._client = httpx.AsyncHTTPTransport(verify=context, http2=True, limits=limits, trust_env=False)
        return self._client

    async def send(self, request: UpstreamRequest) -> _Http2Response:
        """The answer's head. Raises UpstreamUnreachable, UpstreamTimeout, UpstreamMalformed."""
        from h2.exceptions import ProtocolError

        client = self._client or self._open()
        limits, url = request.deadlines, request.url
        began = asyncio.get_running_loop().time()
        response: httpx.Response | None = None
        whole = sooner(limits.first_byte_s, limits.total_s)
        try:
            made = _request(request)
            made.extensions["trace"] = self._trace
            async with asyncio.timeout(whole):
                response = await client.handle_async_request(made)
        except (httpx.ConnectTimeout, httpx.PoolTimeout):
            raise fault(UpstreamTimeout, url, f"took no connection within {limits.connect_s:g} s") from None
        except TimeoutError:
            which = "total" if whole == limits.total_s else "first-byte"
            raise fault(UpstreamTimeout, url, f"sent no answer within {whole or 0:g} s ({which} limit)") from None
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise fault(UpstreamUnreachable, url, "has an address that no request can be sent to") from None
        except httpx.LocalProtocolError as error:
            if isinstance(_cause(error), ProtocolError):  # so httpcore names what h2 says of the other side, too
                raise fault(UpstreamMalformed, url, "sent an answer that is not HTTP (ProtocolError)") from None
            raise fault(UpstreamUnreachable, url, "cannot be asked: a header holds a line end or is none") from None
        except httpx.RemoteProtocolError as error:
            raise fault(UpstreamMalformed, url, f"sent an answer that is not HTTP ({type(error).__name__})") from None
        except (httpx.TransportError, OSError) as error:
            raise fault(UpstreamUnreachable, url, f"is not reachable ({reason(error)})") from None
        finally:
            if response is None:
                self.give_up()
        if len(response.headers) > HEADERS_LIMIT:
            await response.aclose()
            raise fault(UpstreamMalformed, url, "sent a head that is too large")
        return _Http2Response(response, request, began, self.give_up)

    def give_up(self, response: httpx.Response | None = None) -> None:
        """End an exchange early, and tell the upstream: on a connection that goes on there is no other sign."""
        task = asyncio.ensure_future(self._give_up(response))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _give_up(self, response: httpx.Response | None) -> None:
        from h2.exceptions import ProtocolError

        try:
            if response is not None:
                await response.aclose()
            for connection in self._reset():
                await connection._write_outgoing_data(httpcore.Request("RST", "https://stream"))
        except (httpx.HTTPError, *_CORE_ERRORS, ProtocolError, OSError):
            pass  # the connection has ended, and the stream with it

    def _reset(self) -> list[Any]:
        """Cancel the streams that nobody reads any more, and give their connections the room back that they took.

        httpcore only forgets them: the upstream would go on for nobody, and 100 of them or 16 MiB unread would leave a
        connection that looks well and serves nothing. There is no public way to them; `test_upstream_http2.py` says
        whether this one still leads there.
        """
        from h2.errors import ErrorCodes

        touched = []
        for outer in self._client._pool.connections if self._client is not None else ():
            inner: Any = getattr(outer, "_connection", None)
            state, events = getattr(inner, "_h2_state", None), getattr(inner, "_events", {})
            if state is None or not inner.is_available():
                continue
            left = [number for number, stream in state.streams.items() if number not in events and stream.open]
            for number in left:
                state.reset_stream(number, ErrorCodes.CANCEL)
            if left:
                touched.append(inner)
                unread = sum(
                    getattr(event, "flow_controlled_length", 0) for queue in events.values() for event in queue
                )
                window = state._inbound_flow_control_window_manager
                missing = window.max_window_size - window.current_window_size - unread - window._bytes_processed
                if missing > 0:
                    state.increment_flow_control_window(missing)
        return touched

    async def _trace(self, event: str, _: Mapping[str, Any]) -> None:
        given = self._options.ssl_context
        if event == "http2.send_request_headers.started":
            self._reset()  # a stream that was given up this very moment must not count against the upstream's limit
        elif event == "connection.start_tls.started" and isinstance(given, ssl.SSLContext):
            # What httpcore makes it offer must not outlive the handshake that begins now: the client for proxies has
            # the same context, and speaks no HTTP/2.
            asyncio.get_running_loop().call_soon(given.set_alpn_protocols, ["http/1.1"])

    async def aclose(self) -> None:
        """End all connections."""
        await asyncio.gather(*self._ending)
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _request(request: UpstreamRequest) -> httpx.Request:
    address, limits = address_of(request.url), request.deadlines
    if any(not _TOKEN.fullmatch(name) or _FORBIDDEN.search(value) for name, value in request.headers):
        raise fault(UpstreamUnreachable, request.url, "cannot be asked: a header holds a line end or is none")
    headers = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in request.headers
    ]
    if address.auth and not any(name.lower() == b"authorization" for name, _ in headers):
        headers.append((b"authorization", address.auth.encode()))
    return httpx.Request(
        request.method,
        f"{'https' if address.origin.tls else 'http'}://{address.host}",
        headers=headers,
        content=request.body or None,
        extensions={
            "target": address.target.encode("ascii"),  # httpx would write some paths anew
            "timeout": {"connect": limits.connect_s, "pool": limits.connect_s},
        },
    )


class _Http2Response:
    __slots__ = (
        "_deadline",
        "_ended",
        "_give_up",
        "_limits",
        "_lost",
        "_parts",
        "_response",
        "_url",
        "headers",
        "status",
    )

    def __init__(
        self,
        response: httpx.Response,
        request: UpstreamRequest,
        began: float,
        give_up: Callable[[httpx.Response], None],
    ) -> None:
        self.status = response.status_code
        self.headers = [(name.lower(), value) for name, value in response.headers.raw]
        self._response = response
        self._limits = request.deadlines
        self._url = request.url
        self._deadline = None if self._limits.total_s is None else began + self._limits.total_s
        assert isinstance(response.stream, httpx.AsyncByteStream)
        self._parts: AsyncIterator[bytes] = aiter(response.stream)
        self._ended = False
        #: It was given up: whoever still reads must not take what came so far for the whole.
        self._lost = False
        self._give_up = give_up

    async def chunk(self) -> bytes:
        """The next bytes; `b""` at the end."""
        from h2.exceptions import ProtocolError

        if self._lost:
            raise UpstreamTruncated("The exchange was given up.")
        if self._ended:
            return b""
        between, loop = self._limits.between_bytes_s, asyncio.get_running_loop()
        left = None if self._deadline is None else max(0.0, self._deadline - loop.time())
        try:
            async with asyncio.timeout(sooner(between, left)):
                while not (data := await anext(self._parts, b"")):
                    self._ended = True
                    await self._response.aclose()
                    return b""
                return data
        except TimeoutError:
            self.close()
            # By which was the sooner: timers of some loops fire a moment before their time.
            total = left is not None and (between is None or left <= between)
            what = (
                f"did not finish within {self._limits.total_s or 0:g} s (total limit)"
                if total
                else f"sent nothing for {between or 0:g} s (between-bytes limit)"
            )
            raise fault(UpstreamTimeout, self._url, what) from None
        except (httpx.TransportError, httpx.StreamError, ProtocolError, OSError) as error:
            self.close()
            raise fault(UpstreamTruncated, self._url, f"broke off in its answer ({reason(error)})") from None

    async def read(self, limit: int) -> bytes:
        """The rest of the body."""
        return await read_whole(self, self._url, limit)

    def close(self) -> None:
        """Give the exchange up."""
        if not self._ended:
            self._ended = self._lost = True
            self._give_up(self._response)


def _cause(error: BaseException) -> object:
    """What httpcore's error was made of."""
    cause = error.__cause__
    return cause.args[0] if cause is not None and cause.args else cause
