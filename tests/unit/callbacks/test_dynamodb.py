"""Items of DynamoDB: types, numbers, limits."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from boto3.dynamodb.types import TypeDeserializer
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import a_payload
from tianji_mw.callbacks.dynamodb import _chunks
from tianji_mw.callbacks.dynamodb_items import MAX_ITEM, item_of, size_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def read(item: dict[str, Any]) -> dict[str, Any]:
    """The item as the official SDK reads it."""
    return {name: TypeDeserializer().deserialize(value) for name, value in item.items()}


def test_scalars_are_native_and_nested_parts_are_json() -> None:
    item = item_of(a_payload(), "call-1", 1_800_000_000)
    assert item is not None
    found = read(item)
    assert found["id"] == "call-1"
    assert found["response_id"] == "chatcmpl-77"
    assert (found["prompt_tokens"], found["ttl"]) == (12, 1_800_000_000)
    assert float(found["response_cost"]) == 4.8e-06
    assert orjson.loads(found["messages"]) == a_payload()["messages"]
    assert "error_str" not in found  # null: there is no such attribute


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
def test_what_is_no_value_is_left_out(value: Any) -> None:
    item = item_of({"response_cost": value}, "k", None)
    assert item is not None
    assert set(item) == {"id"}


@settings(max_examples=200)
@given(data=st.dictionaries(st.text(min_size=1, max_size=9).filter(lambda key: key != "id"), JSON, max_size=6))
def test_any_record_is_an_item_that_boto_takes(data: dict[str, Any]) -> None:
    item = item_of(data, "k", None)
    assert item is not None
    assert size_of(item) <= MAX_ITEM
    read(item)
    for attribute in item.values():
        digits = attribute.get("N", "").strip("-").replace(".", "").partition("E")[0].strip("0")
        assert len(digits) <= 38


def test_long_parts_give_way_to_their_size() -> None:
    item = item_of(a_payload(response={"text": "x" * 500_000}), "k", None)
    assert item is not None
    found = read(item)
    assert orjson.loads(found["response"])["truncated"] is True
    assert orjson.loads(found["response"])["bytes"] > 500_000
    assert orjson.loads(found["messages"]) == a_payload()["messages"]


def test_an_item_that_is_too_large_without_content_is_none() -> None:
    assert item_of(a_payload(error_str="x" * 500_000), "k", None) is None


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, 390_000), max_size=90))
def test_requests_keep_the_limits_and_every_item(sizes: list[int]) -> None:
    items = {str(at): {"id": {"S": str(at)}, "text": {"S": "x" * size}} for at, size in enumerate(sizes)}
    chunks = _chunks(items)
    assert [key for chunk in chunks for key in chunk] == list(items)
    assert all(len(chunk) <= 25 and sum(map(size_of, chunk.values())) <= 16 << 20 for chunk in chunks)
