"""Azure Blob Storage: what is stored in Azurite, read with Azure's client; logins and errors on a script."""

from __future__ import annotations

import base64
import gzip
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from tests.integration.callbacks.test_layer import logged
from tests.support import azure_fake, storage_servers
from tests.support.azure_fake import CLIENT, SECRET, TENANT, AzureFake
from tests.support.google_fake import Asked, Fault
from tests.support.processes import Running, free_port
from tests.support.records import a_failure, a_record, undelivered
from tests.support.stack import ANSWER, CHAT, Serve
from tests.support.storage_servers import AZURE_ACCOUNT, AZURE_KEY
from tianji_mw.callbacks.azure_blob import AzureBlob
from tianji_mw.callbacks.base import Record
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

ACCOUNT, KEY = AZURE_ACCOUNT, AZURE_KEY
WRONG = base64.b64encode(b"another key").decode()
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with storage_servers.azurite(tmp_path_factory.mktemp("azurite")) as running:
        yield running


@pytest.fixture
def container(azurite: Running) -> Any:
    from azure.storage.blob import BlobServiceClient

    login = {"account_name": ACCOUNT, "account_key": KEY}
    service = BlobServiceClient(f"{azurite.url}/{ACCOUNT}", credential=login)
    return service.create_container(f"logs-{uuid.uuid4().hex[:12]}")


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[AzureBlob] = []

    async def build(**settings: Any) -> AzureBlob:
        callback = AzureBlob(**{name: value for name, value in settings.items() if value is not None})
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()


@pytest.fixture
def on_azurite(make: Make, azurite: Running, container: Any) -> Make:
    async def build(**settings: Any) -> AzureBlob:
        fixed = {
            "account": ACCOUNT,
            "account_key": KEY,
            "container": container.container_name,
            "endpoint_url": f"{azurite.url}/{ACCOUNT}",
        }
        return await make(**fixed | settings)

    return build


