"""The cache between the other layers: guardrails check hits too, records tell of them, and nothing refused is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from tests.support.cached import Wall, answer, ask, stream
from tests.support.keep import Keep
from tests.unit.providers.served import config
from tianji_mw.cache.middleware import Cache
from tianji_mw.cache.rules import CacheRules
from tianji_mw.call import Call
from tianji_mw.callbacks.middleware import Callbacks
from tianji_mw.compose import compose
from tianji_mw.config import from_dict
from tianji_mw.errors import OrderError
from tianji_mw.guardrails.base import ALLOW, Guardrail, Span, Verdict, block, mask
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.testing import FakeLLM, Reply, drive

Build = Callable[..., Awaitable[Any]]


class No(Guardrail):
    """Blocks a word."""

    word: str = "bluebird"
    window = 64

    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename") if self.word in text else ALLOW


class Listed(Guardrail):
    """Blocks what stands in a list that changes without its settings."""

    words: ClassVar[tuple[str, ...]] = ()

    async def check(self, text: str, call: Call) -> Verdict:
        return block("listed") if any(word in text for word in self.words) else ALLOW


class Hide(Guardrail):
    """Replaces a word."""

    word: str = "Anna"

    async def check(self, text: str, call: Call) -> Verdict:
        at = text.find(self.word)
        return mask(Span(at, at + len(self.word), "NAME")) if at >= 0 else ALLOW


@pytest.fixture
def build(llm: FakeLLM, serve: Callable[[Any], Awaitable[Any]], tmp_path: Path) -> Build:
    async def make(checks: Sequence[Guardrail] = (), cache: Cache | None = None, **rules: Any) -> Any:
        inner: Any = cache
        if inner is None:
            inner = Cache(compose(from_dict(config(llm), env={}), env={}).app, rules=CacheRules(keyless=True, **rules))
        app = Guardrails(inner, checks=checks) if checks else inner
        return await serve(Callbacks(app, callbacks=[Keep(path=tmp_path / "records")], spool=tmp_path / "spool"))

    return make


async def records(app: Callbacks, folder: Path) -> list[dict[str, Any]]:
    assert app.journal is not None
    app.journal.flush()
    async with asyncio.timeout(10):
        while any(outbox.pending for outbox in app.outboxes.values()):
            await asyncio.sleep(0.01)
    return [orjson.loads(line) for line in (folder / "records").read_bytes().splitlines()]


async def test_records_tell_of_hits(llm: FakeLLM, build: Build, tmp_path: Path) -> None:
    app = await build()
    llm.replies.append(stream())
    for _ in range(2):
        await drive(app, ask(stream=True))
    bypassed = ask(cache={"no-cache": True, "no-store": True})
    llm.replies.append(Reply.json(answer()))
    await drive(app, bypassed)
    miss, hit, bypass = await records(app, tmp_path)
    assert (miss["cache_hit"], hit["cache_hit"], bypass["cache_hit"]) == (False, True, None)
    assert miss["cache_key"] == hit["cache_key"] == hit["hidden_params"]["cache_key"]
    assert (miss["tianji"]["outcome"], hit["tianji"]["outcome"]) == ("ok", "cached")
    assert hit["status"] == "success"
    assert hit["response"] == miss["response"]
    assert (len(miss["tianji"]["attempts"]), hit["tianji"]["attempts"]) == (1, [])
    assert hit["tianji"]["cache"]["kind"] == "exact"
    assert bypass["tianji"]["cache"] == {**bypass["tianji"]["cache"], "status": "bypass", "reason": "asked-not-to"}


async def test_tokens_of_a_hit_are_in_its_record(llm: FakeLLM, build: Build, tmp_path: Path) -> None:
    app = await build()
    llm.replies.append(Reply.json(answer()))
    for _ in range(2):
        await drive(app, ask())
    _, hit = await records(app, tmp_path)
    assert (hit["total_tokens"], hit["response_cost"], hit["tianji"]["cache"]["saved_tokens"]) == (12, 0.0, 12)


async def test_every_follower_has_a_record(llm: FakeLLM, build: Build, tmp_path: Path) -> None:
    app = await build()
    llm.replies.append(stream(delay_s=0.1))
    await asyncio.gather(*(drive(app, ask(stream=True)) for _ in range(5)))
    found = await records(app, tmp_path)
    assert sorted(one["tianji"]["outcome"] for one in found) == ["cached"] * 4 + ["ok"]
    assert sum(len(one["tianji"]["attempts"]) for one in found) == 1
    assert {one["response"]["choices"][0]["message"]["content"] for one in found} == {"Hi!"}


async def test_a_refresh_has_a_record_of_its_own(llm: FakeLLM, build: Build, tmp_path: Path) -> None:
    app = await build(ttl_s=10, stale_while_revalidate_s=100)
    wall = app.runtime.wall = Wall()
    llm.replies += [Reply.json(answer("old")), Reply.json(answer("new"))]
    await drive(app, ask())
    wall.now += 50
    assert (await drive(app, ask())).headers["x-cache"] == "STALE"
    for _ in range(100):
        await asyncio.sleep(0.02)
        if len(llm.requests) == 2:
            break
    await asyncio.sleep(0.1)
    found = await records(app, tmp_path)
    outcomes = [
        (one["tianji"]["outcome"], one["tianji"]["cache"]["status"], len(one["tianji"]["attempts"])) for one in found
    ]
    assert sorted(outcomes) == [("cached", "stale", 0), ("ok", "miss", 1), ("ok", "miss", 1)]
    assert len({one["litellm_call_id"] for one in found}) == 3


async def test_a_request_that_is_blocked_is_not_looked_up(llm: FakeLLM, build: Build) -> None:
    llm.replies.append(Reply.json(answer()))
    app = await build([No(mode=("pre_call",))])
    assert (await drive(app, ask("fly, bluebird"))).status == 400
    assert not llm.requests


async def test_a_hit_is_checked_like_any_answer(llm: FakeLLM, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept while a list did not have the word is not delivered past it."""
    app = await build([Listed(mode=("post_call",))])
    llm.replies.append(Reply.json(answer("fly, bluebird")))
    assert (await drive(app, ask())).status == 200
    monkeypatch.setattr(Listed, "words", ("bluebird",))
    assert (await drive(app, ask())).status == 400
    assert len(llm.requests) == 1


