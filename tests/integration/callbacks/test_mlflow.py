"""MLflow, the real server: traces and runs, read back by its REST API and its own client; and what is not delivered."""

from __future__ import annotations

import asyncio
import json
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.mlflow_server import PYTHON
from tests.support.mlflow_server import mlflow as real_mlflow
from tests.support.processes import Running, environment
from tests.support.records import a_failure, a_record
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.mlflow import Mlflow
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Received, Reply, drive

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("mlflow")]
KEY = "mlflow-very-secret-1"
#: Reads a trace with the official client.
CLIENT = """
import json, sys
from mlflow import MlflowClient
trace = MlflowClient(sys.argv[1]).get_trace(sys.argv[2])
root = trace.data.spans[0]
print(json.dumps({
    "state": str(trace.info.state), "type": root.span_type, "inputs": root.inputs, "outputs": root.outputs,
    "usage": trace.info.token_usage, "tags": trace.info.tags, "metadata": trace.info.trace_metadata,
    "name": root.name, "duration": trace.info.execution_duration, "preview": trace.info.request_preview,
    "model": root.get_attribute("mlflow.llm.model"), "spans": len(trace.data.spans),
}))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with real_mlflow(tmp_path_factory.mktemp("mlflow")) as running:
        yield running


async def sent(mlflow: Mlflow, *batches: list[Record]) -> Runtime:
    async with Runtime() as runtime:
        await mlflow.start(runtime)
        for batch in batches:
            await mlflow.write(batch)
        await mlflow.aclose()
    return runtime


def get(server: Running, path: str, **params: Any) -> Any:
    answer = httpx.get(server.url + path, params=params, timeout=30)
    answer.raise_for_status()
    return answer.json()


def trace_of(server: Running, record: Record) -> Any:
    return get(server, "/api/3.0/mlflow/traces/get", trace_id=f"tr-{record.data['trace_id']}")["trace"]


def new_trace() -> str:
    return uuid.uuid4().hex


async def test_a_trace_is_read_back_by_the_client(server: Running) -> None:
    record = a_record(trace_id=new_trace(), session_id="s-1")
    mlflow = Mlflow(endpoint=server.url, experiment_name="gateway ü/1")
    assert dict((await sent(mlflow, [record], [record])).counts) == {}
    command = [str(PYTHON), "-c", CLIENT, server.url, f"tr-{record.data['trace_id']}"]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=200, env=environment(), check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert (found["state"].rpartition(".")[2], found["type"], found["spans"]) == ("OK", "CHAT_MODEL", 1)
    assert found["inputs"]["messages"] == record.data["messages"]
    assert found["inputs"]["temperature"] == 0.5
    assert found["outputs"] == record.data["response"]
    assert found["model"] == "gpt-4o-mini-2024-07-18"
    # Although it was sent twice: once the tokens of one call.
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (12, 5)
    assert (found["tags"]["team"], found["tags"]["mlflow.traceName"]) == ("ml", "chat gpt-4o-mini")
    assert (found["duration"], found["preview"]) == (820, "hi")
    metadata = found["metadata"]
    assert (metadata["mlflow.trace.session"], metadata["mlflow.trace.user"]) == ("s-1", "customer-7")


async def test_a_failure_and_its_attempt(server: Running) -> None:
    record = a_failure(trace_id=new_trace())
    await sent(Mlflow(endpoint=server.url), [record])
    trace = trace_of(server, record)
    assert trace["trace_info"]["state"] == "ERROR"
    call, attempt = trace["spans"]
    assert call["events"][0]["name"] == "exception"
    assert attempt["parent_span_id"] == call["span_id"]


async def test_an_experiment_is_made_once(server: Running) -> None:
    batch = [a_record(trace_id=new_trace())]
    first, second = (Mlflow(endpoint=server.url, experiment_name="both") for _ in range(2))
    await asyncio.gather(sent(first, batch), sent(second, [a_record(trace_id=new_trace())]))
    assert first._experiment == second._experiment != ""
    by_id = Mlflow(endpoint=server.url, experiment_id=first._experiment)
    record = a_record(trace_id=new_trace())
    await sent(by_id, [record])
    place = trace_of(server, record)["trace_info"]["trace_location"]
    assert place["mlflow_experiment"]["experiment_id"] == first._experiment


async def test_odd_records_arrive(server: Running) -> None:
    odd: list[dict[str, Any]] = [
        {"messages": None, "response": None, "metadata": None, "request_tags": None},
        {"messages": "text", "response": ["x"], "startTime": None, "endTime": None},
        {
            "messages": [{"role": "user", "content": "\U0001f600" * 60_000}],
            "request_tags": ["a:b:c", ":x", "mlflow.x:1"],
        },
    ]
    batch = [a_record(trace_id=new_trace(), **one) for one in odd]
    assert dict((await sent(Mlflow(endpoint=server.url, experiment_name="odd"), batch)).counts) == {}
    found = [trace_of(server, record) for record in batch]
    assert [len(trace["spans"]) for trace in found] == [1, 1, 1]
    tags = found[2]["trace_info"]["tags"]
    assert tags["a"] == "b:c"
    assert "mlflow.x" not in tags


async def test_one_run_for_many_calls(server: Running) -> None:
    mlflow = Mlflow(endpoint=server.url, experiment_name="sums", mode="runs", run_name="gw")
    batch = [a_record(), a_record(model="x:y/z*"), a_failure()]
    async with Runtime() as runtime:
        await mlflow.start(runtime)
        await mlflow.write(batch)
        await mlflow.write([*batch, a_record()])
        run = mlflow._run
        assert get(server, "/api/2.0/mlflow/runs/get", run_id=run)["run"]["info"]["status"] == "RUNNING"
        await mlflow.aclose()
    found = get(server, "/api/2.0/mlflow/runs/get", run_id=run)["run"]
    assert (found["info"]["status"], found["info"]["run_name"][:3]) == ("FINISHED", "gw ")
    metrics = {one["key"]: one["value"] for one in found["data"]["metrics"]}
    assert (metrics["calls"], metrics["failures"]) == (4, 1)
    assert metrics["cost_usd"] == pytest.approx(3 * 4.8e-06)
    assert (metrics["model/gpt-4o-mini/calls"], metrics["model/x_y/z_/calls"]) == (3, 1)
    runs = httpx.post(
        server.url + "/api/2.0/mlflow/runs/search", json={"experiment_ids": [mlflow._experiment]}, timeout=30
    ).json()
    assert len(runs["runs"]) == 1


async def test_a_new_day_and_a_run_that_was_deleted(server: Running) -> None:
    now = [1_795_376_000.0]
    mlflow = Mlflow(endpoint=server.url, experiment_name="days", mode="runs")
    async with Runtime(wall=lambda: now[0]) as runtime:
        await mlflow.start(runtime)
        await mlflow.write([a_record()])
        first = mlflow._run
        now[0] += 86_400
        await mlflow.write([a_record()])
        second = mlflow._run
        assert first != second
        assert get(server, "/api/2.0/mlflow/runs/get", run_id=first)["run"]["info"]["status"] == "FINISHED"
        mlflow._run = "0" * 32
        with pytest.raises(NotDelivered) as caught:
            await mlflow.write([a_record()])
        assert caught.value.retry
        await mlflow.write([a_record()])
        third = mlflow._run
        await mlflow.aclose()
    metrics = get(server, "/api/2.0/mlflow/runs/get", run_id=third)["run"]["data"]["metrics"]
    assert {one["key"]: one["value"] for one in metrics}["calls"] == 3


async def test_from_a_config(tmp_path: Path, serve: Serve, server: Running) -> None:
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        path = tmp_path / "config.yaml"
        path.write_text(f"""