class Blobs(AzureFake):
    """Entra ID and Put Blob over TLS; what the REST API asks of an upload is checked."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(ca)
        self.blobs: dict[str, bytes] = {}
        #: Part of a blob's name -> the answer to its upload, each time.
        self.bad: dict[str, Fault] = {}

    def answer(self, asked: Asked) -> Fault:
        if not asked.path.startswith("/logs/"):
            return super().answer(asked)
        if self.faults:
            return self.faults.pop(0)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return refused(401, "InvalidAuthenticationInfo")
        if asked.method != "PUT" or asked.headers["x-ms-blob-type"] != "BlockBlob" or not asked.headers["x-ms-version"]:
            return refused(400, "InvalidHeaderValue")
        for part, fault in self.bad.items():
            if part in asked.path:
                return fault
        self.blobs[asked.path] = asked.body
        return Fault(201, b"", {"etag": '"1"', "last-modified": "Sun, 22 Nov 2026 10:00:00 GMT"})


def refused(status: int, code: str, **headers: str) -> Fault:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>signed with hidden</Message></Error>'
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault(status, body.encode(), {"content-type": "application/xml", "x-ms-error-code": code, **more})


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Blobs]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr(azure_fake, "_SCOPE", "https://storage.azure.com/.default")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with Blobs(ca) as fake:
        yield fake


@pytest.fixture
def on_azure(make: Make, azure: Blobs) -> Make:
    async def build(**settings: Any) -> AzureBlob:
        login = {"tenant_id": TENANT, "client_id": CLIENT, "client_secret": SECRET, "authority_host": azure.url}
        return await make(**{"account": "logs", "container": "logs", "endpoint_url": azure.url} | login | settings)

    return build


failure = undelivered


def stored(container: Any) -> dict[str, bytes]:
    return {name: container.download_blob(name).readall() for name in container.list_blob_names()}


# --- what is stored


async def test_a_batch_is_one_file_and_a_second_attempt_overwrites_it(on_azurite: Make, container: Any) -> None:
    blob = await on_azurite(prefix="llm", layout="batch_files")
    batch = [a_record(), a_failure(), a_record(model="größe \u2028 ☃"), a_record(messages=None, response=None, id=None)]
    await blob.write(batch)
    await blob.write(list(reversed(batch)))
    ((name, body),) = stored(container).items()
    assert re.fullmatch(r"llm/2026-\d\d-\d\d/1795376000100-[0-9a-f]{8}\.jsonl", name)
    assert [line["litellm_call_id"] for line in map(orjson.loads, body.splitlines())] == [r.id for r in reversed(batch)]
    settings = container.get_blob_client(name).get_blob_properties().content_settings
    assert settings.content_type == "application/x-ndjson"


async def test_single_blobs_have_the_names_of_litellm(on_azurite: Make, container: Any) -> None:
    blob = await on_azurite(layout="records")
    plain, cached = a_record(), a_record(cache_hit=True)
    answer, odd, dots = a_record(id="resp_a=="), a_record(id="a/../%2F ?#é"), a_record(id="..")
    await blob.write([plain, cached, answer, odd, dots])
    assert {name.partition("/")[2]: body for name, body in stored(container).items()} == {
        "chatcmpl-77.json": plain.raw,
        f"chatcmpl-77_{cached.id}.json": cached.raw,
        "resp_a.json": answer.raw,
        "a_.._%2F ?#é.json": odd.raw,
        f"{dots.id}.json": dots.raw,
    }


async def test_partitions_and_gzip(on_azurite: Make, container: Any) -> None:
    blob = await on_azurite(layout="batches", partition="hour", compression="gzip", team_prefix="true")
    record = a_record()
    await blob.write([record])
    ((name, body),) = stored(container).items()
    assert re.fullmatch(r"team=ml/dt=[\d-]+/hour=\d\d/.*\.jsonl\.gz", name)
    assert gzip.decompress(body) == record.raw + b"\n"


# --- logins


async def test_a_wrong_key(on_azurite: Make) -> None:
    record = a_record()
    found = await failure(await on_azurite(account_key=WRONG), [record])
    assert (found.failed, found.refused, found.retry) == ([record], [], True)
    # Azurite's code; Azure's own is AuthenticationFailed, which the script below answers.
    assert "AuthorizationFailure (403)" in found.message
    assert WRONG not in found.message


async def test_after_a_refused_login_the_rest_is_not_tried(on_azure: Make, azure: Blobs) -> None:
    blob = await on_azure(layout="records", concurrent_uploads=1)
    batch = [a_record() for _ in range(5)]
    azure.faults = [refused(403, "AuthenticationFailed")]
    found = await failure(blob, batch)
    assert sorted(record.id for record in found.failed or ()) == sorted(record.id for record in batch)
    assert "AuthenticationFailed (403)" in found.message
    assert "hidden" not in found.message
    assert azure.count("/logs/") == 1


async def test_a_key_that_is_no_base64(on_azurite: Make) -> None:
    record = a_record()
    found = await failure(await on_azurite(account_key="no-base-64!"), [record])
    assert found.failed == [record]
    assert "no-base-64" not in found.message


async def test_a_connection_string(on_azurite: Make, azurite: Running, container: Any) -> None:
    text = f"AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={azurite.url}/{ACCOUNT};"
    blob = await on_azurite(connection_string=text, account=None, account_key=None, endpoint_url=None)
    await blob.write([a_record()])
    assert len(stored(container)) == 1


async def test_a_sas(on_azurite: Make, container: Any) -> None:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    token = generate_container_sas(
        ACCOUNT,
        container.container_name,
        account_key=KEY,
        permission=ContainerSasPermissions(write=True, create=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    await (await on_azurite(account_key=None, sas_token=f"?{token}")).write([a_record()])
    assert len(stored(container)) == 1
    wrong = token.replace("sig=", "sig=AAAA")
    found = await failure(await on_azurite(account_key=None, sas_token=wrong), [a_record()])
    assert "AuthorizationFailure" in found.message
    assert "sig" not in found.message


async def test_a_service_principal_logs_in_once(on_azure: Make, azure: Blobs) -> None:
    blob = await on_azure()
    await blob.write([a_record(id="one")])
    await blob.write([a_record(id="two")])
    assert len(azure.blobs) == 2
    assert azure.count("/oauth2/v2.0/token") == 1


async def test_a_service_principal_that_is_refused(on_azure: Make) -> None:
    record = a_record()
    found = await failure(await on_azure(client_secret="wrong-secret"), [record])
    assert (found.failed, found.retry) == ([record], True)
    assert "ClientAuthenticationError" in found.message
    assert "wrong-secret" not in found.message


async def test_what_is_missing_stops_the_start(make: Make) -> None:
    with pytest.raises(SetupError, match="AZURE_STORAGE_ACCOUNT_NAME"):
        await make(container="logs")
    with pytest.raises(SetupError, match="tenant_id"):
        await make(container="logs", account="a", client_secret="s-1")
    with pytest.raises(SetupError) as caught:
        await make(container="logs", connection_string="hidden")
    assert "hidden" not in str(caught.value)


# --- errors


async def test_no_container(on_azurite: Make) -> None:
    batch = [a_record(), a_record()]
    found = await failure(await on_azurite(container="none", layout="records"), batch)
    assert sorted(r.id for r in found.failed or ()) == sorted(r.id for r in batch)
    assert "ContainerNotFound (404)" in found.message


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AuthorizationPermissionMismatch"), (500, "InternalError"), (503, "ServerBusy"), (429, "TooManyRequests")],
)
async def test_these_are_worth_another_attempt(on_azure: Make, azure: Blobs, status: int, code: str) -> None:
    blob, record = await on_azure(), a_record()
    azure.faults = [refused(status, code, retry_after="7")]
    found = await failure(blob, [record])
    assert (found.failed, found.refused, found.retry, found.retry_after_s) == ([record], [], True, 7.0)
    assert f"{code} ({status})" in found.message
    assert "hidden" not in found.message
    assert azure.count("/logs/") == 1
    await blob.write([record])


async def test_some_blobs_fail_and_others_arrive(on_azure: Make, azure: Blobs) -> None:
    blob = await on_azure(layout="records")
    batch = [a_record(id=f"r{n:02}") for n in range(10)]
    azure.bad = {"r03": refused(503, "ServerBusy"), "r07": refused(409, "BlobImmutableDueToPolicy")}
    azure.bad["r08"] = refused(413, "RequestBodyTooLarge")
    found = await failure(blob, batch)
    assert found.failed == [batch[3]]
    assert {record.id for record in found.refused} == {batch[7].id, batch[8].id}
    assert len(azure.blobs) == 7


async def test_silence_ends_with_the_timeout(on_azure: Make, azure: Blobs) -> None:
    blob, record = await on_azure(upload_timeout_s=1), a_record()
    azure.faults = [Fault(201, b"", {}, 2.0)]
    assert (await failure(blob, [record])).failed == [record]


async def test_nobody_listens(make: Make) -> None:
    blob = await make(account="a", account_key=KEY, container="logs", endpoint_url=f"http://127.0.0.1:{free_port()}")
    record = a_record()
    assert (await failure(blob, [record])).failed == [record]


async def test_records_that_are_no_objects_do_not_stop_others(on_azurite: Make, container: Any) -> None:
    bad, good = Record("x", b"[1"), a_record()
    found = await failure(await on_azurite(), [bad, good])
    assert (found.failed, found.refused) == ([], [bad])
    assert list(stored(container).values()) == [good.raw]


async def test_from_litellms_yaml_to_the_container(
    azurite: Running, container: Any, llm: FakeLLM, serve: Serve, tmp_path: Path
) -> None:
    llm.replies.append(Reply.json({**ANSWER, "id": "chatcmpl-9"}))
    env = {
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_STORAGE_FILE_SYSTEM": container.container_name, "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05",
    }  # fmt: skip
    options = {"azure_storage": {"endpoint_url": f"{azurite.url}/{ACCOUNT}"}}
    app = await logged(serve, tmp_path, llm.url, {"callbacks": ["azure_storage"]}, env, callback_settings=options)
    driven = await app.call(CHAT)
    await app.records()
    ((name, body),) = stored(container).items()
    assert name.endswith("/chatcmpl-9.json")
    assert orjson.loads(body)["litellm_call_id"] == driven.headers["x-request-id"]
