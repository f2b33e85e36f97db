"""Amazon DynamoDB: an item for each record, by BatchWriteItem. A second attempt writes the same item again.

Source: API reference of DynamoDB, "BatchWriteItem".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.aws import AwsCallback
from tianji_mw.callbacks.aws_answers import Answer, all_in_time, asked
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.dynamodb_items import Item, item_of, size_of
from tianji_mw.logins.aws import login_aliases, renewed
from tianji_mw.records import Record
from tianji_mw.runtime import Runtime

#: Of one request.
_MOST_PUTS: Final = 25
_MOST_BYTES: Final = 15 << 20
_DAY_S: Final = 86_400


class DynamoDB(AwsCallback):
    """Items in one table, whose key is `id` (text).

    >>> DynamoDB(table="llm-logs", region="eu-west-1", ttl_days=90)
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AwsCallback.login_env,
        "endpoint_url": ("AWS_ENDPOINT_URL_DYNAMODB", "AWS_ENDPOINT_URL"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        **login_aliases("dynamodb_"),
        "dynamodb_table_name": "table",
        "table_name": "table",
    }

    table: str = Field(min_length=3, max_length=1024)
    #: Days after which DynamoDB may delete an item, by its attribute `ttl`; none without it.
    ttl_days: float | None = Field(default=None, gt=0, le=36_500)

    _wall: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Make the client. Raises SetupError when it cannot be made; the table is not asked yet."""
        self._wall = runtime.wall
        await self.open("dynamodb", "DynamoDB")

    async def write(self, batch: Sequence[Record]) -> None:
        if self._client is None:
            raise NotDelivered("DynamoDB was not started")
        held = {record.id: record for record in batch}  # two puts of one key fail the whole request
        items, bad = self._items(held.values())
        chunks = _chunks(items)
        asks = [partial(self._put, chunk) for chunk in chunks]
        answers = await all_in_time(asks, [list(chunk) for chunk in chunks], self.requests_at_once, self.timeout_s)
        if any(answer.login for answer in answers):
            await renewed(self)
        failed = [held[key] for answer in answers for key in answer.failed]
        refused = [*bad, *(held[key] for answer in answers for key in answer.refused)]
        if failed or refused:
            told = next((answer.message for answer in answers if answer.message), "records cannot be items")
            raise NotDelivered(f"DynamoDB: {told}", failed=failed, refused=refused)

    def _items(self, records: Any) -> tuple[dict[str, Item], list[Record]]:
        """Items by their keys, and the records of which none can be made."""
        ttl = int(self._wall() + self.ttl_days * _DAY_S) if self.ttl_days is not None else None
        items: dict[str, Item] = {}
        bad: list[Record] = []
        for record in records:
            try:
                item = item_of(record.data, record.id, ttl)
            except (orjson.JSONDecodeError, AttributeError, TypeError, ValueError):
                item = None
            if item is None:
                bad.append(record)
            else:
                items[record.id] = item
        return items, bad

    async def _put(self, items: Mapping[str, Item]) -> Answer:
        """One request; where it was refused, one for each item, so that a wrong one takes no other along."""
        answer = await self._ask(items)
        if answer.refused and len(items) > 1:
            return Answer.of([await self._ask({key: item}) for key, item in items.items()])
        return answer

    async def _ask(self, items: Mapping[str, Item]) -> Answer:
        puts = [{"PutRequest": {"Item": item}} for item in items.values()]
        made = self._client
        request = {self.table: puts}

        def call() -> Any:
            return made.batch_write_item(RequestItems=request)

        # A refusal that names the key: the table's is another than `id`, which somebody can mend.
        got = await asked(self._pool, call, list(items), mendable="key")
        if got.answer and not _is_answer(got.answer):
            return Answer(failed=list(items), message="the answer is none of DynamoDB")
        left = got.answer.get("UnprocessedItems", {}).get(self.table, []) if got.answer else []
        if left:
            keys = [put["PutRequest"]["Item"]["id"]["S"] for put in left]
            return Answer(failed=keys, message=f"{len(keys)} items were not processed (throttled)")
        return got


def _chunks(items: Mapping[str, Item]) -> list[dict[str, Item]]:
    """As many requests as the limits ask for."""
    found: list[dict[str, Item]] = []
    size = 0
    for key, item in items.items():
        own = size_of(item)
        if not found or len(found[-1]) == _MOST_PUTS or size + own > _MOST_BYTES:
            found.append({})
            size = 0
        found[-1][key] = item
        size += own
    return found


def _is_answer(answer: Mapping[str, Any]) -> bool:
    """Whether DynamoDB has answered: a page of something between us and it is a success to boto3."""
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return "UnprocessedItems" in answer or "json" in str(headers.get("content-type", ""))
