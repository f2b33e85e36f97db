"""Transports and what lies on the way to an upstream: TLS, proxies of the environment, HTTP/2."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.contract.test_transports import KINDS, clean, post, read_all
from tianji_mw.errors import MissingExtra, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import Deadlines, Transport, TransportOptions, UpstreamRequest
from tianji_mw.upstream.choose import transport_of
from tianji_mw.upstream.http1 import Http1Transport

# --- proxies and netrc


async def test_a_proxy_from_the_environment_is_used_and_netrc_is_not(
    llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("http_proxy", llm.url)
    monkeypatch.setenv("no_proxy", "localhost")
    (tmp_path / "netrc").write_text("machine api.example login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    llm.replies += [Reply(parts=[b"x"])] * 2
    transport = transport_of()
    await read_all(await transport.send(UpstreamRequest("POST", "http://api.example/v1/x", [], b"{}")))
    assert llm.requests[0].path == "http://api.example/v1/x"
    assert "authorization" not in llm.requests[0].headers
    await read_all(await transport.send(post(llm.url.replace("127.0.0.1", "localhost"))))
    assert llm.requests[1].path.startswith("/v1/x")
    await transport.aclose()
    plain = transport_of(TransportOptions(trust_env=False))
    with pytest.raises((UpstreamUnreachable, UpstreamTimeout)):
        await plain.send(UpstreamRequest("POST", "http://api.invalid/v1/x", [], b"{}", Deadlines(connect_s=5)))
    await plain.aclose()


# --- TLS


class TLSServer:
    """Answers every connection with 200 and nothing."""

    def __init__(self, host: str) -> None:
        self.ca = trustme.CA()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(host).configure_cert(self._context)

    async def __aenter__(self) -> TLSServer:
        self._server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=self._context)
        self.url = f"https://localhost:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()

    def trusting(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.mark.parametrize("kind", KINDS)
async def test_a_certificate_is_checked(kind: Callable[..., Transport]) -> None:
    async with TLSServer("localhost") as server:
        known, unknown = kind(TransportOptions(ssl_context=server.trusting())), kind()
        assert await read_all(await known.send(post(server.url))) == b"ok"
        with pytest.raises(UpstreamUnreachable) as caught:
            await unknown.send(post(server.url))
        clean(caught.value)
        await known.aclose()
        await unknown.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_the_name_in_a_certificate_is_checked(kind: Callable[..., Transport]) -> None:
    async with TLSServer("other.example") as server:
        transport = kind(TransportOptions(ssl_context=server.trusting()))
        with pytest.raises(UpstreamUnreachable) as caught:
            await transport.send(post(server.url))
        clean(caught.value)
        await transport.aclose()


@pytest.mark.parametrize("kind", KINDS)
async def test_plain_http_where_tls_is_spoken_and_the_other_way_round(
    llm: FakeLLM, kind: Callable[..., Transport]
) -> None:
    async with TLSServer("localhost") as server:
        transport = kind(TransportOptions(ssl_context=server.trusting()))
        for url in (llm.url.replace("http:", "https:"), server.url.replace("https:", "http:")):
            with pytest.raises((UpstreamUnreachable, UpstreamMalformed, UpstreamTimeout)) as caught:
                await transport.send(post(url, first_byte_s=0.3))
            clean(caught.value)
        await transport.aclose()


# --- what the lean client adds


@pytest.mark.parametrize("verify", [True, False])
async def test_checking_can_be_switched_off(verify: bool) -> None:
    async with TLSServer("other.example") as server:
        transport = Http1Transport(TransportOptions(ssl_context=verify))
        if verify:
            with pytest.raises(UpstreamUnreachable, match="certificate that is not to be trusted"):
                await transport.send(post(server.url))
        else:
            assert await read_all(await transport.send(post(server.url))) == b"ok"
        await transport.aclose()


async def test_a_certificate_for_an_address() -> None:
    async with TLSServer("127.0.0.1") as server:
        transport = Http1Transport(TransportOptions(ssl_context=server.trusting()))
        assert await read_all(await transport.send(post(server.url.replace("localhost", "127.0.0.1")))) == b"ok"
        await transport.aclose()


class ConnectProxy:
    """A proxy that knows CONNECT alone, and notes where it was asked to connect to."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __aenter__(self) -> ConnectProxy:
        self._tasks: list[asyncio.Task[None]] = []
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
        self.asked.append(line)
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", int(line.rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        for source, sink in ((reader, to_writer), (to_reader, writer)):
            self._tasks.append(asyncio.ensure_future(_pipe(source, sink)))

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()


@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy"])
async def test_https_goes_through_a_proxy_by_connect(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ConnectProxy() as proxy, TLSServer("localhost") as server:
        monkeypatch.setenv(variable, proxy.url)
        transport = transport_of(TransportOptions(ssl_context=server.trusting()))
        assert await read_all(await transport.send(post(server.url))) == b"ok"
        assert proxy.asked == [server.url.removeprefix("https://")]
        await transport.aclose()


async def test_a_socks_proxy_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
    transport = transport_of()
    with pytest.raises(UpstreamUnreachable, match="behind a socks5 proxy; only http and https ones"):
        await transport.send(post("https://api.example"))
    await transport.aclose()


# --- HTTP/2


class H2Server:
    """A real server with HTTP/2 on offer, in a process of its own."""

    def __init__(self, alpn: str, tmp_path: Path) -> None:
        self.ca = trustme.CA()
        self._alpn = alpn
        self._pem, self._key = tmp_path / "cert.pem", tmp_path / "key.pem"

    async def __aenter__(self) -> H2Server:
        issued = self.ca.issue_cert("localhost")
        issued.cert_chain_pems[0].write_to_path(str(self._pem))
        issued.private_key_pem.write_to_path(str(self._key))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        script = Path(__file__).parents[1] / "support" / "h2_server.py"
        words = [script, str(port), self._pem, self._key, self._alpn]
        self._process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.DEVNULL)
        self.url = f"https://localhost:{port}"
        for _ in range(500):
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                break
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._process.terminate()
        await self._process.wait()

    def options(self) -> TransportOptions:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        self.ca.configure_trust(context)
        return TransportOptions(ssl_context=context, http2=True)


@pytest.mark.slow
@pytest.mark.parametrize(("alpn", "version"), [("h2,http/1.1", b"2"), ("http/1.1", b"1.1")])
async def test_http2_where_the_upstream_offers_it(alpn: str, version: bytes, tmp_path: Path) -> None:
    async with H2Server(alpn, tmp_path) as server:
        transport = transport_of(server.options())
        answers = await asyncio.gather(*(transport.send(post(server.url, path=f"/{n}")) for n in range(8)))
        assert [await read_all(answer) for answer in answers] == [b"/%d!" % n for n in range(8)]
        heads = [(answer.status, dict(answer.headers)) for answer in answers]
        assert {(status, found[b"x-got"], found[b"x-version"]) for status, found in heads} == {(200, b"2", version)}
        await transport.aclose()


def test_http2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h2", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[http2\]"):
        transport_of(TransportOptions(http2=True))
