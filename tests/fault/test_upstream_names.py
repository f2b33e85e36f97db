"""From a URL to a trusted connection: names and addresses, the resolver, certificates, users in URLs."""

from __future__ import annotations

import asyncio
import datetime
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trustme

from tests.support.tcp import OK, TcpServer, ask, read_head, until
from tianji_mw.errors import UpstreamError, UpstreamTimeout, UpstreamTruncated, UpstreamUnreachable
from tianji_mw.upstream import TransportOptions
from tianji_mw.upstream.http1 import Http1Transport

Make = Callable[..., Http1Transport]
Info = tuple[int, int, int, str, tuple[Any, ...]]

SECRET = "sk-canary-0123456789"


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


class Names:
    """What the resolver says of names, and what it was asked."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers: Callable[[int], list[Info]] = lambda port: [at("127.0.0.1", port)]
        self.errors: list[OSError] = []
        self.slow_s = 0.0
        self._real = loop.getaddrinfo

    async def __call__(self, host: Any, port: Any, **options: Any) -> Any:
        if str(host).endswith(("0.1", "0.2", "::1")):
            return await self._real(host, port, **options)  # uvloop's own connect reads addresses with it
        self.asked.append((host, port))
        await asyncio.sleep(self.slow_s)
        if self.errors:
            raise self.errors.pop(0)
        return self.answers(port)


def at(address: str, port: int) -> Info:
    if ":" in address:
        return (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))


@pytest.fixture
async def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A resolver in the place of the running loop's."""
    loop = asyncio.get_running_loop()
    found = Names(loop)
    monkeypatch.setattr(loop, "getaddrinfo", found)
    return found


