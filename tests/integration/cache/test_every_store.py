"""Every type of cache from LiteLLM's YAML, in sidecars over HTTP, on the real server or its emulator.

What one sidecar was answered, another one with the same config knows; where the store is one process's own, it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cache_stores import azure_blob, cluster, dual, gcs, redis, s3
from tests.support.cached import answer, counting
from tests.support.processes import Running, sidecar
from tests.support.redis_servers import redis_server, search_module
from tianji_mw.cache.azure_blob import AzureBlob
from tianji_mw.cache.gcs import Gcs
from tianji_mw.cache.redis import RedisStore
from tianji_mw.cache.s3 import S3
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

ASKED, REWORDED = "How do I renew my permit?", "how can I renew my permit"
Params = Callable[[ExitStack, Path], dict[str, Any]]


def of_disk(stack: ExitStack, folder: Path) -> dict[str, Any]:
    return {"type": "disk", "disk_cache_dir": str(folder / "answers")}


def of_redis(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = redis(stack, folder)()
    assert isinstance(store, RedisStore)
    return {"type": "redis", "host": "127.0.0.1", "port": store.port}


def of_cluster(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = cluster(stack, folder)()
    assert isinstance(store, RedisStore)
    nodes = [{"host": host, "port": str(port)} for host, port in store.startup_nodes]
    return {"type": "redis-cluster", "redis_startup_nodes": nodes}


def of_dual(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = dual(stack, folder)()
    assert isinstance(store, RedisStore)
    return {"type": "dual", "url": f"redis://127.0.0.1:{store.port}/0"}


def of_s3(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = s3(stack, folder)()
    assert isinstance(store, S3)
    assert store.access_key_id is not None
    assert store.secret_access_key is not None
    return {
        "type": "s3", "s3_bucket_name": store.bucket, "s3_path": "a/b", "s3_region_name": store.region,
        "s3_endpoint_url": store.endpoint_url, "s3_aws_access_key_id": store.access_key_id.reveal(),
        "s3_aws_secret_access_key": store.secret_access_key.reveal(),
    }  # fmt: skip


def of_gcs(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = gcs(stack, folder)()
    assert isinstance(store, Gcs)
    return {"type": "gcs", "gcs_bucket_name": store.bucket, "gcs_path": "cache", "endpoint_url": store.endpoint_url}


def of_azure(stack: ExitStack, folder: Path) -> dict[str, Any]:
    store = azure_blob(stack, folder)()
    assert isinstance(store, AzureBlob)
    assert store.account_key is not None
    return {
        "type": "azure-blob", "azure_account_url": store.endpoint_url, "azure_blob_container": store.container,
        "azure_storage_account_name": store.account, "azure_storage_account_key": store.account_key.reveal(),
    }  # fmt: skip


STORES: tuple[Params, ...] = (of_disk, of_redis, of_cluster, of_dual, of_s3, of_gcs, of_azure)


@pytest.fixture
def answering(llm: FakeLLM) -> FakeLLM:
    llm._default = counting(lambda number, request: Reply.json(answer(f"This is the long answer of number {number}.")))
    return llm


def config(llm: FakeLLM, params: dict[str, Any]) -> str:
    deployment = {"model": "openai/gpt-4o", "api_base": f"{llm.url}/v1", "api_key": "k"}
    return json.dumps(
        {
            "model_list": [{"model_name": "gpt-4o", "litellm_params": deployment}],
            "general_settings": {"drain_delay_s": 0},
            "litellm_settings": {"cache": True, "cache_params": {"ttl": 600, "namespace": "ours", **params}},
        }
    )


async def said(running: Running, text: str) -> httpx.Response:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    async with httpx.AsyncClient(timeout=20) as client:
        found = await client.post(f"{running.url}/v1/chat/completions", json=body)
    found.raise_for_status()
    return found


@pytest.mark.parametrize("params", STORES, ids=lambda params: params.__name__.removeprefix("of_"))
async def test_what_one_sidecar_keeps_another_one_gives(answering: FakeLLM, tmp_path: Path, params: Params) -> None:
    with ExitStack() as stack:
        text = config(answering, params(stack, tmp_path))
        with sidecar(tmp_path, text) as one:
            first = await said(one, ASKED)
            assert first.headers["x-cache"] == "MISS"
        with sidecar(tmp_path, text) as two:
            second = await said(two, ASKED)
            assert (second.headers["x-cache"], second.content) == ("HIT", first.content)
            gone = httpx.post(f"{two.admin_url}/-/cache/purge", json={"model_group": "gpt-4o"}).json()
            assert gone == {"status": "success", "deleted": 1}
            assert (await said(two, ASKED)).headers["x-cache"] == "MISS"
    assert len(answering.requests) == 2


def of_memory(stack: ExitStack, folder: Path) -> dict[str, Any]:
    return {"type": "local", "semantic": {"similarity_threshold": 0.8, "within_s": 5}}


def of_redis_semantic(stack: ExitStack, folder: Path) -> dict[str, Any]:
    server = stack.enter_context(redis_server(folder, "--loadmodule", search_module()))
    where = {"host": "127.0.0.1", "port": server.port}
    return {"type": "redis-semantic", **where, "similarity_threshold": 0.8, "semantic": {"within_s": 5}}


@pytest.mark.parametrize("params", [of_memory, of_redis_semantic])
async def test_other_words_with_the_packaged_model(answering: FakeLLM, tmp_path: Path, params: Params) -> None:
    with ExitStack() as stack, sidecar(tmp_path, config(answering, params(stack, tmp_path))) as running:
        first = await said(running, ASKED)
        for number in range(2, 20):  # it is kept in the background; a question that came too soon is asked upstream
            second = await said(running, REWORDED + "?" * number)
            if second.headers["x-cache"] == "HIT":
                break
        assert (second.headers["x-cache-type"], second.content) == ("semantic", first.content)
        assert (await said(running, "How do I revoke my permit?")).headers["x-cache"] == "MISS"
        semantic = httpx.get(f"{running.admin_url}/-/cache").json()["semantic"]
        assert semantic["index"]["points"] >= 1
        assert semantic["embedder"]["dims"] == 384


def test_a_redis_without_search_stops_the_start(answering: FakeLLM, tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        params = {"type": "redis-semantic", "host": "127.0.0.1", "port": server.port, "similarity_threshold": 0.8}
        with (
            pytest.raises(AssertionError, match="no search module; use Redis 8"),
            sidecar(tmp_path, config(answering, params)),
        ):
            pass
