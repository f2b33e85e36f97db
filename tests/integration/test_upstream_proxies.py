"""Proxies of the environment, real ones on loopback: which requests take them, and what goes wrong on the way."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trustme

from tests.support.upstreams import ConnectProxy, H2Server, TLSServer
from tianji_mw.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from tianji_mw.testing import FakeLLM, Reply
from tianji_mw.upstream import Deadlines, Transport, TransportOptions, UpstreamRequest
from tianji_mw.upstream.choose import transport_of

#: Python leaves HTTP_PROXY in capitals alone under CGI; the others go by both spellings.
VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
Make = Callable[..., Transport]


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Transports of the environment as it is then, closed at the end."""
    made: list[Transport] = []

    def new(**options: object) -> Transport:
        made.append(transport_of(TransportOptions(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for transport in made:
        await transport.aclose()


async def ask(transport: Transport, url: str) -> bytes:
    """The body of one exchange, of which a proxy must see no more than it has to."""
    headers = [("authorization", "Bearer sk-canary")]
    limits = Deadlines(connect_s=5, first_byte_s=5, between_bytes_s=5)
    response = await transport.send(UpstreamRequest("POST", f"{url}/v1/x?key=canary", headers, b"{}", limits))
    assert response.status == 200
    return await response.read(1_000_000)


async def fails(transport: Transport, url: str, text: str, kind: type[UpstreamError] = UpstreamUnreachable) -> None:
    with pytest.raises(kind, match=text) as caught:
        await ask(transport, url)
    for secret in ("canary", "127.0.0.1", "localhost", "user", "pass"):
        assert secret not in str(caught.value)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- which requests take a proxy


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
async def test_https_goes_by_connect_and_the_proxy_sees_the_host_alone(
    variable: str, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConnectProxy() as proxy, TLSServer() as server:
        monkeypatch.setenv(variable, proxy.url)
        assert await ask(make(ssl_context=server.trusting()), server.url) == b"ok"
        assert proxy.asked == [server.url.removeprefix("https://")]
        assert b"sk-canary" in server.heads[0]


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy"])
async def test_http_goes_to_the_proxy_whole_and_its_connection_is_kept(
    variable: str, make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, llm.url)
    llm.replies += [Reply(parts=[b"a", b"b"], chunked=True), Reply(parts=[b"c"])]
    transport = make()
    assert await ask(transport, "http://api.example") == b"ab"
    assert await ask(transport, "http://api.example") == b"c"
    assert [request.path for request in llm.requests] == ["http://api.example/v1/x?key=canary"] * 2
    assert llm.requests[0].headers["host"] == "api.example"
    assert llm.connections == 1


async def test_a_proxy_without_a_scheme_is_an_http_one(
    make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", llm.url.removeprefix("http://"))
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(make(), "http://api.example") == b"x"


async def test_a_scheme_of_its_own_comes_before_all(make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("http_proxy", llm.url)
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(make(), "http://api.example") == b"x"


async def test_a_proxy_of_one_scheme_leaves_the_other_alone(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ConnectProxy() as proxy, TLSServer() as server:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert await ask(make(ssl_context=server.trusting()), server.url) == b"ok"
        assert proxy.asked == []


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("localhost", "localhost", True),
        ("other,localhost", "localhost", True),
        (" .other , .localhost ", "localhost", True),
        ("LOCALHOST", "localhost", True),
        ("*", "localhost", True),
        ("localhost:{port}", "localhost", True),
        ("localhost:1", "localhost", False),
        ("local", "localhost", False),
        ("127.0.0.1", "localhost", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("", "localhost", False),
    ],
)
async def test_no_proxy(
    no_proxy: str, host: str, direct: bool, make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FakeLLM(lambda request: Reply(parts=[b"proxied"])) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", no_proxy.format(port=llm.url.rpartition(":")[2]))
        llm.replies.append(Reply(parts=[b"direct"]))
        assert await ask(make(), llm.url.replace("127.0.0.1", host)) == (b"direct" if direct else b"proxied")
        assert (len(llm.requests), len(proxy.requests)) == ((1, 0) if direct else (0, 1))


async def test_the_environment_may_be_left_out(make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{closed_port()}")
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(make(trust_env=False), llm.url) == b"x"


# --- credentials


async def test_netrc_gives_no_credentials(
    make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine api.example login a password b\nmachine 127.0.0.1 login c password d\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", llm.url)
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(make(), "http://api.example") == b"x"
    assert llm.requests[0].headers["authorization"] == "Bearer sk-canary"
    assert "proxy-authorization" not in llm.requests[0].headers


async def test_a_user_of_the_proxy_is_told_to_the_proxy(
    make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", llm.url.replace("//", "//user:pass@"))
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(make(), "http://api.example") == b"x"
    assert llm.requests[0].headers["proxy-authorization"] == "Basic dXNlcjpwYXNz"
    assert llm.requests[0].headers["authorization"] == "Bearer sk-canary"


async def test_a_user_of_the_proxy_is_told_to_nobody_behind_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ConnectProxy(user="user:pass") as proxy, TLSServer() as server:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:pass@"))
        assert await ask(make(ssl_context=server.trusting()), server.url) == b"ok"
        assert b"proxy-" not in server.heads[0].lower()
        assert b"dXNlcjpwYXNz" not in server.heads[0]


# --- TLS


async def test_the_proxy_itself_may_speak_tls(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    ca = trustme.CA()
    async with ConnectProxy(ca=ca) as proxy, TLSServer(ca=ca) as server:
        monkeypatch.setenv("https_proxy", proxy.url)
        assert await ask(make(ssl_context=server.trusting()), server.url) == b"ok"
        assert proxy.asked == [server.url.removeprefix("https://")]


@pytest.mark.parametrize("host", ["localhost", "other.example"])
async def test_certificates_behind_a_proxy_are_checked(host: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an authority that is not known, and for a name that is another."""
    async with ConnectProxy() as proxy, TLSServer(host) as server:
        monkeypatch.setenv("https_proxy", proxy.url)
        context = server.trusting() if host == "other.example" else True
        await fails(make(ssl_context=context), server.url, "is not reachable")
        assert proxy.asked
        assert server.heads == []


@pytest.mark.slow
async def test_a_proxied_upstream_is_spoken_to_in_http_1_whatever_others_are(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Both clients share one TLS context: what one of them offers must not be what the other one offers."""
    async with ConnectProxy() as proxy, H2Server("h2,http/1.1", tmp_path) as server:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "localhost")
        transport = make(ssl_context=server.options().ssl_context, http2=True)
        for url, version in ((server.url, b"2"), (server.url.replace("localhost", "127.0.0.1"), b"1.1")) * 2:
            response = await transport.send(UpstreamRequest("POST", f"{url}/x", [], b"{}"))
            assert dict(response.headers)[b"x-version"] == version
            assert await response.read(100) == b"/x!"
        assert proxy.asked == [server.url.replace("https://localhost", "127.0.0.1")]


async def test_the_environment_is_read_at_the_start(make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", llm.url)
    transport = make()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("http_proxy")
    llm.replies.append(Reply(parts=[b"x"]))
    assert await ask(transport, "http://api.example") == b"x"


# --- what goes wrong


@pytest.mark.parametrize("kind", ["socks4", "socks5", "socks5h"])
async def test_a_socks_proxy_is_refused_by_name(kind: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"{kind}://user:pass@127.0.0.1:1")
    transport = make()
    for scheme in ("http", "https"):
        text = f"is behind a {kind} proxy; only http and https ones are supported"
        await fails(transport, f"{scheme}://api.example", text)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_not_there(scheme: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"http://user:pass@127.0.0.1:{closed_port()}")
    await fails(make(), f"{scheme}://api.example", "is not reachable")


@pytest.mark.parametrize("proxy", ["http://[oops", "http://127.0.0.1:99999999", "http://"])
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_proxy_that_is_no_address(proxy: str, scheme: str, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    await fails(make(), f"{scheme}://api.example", "is behind a proxy whose address is none")


async def test_a_proxy_that_does_not_know_us(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ConnectProxy(user="user:pass") as proxy, TLSServer() as server:
        monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:wrong@"))
        text = r"is behind a proxy that refused to connect to it \(407\)"
        await fails(make(ssl_context=server.trusting()), server.url, text)
        assert server.heads == []


async def test_a_proxy_that_says_nothing(make: Make, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", llm.url)
    llm.replies.append(Reply(delay_s=30))
    request = UpstreamRequest("POST", "http://api.example", [], b"{}", Deadlines(first_byte_s=0.1))
    with pytest.raises(UpstreamTimeout, match=r"0\.1 s \(first-byte limit\)"):
        await make().send(request)
