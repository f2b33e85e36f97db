"""Names of objects: the limits of the stores for any text, LiteLLM's layout, and partitions."""

from __future__ import annotations

import re
import uuid
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.records import a_record
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.objects import keys

#: Any text that JSON can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=400)
TIMES = st.one_of(st.none(), st.booleans(), st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False))


def _record(identity: Any, start: Any = 1795376000.10, team: Any = None, key: Any = None) -> Record:
    metadata = {"user_api_key_team_alias": team, "user_api_key_alias": key}
    return a_record(id=identity, startTime=start, metadata=metadata)


@given(identity=TEXT, team=TEXT, key=TEXT, prefix=st.text(st.characters(exclude_categories=["Cs"]), max_size=1500))
@example(identity="x" * 5000, team="", key="", prefix="")
@example(identity="x", team="", key="", prefix="p" * 2000)
@example(identity="\U0001f600" * 300, team="ü" * 400, key="/", prefix="\U0001f600/" * 300)
def test_any_name_keeps_the_limits(identity: str, team: str, key: str, prefix: str) -> None:
    names = keys.Names(prefix, "hour", team=True, key=True)
    record = _record(identity, team=team, key=key)
    for found in (
        names.of_record(record, ".json"),
        keys.of_batch(names.partition(record), [record], ".jsonl.gz"),
        keys.of_batch(names.folder(record), [record], ".jsonl", head="batch_"),
    ):
        name = found.rpartition("/")[2]
        assert len(found.encode()) <= 1024
        assert len(name.encode()) <= 255
        assert name.endswith((".json", ".jsonl.gz", ".jsonl"))
        assert "//" not in found
        assert not found.startswith("/")
        assert found == found.encode().decode()
    assert names.of_record(record, ".json") == names.of_record(record, ".json")


@given(first=TEXT, second=TEXT)
@example(first="x" * 400 + "a", second="x" * 400 + "b")
def test_long_ids_stay_apart(first: str, second: str) -> None:
    names = keys.Names("", "day", team=False, key=False)
    same = names.of_record(_record(first), ".json") == names.of_record(_record(second), ".json")
    if len(first) > 250 or len(second) > 250:
        assert same == (keys.safe(first) == keys.safe(second))


@given(team=TEXT, key=TEXT)
@example(team="../../other", key="..")
@example(team="a\\b", key=".")
def test_no_alias_leads_into_another_folder(team: str, key: str) -> None:
    folder = keys.Names("logs", "day", team=True, key=True).folder(_record("x", team=team, key=key))
    parts = folder.split("/")
    assert parts[0] == "logs"
    assert parts[-2:] == ["2026-11-22", ""]
    assert len(parts) == 3 + bool(team) + bool(key)
    assert not {".", ".."} & set(parts)
    partition = keys.Names("logs", "day", team=True, key=True).partition(_record("x", team=team, key=key))
    found = re.fullmatch(r"logs/team=([^/]+)/key=([^/]+)/dt=2026-11-22/", partition)
    assert found is not None
    if 0 < len(team.encode()) <= 64:
        assert unquote(found[1]) == keys.safe(team)
    assert (found[2] == "__HIVE_DEFAULT_PARTITION__") == (not key)


@given(start=TIMES)
@example(start=1e300)
@example(start=-1e12)
@example(start=-6e10)
def test_any_time_has_a_folder(start: Any) -> None:
    names = keys.Names("", "hour", team=False, key=False)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d/", names.folder(_record("x", start)))
    assert re.fullmatch(r"dt=\d{4}-\d\d-\d\d/hour=\d\d/", names.partition(_record("x", start)))


@given(identity=TEXT)
def test_a_download_name_fits_a_header(identity: str) -> None:
    name = keys.shown_name(_record(identity))
    assert re.fullmatch(r"[ !#-\[\]-~]+", name)
    assert not set('"\\/:') & set(name)
    assert len(name) <= 255
    assert name.endswith(".json")


def test_litellms_names() -> None:
    record = _record("chatcmpl-1", team="ml", key="ci")
    for settings, expected in [
        ({"prefix": "", "partition": "day"}, "2026-11-22/time-19-33-20-100000_chatcmpl-1.json"),
        ({"prefix": "/a//b/", "partition": "hour"}, "a/b/2026-11-22/19/time-19-33-20-100000_chatcmpl-1.json"),
        ({"prefix": "", "partition": "day", "team": True}, "ml/2026-11-22/time-19-33-20-100000_chatcmpl-1.json"),
        ({"prefix": "a", "partition": "day", "key": True}, "a/ci/2026-11-22/time-19-33-20-100000_chatcmpl-1.json"),
        (
            {"prefix": "a", "partition": "hour", "team": True, "key": True},
            "a/ml/ci/2026-11-22/19/time-19-33-20-100000_chatcmpl-1.json",
        ),
    ]:
        names = keys.Names(**({"team": False, "key": False} | settings))
        assert names.of_record(record, ".json") == expected


def test_a_name_too_long_keeps_its_head_and_has_a_digest() -> None:
    found = keys.Names("p", "day", team=False, key=False).of_record(_record("y" * 400), ".json")
    assert re.fullmatch(r"p/2026-11-22/time-19-33-20-100000_y{43}_[0-9a-f]{64}\.json", found)
    # The folder is cut only where even that name is too long behind it.
    folder = "f" * 880 + "/"
    assert keys.fitted(folder, "n" * 200, ".json").startswith(folder)
    cut = keys.fitted("f" * 900 + "/", "n" * 200, ".json")
    assert re.fullmatch(r"f{871,872}/[0-9a-f]{16}/n{64}_[0-9a-f]{64}\.json", cut)


def test_a_record_without_a_start_is_dated_by_its_id() -> None:
    made = 1_795_376_000_123
    identity = uuid.UUID(int=(made << 80) | (7 << 76) | (2 << 62) | 5)
    record = Record(str(identity), b"{}")
    assert keys.started(record).timestamp() == pytest.approx(made / 1000)
    assert keys.started(Record(str(uuid.uuid4()), b"{}")).timestamp() == 0
    assert keys.started(Record("none", b'{"startTime": true}')).timestamp() in (0, 1)


def test_a_batch_is_named_by_its_records_in_any_order() -> None:
    records = [_record(f"c{at}", 1795376000.1 + at) for at in range(5)]
    name = keys.of_batch("f/", records, ".parquet")
    assert re.fullmatch(r"f/19-33-20_[0-9a-f]{32}\.parquet", name)
    assert keys.of_batch("f/", records[::-1], ".parquet") == name
    assert keys.of_batch("f/", records[1:], ".parquet") != name
