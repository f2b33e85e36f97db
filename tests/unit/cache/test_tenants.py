"""Nobody is ever given the answer of another tenant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.cached import Cached, answer, ask, counting
from tianji_mw.call import Call
from tianji_mw.testing import FakeLLM, Reply

Make = Callable[..., Cached]


@pytest.fixture
def numbered(llm: FakeLLM) -> FakeLLM:
    """Each upstream call has an answer of its own."""
    llm._default = counting(lambda number, request: Reply.json(answer(f"answer {number}")))
    return llm


async def test_teams_share_within_and_not_beyond(numbered: FakeLLM, cached: Make) -> None:
    gateway = cached(keys=True)
    first = await gateway(ask(), key="red/a")
    assert (await gateway(ask(), key="red/b")).body == first.body
    assert (await gateway(ask(), key="blue/a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(), key="a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(), key="b")).headers["x-cache"] == "MISS", "a key without a team is alone"
    assert len(numbered.requests) == 4


@pytest.mark.parametrize(("scope", "hits"), [("global", 3), ("team", 1), ("key", 0)])
async def test_scopes(numbered: FakeLLM, cached: Make, scope: str, hits: int) -> None:
    gateway = cached(keys=True, scope=scope)
    found = [await gateway(ask(), key=key) for key in ("red/a", "red/b", "blue/c", "d")]
    assert sum(one.headers["x-cache"] == "HIT" for one in found) == hits


async def test_end_users(numbered: FakeLLM, cached: Make) -> None:
    gateway = cached(keys=True, scope="end_user")
    await gateway(ask(user="ann"), key="red/a")
    assert (await gateway(ask(user="ann"), key="red/a")).headers["x-cache"] == "HIT"
    assert (await gateway(ask(user="bob"), key="red/a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(user="ann"), key="red/b")).headers["x-cache"] == "MISS"


async def test_a_namespace_lies_within_the_tenant(numbered: FakeLLM, cached: Make) -> None:
    gateway = cached(keys=True)
    spaced: Any = ask(cache={"namespace": "red"})
    await gateway(spaced, key="red/a")
    assert (await gateway(spaced, key="blue/a")).headers["x-cache"] == "MISS"
    assert (await gateway(ask(), key="red/a")).headers["x-cache"] == "MISS"
    assert (await gateway(spaced, key="red/b")).headers["x-cache"] == "HIT"


async def test_nobody_is_no_tenant(numbered: FakeLLM, cached: Make, caplog: pytest.LogCaptureFixture) -> None:
    gateway = cached(keys=True)
    gateway.app = gateway.cache  # nothing outside of it says who calls
    for _ in range(2):
        found = await gateway(ask())
        assert found.headers["x-tianji-cache"] == "bypass; reason=no-tenant"
    assert len(numbered.requests) == 2
    assert gateway.app.runtime.counts["cache_bypassed", "no-tenant"] == 2
    assert sum("CacheRules(tenant=...)" in record.message for record in caplog.records) == 1


async def test_an_app_says_whose_calls_they_are(numbered: FakeLLM, cached: Make) -> None:
    def tenant(call: Call) -> str | None:
        return call.headers.get("x-customer")

    gateway = cached(keys=True, tenant=tenant)
    gateway.app = gateway.cache
    await gateway(ask(), headers={"x-customer": "a"})
    assert (await gateway(ask(), headers={"x-customer": "a"})).headers["x-cache"] == "HIT"
    assert (await gateway(ask(), headers={"x-customer": "b"})).headers["x-cache"] == "MISS"
    assert (await gateway(ask())).headers["x-cache"] == "BYPASS"


async def test_ten_thousand_twins_across_tenants(numbered: FakeLLM, cached: Make) -> None:
    """100 tenants ask the same 100 questions: each is asked upstream once per tenant, and no answer crosses."""
    gateway = cached(keys=True)
    seen: dict[str, str] = {}
    for question in range(100):
        for team in range(100):
            found = await gateway(ask(f"question {question}"), key=f"team{team}/k")
            assert found.headers["x-cache"] == "MISS"
            text = found.json["choices"][0]["message"]["content"]
            assert seen.setdefault(text, f"team{team}") == f"team{team}"
    assert len(numbered.requests) == len(seen) == 10_000
    total = gateway.cache.stats.report()["total"]
    assert (total["hits"], total["misses"]) == (0, 10_000)
