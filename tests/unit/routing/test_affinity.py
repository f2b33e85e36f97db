"""Affinity: who is served where it was served before, and who is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import pytest

from tests.support.calls import a_call
from tests.support.stack import deployment
from tianji_mw.call import Call
from tianji_mw.identity.base import Identity
from tianji_mw.routing import pin_table
from tianji_mw.routing.affinity import Pins, session_of
from tianji_mw.routing.base import Candidates, Deployment
from tianji_mw.routing.beginnings import beginnings_of
from tianji_mw.routing.rules import Affinity, RoutingRules
from tianji_mw.routing.shared import Shared
from tianji_mw.runtime import Runtime

ANN, BOB = Identity(key_hash="a" * 64), Identity(key_hash="b" * 64)
ANN_OF_X, BOB_OF_X = Identity(key_hash="a" * 64, team="x"), Identity(key_hash="b" * 64, team="x")
LONG = "You answer in one word. " * 250
D1, D2, D3 = (deployment("http://127.0.0.1", id=f"d{n}") for n in (1, 2, 3))
ALL = Candidates((D1, D2, D3))


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000_000

    def __call__(self) -> int:
        return self.now

    def pass_s(self, seconds: float) -> None:
        self.now += int(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pins(clock: Clock) -> Callable[..., Pins]:
    def made(*checks: Affinity, shared: Any = None, **rules: Any) -> Pins:
        return Pins(RoutingRules(affinity=frozenset(checks), **rules), Runtime(clock=clock), shared)

    return made


def ask(text: str = "hi", *, who: Identity | None = ANN, **fields: Any) -> Call:
    return a_call(identity=who, request={"model": "m", "messages": [{"role": "user", "content": text}], **fields})


def chat(*turns: str, system: Any = LONG, who: Identity | None = ANN, **fields: Any) -> Call:
    """A conversation: user, assistant, user, ..."""
    head = [{"role": "system", "content": system}] if system else []
    told = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return a_call(identity=who, request={"model": "m", "messages": [*head, *told], **fields})


async def pinned(pins: Pins, call: Call, candidates: Candidates = ALL, group: str = "m") -> str | None:
    found = await pins.of(call, group, candidates)
    return found.id if found is not None else None


# --- sessions and keys


@pytest.mark.parametrize(
    ("fields", "headers"),
    [
        ({"metadata": {"session_id": "s"}}, ()),
        ({"litellm_session_id": "s"}, ()),
        ({"litellm_metadata": {"session_id": "s"}}, ()),
        ({}, ((b"x-litellm-session-id", b"s"),)),
        ({}, ((b"x-tianji-session-id", b"s"),)),
        ({"metadata": {"session_id": ""}}, ((b"x-litellm-session-id", b"s"),)),
        ({"metadata": {"session_id": "s"}}, ((b"x-litellm-session-id", b"other"),)),
        ({"metadata": [1], "litellm_metadata": None, "litellm_session_id": "s"}, ()),
    ],
)
def test_where_a_session_stands(fields: dict[str, Any], headers: Any) -> None:
    assert session_of(a_call(request={"model": "m", **fields}, headers=headers)) == "s"


def test_what_is_no_session() -> None:
    for value in (None, {}, [], {"a": 1}, 0, ""):
        assert session_of(a_call(request={"metadata": {"session_id": value}, "litellm_session_id": value})) == ""
    assert session_of(a_call(request={"metadata": {"session_id": 7}})) == "7"


async def test_a_session_stays(pins: Callable[..., Pins]) -> None:
    kept = pins("session_affinity")
    call = ask(litellm_session_id="s")
    assert await pinned(kept, call) is None
    kept.keep(call, "m", D2)
    assert await pinned(kept, ask("more", litellm_session_id="s")) == "d2"
    assert await pinned(kept, ask(litellm_session_id="t")) is None
    assert await pinned(kept, ask()) is None


async def test_pins_are_of_one_caller_and_one_group(pins: Callable[..., Pins]) -> None:
    kept = pins("session_affinity", "deployment_affinity", "prompt_caching")
    call = chat("hi", litellm_session_id="s")
    await kept.of(call, "m", ALL)
    kept.keep(call, "m", D2)
    assert await pinned(kept, chat("hi", litellm_session_id="s")) == "d2"
    assert await pinned(kept, chat("hi", litellm_session_id="s", who=BOB)) is None
    assert await pinned(kept, chat("hi", litellm_session_id="s", who=None)) is None
    assert await pinned(kept, chat("hi", litellm_session_id="s"), group="n") is None


async def test_who_writes_anothers_parts_into_a_session_id_finds_nothing(pins: Callable[..., Pins]) -> None:
    kept = pins("session_affinity")
    kept.keep(ask(litellm_session_id="s"), "m", D2)
    forged = f"{ANN.key_hash}\0m\0s"
    assert await pinned(kept, ask(litellm_session_id=forged, who=None)) is None
    assert await pinned(kept, ask(litellm_session_id=f"m\0{forged}", who=None), group="") is None


async def test_a_key_stays_and_nobody_without_one(pins: Callable[..., Pins]) -> None:
    kept = pins("deployment_affinity")
    kept.keep(ask(), "m", D3)
    kept.keep(ask(who=None), "m", D1)
    assert await pinned(kept, ask("anything")) == "d3"
    assert await pinned(kept, ask(who=BOB)) is None
    assert await pinned(kept, ask(who=None)) is None


async def test_the_checks_of_a_group_go_before_the_general_ones(clock: Clock) -> None:
    rules = RoutingRules(
        affinity=frozenset({"session_affinity"}),
        affinity_of={"n": frozenset({"deployment_affinity"}), "none": frozenset()},
    )
    kept = Pins(rules, Runtime(clock=clock))
    for group in ("m", "n", "none"):
        kept.keep(ask(litellm_session_id="s"), group, D2)
    assert await pinned(kept, ask(litellm_session_id="s"), group="m") == "d2"
    assert await pinned(kept, ask(), group="m") is None
    assert await pinned(kept, ask(litellm_session_id="t"), group="n") == "d2"
    assert await pinned(kept, ask(litellm_session_id="s"), group="none") is None


def test_without_checks_nobody_asks() -> None:
    assert not Pins(RoutingRules(), Runtime()).used
    assert not Pins(RoutingRules(affinity_of={"m": frozenset()}), Runtime()).used
    assert Pins(RoutingRules(affinity_of={"m": frozenset({"prompt_caching"})}), Runtime()).used


@pytest.mark.parametrize("repin", [False, True])
async def test_a_pin_moves_only_with_repin(pins: Callable[..., Pins], repin: bool) -> None:
    kept = pins("session_affinity", affinity_repin=repin)
    kept.keep(ask(litellm_session_id="s"), "m", D1)
    later = ask(litellm_session_id="s")
    assert await pinned(kept, later, Candidates((D2, D3))) is None  # d1 is in cooldown
    kept.keep(later, "m", D2)
    assert await pinned(kept, ask(litellm_session_id="s")) == ("d2" if repin else "d1")


async def test_a_call_whose_client_left_pins_nothing(pins: Callable[..., Pins]) -> None:
    kept = pins("session_affinity")
    call = ask(litellm_session_id="s")
    call.gone = True
    kept.keep(call, "m", D1)
    assert await pinned(kept, ask(litellm_session_id="s")) is None


async def test_pins_end_and_those_in_use_do_not(pins: Callable[..., Pins], clock: Clock) -> None:
    kept = pins("session_affinity", affinity_ttl_s=100.0)
    kept.keep(ask(litellm_session_id="s"), "m", D1)
    kept.keep(ask(litellm_session_id="t"), "m", D1)
    for _ in range(4):
        clock.pass_s(60)
        kept.keep(ask(litellm_session_id="t"), "m", D1)
    assert await pinned(kept, ask(litellm_session_id="s")) is None
    assert await pinned(kept, ask(litellm_session_id="t")) == "d1"


async def test_memory_is_bounded(pins: Callable[..., Pins], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pin_table, "MOST", 3)
    kept = pins("session_affinity")
    for name in "abc":
        kept.keep(ask(litellm_session_id=name), "m", D1)
    assert await pinned(kept, ask(litellm_session_id="a")) == "d1"  # and is the newest now
    kept.keep(ask(litellm_session_id="x" * 1_000_000), "m", D1)
    assert [await pinned(kept, ask(litellm_session_id=name)) for name in "abc"] == ["d1", None, "d1"]
    assert await pinned(kept, ask(litellm_session_id="x" * 1_000_000)) == "d1"


# --- prompts


async def test_a_conversation_that_grows_finds_its_turn_before(pins: Callable[..., Pins]) -> None:
    kept = pins("prompt_caching")
    kept.keep(chat("Who was Euler?"), "m", D1)
    kept.keep(chat("Who was Gauss?"), "m", D2)
    assert await pinned(kept, chat("Who was Euler?", "A mathematician.", "When?")) == "d1"
    assert await pinned(kept, chat("Who was Gauss?", "A mathematician.", "When?")) == "d2"
    # What both begin with is cached at both; it was d1 that read it first.
    assert await pinned(kept, chat("Who was Noether?")) == "d1"
    assert await pinned(kept, chat("Who was Euler?", system="Another prompt. " * 400)) is None


async def test_the_latest_turn_says_where(pins: Callable[..., Pins]) -> None:
    kept = pins("prompt_caching")
    kept.keep(chat("a"), "m", D1)
    kept.keep(chat("a", "b", "c"), "m", D2)
    assert await pinned(kept, chat("a", "b", "c", "d", "e")) == "d2"
    assert await pinned(kept, chat("a", "b", "c", "d", "e"), Candidates((D1, D3))) == "d1"
    assert await pinned(kept, chat("a", "b", "other")) == "d2"  # up to there it is the same


async def test_marks_move_on_and_texts_become_lists(pins: Callable[..., Pins]) -> None:
    def marked(text: str) -> list[dict[str, Any]]:
        return [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]

    kept = pins("prompt_caching")
    kept.keep(chat("a", "b", marked("c"), system=marked(LONG)), "m", D2)  # type: ignore[arg-type]
    assert await pinned(kept, chat("a", "b", "c", "d", "e")) == "d2"
    assert await pinned(kept, chat("a", "b", [{"type": "text", "text": "c"}], "d", marked("e"))) == "d2"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        chat("hi", system="short"),
        a_call("embeddings", identity=ANN, request={"model": "m", "input": [LONG]}),
        a_call("completions", identity=ANN, request={"model": "m", "prompt": LONG}),
        a_call(identity=ANN, request={"model": "m", "messages": LONG}),
        a_call(identity=ANN, request={"model": "m", "messages": [[LONG], LONG, None, 7]}),
    ],
)
async def test_what_no_provider_caches(pins: Callable[..., Pins], call: Call) -> None:
    kept = pins("prompt_caching")
    kept.keep(call, "m", D1)
    assert await pinned(kept, chat("other", system="other " * 1000)) is None


async def test_prompts_are_shared_in_a_team(pins: Callable[..., Pins]) -> None:
    kept = pins("prompt_caching", "session_affinity")
    kept.keep(chat("a", who=ANN_OF_X, litellm_session_id="s"), "m", D1)
    assert await pinned(kept, chat("a", who=BOB_OF_X)) == "d1"
    assert await pinned(kept, ask(who=BOB_OF_X, litellm_session_id="s")) is None


async def test_prompts_are_forgotten_after_five_minutes(pins: Callable[..., Pins], clock: Clock) -> None:
    kept = pins("prompt_caching")
    kept.keep(chat("a"), "m", D1)
    clock.pass_s(299)
    assert await pinned(kept, chat("a")) == "d1"
    clock.pass_s(2)
    assert await pinned(kept, chat("a")) is None


async def test_a_long_line_is_left(pins: Callable[..., Pins]) -> None:
    kept = pins("prompt_caching", "deployment_affinity")
    kept.keep(ask(), "m", D2)
    kept.keep(chat("a"), "m", D1)
    kept.inflight = {D1: 12}
    assert await pinned(kept, chat("a", "b", "c")) == "d1"
    kept.inflight = {D1: 13}
    assert await pinned(kept, chat("a", "b", "c")) == "d2"  # the key's, where nothing is cached


async def test_how_long_a_line_may_be(pins: Callable[..., Pins]) -> None:
    kept = pins("prompt_caching")
    kept.keep(chat("a"), "m", D1)
    for inflight, turn, new in [
        ({}, "d1", "d1"),
        ({D1: 1}, "d1", "d1"),
        ({D1: 3}, "d1", None),  # a beginning that many share is worth no line
        ({D1: 3, D2: 3, D3: 3}, "d1", "d1"),
        ({D1: 12}, "d1", None),
        ({D1: 13}, None, None),
        ({D1: 30, D2: 10, D3: 20}, "d1", None),
    ]:
        kept.inflight = cast("Mapping[Deployment, int]", inflight)
        assert await pinned(kept, chat("a", "b", "c")) == turn, inflight
        assert await pinned(kept, chat("new")) == new, inflight


def test_keys_of_beginnings() -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"turn {n}"} for n in range(200)]
    request: dict[str, Any] = {"system": LONG, "tools": [{"name": "t"}], "messages": turns[:5]}
    found = beginnings_of(request, "scope")
    assert len(found.keys) == 6
    assert found.keys[-1] == found.head
    assert found.stable == found.keys[1]  # before the last message of the user
    assert beginnings_of({**request, "messages": turns[:6]}, "scope").keys[1:] == found.keys
    assert not set(beginnings_of(request, "other").keys) & set(found.keys)
    assert not set(beginnings_of({**request, "tools": [{"name": "u"}]}, "scope").keys) & set(found.keys)
    # Only the last turns have keys, and the head.
    longest = beginnings_of({**request, "messages": turns}, "scope")
    assert len(longest.keys) == 65
    assert longest.head == longest.keys[-1] == found.head
    # A mark says how far the prompt stays the same.
    turns[1] = {"role": "assistant", "content": "turn 1", "cache_control": {"type": "ephemeral"}}
    marked = beginnings_of(request | {"messages": turns[:5]}, "scope")
    assert marked.keys == found.keys
    assert marked.stable == found.keys[-3]


def test_keys_of_short_and_odd_requests() -> None:
    assert beginnings_of({}, "s") == ([], "", "")
    assert beginnings_of({"messages": [{"role": "user", "content": "hi"}]}, "s") == ([], "", "")
    assert beginnings_of({"messages": [None, 1, [], {"role": 1, "content": {}}]}, "s") == ([], "", "")
    only_system = beginnings_of({"messages": [{"role": "system", "content": LONG}]}, "s")
    assert only_system.keys == [only_system.head] == [only_system.stable]
    text = beginnings_of({"instructions": LONG, "input": "hi"}, "s")
    assert text.keys == beginnings_of({"instructions": LONG, "input": [{"role": "user", "content": "hi"}]}, "s").keys
    assert (len(text.keys), text.stable) == (2, text.head)
    a_text = {"role": "user", "content": LONG + '"cache_control": 1'}
    assert beginnings_of({"messages": [a_text, {"role": "user", "content": "a"}]}, "s").stable != ""


# --- over what processes share


class Redis:
    """Stands for `Shared`, and its pins."""

    def __init__(self) -> None:
        self.pins = self
        self.found: dict[str, str] = {}
        self.asked: list[list[str]] = []
        self.puts: list[tuple[str, str, bool]] = []

    async def find(self, keys: list[str]) -> list[str | None]:
        self.asked.append(keys)
        return [self.found.get(key) for key in keys]

    def put(self, key: str, deployment_id: str, ttl_s: float, *, move: bool, heard: Callable[[str], None]) -> None:
        self.puts.append((key, deployment_id, move))
        found = self.found[key] = deployment_id if move else self.found.get(key, deployment_id)
        heard(found)


def as_shared(redis: Redis) -> Shared:
    return cast("Shared", redis)


async def test_another_process_pinned_it(pins: Callable[..., Pins]) -> None:
    redis = Redis()
    one, two = (pins("session_affinity", shared=as_shared(redis)) for _ in range(2))
    one.keep(ask(litellm_session_id="s"), "m", D2)
    call = ask(litellm_session_id="s")
    assert await pinned(two, call) == "d2"
    assert await pinned(two, call) == "d2"
    assert await pinned(two, ask(litellm_session_id="s")) == "d2"
    assert await pinned(one, ask(litellm_session_id="s")) == "d2"
    assert len(redis.asked) == 1


async def test_two_processes_that_pin_at_once_agree(pins: Callable[..., Pins], clock: Clock) -> None:
    redis = Redis()
    one, two = (pins("session_affinity", shared=as_shared(redis)) for _ in range(2))
    first, second = ask(litellm_session_id="s"), ask(litellm_session_id="s")
    assert (await pinned(one, first), await pinned(two, second)) == (None, None)
    one.keep(first, "m", D1)
    two.keep(second, "m", D2)
    assert await pinned(two, ask(litellm_session_id="s")) == "d1"


async def test_a_pin_in_use_is_told_anew_and_asked_for_no_more(pins: Callable[..., Pins], clock: Clock) -> None:
    redis = Redis()
    kept = pins("session_affinity", shared=as_shared(redis))
    for _ in range(100):
        call = ask(litellm_session_id="s")
        await kept.of(call, "m", ALL)
        kept.keep(call, "m", D1)
        clock.pass_s(10)
    assert len(redis.asked) == 1
    assert 20 < len(redis.puts) <= 34
    assert not any(move for _, _, move in redis.puts)
    # Another process has moved it: this one hears of it within a minute.
    redis.found = dict.fromkeys(redis.found, "d3")
    for _ in range(6):
        kept.keep(ask(litellm_session_id="s"), "m", D1)
        clock.pass_s(10)
    assert await pinned(kept, ask(litellm_session_id="s")) == "d3"


async def test_redis_is_asked_once_for_a_call(pins: Callable[..., Pins]) -> None:
    redis = Redis()
    kept = pins("session_affinity", "prompt_caching", "deployment_affinity", shared=as_shared(redis))
    call = chat(*"abcdefghijklmnopqrstuvwxyz", litellm_session_id="s")
    for _ in range(3):
        assert await pinned(kept, call) is None
    (asked,) = redis.asked
    assert len(asked) == 1 + 16 + 1 + 1  # the session, the last turns, the head, the key
    kept.keep(call, "m", D1)
    assert await pinned(kept, chat(*"abcdefghijklmnopqrstuvwxyz12")) == "d1"
    assert len(redis.asked) == 1
    assert await pinned(kept, chat("x", system="other " * 1000)) == "d1"  # by the key
    assert len(redis.asked) == 2


async def test_a_known_system_prompt_hides_no_conversation_of_another_process(pins: Callable[..., Pins]) -> None:
    redis = Redis()
    one, two = (pins("prompt_caching", shared=as_shared(redis)) for _ in range(2))
    one.keep(chat("a"), "m", D1)
    two.keep(chat("b"), "m", D2)
    assert await pinned(one, chat("b", "c", "d")) == "d2"
    assert await pinned(two, chat("a", "c", "d")) == "d1"


async def test_what_redis_names_and_nobody_knows(pins: Callable[..., Pins]) -> None:
    redis = Redis()
    kept = pins("session_affinity", shared=as_shared(redis))
    kept.keep(ask(litellm_session_id="s"), "m", deployment("http://127.0.0.1", id="gone"))
    assert await pinned(kept, ask(litellm_session_id="s")) is None


async def test_the_scope_of_a_call_that_falls_back(pins: Callable[..., Pins]) -> None:
    kept = pins("session_affinity")
    kept.keep(ask(litellm_session_id="s"), "m", D1)
    kept.keep(ask(litellm_session_id="s"), "n", D2)
    call = ask(litellm_session_id="s")
    assert [await pinned(kept, call, group=group) for group in "mnm"] == ["d1", "d2", "d1"]
