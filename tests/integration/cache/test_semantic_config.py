"""The semantic cache from YAML: LiteLLM's `redis-semantic` on a real Redis with search, and an embedding deployment."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.cached import answer, ask, counting
from tests.support.redis_servers import Server, redis_server, search_module
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.driver import inner_layers
from tianji_mw.testing import Driven, FakeLLM, Received, Reply, drive

pytestmark = pytest.mark.slow

ASKED, REWORDED = "How do I renew my permit?", "how can I renew my permit"
MASTER = {"authorization": "Bearer sk-master"}
Serve = Callable[[Any], Awaitable[Any]]


def embedding(text: str) -> list[float]:
    """A vector of the text's words."""
    found = [0.001] * 64
    for word in text.lower().replace("?", "").split():
        found[zlib.crc32(word.encode()) % 64] += 1
    return found


def upstream(number: int, request: Received) -> Reply:
    if request.path.endswith("/embeddings"):
        texts = request.json["input"]
        texts = texts if isinstance(texts, list) else [texts]
        data = [{"object": "embedding", "index": at, "embedding": embedding(text)} for at, text in enumerate(texts)]
        return Reply.json(
            {"object": "list", "data": data, "model": "e", "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        )
    return Reply.json(answer(f"This is the long answer of number {number}."))


@pytest.fixture
def answering(llm: FakeLLM) -> FakeLLM:
    llm._default = counting(upstream)
    return llm


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis"), "--loadmodule", search_module()) as server:
        yield server


async def gateway(serve: Serve, llm: FakeLLM, params: Any) -> Any:
    deployment = {"api_base": f"{llm.url}/v1", "api_key": "k"}
    config = {
        "model_list": [
            {"model_name": "gpt-4o", "litellm_params": {"model": "openai/gpt-4o", **deployment}},
            {"model_name": "embed", "litellm_params": {"model": "openai/text-embedding-3-small", **deployment}},
        ],
        "general_settings": {"master_key": "sk-master"},
        "litellm_settings": {"cache": True, "cache_params": params},
    }
    return await serve(compose(loads(orjson.dumps(config).decode(), env={}), env={}).app)


async def settled(app: Any) -> None:
    cache = next(layer for layer in inner_layers(app) if hasattr(layer, "semantic"))
    while cache.semantic._tasks or (cache.writer is not None and cache.writer.waiting()):
        await asyncio.sleep(0.01)


async def said(app: Any, text: str) -> Driven:
    found = await drive(app, ask(text), headers=MASTER)
    await settled(app)
    return found


def chats(llm: FakeLLM) -> int:
    return sum(request.path.endswith("/chat/completions") for request in llm.requests)


async def test_litellms_redis_semantic_shared_by_two_gateways(
    serve: Serve, answering: FakeLLM, searching: Server
) -> None:
    params = {
        "type": "redis-semantic", "host": "127.0.0.1", "port": searching.port, "similarity_threshold": 0.7,
        "redis_semantic_cache_embedding_model": "embed",
    }  # fmt: skip
    one, two = await gateway(serve, answering, params), await gateway(serve, answering, params)
    first = await said(one, ASKED)
    for _ in range(50):
        second = await said(two, REWORDED)
        if second.headers["x-cache"] == "HIT":
            break
        await asyncio.sleep(0.05)
    assert (second.headers["x-cache"], second.headers["x-cache-type"]) == ("HIT", "semantic")
    assert second.body == first.body
    assert float(second.headers["x-litellm-semantic-similarity"]) > 0.7
    assert (await said(two, "How do I revoke my permit?")).headers["x-cache"] == "MISS"


async def test_embeddings_go_through_the_deployment(serve: Serve, answering: FakeLLM) -> None:
    semantic = {"similarity_threshold": 0.7, "embedder": {"type": "api", "model": "embed"}}
    app = await gateway(serve, answering, {"type": "local", "semantic": semantic})
    await said(app, ASKED)
    assert (await said(app, REWORDED)).headers["x-cache-type"] == "semantic"
    asked = [request for request in answering.requests if request.path.endswith("/embeddings")]
    assert {request.json["model"] for request in asked} == {"text-embedding-3-small"}
    assert all(request.headers["authorization"] == "Bearer k" for request in asked)
    assert chats(answering) == 1


async def test_a_deployment_that_fails_costs_no_call(serve: Serve, answering: FakeLLM) -> None:
    semantic = {"similarity_threshold": 0.7, "embedder": {"type": "api", "model": "embed"}}
    app = await gateway(serve, answering, {"type": "local", "semantic": semantic})

    def failing(request: Received) -> Reply:
        if request.path.endswith("/embeddings"):
            return Reply.json({"error": {"message": "down"}}, status=503)
        return Reply.json(answer())

    answering._default = failing
    for number in range(5):
        assert (await said(app, f"{ASKED} {number}")).status == 200
    assert app.runtime.counts["semantic_errors", "embed"] == 3
    assert app.runtime.counts["semantic_errors", "left-alone"] == 2


async def test_the_packaged_model_and_an_index_that_survives(serve: Serve, answering: FakeLLM, tmp_path: Path) -> None:
    params = {
        "type": "disk", "disk_cache_dir": str(tmp_path / "answers"),
        "semantic": {"similarity_threshold": 0.8, "within_s": 5, "index": {"path": str(tmp_path / "index")}},
    }  # fmt: skip
    from tianji_mw.testing import started

    async with started(await unserved(answering, params)) as app:
        await said(app, ASKED)
    async with started(await unserved(answering, params)) as app:
        assert (await said(app, REWORDED)).headers["x-cache-type"] == "semantic"
    assert chats(answering) == 1


async def unserved(llm: FakeLLM, params: Any) -> Any:
    async def as_it_is(app: Any) -> Any:
        return app

    return await gateway(as_it_is, llm, params)