async def test_another_policy_has_answers_of_its_own(llm: FakeLLM, build: Build) -> None:
    app = await build()
    llm.replies += [Reply.json(answer(str(n))) for n in range(4)]
    policies: list[list[Guardrail]] = [[No()], [No(word="x1")], [No(), No(word="x1")]]
    said = []
    for checks in [*policies, *policies]:
        found = await drive(Guardrails(app.app, checks=checks), ask())
        said.append((found.json["choices"][0]["message"]["content"], found.headers["x-cache"]))
    assert said == [("0", "MISS"), ("1", "MISS"), ("2", "MISS"), ("0", "HIT"), ("1", "HIT"), ("2", "HIT")]


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_that_is_blocked_is_not_kept(llm: FakeLLM, build: Build, streamed: bool) -> None:
    from tests.support.cached import DONE, END, chunk

    app = await build([No(mode=("post_call",))])
    bad = stream(chunk({"content": "fly, blue"}), chunk({"content": "bird"}), END, DONE)
    llm.replies += [
        bad if streamed else Reply.json(answer("fly, bluebird")),
        stream() if streamed else Reply.json(answer()),
    ]
    first = await drive(app, ask(stream=streamed))
    assert b"bluebird" not in first.body
    assert (await drive(app, ask(stream=streamed))).headers["x-cache"] == "MISS"
    assert len(llm.requests) == 2


async def test_the_key_is_that_of_the_request_as_it_goes_on(llm: FakeLLM, build: Build) -> None:
    app = await build([Hide(mode=("pre_call",))])
    llm.replies.append(Reply.json(answer("Hello [NAME]")))
    await drive(app, ask("I am Anna"))
    assert (await drive(app, ask("I am [NAME]"))).headers["x-cache"] == "HIT"
    assert b"Anna" not in llm.requests[0].body


async def test_a_cache_outside_of_the_guardrails_is_refused(llm: FakeLLM) -> None:
    gateway = compose(from_dict(config(llm), env={}), env={}).app
    with pytest.raises(OrderError, match=r"Cache .* stands outside of Guardrails"):
        Cache(Guardrails(gateway, checks=[No()]))
