"""What is sent to S3, and what its answers mean for the records, over a scripted server."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from typing import Any

import pytest

from tests.integration.secret_stores.servers import Answer, Asked, scripted
from tests.support.processes import free_port
from tests.support.records import a_record
from tests.support.s3_store import OK, REGION, Make, xml
from tianji_mw.callbacks.base import NotDelivered

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("callbacks-aws")]


async def test_no_bucket_keeps_every_record_and_is_not_asked_for_each(make: Make) -> None:
    with scripted(xml("NoSuchBucket", 404)) as server:
        s3 = await make("none", endpoint_url=server.url, concurrent_uploads=4)
        with pytest.raises(NotDelivered, match="NoSuchBucket") as caught:
            await s3.write([a_record(id=f"c{at}") for at in range(50)])
        assert len(caught.value.failed or ()) == 50
        assert caught.value.refused == []
        assert len(server.asked) <= 4


async def test_fields_of_the_request(make: Make) -> None:
    with scripted(OK) as server:
        record = a_record(id="a?b ü")
        s3 = await make("logs", endpoint_url=server.url, session_token="tok-1")
        await s3.write([record])
        (asked,) = server.asked
        assert asked.method == "PUT"
        assert asked.path == "/logs/2026-11-22/time-19-33-20-100000_a%3Fb%20%C3%BC.json"
        assert asked.body.encode() == record.raw
        headers = {name.lower(): value for name, value in asked.headers.items()}
        assert headers["content-md5"] == base64.b64encode(hashlib.md5(record.raw).digest()).decode()
        assert headers["x-amz-content-sha256"] == hashlib.sha256(record.raw).hexdigest()
        assert headers["content-length"] == str(len(record.raw))
        assert headers["x-amz-security-token"] == "tok-1"
        assert f"/{REGION}/s3/aws4_request" in headers["authorization"]
        assert "content-md5" in headers["authorization"]
        assert headers["content-disposition"].endswith('_a?b _.json"')
        assert not [name for name in headers if name.startswith("x-amz-checksum") or name == "expect"]
        assert "x-amz-server-side-encryption" not in headers


@pytest.mark.parametrize(
    ("settings", "algorithm", "key"),
    [
        ({"kms_key_id": "k-1"}, "aws:kms", "k-1"),
        ({"server_side_encryption": "aws:kms"}, "aws:kms", None),
        ({"s3_server_side_encryption": "aws:kms:dsse", "s3_sse_kms_key_id": "k-1"}, "aws:kms:dsse", "k-1"),
        ({"server_side_encryption": "AES256"}, "AES256", None),
        ({"server_side_encryption": "AES256", "kms_key_id": "k-1"}, "AES256", None),
    ],
)
async def test_encryption_headers(
    settings: dict[str, Any], algorithm: str, key: str | None, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with scripted(OK) as server:
        await (await make("logs", endpoint_url=server.url, **settings)).write([a_record()])
        headers = {name.lower(): value for name, value in server.asked[0].headers.items()}
    assert headers["x-amz-server-side-encryption"] == algorithm
    assert headers.get("x-amz-server-side-encryption-aws-kms-key-id") == key
    assert ("kms_key_id is not used" in caplog.text) is (len(settings) == 2 and key is None)


async def test_virtual_hosted_style(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo

    def here(host: Any, *args: Any, **kwargs: Any) -> Any:
        return resolve("127.0.0.1" if host == "logs.store.test" else host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", here)
    monkeypatch.setenv("NO_PROXY", "*")
    with scripted(OK) as server:
        port = server.url.rpartition(":")[2]
        s3 = await make("logs", endpoint_url=f"http://store.test:{port}", virtual_hosted_style=True, partition="hour")
        await s3.write([a_record()])
        assert server.asked[0].path.startswith("/2026-11-22/19/time-")
        assert server.asked[0].headers["Host"] == f"logs.store.test:{port}"


async def test_throttled_objects_alone_are_offered_again(make: Make) -> None:
    stored: dict[str, str] = {}
    lock, count = threading.Lock(), [0]

    def by_request(asked: Asked) -> Answer:
        with lock:
            count[0] += 1
            if count[0] % 10 < 3:
                return xml("SlowDown", 503, **({"Retry-After": "7"} if count[0] == 1 else {}))
            stored[asked.path] = asked.body
            return OK

    with scripted(by_request=by_request) as server:
        s3 = await make("logs", endpoint_url=server.url)
        left = [a_record(id=f"c{at}") for at in range(200)]
        rounds = 0
        with pytest.raises(
            NotDelivered, match=r"of 200 objects were not stored: SlowDown \(PutObject, 503\)"
        ) as caught:
            await s3.write(left)
        assert caught.value.retry_after_s == 7
        assert caught.value.retry
        assert 40 <= len(caught.value.failed or ()) <= 80
        assert len(server.asked) == 200  # one attempt each
        assert len(stored) == 200 - len(caught.value.failed or ())
        left = list(caught.value.failed or ())
        while left:
            rounds += 1
            assert rounds < 20
            try:
                await s3.write(left)
                left = []
            except NotDelivered as problem:
                left = list(problem.failed or ())
        assert len(stored) == 200


@pytest.mark.parametrize(
    "code", ["InvalidArgument", "MalformedXML", "InvalidDigest", "KeyTooLongError", "InvalidRequest"]
)
async def test_what_is_refused_beside_others_is_given_up(code: str, make: Make) -> None:
    def by_request(asked: Asked) -> Answer:
        return xml(code, 400) if "bad" in asked.path else OK

    with scripted(by_request=by_request) as server:
        batch = [a_record(id="a"), a_record(id="bad"), a_record(id="c")]
        with pytest.raises(NotDelivered, match=code) as caught:
            await (await make("logs", endpoint_url=server.url)).write(batch)
        assert caught.value.refused == [batch[1]]
        assert caught.value.failed == []
        with pytest.raises(NotDelivered) as caught:
            await (await make("logs", endpoint_url=server.url, s3_drop_on_terminal_error=False)).write(batch)
        assert caught.value.failed == [batch[1]]
        # Nothing at all was taken: as in LiteLLM, a setting of the bucket may be at fault.
        with pytest.raises(NotDelivered) as caught:
            await (await make("logs", endpoint_url=server.url)).write([batch[1]])
        assert (caught.value.failed, caught.value.refused) == ([batch[1]], [])


@pytest.mark.parametrize(
    "answer",
    [
        xml("AccessDenied", 403), xml("InternalError", 500), xml("BadDigest", 400), (502, "<html>bad gateway"),
        (500, "no xml at all"), (429, ""), (503, ""), (403, ""),
    ],
)  # fmt: skip
async def test_what_may_pass_is_offered_again(answer: Answer, make: Make) -> None:
    """BadDigest is final in LiteLLM; the bytes were damaged on their way, and another attempt cures that."""

    def by_request(asked: Asked) -> Answer:
        return answer if "bad" in asked.path else OK

    with scripted(by_request=by_request) as server:
        batch = [a_record(id="a"), a_record(id="bad"), a_record(id="c")]
        with pytest.raises(NotDelivered) as caught:
            await (await make("logs", endpoint_url=server.url)).write(batch)
        assert caught.value.failed == [batch[1]]
        assert caught.value.refused == []
        assert "s-1" not in caught.value.message


async def test_files_too_large_are_offered_in_halves(make: Make) -> None:
    """No store refuses files of megabytes, but gateways before one do."""
    seen: list[int] = []

    def by_request(asked: Asked) -> Answer:
        seen.append(len(asked.body))
        return (413, "<html>too large</html>") if len(asked.body) > 20_000 else OK

    with scripted(by_request=by_request) as server:
        small = [a_record() for _ in range(20)]
        huge = a_record(messages="x" * 30_000)
        s3 = await make("logs", endpoint_url=server.url, layout="batches")
        with pytest.raises(NotDelivered) as caught:
            await s3.write([*small[:7], huge, *small[7:]])
        assert caught.value.refused == [huge]
        assert caught.value.failed == []
        assert sum(size for size in seen if size <= 20_000) == sum(len(record.raw) + 1 for record in small)


async def test_nobody_listens(make: Make) -> None:
    s3 = await make("logs", endpoint_url=f"http://127.0.0.1:{free_port()}", concurrent_uploads=2)
    with pytest.raises(NotDelivered, match=r"no answer of S3 \(EndpointConnectionError\)") as caught:
        await s3.write([a_record(id=f"c{at}") for at in range(20)])
    assert len(caught.value.failed or ()) == 20
    assert caught.value.retry


async def test_silence_ends_in_time_and_what_arrived_counts(make: Make) -> None:
    release = threading.Event()

    def by_request(asked: Asked) -> Answer:
        if "slow" in asked.path:
            release.wait(20)
        return OK

    with scripted(by_request=by_request) as server:
        s3 = await make("logs", endpoint_url=server.url, timeout_s=2.0)
        batch = [a_record(id="a"), a_record(id="slow"), a_record(id="c")]
        try:
            with pytest.raises(NotDelivered, match="not enough time") as caught:
                await s3.write(batch)
        finally:
            release.set()
        assert caught.value.failed == [batch[1]]


async def test_an_upload_has_its_own_time(make: Make) -> None:
    release = threading.Event()

    def by_request(asked: Asked) -> Answer:
        release.wait(20)
        return OK

    with scripted(by_request=by_request) as server:
        s3 = await make("logs", endpoint_url=server.url, upload_timeout_s=1)
        try:
            with pytest.raises(NotDelivered, match="ReadTimeoutError"):
                await s3.write([a_record()])
        finally:
            release.set()
