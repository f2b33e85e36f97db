"""Datadog LLM Observability against a scripted intake, and where both go."""

from __future__ import annotations

import pytest

from tests.support.datadog_intake import Intake, Start, now, problem
from tests.support.records import START, a_failure, a_payload, a_record
from tianji_mw.callbacks.datadog import Datadog
from tianji_mw.callbacks.datadog_llm_observability import DatadogLLMObservability
from tianji_mw.callbacks.datadog_shared import DatadogCallback
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM

# --- LLM Observability


async def test_a_call_is_a_span(start: Start, intake: Intake) -> None:
    spans = await start(DatadogLLMObservability, env="prod", ml_app="gateway")
    record = now(a_record(session_id="s1"))
    await spans.write([record])
    (span,) = intake.spans.values()
    assert intake.attributes == [
        {"ml_app": "gateway", "tags": ["env:prod", "service:litellm-server"], "session_id": "s1"}
    ]
    assert (span["name"], span["parent_id"], span["trace_id"]) == (
        "litellm_llm_call",
        "undefined",
        record.data["trace_id"],
    )
    assert span["start_ns"] == round(record.data["startTime"] * 1e9)
    assert span["duration"] == pytest.approx(820_000_000, abs=1000)
    assert (span["status"], span["session_id"]) == ("ok", "s1")
    assert "team:ml" in span["tags"]
    meta = span["meta"]
    assert meta["kind"] == "llm"
    assert meta["input"]["messages"] == record.data["messages"]
    assert meta["output"]["messages"] == [{"role": "assistant", "content": "hello"}]
    told = {name: meta["metadata"][name] for name in ("model_name", "model_provider", "temperature")}
    assert told == {"model_name": "gpt-4o-mini", "model_provider": "openai", "temperature": 0.5}
    assert span["metrics"] == {
        "input_tokens": 12, "output_tokens": 5, "total_tokens": 17, "total_cost": 4.8e-06,
        "cache_read_input_tokens": 4, "non_cached_input_tokens": 8, "reasoning_output_tokens": 2,
    }  # fmt: skip


