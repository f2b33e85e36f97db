"""From a config in LiteLLM's spelling to the page of metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.support.prometheus_pages import Shown, shown
from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.callbacks.middleware import Callbacks
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.driver import inner_layers
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

CONFIG = """
model_list:
  - model_name: gpt-4o
    litellm_params: {{model: openai/gpt-4o-2024, api_base: '{url}/v1', api_key: sk-key}}
    model_info: {{id: d-1}}
litellm_settings:
  num_retries: 0
  callbacks: ["prometheus"]
  prometheus_emit_stream_label: true
  prometheus_exclude_metrics: [litellm_overhead_latency_metric]
  prometheus_latency_buckets: [0.5, 5, 50]
callback_settings:
  prometheus: {{key_label: true, flush_interval_s: 0.02}}
guardrails:
  - guardrail_name: words
    litellm_params: {{guardrail: litellm_content_filter, mode: pre_call, default_on: true,
                      blocked_words: [{{keyword: "forbidden", action: BLOCK}}]}}
virtual_keys:
  - {{key: sk-caller, alias: ci, team: ml}}
"""
HEADERS = {"authorization": "Bearer sk-caller"}


def prometheus_of(app: Any) -> Prometheus:
    """The callback of a stack."""
    (layer,) = [layer for layer in inner_layers(app) if isinstance(layer, Callbacks)]
    (callback,) = [one.callback for one in layer.destinations if isinstance(one.callback, Prometheus)]
    return callback


async def counted(prometheus: Prometheus, calls: int) -> Shown:
    """The page, once it has so many calls."""
    async with asyncio.timeout(20):
        while (page := await shown(prometheus)).sum("tianji_requests_total") < calls:
            await asyncio.sleep(0.02)
    return page


async def test_calls_are_on_the_page(tmp_path: Path, serve: Serve) -> None:
    path = tmp_path / "config.yaml"
    async with FakeLLM() as llm:
        llm.replies += [
            Reply.json(ANSWER),
            Reply.events(*stream_of("Hello", " you")),
            Reply.json({"error": {"message": "busy"}}, status=500),
        ]
        path.write_text(CONFIG.format(url=llm.url))
        app = await serve(Stack.from_config(path, env={"TIANJI_METRICS_DIR": str(tmp_path / "metrics")}).app)
        prometheus = prometheus_of(app)
        blocked = {**CHAT, "messages": [{"role": "user", "content": "forbidden"}]}
        answers = [
            await drive(app, body, headers=HEADERS)
            for body in (CHAT, STREAM, CHAT, {**CHAT, "model": "made-up"}, blocked)
        ]
        page = await counted(prometheus, len(answers))
    assert [answer.status for answer in answers] == [200, 200, 500, 404, 400]
    ours = {"api": "chat_completions", "team": "ml", "key": "ci"}
    assert page.sum("tianji_requests_total", outcome="ok", model="gpt-4o", provider="openai", **ours) == 2
    assert page.sum("tianji_requests_total", outcome="upstream_error", status="500") == 1
    assert page.sum("tianji_requests_total", model="other", status="404") == 1
    assert page.sum("tianji_requests_total", outcome="blocked", status="400") == 1
    assert page.sum("tianji_tokens_total", type="input") >= 3
    assert page.sum("tianji_time_to_first_token_seconds_count") == 1
    assert page.sum("tianji_upstream_attempts_total", deployment="d-1", status="200") == 2
    assert page.sum("tianji_guardrail_runs_total", guardrail="words", side="input", status="intervened") == 1
    assert page.sum("litellm_proxy_total_requests_metric_total", stream="True", status_code="200") == 1
    assert page.sum("litellm_proxy_failed_requests_metric_total", exception_status="500") == 1
    assert page.sum("litellm_requests_metric_total", requested_model="gpt-4o", team="ml", api_key_alias="ci") == 2
    assert page.sum("tianji_calls_total") == len(answers)
    assert page.sum("tianji_inflight_calls") == 0
    assert "litellm_overhead_latency_metric_bucket" not in page.names()
    assert {one.labels["le"] for one in page.of("litellm_request_total_latency_metric_bucket")} == {
        "0.5", "5.0", "50.0", "+Inf",
    }  # fmt: skip
    assert "made-up" not in page.text
    assert list((tmp_path / "metrics").glob("*.sqlite3"))
