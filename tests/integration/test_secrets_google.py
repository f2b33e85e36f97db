"""Google Secret Manager through its real client, against a fake over TLS: logins, versions, failures."""

from __future__ import annotations

import asyncio
import base64
import json
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

from tests.support.google_fake import Fault, GoogleFake, Key, Metadata, error
from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    StoreMisconfigured,
    StoreUnreachable,
)
from tianji_mw.secrets.configure import WrongSetting, store_of
from tianji_mw.secrets.google import GoogleSecretManager
from tianji_mw.secrets.reference import Reference, parse
from tianji_mw.secrets.resolver import Resolver

# google-auth warns of logins that strangers give; these are the operator's.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The load_credentials_from:DeprecationWarning")]

VALUE = "sk-very-secret"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GoogleFake]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
    monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", True)
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    with GoogleFake(ca) as fake:
        fake.put("openai", b"old")
        fake.put("openai", VALUE.encode())
        yield fake


@pytest.fixture
async def made(google: GoogleFake) -> AsyncIterator[Callable[..., GoogleSecretManager]]:
    """Builds stores that are closed in the end; logged in by a service account unless told otherwise."""
    async with AsyncExitStack() as stack:

        def build(**settings: Any) -> GoogleSecretManager:
            if not {"credentials_file", "credentials_json", "adc"} & settings.keys():
                settings["credentials_json"] = json.dumps(google.service_account())
            settings.pop("adc", None)
            store = GoogleSecretManager(**{"endpoint": google.url, **settings})
            stack.push_async_callback(store.aclose)
            return store

        yield build


async def read(store: GoogleSecretManager, path: str = "openai", **more: Any) -> tuple[str, str]:
    found = await store.get(Reference(path=path, **more))
    return found.value.reveal(), found.version


async def failure(store: GoogleSecretManager, path: str = "openai", **more: Any) -> SecretError:
    """The error of a read; it names the store and the path, and holds nothing secret."""
    with pytest.raises(SecretError) as caught:
        await read(store, path, **more)
    found = caught.value
    assert found.message.startswith(f"google: {path}: ")
    assert not any(part in found.message for part in (VALUE, "ya29", "PRIVATE KEY", "Bearer"))
    assert found.__cause__ is None
    assert found.__suppress_context__ or found.__context__ is None
    return found


# --- logins


async def test_service_account_json(google: GoogleFake, made: Any) -> None:
    assert await read(made()) == (VALUE, "2")
    assert [asked.path for asked in google.asked] == ["/token", "/v1/projects/p/secrets/openai/versions/latest:access"]


async def test_service_account_file(google: GoogleFake, made: Any, tmp_path: Path) -> None:
    (tmp_path / "sa.json").write_text(json.dumps(google.service_account()))
    assert await read(made(credentials_file=str(tmp_path / "sa.json"))) == (VALUE, "2")


async def test_workload_identity_federation(google: GoogleFake, made: Any, tmp_path: Path) -> None:
    subject = tmp_path / "token"
    subject.write_text(google.subject_token())
    config = json.dumps(google.external_account(subject))
    assert await read(made(credentials_json=config, project_id="p")) == (VALUE, "2")
    assert google.count("/sts") == 1
    google.token_faults.append(Fault(503, b"down"))
    assert isinstance(await failure(made(credentials_json=config, project_id="p")), StoreUnreachable)
    subject.write_text(google.subject_token(exp=time.time() - 60))
    assert isinstance(await failure(made(credentials_json=config, project_id="p")), SecretDenied)
    subject.unlink()
    assert isinstance(await failure(made(credentials_json=config, project_id="p")), SecretDenied)


