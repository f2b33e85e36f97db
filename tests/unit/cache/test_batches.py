"""Embeddings: every item has an entry of its own, and only what is not known goes upstream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cached import Cached
from tianji_mw.testing import Driven, FakeLLM, Received, Reply

Make = Callable[..., Cached]


def vector(item: Any) -> list[float]:
    return [float(len(str(item))), 0.25, -1e-7]


def embed(request: Received) -> Reply:
    """An upstream whose vectors depend on the text alone."""
    given = request.json["input"]
    items = given if isinstance(given, list) and not (given and isinstance(given[0], int)) else [given]
    data = [{"object": "embedding", "index": at, "embedding": vector(item)} for at, item in enumerate(items)]
    usage = {"prompt_tokens": 10 * len(items), "total_tokens": 10 * len(items)}
    return Reply.json({"object": "list", "data": data[::-1], "model": "embed-1", "usage": usage})


@pytest.fixture
def embedding(llm: FakeLLM) -> FakeLLM:
    llm._default = embed
    return llm


async def post(gateway: Cached, given: Any, **fields: Any) -> Driven:
    return await gateway({"model": "gpt-4o", "input": given, **fields}, path="/v1/embeddings")


async def test_seven_of_ten_are_known(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()
    texts = [f"text {'x' * n}" for n in range(10)]
    await post(gateway, texts[:7])
    found = await post(gateway, texts)
    assert found.headers["x-cache"] == "PARTIAL"
    assert found.headers["x-tianji-cache"] == "partial; reason=hits-7-misses-3"
    assert embedding.requests[-1].json["input"] == texts[7:]
    assert [item["embedding"] for item in found.json["data"]] == [vector(text) for text in texts]
    assert [item["index"] for item in found.json["data"]] == list(range(10))
    assert found.json["usage"] == {"prompt_tokens": 100, "total_tokens": 100}
    assert found.json["model"] == "embed-1"
    again = await post(gateway, texts[::-1])
    assert again.headers["x-cache"] == "HIT"
    assert [item["embedding"] for item in again.json["data"]] == [vector(text) for text in texts[::-1]]
    assert len(embedding.requests) == 2
    assert gateway.cache.stats.report()["total"]["saved_tokens"] == 70 + 100


async def test_one_text_alone_and_in_a_list_are_the_same_item(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()
    await post(gateway, "abc")
    found = await post(gateway, ["abc", "de"])
    assert found.headers["x-cache"] == "PARTIAL"
    assert (await post(gateway, ["abc"])).headers["x-cache"] == "HIT"


async def test_tokens_are_one_item_or_several(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()
    await post(gateway, [1, 2, 3])
    assert (await post(gateway, [[1, 2, 3]])).headers["x-cache"] == "HIT"
    assert (await post(gateway, [[1, 2], [3]])).headers["x-cache"] == "MISS"


@pytest.mark.parametrize("fields", [{"dimensions": 2}, {"encoding_format": "base64"}, {"input_type": "query"}])
async def test_other_parameters_make_other_vectors(embedding: FakeLLM, cached: Make, fields: Any) -> None:
    gateway = cached()
    await post(gateway, ["a"])
    assert (await post(gateway, ["a"], **fields)).headers["x-cache"] == "MISS"
    assert (await post(gateway, ["a"], encoding_format="float")).headers["x-cache"] == "HIT"


async def test_an_answer_of_another_length_is_not_kept(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    short = {"object": "list", "data": [{"index": 0, "embedding": [1.0]}], "model": "m", "usage": {"prompt_tokens": 2}}
    llm.replies += [Reply.json(short), Reply.json(short)]
    assert (await post(gateway, ["a", "b"])).json == short
    assert (await post(gateway, ["a", "b"])).headers["x-cache"] == "MISS"
    assert gateway.app.runtime.counts["cache_not_kept", "embeddings"] == 2


async def test_a_failure_of_the_missing_part_is_the_answer(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()
    await post(gateway, ["a"])
    embedding.replies.append(Reply.json({"error": {"message": "busy"}}, status=503))
    assert (await post(gateway, ["a", "b"])).status == 503
    assert (await post(gateway, ["a", "b"])).status == 200


async def test_equal_batches_at_once_are_one_call(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()

    def slowly(request: Received) -> Reply:
        reply = embed(request)
        reply.delay_s = 0.1
        return reply

    embedding._default = slowly
    found = await asyncio.gather(*(post(gateway, ["a", "b"]) for _ in range(20)))
    assert len(embedding.requests) == 1
    assert len({one.body for one in found}) == 1


async def test_the_same_text_twice_in_a_batch(embedding: FakeLLM, cached: Make) -> None:
    gateway = cached()
    found = await post(gateway, ["a", "bb", "a"])
    assert [item["embedding"] for item in sorted(found.json["data"], key=lambda item: item["index"])] == [
        vector("a"), vector("bb"), vector("a")
    ]  # fmt: skip
    assert (await post(gateway, ["bb", "a"])).headers["x-cache"] == "HIT"
