"""Taking answers out: what meets every condition goes, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest

from tests.support.cached import Cached, answer, ask
from tests.support.semantic_cases import semantic, settled
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.entry import Entry
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.purge import Purge, purge
from tianji_mw.testing import FakeLLM, Reply

Make = Callable[..., Cached]


@pytest.fixture
async def filled(llm: FakeLLM, cached: Make) -> Cached:
    """Answers of two teams, of two namespaces, of two questions each."""
    llm._default = lambda request: Reply.json(answer())
    gateway = cached(keys=True)
    for team in ("red", "blue"):
        for question in ("a", "b"):
            await gateway(ask(question), key=f"{team}/k")
            await gateway(ask(question, cache={"namespace": "mine"}), key=f"{team}/k")
    return gateway


async def left(gateway: Cached) -> int:
    assert gateway.cache.shelf is not None
    return len([key async for key in gateway.cache.shelf.keys("")])


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        (Purge(), 8),
        (Purge(tenant=("team", "red")), 4),
        (Purge(tenant=("team", "green")), 0),
        (Purge(model="gpt-4o"), 8),
        (Purge(model="gpt-5"), 0),
        (Purge(namespace="mine"), 4),
        (Purge(namespace="mine", tenant=("team", "red")), 2),
        (Purge(tag="x"), 0),
        (Purge(keys=("tianji:no:such:key:x", "other:key")), 0),
    ],
)
async def test_conditions(filled: Cached, wanted: Purge, gone: int) -> None:
    assert await purge(filled.cache, wanted) == gone
    assert await left(filled) == 8 - gone


async def test_by_key(filled: Cached) -> None:
    found = await filled(ask("a"), key="red/k")
    key = found.headers["x-litellm-cache-key"]
    assert await purge(filled.cache, Purge(keys=(key,))) == 1
    assert (await filled(ask("a"), key="red/k")).headers["x-cache"] == "MISS"
    assert (await filled(ask("b"), key="red/k")).headers["x-cache"] == "HIT"


async def test_what_others_keep_in_the_same_store_stays(filled: Cached) -> None:
    assert filled.cache.shelf is not None
    await filled.cache.shelf.put("theirs:1", b"x", 60)
    await purge(filled.cache, Purge())
    assert await left(filled) == 1


async def test_an_answer_on_its_way_is_not_kept(llm: FakeLLM, cached: Make) -> None:
    gateway = cached()
    llm.replies += [Reply.json(answer(), delay_s=0.2), Reply.json(answer())]
    running: Any = asyncio.create_task(gateway(ask()))
    await asyncio.sleep(0.1)
    await purge(gateway.cache, Purge())
    assert (await running).status == 200
    assert (await gateway(ask())).headers["x-cache"] == "MISS"


async def test_neighbours_go_with_their_answers(llm: FakeLLM) -> None:
    llm._default = lambda request: Reply.json(answer("A long answer that says what there is to say."))
    gateway = semantic(llm, similarity_threshold=0.5)
    await gateway(ask("How do I renew my permit?"))
    await settled(gateway)
    assert gateway.cache.semantic is not None
    assert (await gateway.cache.semantic.search.index.report())["points"] == 1
    await purge(gateway.cache, Purge())
    assert (await gateway.cache.semantic.search.index.report())["points"] == 0
    assert (await gateway(ask("how can I renew my permit"))).headers["x-cache"] == "MISS"
    await gateway.cache.aclose()
    await gateway.aclose()


async def test_a_key_of_another_tenant_stays(filled: Cached) -> None:
    key = (await filled(ask("a"), key="red/k")).headers["x-litellm-cache-key"]
    assert await purge(filled.cache, Purge(keys=(key,), tenant=("team", "blue"))) == 0
    assert await purge(filled.cache, Purge(keys=(key,), tenant=("team", "red"), model="gpt-4o")) == 1


async def test_by_tag(filled: Cached) -> None:
    at = filled.wall.now
    for number in range(40):
        tags = ("a", "b") if number % 4 == 0 else ("b",)
        entry = Entry(
            body=b"{}", form="whole", content_type=b"application/json", api="chat_completions", model="m", created=at,
            fresh_s=60, tags=tags,
        )  # fmt: skip
        await filled.cache.put(f"tianji:t:s:m:{number}", entry)
    assert await purge(filled.cache, Purge(tag="a")) == 10
    assert await left(filled) == 8 + 30


class Slow(Memory):
    """Writes take a time, and deletes fail on demand."""

    instant: ClassVar[bool] = False
    broken: ClassVar[bool] = False

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        await asyncio.sleep(0.1)
        await super().put(key, value, ttl_s)

    async def delete(self, keys: Sequence[str]) -> int:
        if self.broken:
            raise StoreFailed("it is full of water")
        return await super().delete(keys)


class Broken(Slow):
    """Cannot delete."""

    broken: ClassVar[bool] = True


async def test_what_is_being_written_goes_too(llm: FakeLLM, cached: Make) -> None:
    llm._default = lambda request: Reply.json(answer())
    gateway = cached(store=Slow())
    for question in ("a", "b", "c"):
        assert (await gateway(ask(question))).headers["x-cache"] == "MISS"
    await asyncio.sleep(0.02)  # the first is being written, and none is there yet
    assert await left(gateway) == 0
    assert await purge(gateway.cache, Purge()) == 3
    await asyncio.sleep(0.3)
    assert await left(gateway) == 0


async def test_what_cannot_be_taken_out_is_told(llm: FakeLLM, cached: Make) -> None:
    llm._default = lambda request: Reply.json(answer())
    gateway = cached(store=Broken())
    key = (await gateway(ask())).headers["x-litellm-cache-key"]
    for wanted in (Purge(), Purge(keys=(key,))):
        with pytest.raises(StoreFailed, match="full of water"):
            await purge(gateway.cache, wanted)
