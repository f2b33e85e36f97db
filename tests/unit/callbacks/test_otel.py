"""Settings of the `otel` destination: LiteLLM's names, variables, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.records import a_failure, a_payload, a_record
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.callbacks.otel import Otel
from tianji_mw.callbacks.otlp.exporter import pairs, settle
from tianji_mw.callbacks.otlp.grpc_channel import host_of
from tianji_mw.errors import SetupError
from tianji_mw.plugins import find
from tianji_mw.runtime import Runtime


def test_it_is_found_by_its_name() -> None:
    assert find("callbacks", "otel", Callback) is Otel


@pytest.mark.parametrize(
    ("given", "ours"),
    [("otlp_http", "http/protobuf"), ("otlp_grpc", "grpc"), ("http/json", "http/json"), ("console", "console")],
)
def test_protocols(given: str, ours: str) -> None:
    assert Otel(exporter=given, endpoint="http://x").protocol == ours  # type: ignore[call-arg]


def test_values_as_environment_variables_have_them() -> None:
    otel = Otel.model_validate(
        {
            "headers": "api_key=a%20b, x-team = t=1 ,,=none",
            "resource_attributes": "service.namespace=shop,k=v%2C",
            "metrics": "true",
            "events": "false",
            "content": "true",
            "metadata_keys": "a, b",
            "semconv": "http,gen_ai_latest_experimental",
            "insecure": "true",
        }
    )
    assert {name: value.reveal() for name, value in otel.headers.items()} == {"api_key": "a b", "x-team": "t=1"}
    assert otel.resource_attributes == {"service.namespace": "shop", "k": "v,"}
    assert (otel.metrics, otel.events, otel.content, otel.legacy) == (True, False, "SPAN_AND_EVENT", False)
    assert otel.metadata_keys == ["a", "b"]
    assert Otel().legacy
    assert "a b" not in repr(otel)


@pytest.mark.parametrize(
    ("given", "mode"),
    [(True, "SPAN_AND_EVENT"), (False, "NO_CONTENT"), ("false", "NO_CONTENT"), ("span_only", "SPAN_ONLY"),
     ("EVENT_ONLY", "EVENT_ONLY")],
)  # fmt: skip
def test_content_modes(given: Any, mode: str) -> None:
    assert Otel(content=given).content == mode


@pytest.mark.parametrize("wrong", [{"content": "some"}, {"protocol": "zipkin"}, {"headers": ["a"]}, {"unknown": 1}])
def test_wrong_values_are_refused_and_not_shown(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Otel.model_validate(wrong)


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://c:4318", "http://c:4318/v1/traces"),
        ("http://c:4318/", "http://c:4318/v1/traces"),
        ("http://c/v1/traces", "http://c/v1/traces"),
        ("http://c/otel/v1/logs", "http://c/otel/v1/traces"),
        ("https://c/p?key=1", "https://c/p/v1/traces?key=1"),
    ],
)
def test_addresses(endpoint: str, url: str) -> None:
    otel = Otel(endpoint=endpoint)
    assert otel.url_of("traces") == url
    assert otel.url_of("metrics") == url.replace("/v1/traces", "/v1/metrics")


@pytest.mark.parametrize(
    ("endpoint", "target"),
    [
        ("http://c:4317", ("c:4317", False)),
        ("https://c", ("c:4317", True)),
        ("https://c:443/v1", ("c:443", True)),
        ("c:4317", ("c:4317", None)),
        ("http://[::1]:5", ("[::1]:5", False)),
    ],
)
def test_grpc_targets(endpoint: str, target: tuple[str, bool | None]) -> None:
    assert host_of(endpoint) == target


@pytest.mark.parametrize(
    "wrong",
    [
        {"protocol": "http/protobuf"}, {"protocol": "grpc"}, {"endpoint": "not an address"}, {"protocol": "file"},
        {"protocol": "file", "path": "/nowhere/at/all"}, {"protocol": "grpc", "endpoint": "https://c:99999"},
        {"protocol": "grpc", "endpoint": "https://"},
    ],
)  # fmt: skip
async def test_a_start_that_lacks_something_says_what(wrong: dict[str, Any]) -> None:
    async with Runtime() as runtime:
        otel = Otel.model_validate(wrong)
        with pytest.raises(SetupError, match=r"^OpenTelemetry: (endpoint|path|/nowhere)"):
            await otel.start(runtime)
        await otel.aclose()


async def test_the_resource_and_the_metadata() -> None:
    otel = Otel(
        protocol="console", service_name="gw", resource_attributes={"service.name": "lost", "a": "b"},
        metadata_keys=["requester_metadata.trace_name", "user_api_key_alias", "absent.at.all"],
        team_metadata_keys=["tier"],
    )  # fmt: skip
    metadata = {**a_payload()["metadata"], "user_api_key_auth_metadata": {"tier": "gold"}}
    async with Runtime() as runtime:
        await otel.start(runtime)
        record = a_record(metadata=metadata)
        resource = otel.resource(record)
        (span,) = otel.spans(record)
        await otel.aclose()
    assert resource["service.name"] == resource["model_id"] == "gw"
    assert resource["deployment.environment"] == "production"
    assert resource["a"] == "b"
    assert span.attributes["tianji.metadata.requester_metadata.trace_name"] == "greeting"
    assert span.attributes["litellm.metadata.user_api_key_alias"] == "ci"
    assert span.attributes["tianji.team.metadata.tier"] == "gold"
    assert not [name for name in span.attributes if "absent" in name]


def test_without_context_every_call_is_a_trace() -> None:
    ours = {**a_payload()["tianji"], "parent_span_id": "b7ad6b7169203331", "trace_id": "a" * 32}
    record = a_record(tianji=ours)
    spans = Otel(ignore_context=True, server_span=True).spans(record)
    assert {span.trace_id.hex() for span in spans} == {record.id.replace("-", "")}
    assert spans[0].parent_id is None
    assert spans[1].parent_id == spans[0].span_id
    kept = Otel().spans(record)
    assert (kept[0].trace_id.hex(), kept[0].parent_id) == ("a" * 32, bytes.fromhex("b7ad6b7169203331"))


def test_content_goes_where_the_mode_says() -> None:
    for mode, there in (("NO_CONTENT", False), ("SPAN_ONLY", True), ("EVENT_ONLY", False), ("SPAN_AND_EVENT", True)):
        (span,) = Otel(content=mode).spans(a_record())
        assert ("gen_ai.input.messages" in span.attributes) is there


def test_pairs() -> None:
    assert pairs("a=1,b = x%3Dy,c==,d,%41=z") == {"a": "1", "b": "x=y", "c": "=", "d": "", "A": "z"}


def _settled(batch: list[Record], *sent: tuple[list[Record], NotDelivered | None], odd: list[Record]) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        settle(batch, sent, odd)
    return caught.value


def test_settling_several_requests() -> None:
    a, b, c, d = (a_record() for _ in range(4))
    batch = [a, b, c, d]
    settle(batch, [(batch, None)], [])
    whole = NotDelivered("no", retry=False)
    assert _settled(batch, (batch, whole), odd=[]) is whole
    found = _settled(
        batch, ([a], NotDelivered("no", retry=False)), ([b, c], NotDelivered("wait", retry_after_s=7)), odd=[d]
    )
    assert (found.failed, found.refused, found.retry_after_s) == ([b, c], [d, a], 7)
    found = _settled([a, b, c], ([a, b], NotDelivered("no", retry=False)), ([c], None), odd=[])
    assert (found.failed, found.refused) == ([a, b], [])


async def test_a_record_that_no_span_can_be_made_of_harms_no_other() -> None:
    class Odd(Otel):
        def spans(self, record: Record) -> Any:
            if record.data["status"] == "failure":
                raise KeyError("model")
            return super().spans(record)

    async with Runtime() as runtime:
        otel = Odd(protocol="console")
        await otel.start(runtime)
        good, bad = a_record(), a_failure()
        with pytest.raises(NotDelivered) as caught:
            await otel.write([good, bad])
        await otel.aclose()
    assert (caught.value.failed, caught.value.refused) == ([], [bad])
    assert runtime.counts["otlp_odd_record", "OpenTelemetry KeyError"] == 1