async def test_streams_tools_and_failures(start: Start, intake: Intake) -> None:
    spans = await start(DatadogLLMObservability)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
    asked = [
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    tool = {"type": "function", "function": {"name": "weather", "description": "d", "parameters": {"type": "object"}}}
    ours = {**a_payload()["tianji"], "time_to_first_token": 0.02}
    record = now(a_record(messages=asked, model_parameters={"tools": [tool]}, tianji=ours))
    await spans.write([record, now(a_failure("It broke."))])
    streamed, failed = intake.spans.values()
    said, result = streamed["meta"]["input"]["messages"]
    expected = {"name": "weather", "arguments": {"city": "Oslo"}, "tool_id": "c1", "type": "function"}
    assert (said["tool_calls"], said["reasoning_content"]) == ([expected], "hm")
    assert result["tool_results"] == [{"name": "", "result": "rain", "tool_id": "c1", "type": "function"}]
    assert streamed["meta"]["tool_definitions"] == [
        {"name": "weather", "description": "d", "schema": {"type": "object"}}
    ]
    assert streamed["metrics"]["time_to_first_token"] == 0.02
    assert streamed["metrics"]["time_per_output_token"] == pytest.approx(0.2)
    assert (failed["status"], failed["meta"]["error"]["type"]) == ("error", "UpstreamError")
    assert failed["meta"]["error"]["message"] == "It broke."


async def test_other_kinds_have_values(start: Start, intake: Intake) -> None:
    ours = a_payload()["tianji"]
    answer = {"object": "list", "data": [{"embedding": [0.5, 0.5]}]}
    records = [now(a_record(messages=["a", "b"], response=answer, tianji={**ours, "api": "embeddings"}))]
    records.append(now(a_record(messages={"query": "q"}, response={"results": []}, tianji={**ours, "api": "rerank"})))
    await (await start(DatadogLLMObservability)).write(records)
    vectors, ranked = (span["meta"] for span in intake.spans.values())
    assert (vectors["kind"], vectors["input"]) == ("embedding", {"value": "a\nb"})
    assert vectors["output"] == {"value": "1 embeddings of 2 numbers"}
    assert (ranked["kind"], ranked["input"]) == ("retrieval", {"value": '{"query":"q"}'})


async def test_attempts_are_children_and_the_last_one_is_billed(start: Start, intake: Intake) -> None:
    ours = a_payload()["tianji"]
    second = ours["attempts"][0]
    first = {**second, "model": "gpt-4o", "status_code": 503, "error": "UpstreamError", "endTime": START + 0.2}
    record = now(a_record(tianji={**ours, "attempts": [first, {**second, "startTime": START + 0.2}]}))
    spans = await start(DatadogLLMObservability)
    await spans.write([record])
    known = dict(intake.spans)
    root, one, two = known.values()
    assert (root["meta"]["kind"], root["parent_id"]) == ("workflow", "undefined")
    assert [span["parent_id"] for span in (one, two)] == [root["span_id"]] * 2
    assert ["total_cost" in span["metrics"] for span in (root, one, two)] == [False, False, True]
    assert [span["status"] for span in (root, one, two)] == ["ok", "error", "ok"]
    assert one["meta"]["metadata"]["model_name"] == "gpt-4o"
    await spans.write([record])
    assert intake.spans == known


async def test_several_sessions_stand_in_their_spans(start: Start, intake: Intake) -> None:
    await (await start(DatadogLLMObservability)).write([now(a_record(session_id=name)) for name in ("a", "b", "")])
    assert "session_id" not in intake.attributes[0]
    assert [span.get("session_id") for span in intake.spans.values()] == ["a", "b", None]


async def test_spans_of_yesterday_are_refused_at_once(start: Start, intake: Intake) -> None:
    old, new = now(a_record(), ago=25 * 3600), now(a_record())
    found = await problem(await start(DatadogLLMObservability), [old, new])
    assert (found.failed, list(found.refused)) == ([], [old])
    assert len(intake.spans) == 1


async def test_spans_of_more_than_a_megabyte_are_cut(start: Start, intake: Intake) -> None:
    batch = [now(a_record(messages="x" * 2_000_000)) for _ in range(3)]
    batch += [now(a_record(messages="x" * 900_000)) for _ in range(6)]
    await (await start(DatadogLLMObservability)).write(batch)
    lengths = [len(span["meta"]["input"]["messages"][0]["content"]) for span in intake.spans.values()]
    assert lengths == [10_000] * 3 + [900_000] * 6
    assert len(intake.sizes) == 2


# --- where it goes


def test_the_addresses() -> None:
    assert Datadog(dd_site="us5.datadoghq.com").base("api") == "https://api.us5.datadoghq.com"
    assert Datadog().base("http-intake.logs") == "https://http-intake.logs.datadoghq.com"
    assert Datadog(dd_agent_host="agent").base("api") == "http://agent:10518"
    assert DatadogLLMObservability(agent_host="::1").base("api") == "http://[::1]:8126"
    assert Datadog(agent_host="agent", dd_agent_port="99").base("api") == "http://agent:99"


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_an_agent_gets_no_key(start: Start, server: FakeLLM, intake: Intake, kind: type[DatadogCallback]) -> None:
    intake.agent = True
    port = int(server.url.rpartition(":")[2])
    callback = await start(kind, agent_host="127.0.0.1", agent_port=port, api_base="")
    await callback.write([now(a_record())])
    assert intake.sizes == [1]


async def test_an_agent_that_has_a_proxy_alone(start: Start, server: FakeLLM, intake: Intake) -> None:
    """Datadog's own test agent answers 404 at the intake's path, and passes on what comes to `/evp_proxy/v2`."""
    intake.agent = True
    intake.paths = ("/evp_proxy/v2/api/intake/llm-obs/v1/trace/spans",)
    port = int(server.url.rpartition(":")[2])
    callback = await start(DatadogLLMObservability, agent_host="127.0.0.1", agent_port=port, api_base="")
    await callback.write([now(a_record())])
    await callback.write([now(a_record())])
    assert [request.path.startswith("/evp_proxy") for request in server.requests] == [False, True, True]
    assert server.requests[-1].headers["x-datadog-evp-subdomain"] == "api"


@pytest.mark.parametrize("kind", [Datadog, DatadogLLMObservability])
async def test_what_is_missing_or_wrong_stops_the_start(kind: type[DatadogCallback]) -> None:
    with pytest.raises(SetupError, match="DD_API_KEY"):
        await kind().start(Runtime())
    with pytest.raises(SetupError, match="site is no host"):
        await kind(api_key="k", site="evil.com/x?").start(Runtime())
    with pytest.raises(SetupError, match="agent_host is no host"):
        await kind(agent_host="user@host/x").start(Runtime())
