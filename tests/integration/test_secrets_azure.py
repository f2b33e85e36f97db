"""Azure Key Vault through its real client, against a fake over TLS: logins, names, versions, failures."""

from __future__ import annotations

import base64
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.azure_fake import CLIENT, FEDERATED, SECRET, TENANT, AzureFake, Certificate, error, refused
from tests.support.google_fake import Fault
from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.azure import AzureKeyVault
from tianji_mw.secrets.base import (
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    StoreMisconfigured,
    StoreUnreachable,
)
from tianji_mw.secrets.configure import WrongSetting, store_of
from tianji_mw.secrets.reference import Reference
from tianji_mw.secrets.resolver import Resolver

pytestmark = pytest.mark.slow

VALUE = "sk-very-secret"
APP = {"tenant_id": TENANT, "client_id": CLIENT}


@pytest.fixture
def ca(tmp_path: Path) -> trustme.CA:
    found = trustme.CA()
    found.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return found


@pytest.fixture
def azure(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureFake]:
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET", "IDENTITY_ENDPOINT", "MSI_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with AzureFake(ca) as fake:
        fake.put("openai", "old")
        fake.put("openai", VALUE)
        yield fake


@pytest.fixture
async def made(azure: AzureFake, tmp_path: Path) -> AsyncIterator[Callable[..., AzureKeyVault]]:
    """Builds stores that are closed in the end; logged in by a client secret unless told otherwise."""
    async with AsyncExitStack() as stack:

        def build(**settings: Any) -> AzureKeyVault:
            plain = {
                "vault_url": azure.url,
                "authority_host": azure.url,
                "verify_challenge_resource": False,
                "ca_bundle": str(tmp_path / "ca.pem"),
            }
            if not {"certificate_path", "token_file", "credential"} & settings.keys():
                plain |= {**APP, "client_secret": SECRET}
            store = AzureKeyVault(**{**plain, **settings})
            stack.push_async_callback(store.aclose)
            return store

        yield build


async def read(store: AzureKeyVault, path: str = "openai", **more: Any) -> str:
    return (await store.get(Reference(path=path, **more))).value.reveal()


async def failure(store: AzureKeyVault, path: str = "openai", **more: Any) -> SecretError:
    """The error of a read; it names the store and the path, and holds nothing secret."""
    with pytest.raises(SecretError) as caught:
        await read(store, path, **more)
    found = caught.value
    assert found.message.startswith(f"azure: {path}: ")
    assert not any(part in found.message for part in (VALUE, SECRET, FEDERATED, "aad-", "Bearer", TENANT))
    assert found.__cause__ is None
    assert found.__suppress_context__ or found.__context__ is None
    return found


# --- logins


async def test_client_secret(azure: AzureFake, made: Any) -> None:
    store = made()
    assert [await read(store) for _ in range(3)] == [VALUE] * 3
    assert azure.challenges == 1
    assert azure.count("oauth2/v2.0/token") == 1


async def test_wrong_client_secret(azure: AzureFake, made: Any) -> None:
    found = await failure(made(client_secret="no"))
    assert isinstance(found, SecretDenied)
    assert "AADSTS7000215" in found.message


async def test_client_secret_that_was_replaced(azure: AzureFake, made: Any) -> None:
    class Changing(Secret):
        def reveal(self) -> str:
            return next(texts)

    texts = iter(["out of date", SECRET])
    assert await read(made(client_secret=Changing("x"))) == VALUE


@pytest.mark.parametrize("password", [None, "pass word"])
async def test_certificate(azure: AzureFake, made: Any, tmp_path: Path, password: str | None) -> None:
    path = azure.certificate.write(tmp_path / "app.pem", password.encode() if password else None)
    more = {**APP, "certificate_path": path, "certificate_password": password}
    assert await read(made(**more)) == VALUE