class Heads:
    """An upstream that keeps the heads it got, and answers all."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await read_head(reader)
            if b"content-length: 2" in head:
                await reader.readexactly(2)
            self.heads.append(head)
            writer.write(OK)


# --- addresses


@pytest.mark.parametrize("path", ["", "/", "/v1?x=[::1]"])
async def test_an_ipv6_literal(make: Make, path: str) -> None:
    heads = Heads()
    async with TcpServer(heads, host="::1") as server:
        assert await ask(make(), server.url + path) == b"ok"
        assert heads.heads[0].startswith(
            b"POST %b HTTP/1.1\r\nhost: [::1]:%d\r\n" % (path.encode() or b"/", server.port)
        )


async def test_addresses_are_not_looked_up(make: Make, names: Names) -> None:
    async with TcpServer(Heads()) as server, TcpServer(Heads(), host="::1") as second:
        transport = make()
        assert await ask(transport, server.url) == b"ok"
        assert await ask(transport, second.url) == b"ok"
        assert names.asked == []


@pytest.mark.parametrize("dead", ["refuses", "drops"])
async def test_a_dead_ipv6_address_does_not_hold_up_ipv4(make: Make, names: Names, dead: str) -> None:
    """Happy eyeballs: a name with two addresses, of which the first, IPv6, refuses or drops what comes."""
    async with TcpServer(Heads()) as server:
        with socket.socket(socket.AF_INET6) as full:
            full.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection of another test may linger there
            full.bind(("::1", server.port))
            waiting = []
            if dead == "drops":
                full.listen(0)  # a queue that nobody empties, filled
                for _ in range(4):
                    waiting.append(socket.socket(socket.AF_INET6))
                    waiting[-1].setblocking(False)
                    waiting[-1].connect_ex(("::1", server.port))
            names.answers = lambda port: [at("::1", port), at("127.0.0.1", port)]
            transport, began = make(), time.monotonic()
            for _ in range(2):
                assert await ask(transport, f"http://both.example:{server.port}/", connect_s=5) == b"ok"
            assert time.monotonic() - began < 2
            assert (server.connections, len(names.asked)) == (1, 1)
            for each in waiting:
                each.close()


async def test_no_address_answers(make: Make, names: Names) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        names.answers = lambda port: [at("::1", port), at("127.0.0.1", port), at("127.0.0.2", port)]
        with pytest.raises(UpstreamUnreachable, match="is not reachable") as caught:
            await ask(make(), f"http://none.example:{port}/?key={SECRET}")
    for hidden in ("none.example", "127.0.0", "::1", SECRET, str(port)):
        assert hidden not in str(caught.value)


# --- the resolver


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {SECRET}"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        OSError("something else, odd.example"),
    ],
)
async def test_a_name_that_cannot_be_resolved(make: Make, names: Names, error: OSError) -> None:
    names.errors.append(error)
    with pytest.raises(UpstreamUnreachable, match="is not reachable") as caught:
        await ask(make(), f"http://odd.example/?key={SECRET}")
    assert "odd.example" not in str(caught.value)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b", "xn--.example", "\u00e9" * 80, "-", "a_b.invalid"])
async def test_names_that_can_be_no_names(make: Make, host: str) -> None:
    """Through the real resolver, which must not be needed for it to fail well."""
    with pytest.raises((UpstreamUnreachable, UpstreamTimeout)) as caught:
        await ask(make(), f"http://{host}/?key={SECRET}", connect_s=3)
    assert SECRET not in str(caught.value)


async def test_a_burst_asks_once(make: Make, names: Names) -> None:
    names.slow_s = 0.02
    async with TcpServer(Heads()) as server:
        transport = make()
        urls = [f"http://burst.example:{server.port}/{n}" for n in range(50)]
        assert await asyncio.gather(*(ask(transport, url) for url in urls)) == [b"ok"] * 50
        assert names.asked == [("burst.example", server.port)]
        assert server.connections == 50
        await ask(transport, f"http://other.example:{server.port}/")
        assert len(names.asked) == 2, "each name for itself"


async def test_a_burst_fails_together_and_the_next_one_asks_again(make: Make, names: Names) -> None:
    names.slow_s = 0.02
    names.errors.append(socket.gaierror(socket.EAI_AGAIN, "try again"))
    async with TcpServer(Heads()) as server:
        transport, url = make(), f"http://flaky.example:{server.port}/"
        errors = await asyncio.gather(*(ask(transport, url) for _ in range(20)), return_exceptions=True)
        assert [type(error) for error in errors] == [UpstreamUnreachable] * 20
        assert len(names.asked) == 1
        assert await ask(transport, url) == b"ok"
        assert len(names.asked) == 2


async def test_who_asked_first_may_leave(make: Make, names: Names) -> None:
    """The look-up belongs to all who wait for it: neither a cancelled request nor one that timed out ends it."""
    names.slow_s = 0.15
    async with TcpServer(Heads()) as server:
        transport, url = make(), f"http://slow.example:{server.port}/"
        leaver = asyncio.create_task(ask(transport, url))
        await asyncio.sleep(0)
        hasty = asyncio.create_task(ask(transport, url, connect_s=0.05))
        patient = asyncio.create_task(ask(transport, url))
        await asyncio.sleep(0.01)
        leaver.cancel()
        assert await patient == b"ok"
        for task, kind in ((leaver, asyncio.CancelledError), (hasty, UpstreamTimeout)):
            with pytest.raises(kind):
                await task
        assert len(names.asked) == 1


# --- certificates


def served(authority: trustme.CA, *hosts: str, **issue: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts, **issue).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def day(offset: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=offset)


@pytest.mark.parametrize(
    ("hosts", "issue", "known", "why"),
    [
        (["other.example"], {}, True, "Hostname mismatch"),
        (["localhost"], {"not_before": day(-9), "not_after": day(-2)}, True, "certificate has expired"),
        (["localhost"], {"not_before": day(2), "not_after": day(9)}, True, "certificate is not yet valid"),
        (["localhost"], {}, False, "self-signed certificate|unable to get local issuer certificate"),
    ],
    ids=["wrong name", "expired", "too early", "unknown authority"],
)
async def test_a_certificate_that_is_not_good_enough(
    make: Make, hosts: list[str], issue: dict[str, Any], known: bool, why: str
) -> None:
    authority, heads = trustme.CA(), Heads()
    async with TcpServer(heads, tls=served(authority, *hosts, **issue)) as server:
        url = f"https://localhost:{server.port}/v1?key={SECRET}"
        context = trusting(authority if known else trustme.CA())
        headers = [("authorization", f"Bearer {SECRET}")]
        with pytest.raises(UpstreamUnreachable, match=why) as caught:
            await ask(make(ssl_context=context), url, headers=headers)
        assert "certificate that is not to be trusted" in str(caught.value)
        for hidden in (SECRET, "localhost", "other.example", str(server.port)):
            assert hidden not in str(caught.value)
        assert heads.heads == [], "nothing was sent"
        await until(lambda: server.open == 0)
        # The operator's own choice.
        assert await ask(make(ssl_context=False), url) == b"ok"


async def test_a_self_signed_certificate(make: Make) -> None:
    """An authority's own certificate, which is what most self-made ones are."""
    authority, heads = trustme.CA(), Heads()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with authority.cert_pem.tempfile() as cert, authority.private_key_pem.tempfile() as key:
        context.load_cert_chain(cert, key)
    async with TcpServer(heads, tls=context) as server:
        url = f"https://localhost:{server.port}/"
        with pytest.raises(UpstreamUnreachable, match=r"not to be trusted.*self-signed"):
            await ask(make(), url)
        assert heads.heads == []
        assert await ask(make(ssl_context=False), url) == b"ok"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_certificate_for_an_address(make: Make, host: str) -> None:
    authority = trustme.CA()
    async with TcpServer(Heads(), host=host, tls=served(authority, host)) as server:
        transport = make(ssl_context=trusting(authority))
        for _ in range(2):
            assert await ask(transport, server.url) == b"ok"
        assert server.connections == 1, "connections with TLS are used again"
    async with TcpServer(Heads(), host=host, tls=served(authority, "192.0.2.1")) as server:
        with pytest.raises(UpstreamUnreachable, match="IP address mismatch") as caught:
            await ask(make(ssl_context=trusting(authority)), server.url)
        assert host not in str(caught.value)


