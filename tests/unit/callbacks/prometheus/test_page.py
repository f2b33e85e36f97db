"""The page of `prometheus`, and several processes behind it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.prometheus_cases import served, tianji
from tests.support.prometheus_pages import OPENMETRICS, running, shown
from tests.support.records import START, a_failure
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.metrics.store import StoreError
from tianji_mw.callbacks.prometheus import Prometheus
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

# --- the page


async def test_openmetrics_has_exemplars_with_the_trace() -> None:
    unsampled = served(tianji=tianji(sampled=False, attempts=[]), endTime=START + 100)
    async with running() as prometheus:
        await prometheus.write([served(), unsampled])
        _, content_type = await asyncio.to_thread(prometheus.render, OPENMETRICS)
        page = await shown(prometheus, OPENMETRICS)
        plain = await shown(prometheus)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert page.text.endswith("# EOF\n")
    (one,) = [sample for sample in page.of("tianji_request_duration_seconds_bucket") if sample.exemplar]
    assert one.labels["le"] == "1.0"
    assert one.exemplar is not None
    assert one.exemplar.labels == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert one.exemplar.value == pytest.approx(0.82, abs=1e-5)
    assert one.exemplar.timestamp is not None
    assert float(one.exemplar.timestamp) == pytest.approx(START + 0.82, abs=1e-3)
    assert "trace_id" not in plain.text


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        # Prometheus 2 and 3.
        (f"{OPENMETRICS},*/*;q=0.1", "application/openmetrics-text; version=1.0.0; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;q=0.4",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
async def test_the_format_is_the_one_that_was_asked_for(accept: str, content_type: str) -> None:
    async with running() as prometheus:
        body, found = await asyncio.to_thread(prometheus.render, accept)
    assert found == content_type
    assert body.endswith(b"# EOF\n") == ("openmetrics" in found)


async def test_a_page_is_made_once_for_all_who_ask_at_once() -> None:
    async with running() as prometheus:
        first, _ = await asyncio.to_thread(prometheus.render)
        await prometheus.write([served()])
        again, _ = await asyncio.to_thread(prometheus.render)
        other, _ = await asyncio.to_thread(prometheus.render, OPENMETRICS)
    assert again is first
    assert b"tianji_requests_total" in other


async def test_the_page_over_http() -> None:
    import httpx
    from starlette.applications import Starlette
    from starlette.routing import Mount, Route

    async with running() as prometheus:
        await prometheus.write([served()])
        metrics = prometheus.metrics_app()
        app = Starlette(routes=[Route("/metrics", metrics), Mount("/sub", metrics)])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client:
            for path in ("/metrics", "/sub/"):
                response = await client.get(path)
                assert response.status_code == 200
                assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert "tianji_requests_total" in response.text
            await prometheus.aclose()
            prometheus._pages = {}
            assert (await client.get("/metrics")).status_code == 503


async def test_it_is_nothing_before_its_start_and_after_its_end() -> None:
    prometheus = Prometheus()
    with pytest.raises(NotDelivered, match="not started"):
        await prometheus.write([served()])
    with pytest.raises(StoreError, match="not running"):
        prometheus.render()
    await prometheus.aclose()


def test_nothing_is_imported_or_registered_before_the_start() -> None:
    code = (
        "import sys; from tianji_mw.callbacks.prometheus import Prometheus; Prometheus();"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_nothing_is_global() -> None:
    from prometheus_client import REGISTRY

    async with running() as one, running() as two:
        await one.write([served()])
        assert (await shown(two)).sum("tianji_requests_total") == 0
    assert not [name for name in REGISTRY._names_to_collectors if re.match("tianji|litellm", name)]


# --- several processes


async def test_several_share_a_folder_and_each_shows_the_sum(tmp_path: Path) -> None:
    now = [START]
    runtimes = [Runtime(wall=lambda: now[0]) for _ in range(3)]
    async with (
        running(runtimes[0], multiproc_dir=tmp_path) as one,
        running(runtimes[1], multiproc_dir=tmp_path) as two,
    ):
        async with running(runtimes[2], multiproc_dir=tmp_path) as three:
            for runtime, prometheus in zip(runtimes, (one, two, three), strict=True):
                runtime.inflight = 2
                runtime.count("calls", "messages ok", 3)
                runtime.report("cache", "slow")
                await prometheus.write([served(), a_failure()])
                await shown(prometheus)
            for prometheus in (one, two, three):
                page = await shown(prometheus)
                assert page.sum("tianji_requests_total") == 6
                assert page.sum("tianji_calls_total") == 9
                assert page.sum("tianji_request_duration_seconds_count") == 6
                assert page.sum("tianji_inflight_calls") == 6
                assert page.sum("tianji_degraded", who="cache") == 1
        page = await shown(one)
        assert page.sum("tianji_requests_total") == 6
        assert page.sum("tianji_inflight_calls") == 4
        # The second one says nothing any more, as if it had been killed.
        two._told_at = now[0] = START + 60
        page = await shown(one)
        assert page.sum("tianji_inflight_calls") == 2
        assert page.sum("tianji_calls_total") == 9


async def test_another_config_begins_anew_and_damaged_files_are_left_aside(tmp_path: Path) -> None:
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
    async with running(multiproc_dir=tmp_path, latency_buckets=[1, 2]) as prometheus:
        assert (await shown(prometheus)).sum("tianji_requests_total") == 0
    async with running(multiproc_dir=tmp_path) as prometheus:
        assert (await shown(prometheus)).sum("tianji_requests_total") == 1
    for file in tmp_path.iterdir():
        file.write_bytes(b"not a database at all" * 100)
    async with running(multiproc_dir=tmp_path) as prometheus:
        await prometheus.write([served()])
        assert (await shown(prometheus)).sum("tianji_requests_total") == 1
    # prometheus-client would read these as its own.
    assert not list(tmp_path.glob("*.db"))


async def test_a_folder_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="folder of the metrics"):
        async with running(multiproc_dir=tmp_path / "file"):
            pass


async def test_ids_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tianji_mw.callbacks.metrics.store.REMEMBERED", 3)
    records = [served() for _ in range(5)]
    async with running() as prometheus:
        await prometheus.write(records)
        store = prometheus._store
        assert store is not None
        assert store.fresh([record.id for record in records]) == {record.id for record in records[:2]}
