"""The bytes of objects: JSON lines, Parquet, compression, and what is cut out; files are read by DuckDB and pyarrow."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import START, a_failure, a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.objects import parquet as objects_parquet
from tianji_mw.callbacks.objects.build import Builder, readable
from tianji_mw.callbacks.objects.cut import MARK, without_files

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "type", "data"]), inner, max_size=3)
    ),
    max_leaves=8,
)


def a_builder(**changes: Any) -> Builder:
    settings: dict[str, Any] = {
        "prefix": "", "layout": "batches", "partition": "day", "file_format": "jsonl", "compression": "none",
        "team": False, "key": False, "no_files": False, "no_answers": False,
    }  # fmt: skip
    return Builder(**{**settings, **changes})


def test_json_lines_are_the_records_as_they_stand() -> None:
    records = [a_record(messages="line\nbreak \u2028 \u00fc"), a_record()]
    (item,) = a_builder().objects(records)
    assert item.body == b"".join(record.raw + b"\n" for record in records)
    assert item.content_type == "application/x-ndjson"
    assert item.records == tuple(records)
    assert item.key.endswith(item.file_name)


def test_a_record_of_many_lines_becomes_one() -> None:
    record = Record("a", json.dumps({"id": "x", "messages": "a\nb"}, indent=2).encode())
    (item,) = a_builder().objects([record])
    assert item.body == b'{"id":"x","messages":"a\\nb"}\n'


def test_the_same_record_twice_is_stored_once_and_settled_twice() -> None:
    record = a_record()
    again = Record(record.id, record.raw)
    for layout in ("records", "batches", "batch_files"):
        (item,) = a_builder(layout=layout).objects([record, again])
        assert item.body.strip() == record.raw
        assert item.records == (record, again)


def test_two_records_of_one_name_are_two_objects() -> None:
    first, second = a_record(), a_record()
    items = a_builder(layout="records").objects([first, second, Record(second.id, second.raw)])
    assert [item.body for item in items] == [first.raw, second.raw]
    assert items[1].key == items[0].key.removesuffix(".json") + f"_{second.id}.json"
    assert len(items[1].records) == 2


@pytest.mark.parametrize("layout", ["records", "batches", "batch_files"])
@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_the_same_records_are_the_same_bytes(layout: str, packing: str) -> None:
    records = [a_record() for _ in range(5)]
    one, two = (a_builder(layout=layout, compression=packing).objects(records) for _ in range(2))
    assert one == two
    raw = b"".join(record.raw + b"\n" for record in records) if layout != "records" else records[0].raw
    unpack = gzip.decompress if packing == "gzip" else zstandard.ZstdDecompressor().decompress
    assert unpack(one[0].body) == raw
    if packing == "gzip":
        assert one[0].body[4:8] == b"\0\0\0\0"  # MTIME of RFC 1952


def test_records_are_grouped_by_their_own_hour_and_owner() -> None:
    records = [a_record(startTime=START + at) for at in (0, 3600, 0, 86_400)]
    items = a_builder(partition="hour", team=True, key=True, prefix="x").objects(records)
    assert [item.key.rpartition("/")[0] for item in items] == [
        "x/team=ml/key=ci/dt=2026-11-22/hour=19",
        "x/team=ml/key=ci/dt=2026-11-22/hour=20",
        "x/team=ml/key=ci/dt=2026-11-23/hour=19",
    ]
    assert [len(item.records) for item in items] == [2, 1, 1]


@pytest.mark.parametrize("packing", ["none", "gzip", "zstd", "auto"])
def test_parquet_is_the_same_for_the_same_and_read_back(packing: str) -> None:
    records = [a_record(), a_failure(), a_record(messages="redacted-by-litellm", response=None, stream=True)]
    one, two = (a_builder(file_format="parquet", compression=packing).objects(records)[0] for _ in range(2))
    assert one == two
    assert one.key.endswith(".parquet")
    file = pq.ParquetFile(io.BytesIO(one.body))
    codec = {"none": "UNCOMPRESSED", "gzip": "GZIP"}.get(packing, "ZSTD")
    assert file.metadata.row_group(0).column(0).compression == codec
    rows = file.read().to_pylist()
    assert file.schema_arrow.equals(objects_parquet.schema())
    good, bad, odd = rows
    assert good["litellm_call_id"] == records[0].id
    assert good["start_time"].timestamp() == pytest.approx(START)
    assert (good["total_tokens"], good["cached_tokens"], good["reasoning_tokens"]) == (17, 4, 2)
    assert (good["team_id"], good["key_alias"], good["end_user"]) == ("t1", "ci", "customer-7")
    assert good["request_tags"] == ["team:ml", "User-Agent: curl"]
    assert json.loads(good["messages"]) == records[0].data["messages"]
    assert json.loads(good["tianji"]) == records[0].data["tianji"]
    assert bad["status"] == "failure"
    assert bad["error_code"] == records[1].data["error_information"]["error_code"]
    assert (odd["messages"], odd["response"], odd["stream"]) == ('"redacted-by-litellm"', None, True)


def test_a_file_of_nulls_has_the_same_columns(tmp_path: Path) -> None:
    """Engines merge files; a column that is null in one must have its type all the same."""
    build = a_builder(file_format="parquet")
    for at, record in enumerate((Record("empty", b"{}"), a_record())):
        (tmp_path / f"{at}.parquet").write_bytes(build.objects([record])[0].body)
    rows = duckdb.sql(f"select count(*), sum(total_tokens) from read_parquet('{tmp_path}/*.parquet')").fetchall()
    assert rows == [(2, 17)]


@given(fields=st.fixed_dictionaries({}, optional={name: JSON_VALUES for name in a_record().data}))
def test_no_record_keeps_others_from_being_stored(fields: dict[str, Any]) -> None:
    odd = Record("odd", orjson.dumps(fields))
    for settings in ({"layout": "records"}, {}, {"file_format": "parquet"}):
        build = a_builder(team=True, key=True, no_files=True, no_answers=True, **settings)
        assert sum(len(item.records) for item in build.objects([odd, a_record()])) == 2


def test_numbers_that_no_column_holds_are_null() -> None:
    cell = objects_parquet.cell
    assert cell("int", 1 << 64) is None
    assert cell("int", 1.5) is None
    assert cell("int", True) is None
    assert cell("int", 3.0) == 3
    assert cell("time", 1e18) is None
    assert cell("float", "1") is None
    assert cell("text", ["a"]) is None
    assert cell("text", 429) == "429"
    assert cell("texts", ["a", 1, None]) == ["a"]


def test_what_is_readable() -> None:
    assert readable(Record("a", b"{}"))
    assert not readable(Record("a", b"[]"))
    assert not readable(Record("a", b'{"a": '))


def test_answers_are_left_out_of_every_layout() -> None:
    record = a_record(response="the answer")
    for layout in ("records", "batches"):
        (item,) = a_builder(layout=layout, no_answers=True).objects([record])
        assert json.loads(item.body) == {**record.data, "response": None}
    (item,) = a_builder(file_format="parquet", no_answers=True).objects([record])
    assert pq.read_table(io.BytesIO(item.body)).column("response").to_pylist() == [None]
    assert record.data["response"] == "the answer"


def test_files_are_left_out_in_every_api() -> None:
    blob = "iVBORw0KGgo" * 40
    data = {
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": f"see data:image/png;base64,{blob} here"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{blob}"}},
                {"type": "input_audio", "input_audio": {"data": blob, "format": "wav"}},
                {"type": "file", "file": {"file_data": blob}},
                {"type": "image", "source": {"type": "base64", "data": blob}},
                {"type": "document", "source": {"data": blob}},
                {"type": "input_image", "image_url": f"data:image/png;base64,{blob}"},
                {"type": "tool_result", "content": [{"type": "image", "source": {"data": blob}}]},
            ]},
            {"role": "user", "content": "plain"},
        ],
        "response": {"data": [{"b64_json": blob}], "output": [{"type": "image_generation_call", "result": blob}]},
        "model_parameters": {"data": "kept"},
    }  # fmt: skip
    before = orjson.dumps(data)
    found = without_files(data)
    assert blob not in json.dumps(found)
    assert found["messages"][0]["content"] == [
        {"type": "text", "text": f"see {MARK} here"},
        {"type": "tool_result", "content": []},
    ]
    assert found["messages"][1] == {"role": "user", "content": "plain"}
    assert found["response"] == {"data": [{"b64_json": MARK}], "output": []}
    assert found["model_parameters"] == {"data": "kept"}
    assert orjson.dumps(data) == before
