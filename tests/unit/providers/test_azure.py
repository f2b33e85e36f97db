"""Azure OpenAI: addresses, what reasoning models take, and tokens from Entra ID at a local endpoint."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from tianji_mw.bridges.base import Context
from tianji_mw.errors import UpstreamError
from tianji_mw.providers.azure_openai import AzureOpenAI
from tianji_mw.redact import Secret
from tianji_mw.testing import FakeLLM, Reply

BASE = "https://res.openai.azure.com"
CHAT = "chat_completions"
SECRET = "very-secret-value"


def azure(**fields: Any) -> AzureOpenAI:
    return AzureOpenAI(**{"api_base": BASE, **fields})


# --- addresses


@pytest.mark.parametrize(
    ("version", "wire", "url"),
    [
        ("2024-10-21", CHAT, "/openai/deployments/my%20dep%2F1/chat/completions?api-version=2024-10-21"),
        ("2024-10-21", "embeddings", "/openai/deployments/my%20dep%2F1/embeddings?api-version=2024-10-21"),
        ("2024-10-21", "completions", "/openai/deployments/my%20dep%2F1/completions?api-version=2024-10-21"),
        ("2025-04-01-preview", "responses", "/openai/responses?api-version=2025-04-01-preview"),
        ("", CHAT, "/openai/v1/chat/completions"),
        ("v1", "responses", "/openai/v1/responses"),
        ("latest", "embeddings", "/openai/v1/embeddings"),
        ("preview", CHAT, "/openai/v1/chat/completions?api-version=preview"),
    ],
)
def test_urls(version: str, wire: str, url: str) -> None:
    assert azure(api_version=version).url(wire, "my dep/1", stream=False) == BASE + url


@pytest.mark.parametrize(
    ("version", "path", "model", "url"),
    [
        ("2024-10-21", "audio/speech", "tts", "/openai/deployments/tts/audio/speech?api-version=2024-10-21"),
        ("2024-10-21", "files/f1/content", "", "/openai/files/f1/content?api-version=2024-10-21"),
        ("", "audio/speech", "tts", "/openai/v1/audio/speech"),
        ("preview", "files", "", "/openai/v1/files?api-version=preview"),
    ],
)
def test_pass_through_urls(version: str, path: str, model: str, url: str) -> None:
    assert azure(api_version=version).path_url(path, model) == BASE + url


@pytest.mark.parametrize(
    "tail",
    ["", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/", "/models", "/openai/responses",
     "/openai/deployments/gpt-4o/chat/completions?api-version=2024-08-01-preview"],
)  # fmt: skip
def test_what_is_copied_from_the_portal(tail: str) -> None:
    assert azure(api_base=BASE + tail).url(CHAT, "d", stream=False) == f"{BASE}/openai/v1/chat/completions"


def test_other_paths_and_hosts_stay() -> None:
    assert azure(api_base="https://apim.example/team/openai").base == "https://apim.example/team"
    assert azure(api_base="https://openai-res.example").base == "https://openai-res.example"


def test_an_old_version_has_no_responses_and_bridges_them() -> None:
    assert azure(api_version="2024-10-21").bridge("responses") is not None
    assert azure(api_version="2025-04-01-preview").bridge("responses") is None
    assert azure().bridge("responses") is None


# --- gates


@pytest.mark.parametrize(
    ("model", "base_model", "renamed"),
    [
        ("o3-mini", "", True),
        ("gpt-5", "", True),
        ("my-deployment", "azure/o4-mini", True),
        ("my-deployment", "gpt-4o", False),
        ("o3-named-but-old", "gpt-4o", False),
        ("gpt-4o", "", False),
    ],
)
def test_reasoning_models_get_the_newer_limit(model: str, base_model: str, renamed: bool) -> None:
    made = azure(base_model=base_model)
    request = {"model": "public-name", "max_tokens": 5}
    assert made.prepares(request, CHAT, model) is renamed
    if renamed:
        made.prepare(request, CHAT, Context(call_id="1", model="m", created=0))
        assert request == {"model": "public-name", "max_completion_tokens": 5}


def test_a_content_filter_is_told_by_the_inner_code() -> None:
    body = b'{"error":{"code":"bad","message":"m","innererror":{"code":"ResponsibleAIPolicyViolation","x":{"hate":1}}}}'
    error = azure().error(400, {}, body)
    assert error.code == "content_filter"
    assert error.body == body


# --- keys and tokens


async def test_key_and_given_token() -> None:
    assert await azure(api_key=Secret("k")).credentials() == [("api-key", "k")]
    assert await azure(azure_ad_token=Secret("t")).credentials() == [("authorization", "Bearer t")]
    assert await azure().credentials() == []
    assert "AZURE_API_KEY" in azure().lacks()
    assert azure(extra_headers={"Api-Key": "x"}).lacks() == ""


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"client_secret": Secret(SECRET)}, "needs 'tenant_id' and 'client_id'"),
        ({"azure_authority_host": "http://login.example/path"}, "azure_authority_host"),
        ({"azure_authority_host": "ftp://login.example"}, "azure_authority_host"),
        ({"api_base": ""}, "azure needs 'api_base'"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        azure(**fields)


def test_a_bare_authority_host() -> None:
    assert azure(azure_authority_host="login.example").azure_authority_host == "https://login.example"


def issued(number: int, **more: Any) -> Reply:
    return Reply.json({"token_type": "Bearer", "access_token": f"entra-token-{number}", "expires_in": 3599, **more})


def login(llm: FakeLLM, **fields: Any) -> AzureOpenAI:
    return azure(azure_authority_host=llm.url, tenant_id="ten/ant", client_id="app-1", **fields)


async def test_client_credentials(llm: FakeLLM) -> None:
    llm.replies = [issued(1)]
    made = login(llm, client_secret=Secret(SECRET))
    found = await asyncio.gather(*(made.credentials() for _ in range(20)))
    assert found == [[("authorization", "Bearer entra-token-1")]] * 20
    [request] = llm.requests
    assert (request.method, request.path) == ("POST", "/ten%2Fant/oauth2/v2.0/token")
    assert request.headers["content-type"] == "application/x-www-form-urlencoded"
    assert {name: values[0] for name, values in parse_qs(request.body.decode()).items()} == {
        "grant_type": "client_credentials",
        "client_id": "app-1",
        "client_secret": SECRET,
        "scope": "https://cognitiveservices.azure.com/.default",
    }


async def test_scope_of_the_operator(llm: FakeLLM) -> None:
    llm.replies = [issued(1)]
    await login(llm, client_secret=Secret(SECRET), azure_scope="api://own/.default").credentials()
    assert b"scope=api%3A%2F%2Fown%2F.default" in llm.requests[0].body


async def test_federated_token_file_is_read_anew(llm: FakeLLM, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("assertion-1\n")
    llm.replies = [issued(1, expires_in=0), issued(2)]
    made = login(llm, azure_federated_token_file=str(file))
    assert await made.credentials() == [("authorization", "Bearer entra-token-1")]
    form = parse_qs(llm.requests[0].body.decode())
    assert form["client_assertion"] == ["assertion-1"]
    assert form["client_assertion_type"] == ["urn:ietf:params:oauth:client-assertion-type:jwt-bearer"]
    assert "client_secret" not in form
    file.write_text("assertion-2")
    await asyncio.sleep(0.6)
    await made.credentials()
    await asyncio.sleep(0.1)
    assert b"assertion-2" in llm.requests[1].body


async def test_the_token_is_masked_in_errors(llm: FakeLLM) -> None:
    llm.replies = [issued(1)]
    made = login(llm, client_secret=Secret(SECRET))
    await made.credentials()
    error = made.error(401, {}, b'{"error":{"message":"bad token entra-token-1 and very-secret-value"}}')
    assert error.message == "bad token ******** and ********"
    assert b"entra-token-1" not in error.body
    assert SECRET not in repr(made)


async def failing(made: AzureOpenAI) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await made.credentials()
    for value in (SECRET, "app-1", "ten/ant"):
        assert value not in caught.value.message
    return caught.value


async def test_a_refused_login_is_an_authentication_error(llm: FakeLLM) -> None:
    text = f"AADSTS7000215: Invalid client secret provided for app-1: {SECRET}. Trace ID: 1"
    llm.replies = [Reply.json({"error": "invalid_client", "error_description": text}, status=401)]
    error = await failing(login(llm, client_secret=Secret(SECRET)))
    assert (error.status, error.kind, error.code) == (401, "authentication_error", "invalid_credentials")
    assert (
        error.message == "Entra ID refused the client secret of the provider 'azure' (invalid_client, AADSTS7000215)."
    )


@pytest.mark.parametrize(
    "reply",
    [
        Reply.json({"error": "server_error"}, status=503),
        Reply.json({"error": "slow_down"}, status=429),
        Reply(headers={"content-type": "text/html"}, parts=[b"<html>"]),
        Reply.json(["no object"]),
        Reply.json({"access_token": ""}),
        Reply(refuse=True),
    ],
)
async def test_an_issuer_out_of_order_is_an_upstream_fault(llm: FakeLLM, reply: Reply) -> None:
    llm.replies = [reply, reply]
    error = await failing(login(llm, client_secret=Secret(SECRET)))
    assert (error.status, error.code) == (502, "token_unavailable")
    assert "Entra ID" in error.message
    assert "'azure'" in error.message


@pytest.mark.parametrize("content", [None, "", "  \n", "snow \u2603"])
async def test_a_token_file_that_cannot_be_used(llm: FakeLLM, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    error = await failing(login(llm, azure_federated_token_file=str(file)))
    assert error.status == 401
    assert "federated token file of the provider 'azure' cannot be used" in error.message
    assert not llm.requests
