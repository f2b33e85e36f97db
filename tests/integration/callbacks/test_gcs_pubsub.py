"""Pub/Sub on a script that is as strict as its REST reference: there is no emulator of it without Java."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import google_fake
from tests.support.google_fake import Asked, Fault, GoogleFake, error
from tests.support.records import a_failure, a_record, undelivered
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.gcs_pubsub import GcsPubsub, grouped
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

Make = Callable[..., Any]


class Topic(GoogleFake):
    """The topic "t" of the project "p"."""

    def __init__(self, ca: trustme.CA) -> None:
        super().__init__(ca)
        self.messages: list[dict[str, Any]] = []
        self.sizes: list[int] = []

    def answer(self, asked: Asked) -> Fault:
        if not asked.path.startswith("/v1/projects/p/topics/"):
            return super().answer(asked)
        if self.faults:
            return self.faults.pop(0)
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return error(401, "UNAUTHENTICATED", "no")
        if asked.path != "/v1/projects/p/topics/t:publish":
            return error(404, "NOT_FOUND", "Resource not found (resource=t).")
        messages = json.loads(asked.body)["messages"]
        if asked.method != "POST" or not 0 < len(messages) <= 1000 or len(asked.body) > 10_000_000:
            return error(400, "INVALID_ARGUMENT", "The value for message_count is too large.")
        for one in messages:
            if one.keys() != {"data", "attributes"} or not all(isinstance(v, str) for v in one["attributes"].values()):
                return error(400, "INVALID_ARGUMENT", "message")
            base64.b64decode(one["data"], validate=True)
        self.messages += messages
        self.sizes.append(len(messages))
        return Fault(200, {"messageIds": [str(n) for n in range(len(messages))]})


@pytest.fixture
def topic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Topic]:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setattr(google_fake, "SCOPE", "https://www.googleapis.com/auth/pubsub")
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    with Topic(ca) as fake:
        (tmp_path / "sa.json").write_text(json.dumps(fake.service_account()))
        yield fake


@pytest.fixture
async def make(topic: Topic, tmp_path: Path) -> AsyncIterator[Make]:
    made: list[GcsPubsub] = []

    async def build(**settings: Any) -> GcsPubsub:
        fixed = {"project_id": "p", "topic_id": "t", "api_base": topic.url}
        callback = GcsPubsub(**fixed | {"credentials_file": str(tmp_path / "sa.json")} | settings)
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()


failure = undelivered


async def test_messages_are_the_records(make: Make, topic: Topic) -> None:
    batch = [a_record(), a_failure(), a_record(model="☃"), Record('id "1"', b"\xff no JSON")]
    await (await make()).write(batch)
    assert [base64.b64decode(one["data"]) for one in topic.messages] == [record.raw for record in batch]
    assert [one["attributes"]["kind"] for one in topic.messages] == ["call"] * 4
    assert topic.messages[0]["attributes"]["litellm_call_id"] == batch[0].id
    assert topic.sizes == [4]


async def test_many_go_in_requests_of_a_thousand(make: Make, topic: Topic) -> None:
    batch = [Record(str(n), b"{}") for n in range(2100)]
    await (await make()).write(batch)
    assert topic.sizes == [1000, 1000, 100]
    assert topic.count("/token") == 1


async def test_no_request_has_more_than_ten_megabytes(make: Make, topic: Topic) -> None:
    batch = [Record(str(n), b"x" * 3_000_000) for n in range(4)]
    batch.insert(1, Record("large", b"x" * 7_500_000))
    found = await failure(await make(), batch)
    assert ([r.id for r in found.refused], list(found.failed or ())) == (["large"], [])
    assert topic.sizes == [2, 2]


def test_groups_end_at_the_very_byte() -> None:
    for size in range(7_499_700, 7_500_001, 7):
        requests, large = grouped([Record("1", b"x" * size)])
        assert all(len(body) <= 10_000_000 for _, body in requests)
        assert len(requests) + len(large) == 1


async def test_what_came_before_a_failure_is_not_sent_again(make: Make, topic: Topic) -> None:
    batch = [Record(str(n), b"{}") for n in range(1500)]
    pubsub = await make()
    await pubsub.write(batch[:1])
    for fault in (Fault(429, b"{}", {"retry-after": "3"}), Fault(503), error(403, "PERMISSION_DENIED", "no")):
        topic.faults = [Fault(200, {"messageIds": ["0"] * 1000}), fault]
        found = await failure(pubsub, batch)
        assert (found.failed, found.retry) == (batch[1000:], True)
        assert found.retry_after_s == (3.0 if fault.status == 429 else None)


async def test_a_request_that_is_refused_is_halved_by_the_outbox(make: Make, topic: Topic) -> None:
    topic.faults = [error(400, "INVALID_ARGUMENT", "no")]
    batch = [a_record(), a_record()]
    found = await failure(await make(), batch)
    assert (found.failed, found.retry) == (batch, False)


async def test_an_answer_without_all_ids_is_no_delivery(make: Make, topic: Topic) -> None:
    pubsub, batch = await make(), [a_record(), a_record()]
    for body in ({"messageIds": ["1"]}, {}, [], b"no JSON"):
        topic.faults = [Fault(200, body)]
        assert (await failure(pubsub, batch)).failed == batch


async def test_a_new_token_once_after_401(make: Make, topic: Topic) -> None:
    pubsub, record = await make(), a_record()
    await pubsub.write([record])
    topic.tokens.clear()
    await pubsub.write([record])
    assert topic.count("/token") == 2
    topic.faults = [error(401, "UNAUTHENTICATED", "no"), error(401, "UNAUTHENTICATED", "no")]
    found = await failure(pubsub, [record])
    assert (found.failed, found.retry) == ([record], True)
    assert "ya29" not in found.message


async def test_no_topic_and_no_token(make: Make, topic: Topic) -> None:
    record = a_record()
    assert "404" in (await failure(await make(topic_id="other"), [record])).message
    topic.token_faults = [Fault(400, {"error": "invalid_grant", "error_description": "hidden"})]
    found = await failure(await make(), [record])
    assert (found.failed, found.retry) == ([record], True)
    assert "hidden" not in found.message


async def test_what_is_missing_stops_the_start() -> None:
    with pytest.raises(SetupError, match="GCS_PUBSUB_TOPIC_ID"):
        await GcsPubsub(project_id="p").start(Runtime())
    assert GcsPubsub(api_base="127.0.0.1:8085").api_base == "http://127.0.0.1:8085"
