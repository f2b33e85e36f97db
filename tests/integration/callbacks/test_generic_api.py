"""The generic API against a scripted endpoint: formats, headers, signatures, and what failures mean."""

from __future__ import annotations

import gzip
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.callbacks.test_layer import logged
from tests.support.records import a_failure, a_payload, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.generic_api import GenericApi, flat
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

SECRET = "very-secret-token-0123456789"
Make = Callable[..., Awaitable[GenericApi]]


@pytest.fixture
async def make(llm: FakeLLM) -> AsyncIterator[Make]:
    made: list[GenericApi] = []
    async with Runtime(wall=lambda: 1_800_000_000.0) as runtime:

        async def start(**options: Any) -> GenericApi:
            callback = GenericApi(endpoint=f"{llm.url}/ingest?token={SECRET}", **options)
            await callback.start(runtime)
            made.append(callback)
            return callback

        yield start
        for callback in made:
            await callback.aclose()


async def test_a_batch_is_one_array(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(Reply.json({}))
    sink = await make(headers={"Authorization": f"Bearer {SECRET}"})
    batch = [a_record(), a_failure()]
    await sink.write(batch)
    (request,) = llm.requests
    assert (request.method, request.path) == ("POST", f"/ingest?token={SECRET}")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.json == [record.data for record in batch]


async def test_lines_zipped_with_headers_as_text(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(Reply.json({}, status=202))
    sink = await make(log_format="ndjson", gzip=True, headers="X-Team=ml, X-Key=a=b")
    batch = [a_record(), a_record()]
    await sink.write(batch)
    (request,) = llm.requests
    assert request.headers["content-type"] == "application/x-ndjson"
    assert (request.headers["x-team"], request.headers["x-key"]) == ("ml", "a=b")
    assert gzip.decompress(request.body) == b"".join(record.raw + b"\n" for record in batch)


async def test_one_request_each_and_only_what_failed_again(llm: FakeLLM, make: Make) -> None:
    llm.replies += [Reply.json({}), Reply.json({}, status=500), Reply.json({}, status=413), Reply.json({}, status=429)]
    llm.replies[3].headers["retry-after"] = "7"
    sink = await make(log_format="single", requests_at_once=1)
    batch = [a_record() for _ in range(4)]
    with pytest.raises(NotDelivered) as raised:
        await sink.write(batch)
    assert [request.json["litellm_call_id"] for request in llm.requests] == [record.id for record in batch]
    assert raised.value.failed == [batch[1], batch[3]]
    assert raised.value.refused == [batch[2]]
    assert raised.value.retry_after_s == 7


async def test_the_ports_flat_event(llm: FakeLLM, make: Make) -> None:
    llm.replies += [Reply.json({})] * 2
    sink = await make(log_format="tianji")
    await sink.write([a_record()])
    await sink.write([a_failure()])
    good, bad = (request.json for request in llm.requests)
    assert good["event"] == "llm.success"
    assert (good["model"], good["provider"], good["total_tokens"]) == ("gpt-4o-mini", "openai", 17)
    assert (good["user_id"], good["team_id"], good["cache_hit"]) == ("u1", "t1", False)
    assert good["latency_seconds"] == pytest.approx(0.82)
    assert good["timestamp"].endswith("+00:00")
    assert (bad["event"], bad["error"]) == ("llm.failure", a_failure().data["error_str"])
    assert "messages" not in good


async def test_a_signature_over_time_and_body(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(Reply.json({}))
    sink = await make(secret=SECRET)
    await sink.write([a_record()])
    (request,) = llm.requests
    assert request.headers["x-tianji-timestamp"] == "1800000000"
    digest = hmac.new(SECRET.encode(), b"1800000000." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-tianji-signature"] == f"sha256={digest}"


async def test_a_signature_is_over_the_bytes_that_are_sent(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(Reply.json({}))
    sink = await make(secret=SECRET, gzip=True)
    await sink.write([a_record()])
    (request,) = llm.requests
    digest = hmac.new(SECRET.encode(), b"1800000000." + request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-tianji-signature"] == f"sha256={digest}"
    assert gzip.decompress(request.body).startswith(b"[{")


async def test_headers_of_the_environment_stay_beside_those_of_the_config(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(Reply.json({}))
    sink = await make(headers={"X-A": "1"}, more_headers="x-a=2,X-B=3")
    await sink.write([a_record()])
    assert (llm.requests[0].headers["x-a"], llm.requests[0].headers["x-b"]) == ("1", "3")


async def test_a_record_that_is_no_event_takes_no_other_along(llm: FakeLLM, make: Make) -> None:
    llm.replies += [Reply.json({})] * 2
    sink = await make(log_format="tianji")
    good, broken, wrong = a_record(), Record("b", b"[1"), Record("w", b"[1]")
    with pytest.raises(NotDelivered) as raised:
        await sink.write([broken, good, wrong])
    assert (raised.value.failed, raised.value.refused) == ([], [broken, wrong])
    assert [request.json["id"] for request in llm.requests] == [good.id]


@pytest.mark.parametrize("headers", [{"x": "a\nb"}, {"x": "ü"}, {"x y": "a"}])
def test_headers_that_no_request_may_have(headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="characters that no header may have"):
        GenericApi(endpoint="http://x", headers=headers)


@pytest.mark.parametrize(
    ("reply", "retry"),
    [
        (Reply.json({"quoted": SECRET}, status=400), False),
        (Reply.json({}, status=401), True),
        (Reply.json({}, status=503), True),
        (Reply(refuse=True), True),
        (Reply.json({}, status=302), True),
    ],
)
async def test_failures(llm: FakeLLM, make: Make, reply: Reply, retry: bool) -> None:
    llm.replies.append(reply)
    sink = await make(headers={"x-key": SECRET})
    with pytest.raises(NotDelivered) as raised:
        await sink.write([a_record()])
    assert raised.value.retry is retry
    assert SECRET not in raised.value.message
    assert SECRET not in repr(sink)


@pytest.mark.parametrize("endpoint", ["", "sink.corp/x", "ftp://sink.corp"])
async def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(SetupError, match="GENERIC_LOGGER_ENDPOINT"):
        await GenericApi(endpoint=endpoint).start(Runtime())


def test_headers_that_are_none() -> None:
    with pytest.raises(ValueError, match="Name=value"):
        GenericApi(endpoint="http://x", headers="nonsense")


@given(
    changes=st.dictionaries(
        st.sampled_from(sorted(a_payload())), st.none() | st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats()
    )
)
def test_any_record_is_a_flat_event(changes: dict[str, Any]) -> None:
    assert orjson.dumps(flat({**a_payload(), **changes}))


async def test_from_yaml_to_the_endpoint(llm: FakeLLM, serve: Serve, tmp_path: Any) -> None:
    """LiteLLM's spelling: a name of one's own, its type under `callback_settings`."""
    async with FakeLLM(lambda request: Reply.json({})) as sink:
        llm.replies += [Reply.json(ANSWER), Reply.json({"error": {"message": "no"}}, status=500)]
        more = {"generic_logger_headers": {"X-More": "m", "Authorization": "other"}}
        settings = {"callbacks": ["my_sink"], **more, "spool_dir": str(tmp_path / "spool")}
        options = {
            "callback_type": "generic_api", "endpoint": f"{sink.url}/ingest", "headers": {"Authorization": "Bearer x"},
            "event_types": ["llm_api_success"], "log_format": "ndjson", "flush_interval": 0.05, "max_retries": 3,
            "retry_delay": 1.0, "timeout": 10,
        }  # fmt: skip
        app = await logged(serve, tmp_path, llm.url, settings, callback_settings={"my_sink": options})
        for _ in range(2):
            await app.call(CHAT)
        await app.records()
        (request,) = sink.requests
        assert orjson.loads(request.body)["response"]["choices"] == ANSWER["choices"]
        assert (request.headers["authorization"], request.headers["x-more"]) == ("Bearer x", "m")
