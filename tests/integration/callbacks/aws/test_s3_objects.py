"""S3 against moto: what is stored, read back with boto3 and DuckDB; and the way from YAML to the bucket."""

from __future__ import annotations

import gzip
import json
import re
import urllib.request
import uuid
from pathlib import Path

import duckdb
import pytest
import zstandard

from tests.support.processes import Running, sidecar
from tests.support.records import START, a_record
from tests.support.s3_store import REGION, Make, boto, download, stored
from tianji_mw.callbacks.base import NotDelivered, Record

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("callbacks-aws")]


async def test_each_record_is_one_object_of_litellms_name(server: Running, bucket: str, make: Make) -> None:
    s3 = await make(bucket, prefix="llm/logs", team_prefix=True, key_prefix=True)
    records = [a_record(id=f"chatcmpl/{at}:x", startTime=START + at) for at in range(40)]
    await s3.write(records)
    found = stored(server, bucket)
    assert len(found) == 40
    raw = found["llm/logs/ml/ci/2026-11-22/time-19-33-20-100000_chatcmpl_0_x.json"]
    assert raw == records[0].raw
    assert sorted(found.values()) == sorted(record.raw for record in records)


async def test_headers_of_an_object(server: Running, bucket: str, make: Make) -> None:
    await (await make(bucket)).write([a_record()])
    s3 = boto(server.url)
    head = s3.head_object(Bucket=bucket, Key=next(iter(stored(server, bucket))))
    assert head["ContentType"] == "application/json"
    assert head["ContentLanguage"] == "en"
    assert head["ContentDisposition"] == 'inline; filename="time-2026-11-22T19-33-20-100000_chatcmpl-77.json"'
    assert head["CacheControl"] == "private, immutable, max-age=31536000, s-maxage=0"


async def test_a_second_attempt_overwrites(server: Running, bucket: str, make: Make) -> None:
    records = [a_record(id=f"c{at}") for at in range(3)]
    for layout in ("records", "batches", "batch_files"):
        s3 = await make(bucket, layout=layout, prefix=layout)
        await s3.write(records)
        await s3.write(list(reversed(records)))
    found = list(stored(server, bucket))
    assert [sum(key.startswith(f"{layout}/") for key in found) for layout in ("records", "batches", "batch_files")] == [
        3, 1, 1,
    ]  # fmt: skip


async def test_no_bucket_at_moto(make: Make) -> None:
    s3 = await make("no-such-bucket-here")
    with pytest.raises(NotDelivered, match="NoSuchBucket"):
        await s3.write([a_record()])


async def test_duckdb_reads_partitions_of_json_lines(server: Running, bucket: str, make: Make, tmp_path: Path) -> None:
    s3 = await make(bucket, layout="batches", partition="hour", compression="gzip", prefix="lake")
    hours = [START + 3600 * at for at in (0, 0, 1, 5, 5, 5)]
    odd = {"messages": "plain", "response": None, "response_cost": None}
    records = [a_record(startTime=at, **(odd if i == 1 else {})) for i, at in enumerate(hours)]
    await s3.write(records)
    keys = sorted(stored(server, bucket))
    assert [re.sub(r"_[0-9a-f]{32}", "_D", key) for key in keys] == [
        "lake/dt=2026-11-22/hour=19/19-33-20_D.jsonl.gz",
        "lake/dt=2026-11-22/hour=20/20-33-20_D.jsonl.gz",
        "lake/dt=2026-11-23/hour=00/00-33-20_D.jsonl.gz",
    ]
    root = download(server, bucket, tmp_path / "down")
    rows = duckdb.sql(
        f"select dt::varchar, hour, count(*), sum(total_tokens), count(distinct litellm_call_id) "
        f"from read_json('{root}/lake/**/*.jsonl.gz', hive_partitioning=true) group by all order by 1, 2"
    ).fetchall()
    assert [(d, int(h), n, int(t), i) for d, h, n, t, i in rows] == [
        ("2026-11-22", 19, 2, 34, 2), ("2026-11-22", 20, 1, 17, 1), ("2026-11-23", 0, 3, 51, 3),
    ]  # fmt: skip


async def test_duckdb_reads_partitions_of_parquet(server: Running, bucket: str, make: Make, tmp_path: Path) -> None:
    s3 = await make(bucket, layout="batches", format="parquet", team_prefix=True, key_prefix=True)
    other = {"user_api_key_team_alias": "a/b=ü %", "user_api_key_alias": None}
    await s3.write([a_record(), a_record(metadata=other), a_record(startTime=START + 86_400)])
    root = download(server, bucket, tmp_path / "down")
    rows = duckdb.sql(
        f"select team, key, dt::varchar, model_group, response_cost, "
        f"start_time = make_timestamptz({int(START * 1e6)}), "
        f"list_contains(request_tags, 'team:ml'), messages->>'$[1].content', team_alias "
        f"from read_parquet('{root}/**/*.parquet', hive_partitioning=true) order by all"
    ).fetchall()
    fixed = ("fast", 4.8e-06)
    assert rows == [
        ("a_b=ü %", None, "2026-11-22", *fixed, True, True, "hi", "a/b=ü %"),
        ("ml", "ci", "2026-11-22", *fixed, True, True, "hi", "ml"),
        ("ml", "ci", "2026-11-23", *fixed, False, True, "hi", "ml"),
    ]


