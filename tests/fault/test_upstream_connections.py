"""Connections to upstreams: limits and waiting in line, idle ones that died, cancellation, names and addresses."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.raw import RawServer, Script
from tianji_mw.errors import UpstreamTimeout, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import Deadlines, TransportOptions, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Http1Transport]]:
    """Transports that are closed at the end."""
    made: list[Http1Transport] = []

    def new(**options: Any) -> Http1Transport:
        made.append(Http1Transport(TransportOptions(**options)))
        return made[-1]

    yield new
    for transport in made:
        await transport.aclose()


async def ask(transport: Http1Transport, url: str, **deadlines: Any) -> bytes:
    response = await transport.send(UpstreamRequest("POST", url, (), b"{}", Deadlines(**deadlines)))
    try:
        return await response.read(1 << 20)
    finally:
        response.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


# --- limits


@pytest.mark.parametrize("limit", [1, 3])
async def test_above_the_limit_requests_wait_in_line(make: Callable[..., Http1Transport], limit: int) -> None:
    async with RawServer(lambda path, n: Script([b""], later=[OK])) as server:
        transport = make(max_connections=limit)
        urls = [f"{server.url}/{n}" for n in range(20)]
        assert await asyncio.gather(*(ask(transport, url) for url in urls)) == [b"ok"] * 20
        assert server.connections == limit
        expected = [f"/{n}" for n in range(20)]
        assert sorted(server.requests) == sorted(expected)
        assert limit > 1 or server.requests == expected, "first come, first served"


async def test_who_waits_too_long_or_leaves_takes_no_place_with_it(make: Callable[..., Http1Transport]) -> None:
    free = asyncio.Event()

    async with RawServer(lambda path, n: Script([OK]) if free.is_set() else Script([])) as server:
        transport = make(max_connections=1)
        holder = asyncio.create_task(ask(transport, server.url))
        await until(lambda: len(server.requests) == 1)
        with pytest.raises(UpstreamTimeout, match=r"took no connection within 0\.05 s"):
            await ask(transport, server.url, connect_s=0.05)
        leaver = asyncio.create_task(ask(transport, server.url))
        patient = asyncio.create_task(ask(transport, server.url))
        await asyncio.sleep(0.01)
        leaver.cancel()
        holder.cancel()  # its connection ends, and the place is free
        free.set()
        assert await patient == b"ok"
        await asyncio.gather(holder, leaver, return_exceptions=True)
        assert server.connections == 2


async def test_a_place_is_free_again_after_a_connection_that_failed(make: Callable[..., Http1Transport]) -> None:
    transport = make(max_connections=1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        found = await asyncio.gather(*(ask(transport, url) for _ in range(5)), return_exceptions=True)
    assert [type(error) for error in found] == [UpstreamUnreachable] * 5


# --- idle connections


@pytest.mark.parametrize("at_once", [1, 8])
async def test_no_request_is_lost_to_an_upstream_that_closes_idle_connections(
    make: Callable[..., Http1Transport], at_once: int
) -> None:
    """The answer promises to keep the connection, then the server closes it without a word."""
    rng = random.Random(7)

    async with RawServer(lambda path, n: Script([OK], close=rng.random() < 0.5)) as server:
        transport = make()
        for n in range(200 // at_once):
            answers = await asyncio.gather(*(ask(transport, f"{server.url}/{n}-{each}") for each in range(at_once)))
            assert answers == [b"ok"] * at_once
            # What the server has closed must have arrived; a request that crosses its end on the way cannot be saved.
            await asyncio.sleep(0.005)
        assert len(server.requests) == len(set(server.requests)) == 200, "each was sent once"
        assert server.connections > 50


@pytest.mark.parametrize(("offer", "connections"), [(b"", 1), (b"keep-alive: timeout=1, max=9\r\n", 2)])
async def test_an_upstreams_own_limit_for_idle_connections_holds(
    make: Callable[..., Http1Transport], offer: bytes, connections: int
) -> None:
    answer = b"HTTP/1.1 200 OK\r\n" + offer + b"content-length: 2\r\n\r\nok"
    async with RawServer(lambda path, n: Script([answer])) as server:
        transport = make()
        await ask(transport, server.url)
        await asyncio.sleep(0.7)  # half a second earlier than it says: the next request must still arrive in time
        await ask(transport, server.url)
        assert server.connections == connections


async def test_an_idle_connection_is_closed_after_its_time(make: Callable[..., Http1Transport]) -> None:
    async with RawServer(lambda path, n: Script([OK])) as server:
        await ask(make(keep_alive_s=0.05), server.url)
        assert server.open == 1
        await until(lambda: server.open == 0)


async def test_connection_close_is_obeyed(make: Callable[..., Http1Transport]) -> None:
    answer = OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with RawServer(lambda path, n: Script([answer])) as server:
        transport = make()
        for _ in range(3):
            assert await ask(transport, server.url) == b"ok"
        assert server.connections == 3
        await until(lambda: server.open == 0)


async def test_bytes_on_an_idle_connection_cost_the_connection(make: Callable[..., Http1Transport]) -> None:
    async with RawServer(lambda path, n: Script([OK], later=[OK.replace(b"ok", b"no")])) as server:
        transport = make()
        for n in range(3):
            assert await ask(transport, server.url) == b"ok"
            await until(lambda: server.open == 0)
            assert server.connections == n + 1


# --- cancellation


async def test_a_cancel_ends_the_connection_in_every_phase(make: Callable[..., Http1Transport]) -> None:
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok"
    scripts = {"/silent": Script([]), "/head": Script([half[:20]]), "/body": Script([half])}
    async with RawServer(lambda path, n: scripts[path]) as server:
        transport = make()
        for n, path in enumerate(scripts, 1):
            task = asyncio.create_task(ask(transport, server.url + path))
            await until(lambda n=n: len(server.requests) == n)  # type: ignore[misc]
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: server.open == 0)


async def test_a_cancel_while_tls_is_negotiated(make: Callable[..., Http1Transport]) -> None:
    async with RawServer(lambda path, n: Script([])) as server:  # it never speaks TLS
        task = asyncio.create_task(ask(make(), server.url.replace("http:", "https:")))
        await until(lambda: server.open == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open == 0)


# --- names and addresses


def info(family: int, address: str, port: int) -> tuple[Any, ...]:
    return (family, socket.SOCK_STREAM, 6, "", (address, port, 0, 0) if family == socket.AF_INET6 else (address, port))


async def test_an_ipv6_address(make: Callable[..., Http1Transport]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK)
        writer.close()

    heads: list[bytes] = []
    server = await asyncio.start_server(answer, "::1", 0)
    port = server.sockets[0].getsockname()[1]
    assert await ask(make(), f"http://[::1]:{port}/x") == b"ok"
    assert b"host: [::1]:%d\r\n" % port in heads[0]
    server.close()


async def test_a_dead_address_does_not_hold_up_a_live_one(
    make: Callable[..., Http1Transport], llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Happy eyeballs: the first address drops every packet (a full queue), the second one answers."""
    llm.replies.append(Reply(parts=[b"ok"]))
    port = int(llm.url.rpartition(":")[2])
    with socket.socket() as full:
        full.bind(("127.0.0.2", port))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.2", port))

        async def resolve(*args: Any, **kwargs: Any) -> Any:
            return [info(socket.AF_INET, "127.0.0.2", port), info(socket.AF_INET, "127.0.0.1", port)]

        patched(monkeypatch, resolve)
        assert await ask(make(), f"http://upstream.example:{port}/", connect_s=5) == b"ok"
        for each in waiting:
            each.close()