async def test_federation_names_no_project(google: GoogleFake, made: Any, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(google.subject_token())
    store = made(credentials_json=json.dumps(google.external_account(tmp_path / "token")))
    found = await failure(store)
    assert isinstance(found, StoreMisconfigured)
    assert "set project_id" in found.message
    assert await read(store, "projects/p/secrets/openai") == (VALUE, "2")


async def test_user_login(google: GoogleFake, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{google.url}/token")
    assert await read(made(credentials_json=json.dumps(google.authorized_user()), project_id="p")) == (VALUE, "2")
    wrong = json.dumps(google.authorized_user(refresh_token="no"))
    assert isinstance(await failure(made(credentials_json=wrong, project_id="p")), SecretDenied)


async def test_metadata_server(google: GoogleFake, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Metadata(google) as metadata:
        # What GCE_METADATA_HOST sets; the SDK reads that one when it is imported.
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", metadata.host)
        monkeypatch.setenv("GCE_METADATA_IP", metadata.host)
        monkeypatch.setattr("google.auth.compute_engine._metadata._NO_GCE_CHECK", False)
        assert await read(made(adc=True)) == (VALUE, "2")
        assert metadata.count("/token") == 1
        assert google.count("/token") == 0


async def test_application_default_credentials_file(
    google: GoogleFake, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sa.json").write_text(json.dumps(google.service_account()))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "sa.json"))
    assert await read(made(adc=True)) == (VALUE, "2")


async def test_no_login_at_all(made: Any) -> None:
    found = await failure(made(adc=True))
    assert isinstance(found, SecretDenied)
    assert "no Google login found" in found.message


@pytest.mark.parametrize("text", ["{", "[]", '{"type": "service_account"}', '{"type": "what"}'])
async def test_credentials_that_are_none(made: Any, text: str, tmp_path: Path) -> None:
    assert isinstance(await failure(made(credentials_json=text)), SecretDenied)
    (tmp_path / "c.json").write_text(text)
    found = await failure(made(credentials_file=str(tmp_path / "c.json")))
    assert isinstance(found, SecretDenied)
    assert "c.json" in found.message
    assert isinstance(await failure(made(credentials_file=str(tmp_path))), SecretDenied)


async def test_foreign_key_is_refused_and_a_mended_file_is_read_again(
    google: GoogleFake, made: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sa.json"
    path.write_text(json.dumps(google.service_account(private_key=Key().private)))
    store = made(credentials_file=str(path))
    found = await failure(store)
    assert isinstance(found, SecretDenied)
    assert "check the credentials" in found.message
    path.write_text(json.dumps(google.service_account()))
    assert await read(store) == (VALUE, "2")


async def test_credentials_that_were_replaced(google: GoogleFake, made: Any) -> None:
    class Changing(Secret):
        def reveal(self) -> str:
            return next(texts)

    keys = Key(), Key()
    texts = iter([json.dumps(google.service_account(private_key=key.private)) for key in keys])
    store = made(credentials_json=Changing("changing"))
    for key in keys:
        google.key = key
        google.tokens.clear()
        assert await read(store) == (VALUE, "2")
    assert google.count("/token") == 3


async def test_one_login_for_many(google: GoogleFake, made: Any) -> None:
    store = made()
    await asyncio.gather(*(read(store) for _ in range(20)))
    assert google.count("/token") == 1
    assert google.count(":access") == 20


async def test_revoked_token(google: GoogleFake, made: Any) -> None:
    store = made()
    await read(store)
    google.tokens.clear()
    assert await read(store) == (VALUE, "2")
    assert google.count("/token") == 2


async def test_tokens_that_are_never_good(google: GoogleFake, made: Any) -> None:
    google.faults += [error(401, "UNAUTHENTICATED", "no")] * 9
    assert isinstance(await failure(made()), SecretDenied)
    assert google.count(":access") <= 3


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_token_endpoint_fails(google: GoogleFake, made: Any, status: int) -> None:
    google.token_faults += [Fault(status, b"down")] * 9
    found = await failure(made(timeout_s=4))
    assert isinstance(found, StoreUnreachable)
    assert "token" in found.message


# --- names and versions


@pytest.mark.parametrize(
    ("path", "more", "expected"),
    [
        ("openai", {"version": "1"}, ("old", "1")),
        ("openai", {"version": "stable"}, ("old", "1")),
        ("openai", {"base64": True}, (base64.b64encode(VALUE.encode()).decode(), "2")),
        ("projects/p/secrets/openai", {}, (VALUE, "2")),
        ("projects/p/secrets/openai/versions/1", {}, ("old", "1")),
        ("projects/p/secrets/openai/versions/1", {"version": "2"}, (VALUE, "2")),
        ("projects/q/secrets/other", {}, ("of q", "1")),
        ("line", {}, ("one line", "1")),
    ],
)
async def test_what_is_read(google: GoogleFake, made: Any, path: str, more: dict[str, Any], expected: object) -> None:
    google.aliases["stable"] = 1
    google.put("other", b"of q", parent="projects/q")
    google.put("line", b"one line\n")
    assert await read(made(), path, **more) == expected


async def test_binary_payload(google: GoogleFake, made: Any) -> None:
    google.put("bin", b"\xff\x00")
    found = await failure(made(), "bin")
    assert isinstance(found, SecretMalformed)
    assert "encoding=base64" in found.message
    assert await read(made(), "bin", base64=True) == ("/wA=", "1")
    assert google.count(":access") == 2


@pytest.mark.parametrize("state", ["DISABLED", "DESTROYED"])
async def test_version_that_is_off(google: GoogleFake, made: Any, state: str) -> None:
    google.put("off", b"x", state)
    found = await failure(made(), "off")
    assert isinstance(found, SecretNotFound)
    assert "disabled or destroyed" in found.message


async def test_what_is_not_there(google: GoogleFake, made: Any) -> None:
    assert isinstance(await failure(made(), "none"), SecretNotFound)
    assert isinstance(await failure(made(), version="9"), SecretNotFound)
    before = google.count(":access")
    for path in ("a/b", "a b", "projects/p/secrets", "projects/p/secrets/x/versions/1/x", "x" * 256):
        assert isinstance(await failure(made(), path), SecretNotFound)
    assert google.count(":access") == before


async def test_regional_secrets(google: GoogleFake, made: Any) -> None:
    google.put("near", b"here", parent="projects/p/locations/europe-west3")
    assert await read(made(location="europe-west3"), "near") == ("here", "1")
    assert await made(location="europe-west3").list() == ["near"]
    store = made(location="europe-west3", endpoint="")
    found = await failure(store, "projects/p/locations/us-east1/secrets/near")
    assert isinstance(found, StoreMisconfigured)
    assert "location" in found.message
    assert store._open.client.transport._host == "https://secretmanager.europe-west3.rep.googleapis.com"


async def test_list(google: GoogleFake, made: Any) -> None:
    google.page_size = 2
    for number in range(5):
        google.put(f"llm-{number}", b"x")
    store = made()
    assert await store.list() == ["llm-0", "llm-1", "llm-2", "llm-3", "llm-4", "openai"]
    assert await store.list("llm-") == [f"llm-{number}" for number in range(5)]
    google.secrets = {f"projects/p/secrets/s{number:04}": [] for number in range(1200)}
    google.page_size = 400
    assert len(await store.list("s")) == 1000


async def test_health(google: GoogleFake, made: Any) -> None:
    store = made()
    assert await store.health() is None
    assert google.asked[-1].query["pageSize"] == "1"
    google.denied.add("*")
    assert await store.health() is None  # a login that may read and not list is well
    with pytest.raises(SecretDenied, match="Secret Manager Viewer"):
        await store.list()
    google.faults += [Fault(503)] * 4
    with pytest.raises(StoreUnreachable):
        await store.health()


# --- failures


async def test_denied(google: GoogleFake, made: Any) -> None:
    google.denied.add("openai")
    found = await failure(made())
    assert isinstance(found, SecretDenied)
    assert "PERMISSION_DENIED, IAM_PERMISSION_DENIED" in found.message
    assert "Secret Manager Secret Accessor" in found.message


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_busy_then_well(google: GoogleFake, made: Any, status: int) -> None:
    google.faults += [Fault(status, b"<html>busy"), error(status, "RESOURCE_EXHAUSTED", "busy")]
    assert await read(made()) == (VALUE, "2")
    assert google.count(":access") == 3


async def test_busy_for_long(google: GoogleFake, made: Any) -> None:
    google.faults += [error(503, "UNAVAILABLE", "down")] * 9
    found = await failure(made())
    assert isinstance(found, StoreUnreachable)
    assert found.passing
    assert google.count(":access") == 4


async def test_retry_after_is_kept_or_not_waited_for(google: GoogleFake, made: Any) -> None:
    google.faults.append(Fault(429, b"{}", {"retry-after": "1"}))
    started = time.monotonic()
    assert await read(made()) == (VALUE, "2")
    assert time.monotonic() - started >= 1
    google.faults.append(Fault(429, b"{}", {"retry-after": "60"}))
    started = time.monotonic()
    assert isinstance(await failure(made()), StoreUnreachable)
    assert time.monotonic() - started < 5


async def test_nobody_listens(google: GoogleFake, made: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert isinstance(await failure(made(endpoint=f"https://127.0.0.1:{port}")), StoreUnreachable)
    away = json.dumps(google.service_account(token_uri=f"https://127.0.0.1:{port}/token"))
    assert isinstance(await failure(made(credentials_json=away)), StoreUnreachable)


async def test_certificate_of_a_stranger(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    assert isinstance(await failure(made()), StoreUnreachable)


@pytest.mark.parametrize("kind", ["faults", "token_faults"])
async def test_no_answer_in_time(google: GoogleFake, made: Any, kind: str) -> None:
    getattr(google, kind).append(Fault(200, b"{}", hang=2.5))
    started = time.monotonic()
    assert isinstance(await failure(made(timeout_s=0.5)), StoreUnreachable)
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    "body", [b"{", b"<html>", b"[]", b"{}", b'{"name": 1}', b'{"payload": {"data": "%"}}', b"\xff"]
)
async def test_malformed_answer(google: GoogleFake, made: Any, body: bytes) -> None:
    google.faults.append(Fault(200, body))
    assert await read(made()) == (VALUE, "2")
    google.faults += [Fault(200, body)] * 2
    assert isinstance(await failure(made()), SecretMalformed)


@pytest.mark.parametrize("body", [{"error": "down"}, "down", [], {"error": None}])
async def test_errors_that_google_did_not_write(google: GoogleFake, made: Any, body: object) -> None:
    google.faults += [Fault(502, body)] * 9
    assert isinstance(await failure(made()), StoreUnreachable)


async def test_damaged_payload(google: GoogleFake, made: Any) -> None:
    google.wrong_crc = 1
    assert await read(made()) == (VALUE, "2")
    google.wrong_crc = 2
    found = await failure(made())
    assert isinstance(found, SecretMalformed)
    assert "CRC32C" in found.message
    google.faults.append(Fault(200, {"name": "projects/1/secrets/x/versions/7", "payload": {"data": "eA=="}}))
    assert await read(made()) == ("x", "7")


async def test_nothing_secret_is_logged(
    google: GoogleFake, made: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "google")
    monkeypatch.setattr(logging.getLogger("google"), "propagate", True)
    await read(made())
    await failure(made(credentials_json=json.dumps(google.service_account(private_key=Key().private))))
    assert "versions/latest:access" in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("google") and record.levelno < 20]
    assert not any(part in caplog.text for part in (VALUE, *google.tokens, "PRIVATE KEY"))


# --- settings


def test_settings_by_other_names_and_from_the_environment() -> None:
    env = {"GOOGLE_CLOUD_PROJECT": "b", "GOOGLE_SECRET_MANAGER_PROJECT_ID": "a", "GCS_PATH_SERVICE_ACCOUNT": "/sa.json"}
    store = store_of("google_secret_manager", "g", {"region": "europe-west3"}, env)
    assert isinstance(store, GoogleSecretManager)
    assert (store.project_id, store.credentials_file, store.location) == ("a", "/sa.json", "europe-west3")
    with pytest.raises(WrongSetting):
        store_of("gcp", "g", {"endpoint": "http://127.0.0.1:1"}, {})


async def test_missing_sdk(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.api_core.exceptions", None)
    with pytest.raises(MissingExtra, match="tianji-mw\\[google\\]"):
        await read(made())


async def test_through_the_resolver(google: GoogleFake, made: Any) -> None:
    google.put("keys", b'{"a": "ka", "b": "kb"}')
    resolver = Resolver({"google": made(name="google")})
    handles = [resolver.secret("gcp-sm://keys#a"), resolver.secret(parse("gcp-sm://keys#b"))]
    assert not await resolver.fetch(handles)
    assert [handle.reveal() for handle in handles] == ["ka", "kb"]
    assert google.count(":access") == 1
    await resolver.aclose()
