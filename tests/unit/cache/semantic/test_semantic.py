"""The semantic part in a gateway: what is given, what is never given, and what is learned."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support.cached import TOOL_CALL, Cached, answer, ask, counting, stream
from tests.support.semantic_cases import Words, semantic, settled
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.cache.purge import Purge, purge
from tianji_mw.errors import SetupError
from tianji_mw.testing import FakeLLM, Reply

Make = Callable[..., Cached]
ASKED, REWORDED = "How do I renew my permit?", "how can I renew my permit"


@pytest.fixture
async def make(llm: FakeLLM) -> AsyncIterator[Make]:
    llm._default = counting(lambda number, request: Reply.json(answer(f"This is the long answer of number {number}.")))
    made: list[Cached] = []

    def one(**options: Any) -> Cached:
        made.append(semantic(llm, **options))
        return made[-1]

    yield one
    for gateway in made:
        await gateway.cache.aclose()
        await gateway.aclose()


async def both(gateway: Cached, first: Any, second: Any, **options: Any) -> str:
    """What the second one got."""
    await gateway(first, **options)
    await settled(gateway)
    found = await gateway(second, **options)
    await settled(gateway)
    return f"{found.headers['x-cache']} {found.headers.get('x-cache-type', '')}".strip()


async def test_other_words_get_the_same_answer(llm: FakeLLM, make: Make) -> None:
    gateway = make(similarity_threshold=0.7)
    assert await both(gateway, ask(ASKED), ask(REWORDED)) == "HIT semantic"
    found = await gateway(ask(REWORDED))
    assert float(found.headers["x-litellm-semantic-similarity"]) > 0.7
    assert found.headers["x-tianji-cache"] == "hit; semantic; age=0"
    assert len(llm.requests) == 1
    assert gateway.cache.stats.report()["total"]["semantic_hits"] == 2


async def test_in_either_form(llm: FakeLLM, make: Make) -> None:
    gateway = make(similarity_threshold=0.7)
    assert (
        await both(gateway, ask(ASKED), ask(REWORDED, stream=True, stream_options={"include_usage": True}))
        == "HIT semantic"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ask(ASKED), ask("How do I renew my passport?")),
        (ask(ASKED), ask("How do I not renew my permit?")),
        (ask(ASKED), ask(REWORDED, temperature=0.2)),
        (ask(ASKED), ask(REWORDED, seed=4)),
        (ask(ASKED), ask(REWORDED, response_format={"type": "json_object"})),
        (ask(ASKED, temperature=0.9), ask(REWORDED, temperature=0.9)),
        (ask(ASKED, n=2), ask(REWORDED, n=2)),
        (ask(ASKED, tools=[{"type": "function"}]), ask(REWORDED, tools=[{"type": "function"}])),
        (ask(ASKED, cache={"namespace": "a"}), ask(REWORDED)),
        (ask("What is the weather in Bonn?"), ask("what is the weather in bonn")),
    ],
    ids=["word", "negation", "temperature", "seed", "format", "creative", "several", "tools", "namespace", "volatile"],
)
async def test_what_may_not_share_an_answer(llm: FakeLLM, make: Make, first: Any, second: Any) -> None:
    assert await both(make(similarity_threshold=0.5), first, second) == "MISS"
    assert len(llm.requests) == 2


async def test_tenants_never_share(llm: FakeLLM, make: Make) -> None:
    gateway = make(similarity_threshold=0.5, keys=True)
    await gateway(ask(ASKED), key="red/a")
    await settled(gateway)
    assert (await gateway(ask(REWORDED), key="blue/a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(REWORDED), key="a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(REWORDED), key="red/b")).headers["x-cache"] == "HIT"


async def test_system_prompts_keep_answers_apart(make: Make) -> None:
    def said(text: str, system: str) -> Any:
        return {**ask(), "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}]}

    gateway = make(similarity_threshold=0.5)
    assert await both(gateway, said(ASKED, "Be brief."), said(REWORDED, "Be rude.")) == "MISS"
    assert await both(gateway, said(ASKED, "Be kind."), said(REWORDED, "Be kind.")) == "HIT semantic"


async def test_calls_of_tools_are_not_given_to_other_words(llm: FakeLLM, make: Make) -> None:
    gateway = make(similarity_threshold=0.5, allow_tools=True)
    llm.replies.append(Reply.json(answer("", "tool_calls", tool_calls=[TOOL_CALL])))
    tools = [{"type": "function", "function": {"name": "weather"}}]
    assert await both(gateway, ask(ASKED, tools=tools), ask(REWORDED, tools=tools)) == "MISS"


async def test_answers_that_stopped_short_are_not_given(llm: FakeLLM, make: Make) -> None:
    llm.replies.append(stream(cut_after=300))
    assert await both(make(similarity_threshold=0.5), ask(ASKED, stream=True), ask(REWORDED, stream=True)) == "MISS"


async def test_an_answer_that_is_gone_is_forgotten(llm: FakeLLM, make: Make) -> None:
    gateway = make(similarity_threshold=0.5)
    await gateway(ask(ASKED))
    await settled(gateway)
    assert gateway.cache.shelf is not None
    async for key in gateway.cache.shelf.keys(""):
        await gateway.cache.shelf.delete([key])
    assert (await gateway(ask(REWORDED))).headers["x-cache"] == "MISS"
    await settled(gateway)
    assert (await gateway.cache.semantic.search.index.report())["points"] == 1


@pytest.mark.parametrize("trouble", [{"fails": True}, {"delay_s": 1.0}, {"truncates": True}])
async def test_an_embedder_in_trouble_costs_no_call(llm: FakeLLM, make: Make, trouble: Any) -> None:
    gateway = make(embedder=Words(**trouble), similarity_threshold=0.5, within_s=0.02)
    for number in range(6):
        assert (await gateway(ask(f"{ASKED} {number}"))).status == 200
    counts = gateway.app.runtime.counts
    if "truncates" in trouble:
        assert counts["semantic_bypassed", "truncated"] == 6
    else:
        assert counts["semantic_errors", "left-alone"] == 3, "after three failures in a row nobody waits for it"
        assert "semantic cache" in gateway.app.runtime.degraded


async def test_an_index_in_trouble_costs_no_call_and_is_opened_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, fails = make(similarity_threshold=0.5), True
    opened = Embedded.start

    async def start(self: Embedded, runtime: Any, **model: Any) -> None:
        if fails:
            raise SetupError("it has no search module")
        await opened(self, runtime, **model)

    monkeypatch.setattr(Embedded, "start", start)
    assert (await gateway(ask(ASKED))).status == 200
    assert gateway.app.runtime.degraded["semantic cache"] == "it has no search module"
    assert (await gateway.cache.semantic.report())["index"] == {"error": "the index is not open"}
    with pytest.raises(StoreFailed, match="the index is not open"):
        await purge(gateway.cache, Purge())
    fails = False
    assert await both(gateway, ask(ASKED + " "), ask(REWORDED)) == "HIT semantic"
    assert "semantic cache" not in gateway.app.runtime.degraded


async def test_shadow_compares_and_gives_nothing(llm: FakeLLM, make: Make) -> None:
    gateway = make(mode="shadow", similarity_threshold=0.7)
    llm.replies += [Reply.json(answer("The fee is the same in all of our offices, whatever day it is."))] * 2
    llm.replies.append(Reply.json(answer("There is no fee at all, and there has never been one, anywhere here.")))
    assert await both(gateway, ask(ASKED), ask(REWORDED)) == "MISS"
    await gateway(ask("So how could I renew my permit?"))
    await settled(gateway)
    report = await gateway.cache.semantic.report()
    assert (report["would_hit"], report["verified"], report["wrong"]) == (2, 2, 1)
    assert 0.9 < report["error_at_most"] <= 1
    assert len(llm.requests) == 3


async def test_strict_until_enough_was_verified(llm: FakeLLM, make: Make) -> None:
    """120 questions in two wordings: nothing is given at first, and what was verified opens the way."""
    gateway = make(error_budget=0.3, neighbours=200)
    subjects = [f"{first}{second}" for first in "abcdefghijkl" for second in "mnopqrstuv"]
    llm._default = lambda request: Reply.json(answer(request.json["messages"][0]["content"].split()[-1].strip("?")))
    first_hit = None
    for number, subject in enumerate(subjects * 3):
        wording = ("Where is the office of", "where's the office of", "So, where is the office of")[
            number // len(subjects)
        ]
        found = await gateway(ask(f"{wording} {subject}?"))
        await settled(gateway)
        if found.headers["x-cache"] == "HIT":
            first_hit = first_hit or number
            assert found.json["choices"][0]["message"]["content"] == subject
    assert first_hit is not None
    assert first_hit >= 100
    report = next(iter((await gateway.cache.semantic.report())["namespaces"].values()))
    assert report["verified"] >= 100


async def test_what_was_learned_is_kept(llm: FakeLLM, make: Make) -> None:
    gateway = make(error_budget=0.3, neighbours=64)
    for number in range(40):
        for wording in ("Where is the office of", "where's the office of"):
            await gateway(ask(f"{wording} a{number}?"))
            await settled(gateway)
    assert gateway.cache.shelf is not None
    kept = [key async for key in gateway.cache.shelf.keys("")]
    assert any(key.endswith(":learned") for key in kept)


async def test_a_hundred_equal_questions_are_embedded_once(llm: FakeLLM, make: Make) -> None:
    embedder = Words(delay_s=0.05)
    gateway = make(embedder=embedder, similarity_threshold=0.7)
    await gateway(ask(ASKED))
    await settled(gateway)
    embedder._texts.clear()
    found = await asyncio.gather(*(gateway(ask(REWORDED)) for _ in range(100)))
    assert {one.headers["x-cache"] for one in found} == {"HIT"}
    assert len(embedder._texts) == 1
    assert len(llm.requests) == 1
