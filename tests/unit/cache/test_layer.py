"""The layer: what is answered from the cache, what is kept in it, and what it tells of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import pytest

from tests.support.cached import Cached, answer, ask
from tianji_mw.testing import FakeLLM, Reply

Make = Callable[..., Cached]


async def test_the_second_answer_costs_no_upstream_call(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    body = orjson.dumps(answer("Hello there", extra=[1.50, 2])) + b" "
    llm.replies.append(Reply(headers={"content-type": "application/json"}, parts=[body]))
    first, second = await gateway(ask()), await gateway(ask())
    assert (first.body, second.body) == (body, body)
    assert len(llm.requests) == 1
    assert first.headers["x-cache"] == "MISS"
    assert second.headers["x-cache"] == "HIT"
    assert second.headers["x-cache-type"] == "exact"
    assert second.headers["age"] == "0"
    assert second.headers["x-litellm-response-cost"] == "0"
    assert second.headers["x-tianji-cache"] == "hit; exact; age=0"
    assert first.headers["x-litellm-cache-key"] == second.headers["x-litellm-cache-key"]
    assert second.headers["content-length"] == str(len(body))


async def test_the_same_request_spelled_otherwise_is_a_hit(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(Reply.json(answer()))
    await gateway(ask(temperature=1, seed=3, user="a", metadata={"x": 1}))
    spelled = b'{ "seed": 3.0, "messages": [ {"content": "hello", "role": "user"} ], "top_p": 1.0, "model": "gpt-4o" }'
    assert (await gateway(spelled)).headers["x-cache"] == "HIT"


@pytest.mark.parametrize(
    "other",
    [ask("hello!"), ask(temperature=0.5), ask(seed=1), ask(tools=[{"type": "function"}]), ask(n=2), ask(top_k=1),
     {**ask(), "messages": [{"role": "system", "content": "hello"}]}],
)  # fmt: skip
async def test_another_request_is_not(llm: FakeLLM, cached: Make, other: Any) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer("one")), Reply.json(answer("two"))]
    await gateway(ask())
    assert (await gateway(other)).json["choices"][0]["message"]["content"] == "two"


NOT_KEPT = [
    answer(reason="content_filter"),
    answer(reason="length"),
    answer(""),
    {**answer(), "choices": []},
    {**answer(), "choices": [{"index": 0, "finish_reason": "stop"}]},
]


@pytest.mark.parametrize("first", NOT_KEPT, ids=["filtered", "cut", "empty", "no-choice", "no-message"])
async def test_what_is_no_proper_answer_is_not_kept(llm: FakeLLM, cached: Make, first: Any) -> None:
    gateway = cached()
    llm.replies += [Reply.json(first), Reply.json(answer("two"))]
    assert (await gateway(ask())).json == first
    assert (await gateway(ask())).json["choices"][0]["message"]["content"] == "two"
    assert gateway.app.runtime.counts["cache_not_kept", "chat_completions"] == 1


async def test_a_length_that_the_request_set_is_no_cut(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies.append(Reply.json(answer(reason="length")))
    await gateway(ask(max_tokens=5))
    assert (await gateway(ask(max_tokens=5))).headers["x-cache"] == "HIT"


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_errors_are_not_kept(llm: FakeLLM, cached: Make, status: int) -> None:
    gateway = cached()
    llm.replies += [Reply.json({"error": {"message": "no", "type": "t"}}, status=status), Reply.json(answer())]
    failed = await gateway(ask())
    assert failed.status >= 400
    assert failed.headers["x-cache"] == "MISS"
    assert (await gateway(ask())).status == 200
    assert (await gateway(ask())).headers["x-cache"] == "HIT"


async def test_the_controls_of_a_request(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer(str(n))) for n in range(9)]

    async def said(**options: Any) -> str:
        body = ask(**({"cache": options.pop("cache")} if "cache" in options else {}))
        text: str = (await gateway(body, **options)).json["choices"][0]["message"]["content"]
        return text

    assert await said(cache={"no-store": True}) == "0"
    assert await said() == "1"
    assert await said() == "1"
    assert await said(cache={"no-cache": True}) == "2"
    assert await said() == "2", "no-cache does not read, and stores"
    assert await said(headers={"cache-control": "no-cache"}) == "3"
    assert await said(cache={"namespace": "mine"}) == "4"
    assert await said(cache={"namespace": "mine"}) == "4"
    assert await said(cache={"s-maxage": 0}) == "5"
    assert await said(headers={"cache-control": "max-age=100"}) == "5"
    assert await said(cache={"no-cache": True, "no-store": True}) == "6"
    assert all("cache" not in request.json for request in llm.requests), "it is no field of the provider's"


async def test_entries_grow_old(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(ttl_s=100)
    llm.replies += [Reply.json(answer(str(n))) for n in range(4)]
    await gateway(ask())
    runtime = gateway.app.runtime
    runtime.wall = gateway.wall
    await gateway(ask("b"))
    gateway.wall.now += 60
    found = await gateway(ask("b"))
    assert found.headers["age"] == "60"
    assert (await gateway(ask("b", cache={"s-maxage": 59}))).headers["x-cache"] == "MISS"
    gateway.wall.now += 101
    assert (await gateway(ask("b"))).headers["x-cache"] == "MISS"


async def test_off_by_default_where_the_config_says_so(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(default_on=False)
    llm.replies += [Reply.json(answer(str(n))) for n in range(3)]
    assert (await gateway(ask())).headers["x-tianji-cache"] == "bypass; reason=not-asked"
    asked = ask(cache={"use-cache": True})
    await gateway(asked)
    assert (await gateway(asked)).headers["x-cache"] == "HIT"
    assert (await gateway(ask())).headers["x-cache"] == "BYPASS"


@pytest.mark.parametrize(
    "content",
    [[{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}], [{"type": "image_url", "image_url": "HTTP://x/y"}],
     [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]],
)  # fmt: skip
async def test_what_an_address_shows_may_change(llm: FakeLLM, cached: Make, content: Any) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer())] * 2
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": content}]}
    assert (await gateway(request)).headers["x-tianji-cache"] == "bypass; reason=remote-media"
    assert (await gateway(request)).headers["x-cache"] == "BYPASS"


async def test_wrong_controls_are_a_clear_error(cached: Make) -> None:
    refused = await cached()(ask(cache={"ttl": "soon"}))
    assert refused.status == 400
    assert refused.json["error"]["param"] == "cache"


async def test_an_answer_that_is_too_large_is_delivered_and_not_kept(llm: FakeLLM, cached: Make) -> None:
    gateway = cached(max_item_bytes=1000)
    llm.replies += [Reply.json(answer("x" * 5000)), Reply.json(answer("y" * 5000))]
    assert "x" * 5000 in (await gateway(ask())).body.decode()
    assert "y" * 5000 in (await gateway(ask())).body.decode()


async def test_statistics(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer())] * 3
    for _ in range(3):
        await gateway(ask())
    await gateway(ask("other"))
    total = gateway.cache.stats.report()["total"]
    assert (total["hits"], total["misses"], total["hit_rate"]) == (2, 2, 0.5)
    assert total["saved_tokens"] == 24
    assert total["bytes"] == 2 * len(orjson.dumps(answer()))
    assert gateway.cache.stats.report()["by_model"]["gpt-4o"]["hits"] == 2


async def test_other_paths_are_not_touched(llm: FakeLLM, cached: Make) -> None:
    models = await cached()(None, path="/v1/models", method="GET")
    assert "x-cache" not in models.headers