model_list:
  - {{model_name: gpt-4o, litellm_params: {{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}}}
litellm_settings: {{callbacks: [mlflow]}}
""")
        env = {
            "MLFLOW_TRACKING_URI": server.url, "MLFLOW_EXPERIMENT_NAME": "whole",
            "DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05",
        }  # fmt: skip
        app = await serve(Stack.from_config(path, env=env).app)
        assert (await drive(app, CHAT)).status == 200
        experiment, traces = "", []
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=server.url) as client:
            while not traces:
                answer = await client.get(
                    "/api/2.0/mlflow/experiments/get-by-name", params={"experiment_name": "whole"}
                )
                if answer.status_code == 200:
                    experiment = answer.json()["experiment"]["experiment_id"]
                    place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
                    found = await client.post("/api/3.0/mlflow/traces/search", json={"locations": [place]})
                    traces = found.json().get("traces", [])
                await asyncio.sleep(0.1)
    assert traces[0]["response_preview"] == "Hello you"


# --- scripted: what a server without faults does not answer


class Scripted:
    """An MLflow that answers as it is told; all is well otherwise."""

    def __init__(self) -> None:
        self.answers: dict[str, Reply] = {}

    def __call__(self, request: Received) -> Reply:
        path = request.path.partition("?")[0]
        if path in self.answers:
            return self.answers[path]
        if path.endswith("get-by-name"):
            return Reply.json({"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}})
        if path == "/v1/traces":
            assert request.headers["x-mlflow-experiment-id"] == "7"
            return Reply(headers={"content-type": "application/x-protobuf"})
        return Reply.json({})


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, FakeLLM]]:
    script = Scripted()
    async with FakeLLM(script) as fake:
        yield script, fake


@pytest.mark.parametrize("path", ["/v1/traces", "/api/3.0/mlflow/traces", "/api/2.0/mlflow/experiments/get-by-name"])
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_answers(scripted: tuple[Scripted, FakeLLM], path: str, status: int) -> None:
    script, fake = scripted
    script.answers[path] = Reply(status=status, headers={"retry-after": "4"}, parts=[f"no {KEY}".encode()])
    with pytest.raises(NotDelivered) as caught:
        await sent(Mlflow(endpoint=fake.url, api_key=KEY), [a_record(), a_record()])
    assert (caught.value.retry, caught.value.retry_after_s) == (True, 4.0)
    assert KEY not in str(caught.value)
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in fake.requests)


async def test_a_server_that_takes_no_trace_info(scripted: tuple[Scripted, FakeLLM]) -> None:
    script, fake = scripted
    script.answers["/api/3.0/mlflow/traces"] = Reply(status=404)
    mlflow = Mlflow(endpoint=fake.url, username="u", password=KEY)
    runtime = await sent(mlflow, [a_record()], [a_record()])
    assert dict(runtime.counts) == {("mlflow_trace_info", "404"): 1}
    assert [request.path for request in fake.requests[-2:]] == ["/api/3.0/mlflow/traces", "/v1/traces"]
    assert fake.requests[0].headers["authorization"].startswith("Basic ")


async def test_a_server_without_otlp_says_what_to_do(scripted: tuple[Scripted, FakeLLM]) -> None:
    script, fake = scripted
    script.answers["/v1/traces"] = Reply(status=404)
    with pytest.raises(NotDelivered, match=r"MLflow 3\.6 .* `mode: runs`"):
        await sent(Mlflow(endpoint=fake.url), [a_record()])


async def test_a_bad_trace_info_loses_no_spans(scripted: tuple[Scripted, FakeLLM]) -> None:
    script, fake = scripted
    script.answers["/api/3.0/mlflow/traces"] = Reply.json({"error_code": "BAD"}, status=400)
    runtime = await sent(Mlflow(endpoint=fake.url), [a_record()])
    assert dict(runtime.counts) == {("mlflow_trace_info", "400"): 1}


@pytest.mark.parametrize("uri", ["sqlite:///x.db", "databricks", "file:///tmp/x"])
async def test_uris_of_no_server(uri: str) -> None:
    async with Runtime() as runtime:
        with pytest.raises(SetupError, match="tracking server"):
            await Mlflow(endpoint=uri).start(runtime)
