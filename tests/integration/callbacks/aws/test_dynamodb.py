"""DynamoDB on moto, read back with boto3, and answers of AWS that moto does not give."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from boto3.dynamodb.types import TypeDeserializer

from tests.integration.callbacks.test_layer import logged
from tests.integration.secret_stores.servers import Asked, aws_answer, aws_error, scripted
from tests.support.processes import Running
from tests.support.records import a_failure, a_record
from tests.support.s3_store import REGION, boto
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.dynamodb import DynamoDB
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("callbacks-aws")]
Store = Callable[..., Awaitable[DynamoDB]]
LOGIN = {"region": REGION, "access_key_id": "AKIA1", "secret_access_key": "secret-canary-1"}


@pytest.fixture
def table(server: Running) -> str:
    name = f"logs-{uuid.uuid4().hex[:12]}"
    boto(server.url, "dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    return name


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made: list[DynamoDB] = []

    async def build(url: str, table: str, **settings: Any) -> DynamoDB:
        callback = DynamoDB(table=table, endpoint_url=url, **{**LOGIN, **settings})
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()


def items(server: Running, table: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for page in boto(server.url, "dynamodb").get_paginator("scan").paginate(TableName=table):
        for item in page["Items"]:
            read = {name: TypeDeserializer().deserialize(value) for name, value in item.items()}
            found[read["id"]] = read
    return found


async def test_items_come_back_and_a_second_attempt_changes_nothing(server: Running, table: str, store: Store) -> None:
    dynamo = await store(server.url, table, ttl_days=30)
    batch = [a_record(error_str=f"é☃ {at}") for at in range(60)] + [a_failure()]
    await dynamo.write(batch)
    await dynamo.write([*batch, batch[0]])
    found = items(server, table)
    assert set(found) == {record.id for record in batch}
    first = found[batch[0].id]
    assert (first["total_tokens"], first["model"], first["error_str"]) == (17, "gpt-4o-mini", "é☃ 0")
    assert orjson.loads(first["response"]) == batch[0].data["response"]
    assert first["ttl"] > 1_795_000_000


async def test_a_record_that_cannot_be_an_item_takes_no_other_along(server: Running, table: str, store: Store) -> None:
    dynamo = await store(server.url, table)
    good, large, bad = a_record(), a_record(error_str="x" * 500_000), Record("bad", b"[1")
    with pytest.raises(NotDelivered) as raised:
        await dynamo.write([bad, large, good])
    assert (raised.value.failed, raised.value.refused) == ([], [bad, large])
    assert set(items(server, table)) == {good.id}


def keys_of(asked: Asked) -> list[str]:
    (puts,) = orjson.loads(asked.body)["RequestItems"].values()
    return [put["PutRequest"]["Item"]["id"]["S"] for put in puts]


async def test_exactly_the_unprocessed_items_are_offered_again(store: Store) -> None:
    batch = [a_record() for _ in range(5)]

    def answer(asked: Asked) -> Any:
        (puts,) = orjson.loads(asked.body)["RequestItems"].values()
        return aws_answer(UnprocessedItems={"logs": puts[1:3]})

    with scripted(by_request=answer) as server:
        dynamo = await store(server.url, "logs")
        with pytest.raises(NotDelivered, match="2 items were not processed") as raised:
            await dynamo.write(batch)
    assert raised.value.failed == batch[1:3]
    assert not raised.value.refused


async def test_a_page_in_the_place_of_an_answer_has_taken_nothing(store: Store) -> None:
    with scripted((200, "<html>", {"content-type": "text/html"})) as server:
        dynamo = await store(server.url, "logs")
        batch = [a_record()]
        with pytest.raises(NotDelivered, match="none of DynamoDB") as raised:
            await dynamo.write(batch)
    assert (raised.value.failed, raised.value.refused) == (batch, [])


async def test_a_table_with_another_key_keeps_the_records(server: Running, store: Store) -> None:
    name = f"logs-{uuid.uuid4().hex[:12]}"
    boto(server.url, "dynamodb").create_table(
        TableName=name,
        KeySchema=[{"AttributeName": "call", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "call", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    dynamo = await store(server.url, name)
    batch = [a_record(), a_record()]
    with pytest.raises(NotDelivered) as raised:
        await dynamo.write(batch)
    assert (raised.value.failed, raised.value.refused) == (batch, [])


async def test_an_item_that_aws_refuses_takes_no_other_along(store: Store) -> None:
    batch = [a_record() for _ in range(4)]

    def answer(asked: Asked) -> Any:
        wrong = batch[2].id in keys_of(asked)
        return aws_error("ValidationException") if wrong else aws_answer(UnprocessedItems={})

    with scripted(by_request=answer) as server:
        dynamo = await store(server.url, "logs")
        with pytest.raises(NotDelivered, match="ValidationException") as raised:
            await dynamo.write(batch)
    assert (raised.value.failed, raised.value.refused) == ([], [batch[2]])


@pytest.mark.parametrize(
    "code", ["ProvisionedThroughputExceededException", "ThrottlingException", "ResourceNotFoundException",
             "UnrecognizedClientException", "AccessDeniedException", "InternalServerError"],
)  # fmt: skip
async def test_errors_that_pass_or_can_be_mended(code: str, store: Store) -> None:
    with scripted(by_request=lambda asked: aws_error(code)) as server:
        dynamo = await store(server.url, "logs")
        batch = [a_record(), a_record()]
        with pytest.raises(NotDelivered, match=code) as raised:
            await dynamo.write(batch)
        assert len(server.asked) == 1  # boto3 itself tries nothing again
    assert raised.value.failed == batch
    assert "secret-canary-1" not in raised.value.message


async def test_from_litellms_yaml_to_the_table(
    server: Running, table: str, llm: FakeLLM, serve: Serve, tmp_path: Any
) -> None:
    llm.replies.append(Reply.json(ANSWER))
    settings = {"callbacks": ["dynamodb"], "dynamodb_table_name": table, "spool_dir": str(tmp_path / "spool")}
    options = {"endpoint_url": server.url, "flush_interval": 0.05, **LOGIN}
    app = await logged(serve, tmp_path, llm.url, settings, callback_settings={"dynamodb": options})
    driven = await app.call(CHAT)
    await app.records()
    (item,) = items(server, table).values()
    assert item["id"] == driven.headers["x-request-id"]
    assert orjson.loads(item["response"])["choices"] == ANSWER["choices"]
