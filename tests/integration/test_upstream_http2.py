"""HTTP/2 upstreams: a real server that offers it, and a scripted one for what goes wrong on a stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset

from tests.support.tcp import until
from tests.support.upstreams import H2Script, H2Server
from tianji_mw.errors import MissingExtra, UpstreamMalformed, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import Deadlines, Transport, TransportOptions, UpstreamRequest, UpstreamResponse
from tianji_mw.upstream.choose import transport_of

Make = Callable[[TransportOptions], Transport]
HEAD = [(":status", "200"), ("x-odd", "a")]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Transports that are closed at the end."""
    made: list[Transport] = []

    def new(options: TransportOptions) -> Transport:
        made.append(transport_of(options))
        return made[-1]

    yield new
    for transport in made:
        await transport.aclose()


def post(url: str, path: str = "/x", body: bytes | AsyncIterator[bytes] = b"{}", **limits: float) -> UpstreamRequest:
    options = {"connect_s": 5.0, "first_byte_s": 5.0, "between_bytes_s": 5.0, **limits}
    return UpstreamRequest("POST", f"{url}{path}?key=canary", [("x-key", "canary")], body, Deadlines(**options))


async def whole(response: UpstreamResponse) -> bytes:
    return await response.read(64 << 20)


async def ask(transport: Transport, url: str, path: str = "/x") -> bytes:
    return await whole(await transport.send(post(url, path)))


# --- a server as they are


@pytest.mark.slow
@pytest.mark.parametrize(("alpn", "version", "ports"), [("h2,http/1.1", b"2", 1), ("http/1.1", b"1.1", 8)])
async def test_exchanges_share_a_connection_where_the_upstream_offers_it(
    make: Make, tmp_path: Path, alpn: str, version: bytes, ports: int
) -> None:
    """All heads are there before any body is read: without HTTP/2 that takes a connection each."""
    async with H2Server(alpn, tmp_path) as server:
        transport = make(server.options())
        answers = await asyncio.gather(*(transport.send(post(server.url, f"/{n}")) for n in range(8)))
        heads = [(answer.status, dict(answer.headers)) for answer in answers]
        assert [await whole(answer) for answer in answers] == [b"/%d!" % n for n in range(8)]
        assert {(status, found[b"x-got"], found[b"x-version"]) for status, found in heads} == {(200, b"2", version)}
        assert len({found[b"x-port"] for _, found in heads}) == ports
        again = await transport.send(post(server.url))
        assert dict(again.headers)[b"x-port"] in {found[b"x-port"] for _, found in heads}
        assert await whole(again) == b"/x!"


@pytest.mark.slow
async def test_a_body_may_stream(make: Make, tmp_path: Path) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(30):
            await asyncio.sleep(0)
            yield b"x" * 10_000  # more than a stream's first window, 64 KiB

    async with H2Server("h2", tmp_path) as server:
        response = await make(server.options()).send(post(server.url, body=parts()))
        assert dict(response.headers)[b"x-got"] == b"300000"
        assert await whole(response) == b"/x!"


async def test_http_without_tls_takes_the_lean_client(make: Make, llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"a"]), Reply(parts=[b"b"])]
    transport = make(TransportOptions(http2=True))
    assert await ask(transport, llm.url) + await ask(transport, llm.url) == b"ab"
    assert llm.connections == 1


def test_without_its_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h2", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[http2\]"):
        transport_of(TransportOptions(http2=True))
    assert transport_of(TransportOptions(http2=False))


# --- what goes wrong


def path_of(event: RequestReceived) -> str:
    found = {bytes(name): bytes(value) for name, value in event.headers}
    return found[b":path"].decode().partition("?")[0]


class Paths:
    """Answers `/ok` with `ok`; `/cut` with `12345` and then `fault`; `/hang` with `x` and no end; `/mute` never."""

    def __init__(self, fault: Callable[[H2Connection, int], bool | None] | None = None) -> None:
        self._fault = fault
        self._paths: dict[int, str] = {}

    def __call__(self, h2: H2Connection, event: Event) -> bool | None:
        if isinstance(event, RequestReceived):
            self._paths[event.stream_id] = path_of(event)
        elif isinstance(event, DataReceived):
            h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            return self._answer(h2, event.stream_id, self._paths[event.stream_id])
        return None

    def _answer(self, h2: H2Connection, stream: int, path: str) -> bool | None:
        if path == "/mute":
            return None
        if path == "/refused":
            assert self._fault is not None
            return self._fault(h2, stream)
        h2.send_headers(stream, HEAD)
        h2.send_data(stream, {"/ok": b"ok", "/cut": b"12345", "/hang": b"x"}[path], end_stream=path == "/ok")
        if path == "/cut":
            assert self._fault is not None
            return self._fault(h2, stream)
        return None


def resets(h2: H2Connection, stream: int) -> None:
    h2.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)


def goes_away(h2: H2Connection, stream: int) -> bool:
    h2.close_connection(ErrorCodes.INTERNAL_ERROR, last_stream_id=0)
    return True


def hangs_up(h2: H2Connection, stream: int) -> bool:
    return True


def talks_nonsense(h2: H2Connection, stream: int) -> bool:
    h2._data_to_send += b"\x00\x00\x05\x00\x00\x00\x00\x00\x00canary"  # DATA of stream 0, which may have none
    return True


@pytest.mark.parametrize("fault", [resets, goes_away, hangs_up])
async def test_a_stream_cut_in_its_middle_is_no_whole_answer(
    make: Make, fault: Callable[[H2Connection, int], bool | None]
) -> None:
    """What came before the cut is delivered, and the next exchange goes well."""
    async with H2Script(Paths(fault)) as server:
        transport = make(server.options())
        response = await transport.send(post(server.url, "/cut"))
        assert (response.status, (b"x-odd", b"a") in response.headers) == (200, True)
        with pytest.raises(UpstreamTruncated, match="broke off in its answer") as caught:
            await whole(response)
        assert "canary" not in str(caught.value)
        response.close()
        assert await ask(transport, server.url, "/ok") == b"ok"
        assert server.connections == (1 if fault is resets else 2)


