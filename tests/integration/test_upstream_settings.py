"""What a config says about connections to upstreams holds, end to end over real sockets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.raw import RawServer, Script
from tests.support.stack import CHAT, Serve
from tests.support.upstreams import H2Server, TLSServer
from tianji_mw.errors import ConfigErrors
from tianji_mw.gateway import Gateway
from tianji_mw.testing import drive

OK = b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{"choices":[]}'


def config(tmp_path: Path, url: str, more: str) -> Path:
    path = tmp_path / "config.yaml"
    model = f"{{model: openai/gpt-4o, api_base: '{url}/v1', api_key: sk-key}}"
    path.write_text(f"model_list:\n  - {{model_name: gpt-4o, litellm_params: {model}}}\n{more}\n")
    return path


async def test_connections_to_one_upstream_are_bounded(tmp_path: Path, serve: Serve) -> None:
    async with RawServer(lambda path, n: Script([b""], later=[OK])) as server:
        more = "general_settings: {upstream_max_connections: 2}"
        app = await serve(Gateway.from_config(config(tmp_path, server.url, more)))
        answers = await asyncio.gather(*(drive(app, CHAT) for _ in range(6)))
        assert [answer.status for answer in answers] == [200] * 6
        assert server.connections == 2


@pytest.mark.parametrize(("seconds", "connections"), [(30, 1), (0.05, 2)])
async def test_idle_connections_are_kept_for_a_time(
    tmp_path: Path, serve: Serve, seconds: float, connections: int
) -> None:
    async with RawServer(lambda path, n: Script([OK])) as server:
        more = f"general_settings: {{upstream_keep_alive_s: {seconds}}}"
        app = await serve(Gateway.from_config(config(tmp_path, server.url, more)))
        for _ in range(2):
            assert (await drive(app, CHAT)).status == 200
            await asyncio.sleep(0.1)
        assert server.connections == connections


@pytest.mark.parametrize("verify", ["{bundle}", "false", "true"])
async def test_certificates_are_checked_as_the_config_says(tmp_path: Path, serve: Serve, verify: str) -> None:
    """The server says `ok`, which is no answer of an LLM: what matters is whether it was reached."""
    async with TLSServer("localhost") as server:
        bundle = tmp_path / "ca.pem"
        server.ca.cert_pem.write_to_path(str(bundle))
        more = f"litellm_settings: {{ssl_verify: {verify.format(bundle=bundle)}}}"
        app = await serve(Gateway.from_config(config(tmp_path, server.url, more)))
        driven = await drive(app, CHAT)
        assert driven.status == 502
        why = b"certificate that is not to be trusted" if verify == "true" else b"sent an answer that is no JSON object"
        assert why in driven.body


def test_a_bundle_that_cannot_be_read_is_named_with_its_line(tmp_path: Path) -> None:
    path = config(tmp_path, "http://127.0.0.1:9", "litellm_settings:\n  ssl_verify: /no/such/bundle.pem")
    with pytest.raises(ConfigErrors) as caught:
        Gateway.from_config(path)
    assert f"{path}:4" in str(caught.value)
    assert "litellm_settings.ssl_verify: the CA bundle cannot be read: No such file" in str(caught.value)


@pytest.mark.slow
async def test_http2_by_config(tmp_path: Path, serve: Serve) -> None:
    async with H2Server("h2", tmp_path) as server:
        bundle = tmp_path / "ca.pem"
        server.ca.cert_pem.write_to_path(str(bundle))
        more = f"litellm_settings: {{ssl_verify: {bundle}}}\ngeneral_settings: {{upstream_http2: true}}"
        app = await serve(Gateway.from_config(config(tmp_path, server.url, more)))
        driven = await drive(app, CHAT)
        # A server that speaks HTTP/2 alone was understood; its answer is only a path.
        assert driven.status == 502
        assert b"no JSON object" in driven.body
