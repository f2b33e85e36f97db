"""What records become at five destinations, whatever they hold; and how a batch is cut into requests."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.records import a_payload, a_record
from tianji_mw.callbacks._groups import Delivery, Item, Limits, built, groups
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.braintrust_events import events_of
from tianji_mw.callbacks.datadog_spans import Shape, spans_of
from tianji_mw.callbacks.helicone_log import log_of
from tianji_mw.callbacks.langsmith_runs import Naming, runs_of
from tianji_mw.records import Record

NAMING = Naming(project="p", run_name="r")

_json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e300, allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "name", "choices", "message", "output",
                 "attempts", "api", "requester_metadata", "run_id", "parent_run_id", "dotted_order", "span_id",
                 "root_span_id", "span_parents", "project_name", "helicone_user_id", "startTime", "endTime", "error",
                 "status_code", "additional_headers", "session_id", "time_to_first_token", "trace_id"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*a_payload(), "error_str"]), _json, max_size=8), st.booleans())
def test_nothing_in_a_record_breaks_them(data: dict[str, Any], whole: bool) -> None:
    data = {**a_payload(), **data} if whole else data
    record = Record("r-1", orjson.dumps(data))
    for brief in (False, True):
        orjson.dumps([runs_of(record, NAMING, brief=brief), events_of(record, brief=brief)])
    for shape in Shape:
        orjson.dumps(spans_of(record, ["a:b"], shape))
    orjson.dumps(log_of(record))
    assert runs_of(record, NAMING) == runs_of(Record("r-1", record.raw), NAMING)


def test_a_client_cannot_say_whose_key_it_was() -> None:
    metadata = {**a_payload()["metadata"], "requester_metadata": {}}
    metadata["requester_metadata"] = {
        "user_api_key_team_id": "stolen",
        "user_api_key_org_id": "stolen",
        "model": "stolen",
    }
    record = a_record(metadata=metadata)
    assert b"stolen" not in orjson.dumps(runs_of(record, NAMING))
    assert b"stolen" not in orjson.dumps(events_of(record))


def _items(*sizes: int, count: int = 1) -> list[Item]:
    return [Item(Record(str(at), b""), b"x" * size, count) for at, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "limits", "cut"),
    [
        ([4, 4, 4], Limits(10, 14), [3]),
        ([4, 4, 4], Limits(10, 13), [2, 1]),
        ([4, 4, 4], Limits(2, 100), [2, 1]),
        ([10, 1, 10], Limits(9, 10), [1, 1, 1]),
        ([], Limits(1, 1), []),
    ],
)
def test_groups(sizes: list[int], limits: Limits, cut: list[int]) -> None:
    assert [len(group) for group in groups(_items(*sizes), limits)] == cut


async def test_records_of_which_nothing_can_be_made_are_named() -> None:
    good, odd, large, none = (Record(name, b"{}") for name in ("good", "odd", "large", "none"))

    def build(record: Record) -> list[bytes]:
        if record is odd:
            raise KeyError("x")
        return [] if record is none else [b"x" * (99 if record is large else 1)]

    items, refused = await built([good, odd, large, none], build, Limits(5, 10))
    assert ([item.record for item in items], refused) == ([good], [odd, large])


async def test_all_refused_is_known_after_halving() -> None:
    asked = []

    async def send(group: list[Item]) -> None:
        asked.append(len(group))
        raise NotDelivered("no", retry=False)

    items = _items(*[1] * 4)
    delivery = Delivery("X")
    await delivery.send([items], send)
    assert asked == [4, 2, 1, 1, 2, 1, 1]
    with pytest.raises(NotDelivered) as caught:
        delivery.done()
    assert caught.value.refused == [item.record for item in items]


async def test_everything_is_taken() -> None:
    async def send(group: list[Item]) -> None:
        return

    delivery = Delivery("X")
    await delivery.send([_items(1), _items(1)], send)
    delivery.done()
