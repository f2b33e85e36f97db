"""What every provider promises: addresses and credentials that fit, errors without keys, bridges that serve."""

from __future__ import annotations

import copy
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.test_apis import JSONS
from tianji_mw import plugins
from tianji_mw.apis import TEXT
from tianji_mw.bridges.base import Context
from tianji_mw.errors import InvalidRequest, TianjiError, UpstreamError
from tianji_mw.providers.base import Provider
from tianji_mw.providers.openai_compatible import OpenAICompatible
from tianji_mw.providers.registry import shipped
from tianji_mw.redact import Secret

KEY = "sk-canary-0123456789"
NOT_PROVIDERS = {"registry", "classify", "base"}


def made(name: str) -> Provider:
    if name in shipped():
        spec = shipped()[name]
        base = "" if spec.base_url else "https://host.example"
        return OpenAICompatible(spec=spec, name=name, api_base=base, api_key=Secret(KEY))
    kind = plugins.find("providers", name, Provider)
    return kind(api_base="https://host.example", api_key=Secret(KEY))


def _names() -> list[str]:
    found = []
    for name in plugins.names("providers"):
        if name not in NOT_PROVIDERS | {"openai_compatible"}:
            try:
                plugins.find("providers", name, Provider)
            except TianjiError:
                continue  # a file beside the providers that holds none
            found.append(name)
    return found


CODED = _names()
NAMES = [*CODED, *shipped()]
every = pytest.mark.parametrize("name", NAMES)


def context() -> Context:
    return Context(call_id="c", model="m", created=1)


def test_the_providers_that_must_exist() -> None:
    assert {"openai", "anthropic", "azure_openai", "mock"} <= set(CODED)


@every
def test_it_never_shows_its_key(name: str) -> None:
    provider = made(name)
    assert KEY not in repr(provider)
    assert KEY not in str(provider)
    assert KEY not in provider.model_dump_json(exclude={"spec"})
    assert Secret(KEY) in provider.secrets


@every
def test_it_speaks_known_apis_and_bridges_or_refuses_the_others(name: str) -> None:
    provider = made(name)
    known = {api.name for api in TEXT} | {"passthrough", "models"}
    assert provider.speaks <= known
    for api in TEXT:
        try:
            bridge = provider.bridge(api.name)
        except InvalidRequest:
            continue
        assert (bridge is None) is (api.name in provider.speaks)
        assert provider.wire(api.name) in provider.speaks
        url = provider.url(provider.wire(api.name), "some model/with?odd#chars", stream=True)
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https", "mock")
        assert parts.hostname
        assert KEY not in url


@every
async def test_its_credentials_are_headers(name: str) -> None:
    headers = await made(name).credentials()
    for key, value in headers:
        assert key == key.lower()
        assert "\n" not in value
    if name != "mock":
        assert any(KEY in value for _, value in headers)


@every
def test_it_changes_nothing_where_it_says_so(name: str) -> None:
    provider = made(name)
    request = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    before = copy.deepcopy(request)
    if not provider.prepares(request, "chat_completions", "m"):
        provider_request = copy.deepcopy(request)
        assert provider_request == before
    else:
        provider.prepare(request, "chat_completions", context())
        assert orjson.dumps(request)


BODIES = st.one_of(st.binary(max_size=50), JSONS.map(orjson.dumps))


@pytest.mark.parametrize("name", [*CODED, "groq", "deepseek"])
@settings(max_examples=30, deadline=None)
@given(BODIES, st.sampled_from([400, 401, 404, 413, 422, 429, 500, 502, 503, 529]))
def test_reading_an_error_is_total(name: str, body: bytes, status: int) -> None:
    error = made(name).error(status, {"retry-after": "3", "set-cookie": "x"}, body)
    assert isinstance(error, UpstreamError)
    assert error.status == status
    assert error.message
    assert error.headers["retry-after"] == "3"
    assert "set-cookie" not in error.headers
    for api in TEXT:
        assert orjson.loads(api.error(error, "r"))


@pytest.mark.parametrize("name", [*CODED, "groq", "deepseek"])
@pytest.mark.parametrize(
    "wrap", [b'{"error":{"message":"bad %b"}}', b"<p>%b</p>", b'{"detail":"%b"}', b'"%b"', b"\xff %b"]
)
def test_an_error_that_echoes_the_key_is_cleaned(name: str, wrap: bytes) -> None:
    error = made(name).error(401, {}, wrap % KEY.encode())
    assert KEY not in error.message
    assert KEY.encode() not in error.body


@pytest.mark.parametrize("name", CODED)
def test_wrong_configuration_is_refused_without_showing_the_key(name: str) -> None:
    kind = plugins.find("providers", name, Provider)
    with pytest.raises(ValueError, match="unknown_setting") as caught:
        kind(api_base="https://x", api_key=Secret(KEY), unknown_setting=1)  # type: ignore[call-arg]
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", CODED)
def test_a_field_that_is_wrong_does_not_show_the_others(name: str) -> None:
    kind: Any = plugins.find("providers", name, Provider)
    with pytest.raises(ValueError, match="name") as caught:
        kind(api_base="", api_key=KEY, name=[KEY])
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("name", [*CODED, "groq"])
@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_decoding_a_stream_raises_nothing_but_errors_of_ours(name: str, parts: list[bytes]) -> None:
    provider = made(name)
    for wire in provider.speaks - {"passthrough"}:
        decoder = provider.decoder(wire)
        try:
            for part in parts:
                assert list(decoder.feed(part)) is not None
            assert list(decoder.finish()) is not None
        except TianjiError:
            continue