async def test_certificate_that_is_not_registered(made: Any, tmp_path: Path) -> None:
    path = Certificate().write(tmp_path / "app.pem")
    assert isinstance(await failure(made(**APP, certificate_path=path)), SecretDenied)
    assert isinstance(await failure(made(certificate_path=path)), StoreMisconfigured)
    (tmp_path / "app.pem").write_text("no certificate")
    assert isinstance(await failure(made(**APP, certificate_path=path)), StoreMisconfigured)
    assert isinstance(await failure(made(**APP, certificate_path="/none.pem")), StoreMisconfigured)


async def test_workload_identity(azure: AzureFake, made: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("another pod")
    store = made(**APP, token_file=str(token))
    assert isinstance(await failure(store), SecretDenied)
    token.write_text(FEDERATED)
    assert await read(store) == VALUE
    token.unlink()
    found = await failure(made(**APP, token_file=str(token)))
    assert isinstance(found, SecretDenied)
    assert "token_file" in found.message


async def test_managed_identity(azure: AzureFake, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{azure.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "inside")
    assert await read(made(credential="managed")) == VALUE
    assert azure.count("/msi/token") == 1
    monkeypatch.setenv("IDENTITY_HEADER", "outside")
    assert isinstance(await failure(made(credential="managed")), SecretDenied)


async def test_default_credential(azure: AzureFake, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "prod")
    monkeypatch.setenv("IDENTITY_ENDPOINT", f"{azure.url}/msi/token")
    monkeypatch.setenv("IDENTITY_HEADER", "inside")
    assert await read(made(credential="default")) == VALUE
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    found = await failure(made(credential="default"))
    assert isinstance(found, SecretDenied)
    for name, value in (("TENANT_ID", TENANT), ("CLIENT_ID", CLIENT), ("CLIENT_SECRET", SECRET)):
        monkeypatch.setenv(f"AZURE_{name}", value)
    assert await read(made(credential="default")) == VALUE


@pytest.mark.parametrize("way", ["client_secret", "certificate", "workload"])
async def test_login_that_misses_its_parts(made: Any, way: str) -> None:
    found = await failure(made(credential=way, client_id=CLIENT))
    assert isinstance(found, StoreMisconfigured)
    assert "tenant_id and " in found.message


@pytest.mark.parametrize("claims", [b"", b'{"access_token":{"nbf":{"essential":true,"value":"1"}}}'])
async def test_revoked_token(azure: AzureFake, made: Any, claims: bytes) -> None:
    store = made()
    await read(store)
    azure.tokens.clear()
    azure.claims = base64.b64encode(claims).decode()
    assert await read(store) == VALUE
    assert azure.count("oauth2/v2.0/token") == 2


async def test_tokens_that_are_never_good(azure: AzureFake, made: Any) -> None:
    azure.faults += [azure.challenge()] * 9
    assert isinstance(await failure(made()), SecretDenied)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_token_endpoint_fails(azure: AzureFake, made: Any, status: int) -> None:
    body = refused("AADSTS90055: busy").body if status == 429 else b"down"
    azure.token_faults += [Fault(status, body, {"Retry-After": "60"} if status == 429 else {})] * 30
    assert isinstance(await failure(made()), StoreUnreachable)


async def test_vault_of_another_domain(made: Any) -> None:
    found = await failure(made(verify_challenge_resource=True))
    assert isinstance(found, StoreMisconfigured)
    assert "verify_challenge_resource" in found.message


# --- names and versions


async def test_versions_and_end(azure: AzureFake, made: Any) -> None:
    end = int(time.time()) + 1000
    pinned = azure.put("pinned", "first", exp=end)
    azure.put("pinned", "second")
    store = made()
    found = await store.get(Reference(path="pinned", version=pinned))
    assert (found.value.reveal(), found.version, found.expires) == ("first", pinned, end)
    found = await store.get(Reference(path="pinned"))
    assert (found.value.reveal(), found.expires) == ("second", None)
    assert found.version != pinned
    assert isinstance(await failure(store, "pinned", version="0" * 32), SecretNotFound)


async def test_text(azure: AzureFake, made: Any) -> None:
    azure.put("line", "one line\n")
    assert await read(made(), "line") == "one line"
    assert await read(made(), "openai", base64=True) == base64.b64encode(VALUE.encode()).decode()


async def test_names_that_key_vault_cannot_have(azure: AzureFake, made: Any) -> None:
    azure.put("OPENAI-API-KEY", "mapped")
    azure.put("prod-key", "named")
    assert await read(made(), "OPENAI_API_KEY") == "mapped"
    assert await read(made(), "OPENAI.API_KEY") == "mapped"
    assert await read(made(name_map={"a/b c": "prod-key"}), "a/b c") == "named"
    assert await read(made(name_map={"OPENAI_API_KEY": "prod_key"}), "OPENAI_API_KEY") == "named"
    before = len(azure.asked)
    found = await failure(made(map_names=False), "OPENAI_API_KEY")
    assert isinstance(found, SecretNotFound)
    assert "map_names" in found.message
    for path in ("a/b", "a b", "x" * 128):
        assert isinstance(await failure(made(), path), SecretNotFound)
    assert len(azure.asked) == before


def test_path_of_keeps_the_name() -> None:
    assert AzureKeyVault().path_of("OPENAI_API_KEY") == Reference(store="azure", path="OPENAI_API_KEY")


async def test_version_that_is_off(azure: AzureFake, made: Any) -> None:
    azure.put("off", "x", enabled=False)
    found = await failure(made(), "off")
    assert isinstance(found, SecretNotFound)
    assert "disabled" in found.message


async def test_what_is_not_there(made: Any) -> None:
    found = await failure(made(), "none")
    assert isinstance(found, SecretNotFound)
    assert "SecretNotFound" in found.message


async def test_list(azure: AzureFake, made: Any) -> None:
    for number in range(60):
        azure.put(f"llm-{number:02}", "x")
    store = made()
    assert await store.list("llm-") == [f"llm-{number:02}" for number in range(60)]
    assert "openai" in await store.list()
    assert await store.list("nothing") == []


async def test_health(azure: AzureFake, made: Any) -> None:
    store = made()
    assert await store.health() is None
    assert azure.asked[-1].query["maxresults"] == "1"
    azure.denied["*"] = "AccessDenied"
    assert await store.health() is None  # a login that may read and not list is well
    with pytest.raises(SecretDenied, match="Key Vault Secrets User"):
        await store.list()
    azure.faults += [error(503, "ServiceUnavailable")] * 9
    with pytest.raises(StoreUnreachable):
        await store.health()


# --- failures


async def test_denied(azure: AzureFake, made: Any) -> None:
    azure.denied = {"openai": "AccessDenied", "walled": "ForbiddenByFirewall"}
    store = made()
    found = await failure(store)
    assert isinstance(found, SecretDenied)
    assert "403, Forbidden, AccessDenied" in found.message
    found = await failure(store, "walled")
    assert isinstance(found, SecretDenied)
    assert "firewall" in found.message
    assert azure.count("oauth2/v2.0/token") == 1


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_busy_then_well(azure: AzureFake, made: Any, status: int) -> None:
    azure.faults += [error(status, "Throttled"), Fault(status, b"<html>", {"content-type": "text/html"})]
    assert await read(made()) == VALUE


async def test_busy_for_long(azure: AzureFake, made: Any) -> None:
    azure.faults += [error(429, "Throttled")] * 9
    found = await failure(made())
    assert isinstance(found, StoreUnreachable)
    assert found.passing
    assert len(azure.faults) == 5


async def test_retry_after_is_kept_or_not_waited_for(azure: AzureFake, made: Any) -> None:
    azure.faults.append(Fault(429, b"{}", {"Retry-After": "1"}))
    started = time.monotonic()
    assert await read(made()) == VALUE
    assert time.monotonic() - started >= 1
    azure.faults.append(Fault(429, b"{}", {"Retry-After": "60"}))
    started = time.monotonic()
    assert isinstance(await failure(made()), StoreUnreachable)
    assert time.monotonic() - started < 5


async def test_nobody_listens(azure: AzureFake, made: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = f"https://127.0.0.1:{taken.getsockname()[1]}"
        assert isinstance(await failure(made(vault_url=away)), StoreUnreachable)
        assert isinstance(await failure(made(authority_host=away)), StoreUnreachable)


async def test_certificate_of_a_stranger(made: Any) -> None:
    assert isinstance(await failure(made(ca_bundle="")), StoreUnreachable)


@pytest.mark.parametrize("kind", ["faults", "token_faults"])
async def test_no_answer_in_time(azure: AzureFake, made: Any, kind: str) -> None:
    getattr(azure, kind).append(Fault(200, b"{}", hang=2.5))
    started = time.monotonic()
    assert isinstance(await failure(made(timeout_s=0.5)), StoreUnreachable)
    assert time.monotonic() - started < 2


async def test_the_time_is_for_all_attempts(azure: AzureFake, made: Any) -> None:
    azure.faults += [Fault(429, b"{}", {"Retry-After": "1"}), Fault(200, b"{}", hang=2.5)]
    started = time.monotonic()
    assert isinstance(await failure(made(timeout_s=1.5)), StoreUnreachable)
    assert time.monotonic() - started < 2.2


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b"{}", b'"x"', b'{"value": "x", "attributes": {"exp": "soon"}}', b"\xff", b""],
)
async def test_malformed_answer(azure: AzureFake, made: Any, body: bytes) -> None:
    azure.faults.append(Fault(200, body))
    assert await read(made()) == VALUE
    azure.faults += [Fault(200, body)] * 2
    assert isinstance(await failure(made()), SecretMalformed)


async def test_nothing_secret_is_logged(azure: AzureFake, made: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    await read(made())
    await failure(made(client_secret="wrong-one"))
    assert "/secrets/openai" in caplog.text
    assert not any(part in caplog.text for part in (VALUE, SECRET, "wrong-one", *azure.tokens))


# --- settings


def test_settings_by_other_names_and_from_the_environment() -> None:
    env = {
        "AZURE_KEY_VAULT_URI": "https://v.vault.azure.net",
        "AZURE_CERTIFICATE_PATH": "/a.pem",
        "AZURE_CERTIFICATE_PASSWORD": "p",
    }
    store = store_of("azure_key_vault", "kv", {"azure_client_id": CLIENT}, env)
    assert isinstance(store, AzureKeyVault)
    assert (store.vault_url, store.certificate_path, store.client_id) == (env["AZURE_KEY_VAULT_URI"], "/a.pem", CLIENT)
    with pytest.raises(WrongSetting):
        store_of("azure", "kv", {"vault_url": "http://127.0.0.1:1"}, {})


async def test_no_vault_or_an_api_that_the_sdk_does_not_know(made: Any) -> None:
    found = await failure(made(vault_url=""))
    assert isinstance(found, StoreMisconfigured)
    assert "AZURE_KEY_VAULT_URI" in found.message
    assert "api_version" in (await failure(made(api_version="1.0"))).message
    assert isinstance(await failure(made(authority_host="http://127.0.0.1:1")), StoreMisconfigured)


async def test_missing_sdk(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "azure.keyvault.secrets", None)
    with pytest.raises(MissingExtra, match="tianji-mw\\[azure\\]"):
        await read(made())


async def test_through_the_resolver(azure: AzureFake, made: Any) -> None:
    azure.put("keys", '{"a": "ka", "b": "kb"}')
    resolver = Resolver({"azure": made()})
    handles = [resolver.secret("azure-kv://keys#a"), resolver.secret("azure-kv://keys#b")]
    assert not await resolver.fetch(handles)
    assert [handle.reveal() for handle in handles] == ["ka", "kb"]
    await resolver.aclose()
