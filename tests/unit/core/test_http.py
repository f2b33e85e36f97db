"""The client of integrations: bounded answers, deadlines, and no way into a private network."""

from __future__ import annotations

import httpx
import pytest

from tianji_mw import http
from tianji_mw.errors import UpstreamMalformed
from tianji_mw.testing import FakeLLM, Reply


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1", "::ffff:169.254.169.254",
        "fe80::1%eth0", "fd00::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "100.64.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused_in_every_form(address: str) -> None:
    assert not http.all_public([address])
    assert not http.all_public(["1.1.1.1", address])


def test_public_addresses_pass() -> None:
    assert http.all_public(["1.1.1.1", "2606:4700:4700::1111", "64:ff9b::101:101"])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "ftp://1.1.1.1/"],
)
async def test_the_guard_opens_no_connection(url: str) -> None:
    with pytest.raises(http.ForbiddenHost):
        await http.check_public(url)


async def test_a_guarded_client_reaches_no_loopback_server() -> None:
    async with FakeLLM(lambda request: Reply.json({})) as llm, http.client(guard=True) as client:
        with pytest.raises(http.ForbiddenHost):
            await client.get(llm.url)
        assert llm.connections == 0


async def test_answers_are_bounded_and_redirects_are_not_followed() -> None:
    async with FakeLLM() as llm, http.client(max_bytes=100) as client:
        llm.replies += [
            Reply(parts=[b"x" * 100]),
            Reply(parts=[b"x" * 101]),
            Reply(status=302, headers={"location": llm.url}),
        ]
        assert len((await client.get(llm.url)).content) == 100
        with pytest.raises(UpstreamMalformed, match="larger than its limit"):
            await client.get(llm.url)
        assert (await client.get(llm.url)).status_code == 302
        assert len(llm.requests) == 3


async def test_a_silent_server_is_a_timeout() -> None:
    async with FakeLLM(lambda request: Reply.json({}, delay_s=5)) as llm, http.client(timeout_s=0.1) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(llm.url)