async def test_an_upstream_that_wants_a_certificate_of_ours(make: Make) -> None:
    """With TLS 1.3 its refusal comes after the handshake, when a request may be on its way."""
    authority = trustme.CA()
    context = served(authority, "localhost")
    context.verify_mode = ssl.CERT_REQUIRED
    heads = Heads()
    async with TcpServer(heads, tls=context) as server:
        transport = make(ssl_context=trusting(authority), max_connections=1)
        for _ in range(5):
            with pytest.raises(UpstreamUnreachable, match="is not reachable"):
                await ask(transport, f"https://localhost:{server.port}/", first_byte_s=3)
        assert heads.heads == []


@pytest.mark.parametrize("notified", [True, False])
@pytest.mark.parametrize("cut", ["length", "chunked"])
async def test_a_body_that_tls_cuts_off_is_not_whole(make: Make, cut: str, notified: bool) -> None:
    """Anybody on the way can end a TCP connection; neither that nor a close_notify ends a body that says its length."""
    framing = b"content-length: 9" if cut == "length" else b"transfer-encoding: chunked"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_head(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n" + (b"ok" if cut == "length" else b"9\r\nok"))
        await writer.drain()
        await asyncio.sleep(0.02)
        if notified:
            writer.close()
        else:
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as raw:
                raw.shutdown(socket.SHUT_WR)
        await asyncio.sleep(1)

    authority = trustme.CA()
    async with TcpServer(serve, tls=served(authority, "127.0.0.1")) as server:
        with pytest.raises(UpstreamTruncated):
            await ask(make(ssl_context=trusting(authority)), server.url, between_bytes_s=5)


# --- users in URLs


@pytest.mark.parametrize(
    ("user", "sent"),
    [
        ("user:password", "Basic dXNlcjpwYXNzd29yZA=="),
        ("us%20er:p%3Aw%40", "Basic dXMgZXI6cDp3QA=="),
        ("user", "Basic dXNlcjo="),
        ("user:", "Basic dXNlcjo="),
        (":token", "Basic OnRva2Vu"),
    ],
)
async def test_a_user_in_the_url_becomes_basic_authorization(make: Make, user: str, sent: str) -> None:
    heads = Heads()
    async with TcpServer(heads) as server:
        transport, url = make(), server.url.replace("http://", f"http://{user}@")
        assert await ask(transport, f"{url}/x") == b"ok"
        assert await ask(transport, f"{url}/x", headers=[("Authorization", "Bearer own")]) == b"ok"
        assert await ask(transport, f"{server.url}/x") == b"ok"
        first, second, third = heads.heads
        assert first.startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)
        assert f"\r\nauthorization: {sent}\r\n".encode() in first
        assert b"Authorization: Bearer own\r\n" in second
        assert b"Basic" not in second + third
        assert server.connections == 1, "who asks makes no other origin"


async def test_no_error_says_who_asked(make: Make) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(UpstreamError) as caught:
            await ask(make(), f"http://admin:{SECRET}@127.0.0.1:{closed.getsockname()[1]}/")
    assert "admin" not in str(caught.value)
    assert SECRET not in str(caught.value)
