"""Google Cloud Storage: what is stored in fake-gcs-server, read with Google's client; logins and errors on a script."""

from __future__ import annotations

import gzip
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import trustme

from tests.integration.callbacks.test_layer import logged
from tests.support import google_fake
from tests.support.google_fake import Asked, Fault, GoogleFake, error
from tests.support.processes import Running
from tests.support.records import a_failure, a_record, undelivered
from tests.support.stack import ANSWER, CHAT, Serve
from tests.support.storage_servers import fake_gcs
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.gcs import Gcs
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with fake_gcs(tmp_path_factory.mktemp("gcs")) as running:
        yield running


@pytest.fixture
def reader(store: Running) -> Any:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client("p", AnonymousCredentials(), client_options={"api_endpoint": store.url})


@pytest.fixture
def bucket(reader: Any) -> str:
    name = f"logs-{uuid.uuid4().hex[:12]}"
    reader.create_bucket(name)
    return name


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Gcs] = []

    async def build(**settings: Any) -> Gcs:
        callback = Gcs(**settings)
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()


class Storage(GoogleFake):
    """Token endpoint and uploads over TLS; what the JSON API asks of an upload is checked."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(ca)
        self.objects: dict[str, bytes] = {}
        #: Part of an object's name -> the answer to its upload, each time.
        self.bad: dict[str, Fault] = {}

    def answer(self, asked: Asked) -> Fault:
        if not asked.path.startswith("/upload/"):
            return super().answer(asked)
        if self.faults:
            return self.faults.pop(0)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return error(401, "UNAUTHENTICATED", "Invalid Credentials")
        good = asked.method == "POST" and asked.path == "/upload/storage/v1/b/logs/o"
        if not good or asked.query.keys() != {"uploadType", "name"} or asked.query["uploadType"] != "media":
            return error(400, "INVALID", f"{asked.path} {asked.query}")
        name = asked.query["name"]
        for part, fault in self.bad.items():
            if part in name:
                return fault
        self.objects[name] = asked.body
        return Fault(200, {"name": name, "size": str(len(asked.body))})


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr(google_fake, "SCOPE", SCOPE)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    with Storage(ca) as fake:
        (tmp_path / "sa.json").write_text(json.dumps(fake.service_account()))
        yield fake


@pytest.fixture
def on_google(google: Storage, make: Make, tmp_path: Path) -> Make:
    async def build(**settings: Any) -> Gcs:
        fixed = {"bucket": "logs", "endpoint_url": google.url, "credentials_file": str(tmp_path / "sa.json")}
        return await make(**fixed | settings)

    return build


failure = undelivered


def blobs(reader: Any, bucket: str) -> dict[str, bytes]:
    return {blob.name: blob.download_as_bytes() for blob in reader.list_blobs(bucket)}


# --- what is stored


async def test_a_batch_is_one_file_and_a_second_attempt_overwrites_it(
    make: Make, reader: Any, bucket: str, store: Running
) -> None:
    gcs = await make(bucket=f"{bucket}/a/b", endpoint_url=store.url.removeprefix("http://"))
    batch = [a_record(), a_failure(), a_record(model="größe \u2028 ☃"), a_record(messages=None, response=None, id=None)]
    await gcs.write(batch)
    await gcs.write(list(reversed(batch)))
    ((name, body),) = blobs(reader, bucket).items()
    assert re.fullmatch(r"a/b/2026-\d\d-\d\d/batch-1795376000100-[0-9a-f]{8}\.ndjson", name)
    assert [line["litellm_call_id"] for line in map(orjson.loads, body.splitlines())] == [r.id for r in reversed(batch)]
    assert next(iter(reader.list_blobs(bucket))).content_type == "application/x-ndjson"


async def test_single_objects_have_the_names_of_litellm(make: Make, reader: Any, bucket: str, store: Running) -> None:
    gcs = await make(bucket=bucket, endpoint_url=store.url, use_batched_logging="false")
    metadata = {"requester_metadata": {"gcs_log_id": "order 7/../ü"}}
    good, failed, custom = a_record(), a_failure(), a_record(metadata=metadata)
    cached, odd = a_record(cache_hit=True), a_record(id="a/b %2F ?#é")
    await gcs.write([good, failed, custom, cached, odd])
    names = {name.partition("/")[2]: body for name, body in blobs(reader, bucket).items()}
    assert names == {
        "chatcmpl-77": good.raw,
        f"failure-{failed.id.replace('-', '')}": failed.raw,
        f"custom-{custom.id}-order_7_..__": custom.raw,
        f"chatcmpl-77_{cached.id}": cached.raw,
        "a_b %2F ?#é": odd.raw,
    }


async def test_two_records_of_one_id_are_two_objects(make: Make, reader: Any, bucket: str, store: Running) -> None:
    gcs = await make(bucket=bucket, endpoint_url=store.url, layout="records")
    batch = [a_record(), a_record()]
    await gcs.write(batch)
    assert sorted(blobs(reader, bucket).values()) == sorted(record.raw for record in batch)


async def test_partitions_and_gzip(make: Make, reader: Any, bucket: str, store: Running) -> None:
    gcs = await make(
        bucket=bucket, endpoint_url=store.url, layout="batches", partition="hour", compression="gzip", team_prefix=True
    )
    record = a_record()
    await gcs.write([record])
    ((name, body),) = blobs(reader, bucket).items()
    assert name.startswith("team=ml/dt=2026-")
    assert name.endswith(".jsonl.gz")
    assert gzip.decompress(body) == record.raw + b"\n"


async def test_no_bucket(make: Make, store: Running) -> None:
    gcs = await make(bucket=f"none-{uuid.uuid4().hex}", endpoint_url=store.url)
    batch = [a_record()]
    found = await failure(gcs, batch)
    assert (found.failed, found.refused, found.retry) == (batch, [], True)
    assert "404" in found.message


async def test_records_that_are_no_objects_do_not_stop_others(
    make: Make, reader: Any, bucket: str, store: Running
) -> None:
    gcs = await make(bucket=bucket, endpoint_url=store.url)
    bad, good = Record("x", b"[1"), a_record()
    found = await failure(gcs, [bad, good])
    assert (found.failed, found.refused) == ([], [bad])
    assert list(blobs(reader, bucket).values()) == [good.raw + b"\n"]


# --- logins


async def test_a_service_account_logs_in_once_for_many_uploads(on_google: Make, google: Storage) -> None:
    gcs = await on_google(layout="records")
    await gcs.write([a_record(id=f"r{n}") for n in range(20)])
    assert len(google.objects) == 20
    assert google.count("/token") == 1


async def test_after_401_there_is_a_new_token_once(on_google: Make, google: Storage) -> None:
    gcs = await on_google()
    await gcs.write([a_record()])
    google.tokens.clear()
    await gcs.write([a_record()])
    assert len(google.objects) == 2
    assert google.count("/token") == 2
    google.faults = [error(401, "UNAUTHENTICATED", "no"), error(401, "UNAUTHENTICATED", "no")]
    record = a_record()
    found = await failure(gcs, [record])
    assert (found.failed, found.retry) == ([record], True)
    assert google.count("/upload") == 5


async def test_no_token_is_another_attempt_later_and_no_key_is_told(on_google: Make, google: Storage) -> None:
    gcs = await on_google()
    google.token_faults = [Fault(400, {"error": "invalid_grant", "error_description": "secret-in-answer"})]
    record = a_record()
    found = await failure(gcs, [record])
    assert (found.failed, found.retry) == ([record], True)
    assert "secret-in-answer" not in found.message
    await gcs.write([record])


async def test_credentials_that_are_none_stop_the_start(make: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"type": "service_account", "private_key": "hidden"}')
    for name in ("bad.json", "absent.json"):
        with pytest.raises(SetupError) as caught:
            await make(bucket="logs", credentials_file=str(tmp_path / name))
        assert "hidden" not in str(caught.value)


# --- errors


@pytest.mark.parametrize("status", [403, 408, 429, 500, 503])
async def test_these_are_worth_another_attempt(on_google: Make, google: Storage, status: int) -> None:
    gcs = await on_google()
    google.faults = [Fault(status, {"error": {"errors": [{"reason": "rateLimitExceeded"}]}}, {"retry-after": "7"})]
    record = a_record()
    found = await failure(gcs, [record])
    assert (found.failed, found.refused, found.retry, found.retry_after_s) == ([record], [], True, 7.0)
    assert f"{status}, rateLimitExceeded" in found.message
    await gcs.write([record])
    assert list(google.objects.values()) == [record.raw + b"\n"]


async def test_some_objects_fail_and_others_arrive(on_google: Make, google: Storage) -> None:
    gcs = await on_google(layout="records")
    batch = [a_record(id=f"r{n:02}") for n in range(10)]
    google.bad = {"r03": Fault(503), "r07": error(400, "INVALID", "no"), "r08": Fault(413)}
    found = await failure(gcs, batch)
    assert found.failed == [batch[3]]
    assert {record.id for record in found.refused} == {batch[7].id, batch[8].id}
    assert len(google.objects) == 7


async def test_a_file_that_is_too_large_is_split(on_google: Make, google: Storage) -> None:
    gcs = await on_google()
    google.faults = [Fault(413)]
    batch = [a_record() for _ in range(4)]
    await gcs.write(batch)
    assert len(google.objects) == 2
    lines = b"".join(google.objects.values()).splitlines()
    assert sorted(lines) == sorted(record.raw for record in batch)


async def test_silence_ends_with_the_timeout(on_google: Make, google: Storage) -> None:
    gcs = await on_google(upload_timeout_s=1)
    google.faults = [Fault(200, {}, {}, 2.0)]
    record = a_record()
    found = await failure(gcs, [record])
    assert found.failed == [record]
    assert "ReadTimeout" in found.message


async def test_a_damaged_object_is_offered_again(on_google: Make, google: Storage) -> None:
    gcs = await on_google()
    google.faults = [Fault(200, {"md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="})]
    record = a_record()
    assert (await failure(gcs, [record])).failed == [record]


async def test_from_litellms_yaml_to_the_bucket(
    store: Running, reader: Any, bucket: str, llm: FakeLLM, serve: Serve, tmp_path: Path
) -> None:
    llm.replies.append(Reply.json(ANSWER))
    env = {"GCS_BUCKET_NAME": f"{bucket}/llm", "STORAGE_EMULATOR_HOST": store.url, "GCS_FLUSH_INTERVAL": "0.05"}
    app = await logged(serve, tmp_path, llm.url, {"callbacks": ["gcs_bucket"]}, env)
    driven = await app.call(CHAT)
    await app.records()
    (blob,) = reader.list_blobs(bucket)
    assert re.fullmatch(r"llm/\d{4}-\d\d-\d\d/batch-\d+-[0-9a-f]{8}\.ndjson", blob.name)
    assert json.loads(blob.download_as_bytes())["litellm_call_id"] == driven.headers["x-request-id"]