async def test_compressed_records_and_what_a_browser_is_told(server: Running, bucket: str, make: Make) -> None:
    record = a_record()
    await (await make(bucket, compression="zstd")).write([record])
    await (await make(bucket, compression="gzip", layout="batch_files")).write([record])
    found = stored(server, bucket)
    zst, gz = (next(key for key in found if key.endswith(ending)) for ending in (".json.zst", ".jsonl.gz"))
    assert zstandard.ZstdDecompressor().decompress(found[zst]) == record.raw
    assert re.fullmatch(r"2026-11-22/batch_19-33-20_[0-9a-f]{32}\.jsonl\.gz", gz)
    assert gzip.decompress(found[gz]) == record.raw + b"\n"
    head = boto(server.url).head_object(Bucket=bucket, Key=gz)
    assert head["ContentType"] == "application/gzip"
    assert not head.get("ContentEncoding")


async def test_odd_records_are_stored(server: Running, bucket: str, make: Make) -> None:
    odd = [
        a_record(id=None, startTime=None, metadata=None, messages=None, response=None),
        a_record(id=7, startTime="yesterday", metadata=[], request_tags="x"),
        a_record(id="", startTime=float(10**12), messages="\x00\u2028\U0001f600", response=["a"]),
        a_record(id="x" * 3000, startTime=-1.5, response_cost="much"),
        Record(str(uuid.uuid4()), b"{}"),
        Record("no uuid", b'{"id": "\\u0000/../\\n"}'),
    ]
    for settings in ({}, {"layout": "batches"}, {"layout": "batches", "format": "parquet"}):
        s3 = await make(bucket, team_prefix=True, key_prefix=True, strip_base64_files=True, **settings)
        await s3.write(odd)
    assert sum(key.endswith(".json") for key in stored(server, bucket)) == len(odd)
    broken = Record("b", b'{"id": ')
    good = a_record(id="good")
    with pytest.raises(NotDelivered, match="1 records are no JSON objects") as caught:
        await (await make(bucket)).write([broken, good])
    assert (caught.value.failed, caught.value.refused) == ([], [broken])
    assert good.raw in stored(server, bucket).values()


CONFIG = """
model_list:
  - model_name: fast
    litellm_params: {{model: openai/gpt-4o-mini, api_key: sk-x, mock_response: "hello there"}}
litellm_settings:
  callbacks: [s3_v2]
  s3_callback_params:
    s3_bucket_name: {bucket}
    s3_region_name: {region}
    s3_endpoint_url: os.environ/STORE
    s3_aws_access_key_id: os.environ/STORE_KEY
    s3_aws_secret_access_key: os.environ/STORE_SECRET
    s3_path: litellm
    s3_flush_interval: 0.1
  callback_configs:
    - type: s3
      name: lake
      s3_path: lake
      layout: batches
      format: parquet
      s3_flush_interval: 0.1
  spool_dir: {spool}
"""


def test_from_yaml_to_the_bucket(server: Running, bucket: str, tmp_path: Path) -> None:
    config = CONFIG.format(bucket=bucket, region=REGION, spool=tmp_path / "spool")
    env = {"STORE": server.url, "STORE_KEY": "AKIA1", "STORE_SECRET": "sec-1", "DEFAULT_S3_BATCH_SIZE": "3"}
    with sidecar(tmp_path, config, env=env) as running:
        for at in range(7):
            body = {"model": "fast", "messages": [{"role": "user", "content": f"question {at}"}]}
            request = urllib.request.Request(
                f"{running.url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=20) as response:
                assert response.status == 200
    found = stored(server, bucket)  # the sidecar has drained
    records = [json.loads(raw) for key, raw in found.items() if key.startswith("litellm/")]
    assert sorted(record["messages"][0]["content"] for record in records) == [f"question {at}" for at in range(7)]
    for key, raw in found.items():
        if key.startswith("litellm/"):
            assert re.fullmatch(r"litellm/\d{4}-\d\d-\d\d/time-\d\d-\d\d-\d\d-\d{6}_.+\.json", key)
            assert json.loads(raw)["id"] in key
    root = download(server, bucket, tmp_path / "down")
    query = f"select count(distinct litellm_call_id), count(*) from read_parquet('{root}/lake/**/*.parquet')"
    assert duckdb.sql(query).fetchall() == [(7, 7)]
    assert "sec-1" not in running.output()
