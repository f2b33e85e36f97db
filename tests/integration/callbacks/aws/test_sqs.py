"""SQS on moto, read back with boto3, and answers of AWS that moto does not give."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest

from tests.integration.callbacks.test_layer import logged
from tests.integration.secret_stores.servers import Asked, aws_answer, aws_error, scripted
from tests.support.processes import Running
from tests.support.records import a_failure, a_record
from tests.support.s3_store import REGION, boto
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.sqs import Sqs
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("callbacks-aws")]
Queue = Callable[..., Awaitable[Sqs]]
LOGIN = {"region": REGION, "access_key_id": "AKIA1", "secret_access_key": "secret-canary-1"}


def made_queue(server: Running, *, fifo: bool = False) -> str:
    name = f"logs-{uuid.uuid4().hex[:12]}" + (".fifo" if fifo else "")
    attributes = {"FifoQueue": "true"} if fifo else {}
    url: str = boto(server.url, "sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    return url


@pytest.fixture
async def queue() -> AsyncIterator[Queue]:
    made: list[Sqs] = []

    async def build(endpoint: str, url: str = "", **settings: Any) -> Sqs:
        callback = Sqs(queue_url=url or f"{endpoint}/1/logs", endpoint_url=endpoint, **{**LOGIN, **settings})
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()


def received(server: Running, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    sqs = boto(server.url, "sqs")
    while messages := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
        for message in messages:
            found.append(orjson.loads(message["Body"]))
            sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


async def test_every_record_is_a_message(server: Running, queue: Queue) -> None:
    url = made_queue(server)
    sqs = await queue(server.url, url)
    batch = [a_record(error_str="é\u0007☃\U0001f600"), a_failure(), *(a_record() for _ in range(30))]
    await sqs.write(batch)
    found = received(server, url)
    assert {one["litellm_call_id"]: one for one in found} == {record.id: record.data for record in batch}


async def test_fifo_keeps_order_and_drops_repetitions(server: Running, queue: Queue) -> None:
    url = made_queue(server, fifo=True)
    sqs = await queue(server.url, url)
    batch = [a_record() for _ in range(25)]
    await sqs.write(batch)
    await sqs.write(batch)
    assert [one["litellm_call_id"] for one in received(server, url)] == [record.id for record in batch]


async def test_what_is_no_message_takes_no_other_along(server: Running, queue: Queue) -> None:
    url = made_queue(server)
    sqs = await queue(server.url, url)
    good, large, bad = a_record(), a_record(error_str="x" * 300_000), Record("bad", b"[1")
    with pytest.raises(NotDelivered) as raised:
        await sqs.write([bad, large, good])
    assert (raised.value.failed, raised.value.refused) == ([], [bad, large])
    assert [one["litellm_call_id"] for one in received(server, url)] == [good.id]


def failing(*numbers: tuple[int, bool]) -> Any:
    """An answer in which these entries failed, by the sender's fault or not."""

    def answer(asked: Asked) -> Any:
        entries = orjson.loads(asked.body)["Entries"]
        bad = [{"Id": str(at), "SenderFault": ours, "Code": "Told", "Message": "m"} for at, ours in numbers]
        good = [
            {"Id": entry["Id"], "MessageId": "m", "MD5OfMessageBody": "0"}
            for entry in entries
            if entry["Id"] not in {one["Id"] for one in bad}
        ]
        return aws_answer(Successful=good, Failed=bad)

    return answer


async def test_failed_entries_of_a_successful_answer(queue: Queue) -> None:
    batch = [a_record() for _ in range(5)]
    with scripted(by_request=failing((1, False), (3, True))) as server:
        sqs = await queue(server.url)
        with pytest.raises(NotDelivered, match="2 messages failed: Told") as raised:
            await sqs.write(batch)
    assert (raised.value.failed, raised.value.refused) == ([batch[1]], [batch[3]])


@pytest.mark.parametrize("answer", [aws_answer(), aws_answer(Successful=[]), (200, "<html>", {})])
async def test_an_answer_that_names_nothing_has_taken_nothing(queue: Queue, answer: Any) -> None:
    with scripted(answer) as server:
        sqs = await queue(server.url)
        batch = [a_record(), a_record()]
        with pytest.raises(NotDelivered) as raised:
            await sqs.write(batch)
    assert (raised.value.failed, raised.value.refused) == (batch, [])


async def test_a_request_that_was_refused_goes_message_by_message_in_order(queue: Queue) -> None:
    batch = [a_record() for _ in range(4)]

    def answer(asked: Asked) -> Any:
        entries = orjson.loads(asked.body)["Entries"]
        if len(entries) > 1:
            return aws_error("AWS.SimpleQueueService.BatchRequestTooLong")
        if batch[1].id in entries[0]["MessageBody"]:
            return aws_error("ThrottlingException")
        return aws_answer(Successful=[{"Id": "0", "MessageId": "m", "MD5OfMessageBody": "0"}], Failed=[])

    with scripted(by_request=answer) as server:
        sqs = await queue(server.url, f"{server.url}/1/logs.fifo")
        with pytest.raises(NotDelivered) as raised:
            await sqs.write(batch)
        assert len(server.asked) == 3  # the request, the first message, and the one that failed
    assert (raised.value.failed, raised.value.refused) == (batch[1:], [])


async def test_nothing_of_a_group_goes_before_its_message_that_failed(queue: Queue) -> None:
    batch = [a_record(metadata={"user_api_key_team_id": team}) for team in "ababababababababababab"]
    with scripted(by_request=failing((0, False))) as server:
        sqs = await queue(server.url, f"{server.url}/1/logs.fifo")
        with pytest.raises(NotDelivered) as raised:
            await sqs.write(batch)
        sent = [orjson.loads(asked.body)["Entries"] for asked in server.asked]
    assert {entry["MessageGroupId"] for entry in sent[1]} == {"b"}  # after `a` failed in the first request
    assert len(sent) == 2  # and then `b` as well
    behind = [record for record in batch[10:] if record.data["metadata"]["user_api_key_team_id"] == "a"]
    assert {record.id for record in raised.value.failed or ()} >= {batch[0].id, *(record.id for record in behind)}
    assert not raised.value.refused


@pytest.mark.parametrize(
    "code", ["AWS.SimpleQueueService.NonExistentQueue", "ThrottlingException", "InvalidClientTokenId", "KmsThrottled"]
)
async def test_errors_that_pass_or_can_be_mended(code: str, queue: Queue) -> None:
    with scripted(by_request=lambda asked: aws_error(code)) as server:
        sqs = await queue(server.url)
        batch = [a_record(), a_record()]
        with pytest.raises(NotDelivered) as raised:
            await sqs.write(batch)
    assert raised.value.failed == batch
    assert "secret-canary-1" not in raised.value.message


async def test_from_litellms_yaml_to_the_queue(server: Running, llm: FakeLLM, serve: Serve, tmp_path: Any) -> None:
    llm.replies.append(Reply.json(ANSWER))
    url = made_queue(server)
    params = {
        "sqs_queue_url": url, "sqs_region_name": REGION, "sqs_endpoint_url": server.url, "sqs_flush_interval": 0.05,
        "sqs_aws_access_key_id": "AKIA1", "sqs_aws_secret_access_key": "secret-canary-1",
    }  # fmt: skip
    settings = {"callbacks": ["aws_sqs"], "aws_sqs_callback_params": params, "spool_dir": str(tmp_path / "spool")}
    app = await logged(serve, tmp_path, llm.url, settings)
    driven = await app.call(CHAT)
    await app.records()
    (found,) = received(server, url)
    assert found["litellm_call_id"] == driven.headers["x-request-id"]
