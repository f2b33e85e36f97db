"""What every Transport promises of TLS. For proxies and HTTP/2 see `integration/test_upstream_*.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contract.test_transports import KINDS, clean, post, read_all
from tests.support.upstreams import TLSServer
from tianji_mw.errors import UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from tianji_mw.testing import FakeLLM
from tianji_mw.upstream import Transport, TransportOptions
from tianji_mw.upstream.http1 import Http1Transport


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