async def test_a_burst_asks_the_resolver_once_and_a_failure_is_not_remembered(
    make: Callable[..., Http1Transport], llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, asked = int(llm.url.rpartition(":")[2]), []
    llm.replies += [Reply(parts=[b"ok"])] * 10

    async def resolve(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        await asyncio.sleep(0.01)
        if len(asked) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return [info(socket.AF_INET, "127.0.0.1", port)]

    patched(monkeypatch, resolve)
    transport = make()
    with pytest.raises(UpstreamUnreachable, match="is not reachable"):
        await ask(transport, f"http://upstream.example:{port}/")
    assert (
        await asyncio.gather(*(ask(transport, f"http://upstream.example:{port}/") for _ in range(10))) == [b"ok"] * 10
    )
    assert len(asked) == 2


def patched(monkeypatch: pytest.MonkeyPatch, resolve: Any) -> None:
    """uvloop's loop takes no attributes, so the connector's own question is replaced."""
    from tianji_mw.upstream import connect

    class Loop:
        def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
            self._loop = loop

        def __getattr__(self, name: str) -> Any:
            return resolve if name == "getaddrinfo" else getattr(self._loop, name)

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return (lambda: Loop(asyncio.get_running_loop())) if name == "get_running_loop" else getattr(asyncio, name)

    monkeypatch.setattr(connect, "asyncio", Asyncio())


async def test_who_stands_in_the_url_is_said_in_the_request(make: Callable[..., Http1Transport], llm: FakeLLM) -> None:
    llm.replies += [Reply(parts=[b"ok"])] * 2
    url = llm.url.replace("http://", "http://us%20er:p%3Aw@")
    transport = make()
    await ask(transport, url)
    own = UpstreamRequest("POST", url, [("Authorization", "Bearer k")], b"{}")
    await (await transport.send(own)).read(10)
    assert [r.headers["authorization"] for r in llm.requests] == ["Basic dXMgZXI6cDp3", "Bearer k"]
