"""The pool under load and faults: places are neither lost nor exceeded, dead connections cost no request."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.tcp import OK, TcpServer, ask, read_request, reset, until
from tianji_mw.errors import UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.upstream import TransportOptions, UpstreamRequest
from tianji_mw.upstream.http1 import Http1Transport

Make = Callable[..., Http1Transport]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Transports that are closed at the end."""
    made: list[Http1Transport] = []

    def new(**options: Any) -> Http1Transport:
        made.append(Http1Transport(TransportOptions(**options)))
        return made[-1]

    yield new
    for transport in made:
        await transport.aclose()


class Gate:
    """An upstream that notes each request's path, and answers it when the test says so; `/now` at once."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self._go = asyncio.Semaphore(0)

    def let(self, count: int) -> None:
        for _ in range(count):
            self._go.release()

    def shut(self) -> None:
        self._go = asyncio.Semaphore(0)

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            path = await read_request(reader)
            self.paths.append(path)
            if path != "/now":
                await self._go.acquire()
            if path.startswith("/die"):
                return reset(writer)
            writer.write(OK)


async def settle() -> None:
    """Let everything happen that needs no more than a few turns of loops and sockets."""
    await asyncio.sleep(0.03)


# --- places


@pytest.mark.parametrize("limit", [1, 4])
async def test_who_is_above_the_limit_waits_in_line(make: Make, limit: int) -> None:
    gate = Gate()
    async with TcpServer(gate) as server:
        transport = make(max_connections=limit)
        tasks = [asyncio.create_task(ask(transport, f"{server.url}/{n}")) for n in range(24)]
        for done in range(0, 24, limit):
            await until(lambda done=done: len(gate.paths) == done + limit)  # type: ignore[misc]
            # No more than the limit are ever on their way, and who came first is asked first.
            assert sorted(gate.paths[done:]) == sorted(f"/{n}" for n in range(done, done + limit))
            gate.let(limit)
        assert await asyncio.gather(*tasks) == [b"ok"] * 24
        assert (server.most, server.connections) == (limit, limit)


async def test_waiters_that_are_cancelled_take_no_place_with_them(make: Make) -> None:
    """At every point: long before their turn, and in the very turn of the loop in which it comes."""
    gate, rng = Gate(), random.Random(3)
    async with TcpServer(gate) as server:
        transport = make(max_connections=2)
        tasks = [asyncio.create_task(ask(transport, f"{server.url}/{n}")) for n in range(200)]
        victims = rng.sample(tasks, 120)
        for victim in victims:
            gate.let(1)
            for _ in range(rng.randrange(8)):
                await asyncio.sleep(0)
            victim.cancel()
        gate.let(400)
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        survived = [answer for task, answer in zip(tasks, answers, strict=True) if task not in victims]
        assert survived == [b"ok"] * 80
        assert server.most <= 4, "two, and two whose end the server has not seen yet"
        assert len(gate.paths) == len(set(gate.paths))
        # Both places are there: two requests are on their way at once.
        gate.paths.clear()
        gate.shut()
        last = [asyncio.create_task(ask(transport, f"{server.url}/last")) for _ in range(3)]
        await settle()
        assert gate.paths == ["/last"] * 2
        gate.let(3)
        assert await asyncio.gather(*last) == [b"ok"] * 3


@pytest.mark.parametrize("limit", ["connect_s", "first_byte_s", "total_s"])
async def test_a_waiter_waits_as_long_as_it_may(make: Make, limit: str) -> None:
    gate = Gate()
    async with TcpServer(gate) as server:
        transport = make(max_connections=1)
        holder = asyncio.create_task(ask(transport, f"{server.url}/holder"))
        await until(lambda: gate.paths == ["/holder"])
        waits = [ask(transport, f"{server.url}/late", **{limit: 0.1}) for _ in range(5)]
        for error in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(error, UpstreamTimeout)
            assert str(error) == "The provider took no connection within 0.1 s."
        gate.let(1)
        assert await holder == b"ok"
        assert await ask(transport, f"{server.url}/now") == b"ok"
        assert (gate.paths, server.connections) == (["/holder", "/now"], 1)


async def test_a_waiter_gets_the_place_of_a_connection_that_died(make: Make) -> None:
    gate = Gate()
    async with TcpServer(gate) as server:
        transport = make(max_connections=1)
        tasks = [asyncio.create_task(ask(transport, f"{server.url}/die-{n}")) for n in range(5)]
        tasks.append(asyncio.create_task(ask(transport, f"{server.url}/fine")))
        gate.let(6)
        *died, fine = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in died] == [UpstreamUnreachable] * 5
        assert fine == b"ok"
        assert gate.paths == [*(f"/die-{n}" for n in range(5)), "/fine"]
        assert server.connections == 6


async def test_an_origin_has_a_limit_of_its_own(make: Make) -> None:
    gate, other = Gate(), Gate()
    async with TcpServer(gate) as server, TcpServer(other) as second:
        transport = make(max_connections=1)
        holder = asyncio.create_task(ask(transport, f"{server.url}/holder"))
        await until(lambda: len(gate.paths) == 1)
        assert await ask(transport, f"{second.url}/now") == b"ok"
        gate.let(1)
        assert await holder == b"ok"


async def test_the_end_of_a_transport_ends_who_waits_in_line(make: Make) -> None:
    gate = Gate()
    async with TcpServer(gate) as server:
        transport = make(max_connections=1)
        tasks = [asyncio.create_task(ask(transport, f"{server.url}/{n}")) for n in range(3)]
        await until(lambda: gate.paths == ["/0"])
        await transport.aclose()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 3)
        assert [type(answer) for answer in answers] == [UpstreamUnreachable] * 3
        gate.let(1)
        await until(lambda: server.open == 0)
        assert (gate.paths, server.connections) == (["/0"], 1), "no connection is opened by the end of others"


# --- idle connections


@pytest.mark.parametrize("at_once", [1, 10])
async def test_requests_survive_an_upstream_that_closes_idle_connections(make: Make, at_once: int) -> None:
    """It closes them when it likes; where its FIN came before a request, that one goes elsewhere and is sent once."""
    rng, paths = random.Random(11), []
    dying: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            paths.append(await read_request(reader))
            writer.write(OK)
            if (kind := rng.random()) < 0.3:
                return  # closed together with the answer
            if kind < 0.5:
                task = asyncio.create_task(end(writer, rng.random() * 0.003))
                dying.add(task)
                task.add_done_callback(dying.discard)

    async def end(writer: asyncio.StreamWriter, after: float) -> None:
        await asyncio.sleep(after)
        writer.close()

    async with TcpServer(serve) as server:
        transport = make()
        for n in range(300 // at_once):
            urls = [f"{server.url}/{n}-{each}" for each in range(at_once)]
            assert await asyncio.gather(*(ask(transport, url) for url in urls)) == [b"ok"] * at_once
            # Every close has been made; the kernel has its FIN, the client's loop may not have looked yet.
            while dying:
                await asyncio.sleep(0.001)
        assert len(paths) == len(set(paths)) == 300
        assert 90 < server.connections <= 300


async def test_a_fin_that_the_loop_has_not_seen_is_asked_of_the_kernel(make: Make) -> None:
    """The request is made in the very turn of the loop in which the FIN is there and no callback has run yet."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(OK)
            writers.append(writer)

    writers: list[asyncio.StreamWriter] = []
    async with TcpServer(serve) as server:
        transport = make()
        for n in range(1, 50):
            assert await ask(transport, server.url) == b"ok"
            assert (len(writers), server.connections) == (n, n)
            # Past the loop: no turn of it lies between the FIN and the next request.
            with socket.socket(fileno=os.dup(writers[-1].get_extra_info("socket").fileno())) as raw:
                raw.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(("keep_alive_s", "connections"), [(0.1, 2), (0.0, 2), (30.0, 1)])
