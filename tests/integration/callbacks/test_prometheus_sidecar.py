"""`/metrics` of the sidecar: on both ports, summed over its workers, closed without the key."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as text_format

from tests.support.processes import sidecar

pytestmark = pytest.mark.slow

MASTER = "sk-master-0123456789"
CONFIG = f"""
model_list: [{{model_name: demo, litellm_params: {{model: mock/demo}}}}]
litellm_settings: {{callbacks: [prometheus]}}
general_settings: {{master_key: {MASTER}}}
"""


def total(page: str, name: str) -> float:
    return sum(sample.value for family in text_format(page) for sample in family.samples if sample.name == name)


def test_calls_of_two_workers_are_on_the_page_of_each(tmp_path: Path) -> None:
    with sidecar(tmp_path, CONFIG, "--workers", "2") as running:
        auth = {"authorization": f"Bearer {MASTER}"}
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
        for _ in range(30):  # a connection each: both workers get some
            with httpx.Client(headers=auth) as client:
                assert client.post(f"{running.url}/v1/chat/completions", json=body).status_code == 200
        deadline, pages = time.monotonic() + 20, [""]
        while any(total(page, "tianji_requests_total") < 30 for page in pages):
            assert time.monotonic() < deadline, pages[0][:2000]
            time.sleep(0.2)
            pages = [
                httpx.get(f"{running.admin_url}/metrics").text,
                httpx.get(f"http://127.0.0.1:{running.admin_port + 1}/metrics").text,
                httpx.get(f"{running.url}/metrics", headers=auth).text,
            ]
        for page in pages:
            assert (
                total(page, "tianji_requests_total") == total(page, "litellm_proxy_total_requests_metric_total") == 30
            )
            assert "tianji_callback_records_total" in page
        assert httpx.get(f"{running.url}/metrics").status_code == 401
        answer = httpx.get(f"{running.admin_url}/metrics", headers={"accept": "application/openmetrics-text"})
        assert {family.name for family in openmetrics(answer.text)} >= {"tianji_requests", "tianji_callback_records"}
