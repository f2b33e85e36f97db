"""One cache for all stores: each secret is asked for once, refreshed before it is stale, and never lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.support.secret_store import Clock, Memory, down, memory, resolver_of
from tianji_mw.redact import MASK, Secret
from tianji_mw.runtime import Runtime
from tianji_mw.secrets.base import SecretDenied, SecretError, SecretMalformed, SecretNotFound, StoreUnreachable
from tianji_mw.secrets.last_good import LastGood
from tianji_mw.secrets.live import Composed, SecretUnavailable
from tianji_mw.secrets.resolver import Resolver

DAY = 86_400.0


async def keep_fresh(resolver: Resolver, clock: Clock, seconds: float, step: float = 0.5) -> None:
    """Let the background work run for so long."""

    class Over(Exception):
        pass

    end = clock.now + seconds

    async def sleep(_: float) -> None:
        clock.now += step
        for _ in range(5):
            await asyncio.sleep(0)
        if clock.now > end:
            raise Over

    with pytest.raises(Over):
        await resolver._keep_fresh(sleep)


async def test_ten_thousand_first_readers_ask_once() -> None:
    store = memory(key="sk-1")
    store._delay_s = 0.01
    resolver = resolver_of(store)
    found = await asyncio.gather(*(resolver.get("secret://mem/key") for _ in range(10_000)))
    assert {secret.reveal() for secret in found} == {"sk-1"}
    assert store._asked == ["key"]


async def test_a_hundred_fields_of_one_secret_are_one_question() -> None:
    store = memory(app=orjson.dumps({f"K{n}": f"v{n}" for n in range(100)}).decode())
    resolver = resolver_of(store)
    handles = [resolver.secret(f"secret://mem/app#K{n}") for n in range(100)]
    assert await resolver.fetch(handles) == {}
    assert [handle.reveal() for handle in handles] == [f"v{n}" for n in range(100)]
    assert store._asked == ["app"]
    assert (await resolver.get("secret://mem/app#K7")).reveal() == "v7"
    assert len(store._asked) == 1


def test_all_are_fetched_in_parallel_from_code_without_a_loop() -> None:
    store = memory(**{f"k{n}": "v" for n in range(50)})
    together, most = 0, 0

    class Slow(Memory):
        async def get(self, ref: Any) -> Any:
            nonlocal together, most
            together += 1
            most = max(most, together)
            await asyncio.sleep(0.01)
            together -= 1
            return await super().get(ref)

    slow = Slow()
    slow._values.update(store._values)
    resolver = resolver_of(slow)
    assert resolver.resolve([resolver.secret(f"secret://mem/k{n}") for n in range(50)]) == {}
    assert most == 50


async def test_also_inside_of_a_running_loop() -> None:
    resolver = resolver_of(memory(key="v"))
    assert resolver.resolve([resolver.secret("secret://mem/key")]) == {}


async def test_a_value_is_fetched_again_before_it_is_stale() -> None:
    clock, store = Clock(), memory(key="old")
    resolver = resolver_of(store, clock)
    secret = await resolver.get("secret://mem/key?ttl=100")
    store._values["key"] = "new"
    await keep_fresh(resolver, clock, 80)
    assert (secret.reveal(), len(store._asked)) == ("old", 1)
    await keep_fresh(resolver, clock, 30)
    assert (secret.reveal(), len(store._asked)) == ("new", 2)


async def test_the_default_is_a_day_and_an_expiry_shortens_it() -> None:
    clock, store = Clock(), memory(long="a", short="b")
    store._expires["short"] = clock.now + 100
    resolver = resolver_of(store, clock)
    for path in ("long", "short"):
        await resolver.get(f"secret://mem/{path}")
    long, short = resolver.entries
    assert 0.9 * DAY <= long.due - clock.now <= DAY
    assert short.due - clock.now <= 90


async def test_the_last_good_value_stays_while_the_store_is_down_up_to_a_limit() -> None:
    clock, store = Clock(), memory(key="good")
    resolver = resolver_of(store, clock, max_stale_s=1000)
    secret = await resolver.get("secret://mem/key?ttl=10")
    down(store)
    await keep_fresh(resolver, clock, 900)
    assert secret.reveal() == "good"
    assert resolver.report()["mem"]["status"] == "degraded"
    asked = len(store._asked)
    assert asked < 120  # backs off
    await keep_fresh(resolver, clock, 300)
    with pytest.raises(SecretUnavailable):
        secret.reveal()
    assert resolver.report()["mem"] == {
        "status": "down", "secrets": 1, "unresolved": 1, "oldest_s": pytest.approx(1200, abs=5),
        "last_error": "unreachable",
    }  # fmt: skip
    store._trouble = None
    await keep_fresh(resolver, clock, 60)
    assert secret.reveal() == "good"
    assert resolver.report()["mem"]["status"] == "ok"


@pytest.mark.parametrize("new", ["", "  ", "{}", '{"k": null}', '{"k": ""}', "no json"])
async def test_a_rotation_to_something_useless_keeps_what_works(new: str, caplog: pytest.LogCaptureFixture) -> None:
    clock, store = Clock(), memory(key='{"k": "sk-good"}')
    resolver = resolver_of(store, clock)
    secret = await resolver.get("secret://mem/key?ttl=10#k")
    store._values["key"] = new
    await resolver.refresh()
    assert secret.reveal() == "sk-good"
    assert "cannot be used" in caplog.text
    assert resolver.report()["mem"]["status"] == "degraded"
    assert "sk-good" not in caplog.text


async def test_renewing_asks_once_for_all_and_then_leaves_the_store_alone() -> None:
    clock, store = Clock(), memory(key="old")
    resolver = resolver_of(store, clock)
    secret = await resolver.get("secret://mem/key")
    store._values["key"] = "new"
    assert any(await asyncio.gather(*(secret.renew() for _ in range(100))))
    assert (secret.reveal(), len(store._asked)) == ("new", 2)
    assert not await secret.renew()
    assert not await secret.renew()
    assert len(store._asked) == 3  # in vain once; then not for a while
    clock.now += 1.5
    store._values["key"] = "newer"
    assert await secret.renew()
    assert secret.reveal() == "newer"


async def test_former_values_stay_masked() -> None:
    from tianji_mw import redact

    store = memory(key="sk-first-value")
    resolver = resolver_of(store)
    secret = await resolver.get("secret://mem/key")
    composed = Composed(("Bearer ", secret))
    store._values["key"] = "sk-second-value"
    assert await composed.renew()
    assert composed.reveal() == "Bearer sk-second-value"
    assert redact.text("sk-first-value sk-second-value", [composed]) == f"{MASK} {MASK}"
    for shown in (repr(secret), str(secret), f"{secret}", repr(composed), repr(resolver.report())):
        assert "sk-" not in shown


@pytest.mark.parametrize(
    ("reference", "kind"),
    [
        ("secret://mem/absent", SecretNotFound),
        ("secret://mem/key#absent", SecretNotFound),
        ("secret://mem/text#field", SecretMalformed),
        ("secret://mem/empty", SecretMalformed),
    ],
)
async def test_what_cannot_be_had_names_store_and_path(reference: str, kind: type[SecretError]) -> None:
    resolver = resolver_of(memory(key='{"a": "sk-value-1"}', text="sk-value-2", empty=" "))
    with pytest.raises(kind) as caught:
        await resolver.get(reference)
    path = reference.removeprefix("secret://mem/").partition("#")[0]
    assert caught.value.message.startswith(f"mem: {path}: ")
    assert "sk-value" not in caught.value.message


async def test_one_wrong_field_does_not_harm_the_others() -> None:
    resolver = resolver_of(memory(app='{"a": "1"}'))
    good, bad = resolver.secret("secret://mem/app#a"), resolver.secret("secret://mem/app#b")
    failed = await resolver.fetch([good, bad])
    assert good.reveal() == "1"
    assert list(failed) == [bad]


async def test_a_store_that_breaks_tells_no_value() -> None:
    store = memory(key="x")
    store._trouble = ValueError("the answer was sk-secret-text")
    with pytest.raises(StoreUnreachable) as caught:
        await resolver_of(store).get("secret://mem/key")
    assert caught.value.message == "mem: key: the store failed (ValueError)"


async def test_the_start_waits_only_so_long() -> None:
    store = memory(key="x")
    store._delay_s = 30
    resolver = resolver_of(store)
    handle = resolver.secret("secret://mem/key")
    failed = await resolver.fetch([handle], within_s=0.05)
    assert "no answer within 0.05 s" in failed[handle].message
    entry = next(iter(resolver.entries))
    assert entry.task is not None
    entry.task.cancel()


async def test_trouble_is_reported_to_the_process() -> None:
    clock, store = Clock(), memory(key="v")
    resolver = resolver_of(store, clock)
    async with Runtime() as runtime:
        resolver.start(runtime)
        await resolver.get("secret://mem/key")
        assert runtime.degraded == {}
        store._trouble = SecretDenied("mem: key: permission denied")
        await resolver.refresh()
        assert "secrets" in runtime.degraded
        assert runtime.counts["secret_fetches", "mem denied"] == 1
        store._trouble = None
        await resolver.refresh()
        assert runtime.degraded == {}


async def test_values_survive_a_restart_while_the_store_is_down(tmp_path: Path) -> None:
    clock, store, path = Clock(), memory(key="sk-last-good"), tmp_path / "cache"
    import time

    clock.now = time.time()
    first = resolver_of(store, clock, last_good=LastGood(path, Secret("a passphrase, long")))
    await first.get("secret://mem/key")
    assert path.stat().st_mode & 0o777 == 0o600
    assert b"sk-last-good" not in path.read_bytes()
    down(store)
    again = resolver_of(store, clock, last_good=LastGood(path, Secret("a passphrase, long")))
    assert (await again.get("secret://mem/key")).reveal() == "sk-last-good"
    assert again.report()["mem"]["status"] == "degraded"
    other = resolver_of(store, clock, last_good=LastGood(path, Secret("another passphrase")))
    with pytest.raises(StoreUnreachable):
        await other.get("secret://mem/key")
    store._trouble = SecretDenied("mem: key: permission denied")
    denied = resolver_of(store, clock, last_good=LastGood(path, Secret("a passphrase, long")))
    with pytest.raises(SecretDenied):  # a withdrawn right is no outage
        await denied.get("secret://mem/key")
    path.write_bytes(path.read_bytes()[:-5])
    down(store)
    damaged = resolver_of(store, clock, last_good=LastGood(path, Secret("a passphrase, long")))
    with pytest.raises(StoreUnreachable):
        await damaged.get("secret://mem/key")