async def test_an_idle_connection_is_used_again_for_so_long(make: Make, keep_alive_s: float, connections: int) -> None:
    async with TcpServer(Gate()) as server:
        transport = make(keep_alive_s=keep_alive_s)
        assert await ask(transport, f"{server.url}/now") == b"ok"
        await asyncio.sleep(0.2)
        assert server.open == (connections == 1), "and is closed after it, wanted or not"
        assert await ask(transport, f"{server.url}/now") == b"ok"
        assert server.connections == connections


@pytest.mark.parametrize(
    ("header", "connections"),
    [
        (b"keep-alive: timeout=0", 2),
        (b"Keep-Alive: max=3, Timeout=0", 2),
        (b"keep-alive: timeout=5", 1),
        (b"keep-alive: timeout=99999999999999", 1),
        (b"keep-alive: timeout=-1", 1),
        (b"keep-alive: xtimeout=0", 1),
        (b"connection: close", 2),
        (b"Connection: x-hop, Close", 2),
        (b"connection: keep-alive", 1),
        # Apache says this of itself in plain answers; it is an offer, and ends nothing.
        (b"upgrade: h2,h2c\r\nconnection: Upgrade, Keep-Alive", 1),
    ],
)
async def test_what_an_upstream_says_of_its_connection_holds(make: Make, header: bytes, connections: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(OK.replace(b"\r\n\r\n", b"\r\n" + header + b"\r\n\r\n"))

    async with TcpServer(serve) as server:
        transport = make()
        for _ in range(2):
            assert await ask(transport, server.url) == b"ok"
        assert server.connections == connections
        if connections == 2:
            await until(lambda: server.open == 0)


@pytest.mark.parametrize("extra", [OK, b"\r\n", b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\r\n", b"x"])
async def test_bytes_on_an_idle_connection_cost_the_connection(make: Make, extra: bytes) -> None:
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            await read_request(reader)
            writer.write(OK)
            await asyncio.sleep(0.005)
            writer.write(extra)
            sent += 1

    async with TcpServer(serve) as server:
        transport = make()
        for n in range(1, 6):
            assert await ask(transport, server.url) == b"ok"
            await until(lambda n=n: sent == n)  # type: ignore[misc]
            assert server.connections == n
        await until(lambda: server.open == 0)


# --- cancellation


@pytest.mark.parametrize("phase", ["head", "half head", "body", "unread body"])
async def test_a_cancel_closes_the_connection(make: Make, phase: str) -> None:
    sent = {
        "head": b"",
        "half head": OK[:20],
        "body": OK.replace(b"2", b"9"),
        "unread body": OK.replace(b": 2", b": 999999999") + b"x" * 9_000_000,
    }[phase]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        paths.append(await read_request(reader))
        writer.write(sent if len(paths) == 1 else OK)
        await reader.read()

    async def slowly() -> None:
        response = await transport.send(UpstreamRequest("POST", server.url, (), b"{}"))
        try:
            while await response.chunk():
                await asyncio.sleep(30 if phase == "unread body" else 0)
        finally:
            response.close()

    paths: list[str] = []
    async with TcpServer(serve) as server:
        transport = make(max_connections=1)
        task = asyncio.create_task(slowly())
        await until(lambda: len(paths) == 1)
        await settle()
        assert server.open == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: server.open == 0)
        # Its place is free.
        assert await ask(transport, server.url, connect_s=1) == b"ok"


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_cancel_while_connecting_leaves_no_connection(make: Make, scheme: str) -> None:
    """At every turn of the loop: before, in and after TCP's handshake, and within that of TLS, which gets no answer."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    async with TcpServer(serve) as server:
        transport = make(max_connections=1, ssl_context=False)
        for turns in range(30):
            task = asyncio.create_task(ask(transport, server.url.replace("http", scheme)))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: server.open == 0)
        # The only place was given back thirty times.
        with pytest.raises(UpstreamTimeout, match=r"limit|no connection within"):
            await ask(transport, server.url.replace("http", scheme), connect_s=0.2, first_byte_s=0.1)


async def test_the_end_of_a_transport_ends_its_exchanges(make: Make) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await read_request(reader) == "/body":
            writer.write(OK.replace(b"2", b"9"))
        await reader.read()

    async with TcpServer(serve) as server:
        transport = make()
        tasks = [asyncio.create_task(ask(transport, server.url + path)) for path in ("/head", "/body")]
        await until(lambda: server.open == 2)
        await settle()
        await transport.aclose()
        errors = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(error) for error in errors] == [UpstreamUnreachable, UpstreamTruncated]
        await until(lambda: server.open == 0)