@pytest.mark.parametrize("fault", [resets, goes_away, hangs_up, talks_nonsense])
async def test_a_stream_that_ends_before_its_head(
    make: Make, fault: Callable[[H2Connection, int], bool | None]
) -> None:
    async with H2Script(Paths(fault)) as server:
        transport = make(server.options())
        with pytest.raises((UpstreamUnreachable, UpstreamMalformed)) as caught:
            await transport.send(post(server.url, "/refused"))
        assert "canary" not in str(caught.value)
        assert await ask(transport, server.url, "/ok") == b"ok"


async def test_nonsense_ends_all_answers_of_its_connection(make: Make) -> None:
    async with H2Script(Paths(talks_nonsense)) as server:
        transport = make(server.options())
        running = await transport.send(post(server.url, "/hang"))
        assert await running.chunk() == b"x"
        with pytest.raises(UpstreamMalformed, match="sent an answer that is not HTTP") as early:
            await transport.send(post(server.url, "/refused"))
        with pytest.raises(UpstreamTruncated, match="broke off in its answer") as late:
            await running.chunk()
        assert "canary" not in f"{early.value}{late.value}"
        assert await ask(transport, server.url, "/ok") == b"ok"
        assert server.connections == 2


async def test_a_cut_stream_leaves_its_neighbours_alone(make: Make) -> None:
    async with H2Script(Paths(resets)) as server:
        transport = make(server.options())
        assert await ask(transport, server.url, "/ok") == b"ok"
        cut, other = await transport.send(post(server.url, "/cut")), await transport.send(post(server.url, "/ok"))
        with pytest.raises(UpstreamTruncated):
            await whole(cut)
        assert await whole(other) == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize("header", [("x-key", "canary\r\nx: y"), ("x-key", "canary\0"), ("x key", "y"), ("", "y")])
async def test_a_header_that_is_none_is_not_sent(make: Make, header: tuple[str, str]) -> None:
    async with H2Script(Paths()) as server:
        transport = make(server.options())
        with pytest.raises(UpstreamUnreachable, match="cannot be asked: a header holds a line end or is none"):
            await transport.send(UpstreamRequest("POST", f"{server.url}/ok", [header], b"{}"))
        assert await ask(transport, server.url, "/ok") == b"ok"
        assert sum(isinstance(event, RequestReceived) for event in server.events) == 1


# --- deadlines, and exchanges that are given up


@pytest.mark.parametrize(
    ("path", "limits", "text"),
    [
        ("/mute", {"first_byte_s": 0.1}, r"sent no answer within 0\.1 s \(first-byte limit\)"),
        ("/mute", {"total_s": 0.1}, r"sent no answer within 0\.1 s \(total limit\)"),
        ("/hang", {"between_bytes_s": 0.1}, r"sent nothing for 0\.1 s \(between-bytes limit\)"),
        ("/hang", {"total_s": 0.1}, r"did not finish within 0\.1 s \(total limit\)"),
    ],
)
async def test_deadlines_cost_no_connection(make: Make, path: str, limits: dict[str, float], text: str) -> None:
    async with H2Script(Paths()) as server:
        transport = make(server.options())
        with pytest.raises(UpstreamTimeout, match=text):
            await whole(await transport.send(post(server.url, path, **limits)))
        assert await ask(transport, server.url, "/ok") == b"ok"
        assert server.connections == 1


@pytest.mark.parametrize("way", ["close", "deadline", "cancel"])
async def test_who_gives_up_tells_the_upstream(make: Make, way: str) -> None:
    """On a connection that goes on there is no other sign, and an LLM would go on for nobody."""
    async with H2Script(Paths()) as server:
        transport = make(server.options())
        if way == "cancel":
            task = asyncio.create_task(transport.send(post(server.url, "/mute")))
            await until(lambda: any(isinstance(event, StreamEnded) for event in server.events))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            response = await transport.send(post(server.url, "/hang", between_bytes_s=0.1))
            assert await response.chunk() == b"x"
            if way == "close":
                response.close()
            else:
                with pytest.raises(UpstreamTimeout):
                    await response.chunk()
        await until(lambda: any(isinstance(event, StreamReset) for event in server.events))
        assert await ask(transport, server.url, "/ok") == b"ok"
        assert server.connections == 1


async def test_a_reader_learns_that_its_answer_was_given_up(make: Make) -> None:
    async with H2Script(Paths()) as server:
        response = await make(server.options()).send(post(server.url, "/hang"))
        assert await response.chunk() == b"x"
        response.close()
        response.close()
        with pytest.raises(UpstreamTruncated):
            await response.chunk()


async def test_what_was_given_up_unread_takes_no_room_from_the_others(make: Make) -> None:
    """A connection has a window that all streams share; httpcore's holds 16 MiB."""
    big = 60_000

    def on(h2: H2Connection, event: Event) -> None:
        if isinstance(event, StreamEnded):
            h2.send_headers(event.stream_id, HEAD)
            room = h2.local_flow_control_window(event.stream_id)
            assert room >= big, f"{room} bytes are left"
            for _ in range(4):
                h2.send_data(event.stream_id, b"x" * (big // 4), end_stream=False)

    async with H2Script(on) as server:
        transport = make(server.options())
        for _ in range(300):
            response = await transport.send(post(server.url))
            response.close()
        assert len(await (await transport.send(post(server.url))).chunk()) > 0
        assert server.connections == 1
