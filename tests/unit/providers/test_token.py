"""A token that renews itself: one fetch at a time, the old one used meanwhile, nothing lost in the background."""

from __future__ import annotations

import asyncio

import pytest

from tianji_mw.errors import UpstreamError
from tianji_mw.providers.auth.token import Issued, TokenSource
from tianji_mw.redact import Secret


class Issuer:
    """Gives t-1, t-2, ...; the clock stands still until a test moves it."""

    def __init__(self, lifetime_s: float = 3600) -> None:
        self.now = 0.0
        self.given = 0
        self.lifetime_s = lifetime_s
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.source = TokenSource(self.fetch, clock=lambda: self.now)

    async def fetch(self) -> Issued:
        await self.gate.wait()
        self.given += 1
        if self.fails:
            raise UpstreamError("no token", status=401)
        return Issued(Secret(f"t-{self.given}"), self.lifetime_s)

    async def get(self) -> str:
        return (await self.source.get()).reveal()


async def test_nothing_happens_before_the_first_use() -> None:
    issuer = Issuer()
    await asyncio.sleep(0)
    assert issuer.given == 0
    assert issuer.source.current is None


async def test_a_token_is_kept() -> None:
    issuer = Issuer()
    assert [await issuer.get() for _ in range(3)] == ["t-1"] * 3
    assert issuer.given == 1


async def test_many_callers_share_one_fetch() -> None:
    issuer = Issuer()
    issuer.gate.clear()
    waiting = [asyncio.create_task(issuer.get()) for _ in range(50)]
    await asyncio.sleep(0)
    issuer.gate.set()
    assert await asyncio.gather(*waiting) == ["t-1"] * 50
    assert issuer.given == 1


async def test_the_old_token_is_used_while_the_new_one_is_fetched() -> None:
    issuer = Issuer()
    await issuer.get()
    issuer.now = 3000
    issuer.gate.clear()
    assert [await issuer.get() for _ in range(5)] == ["t-1"] * 5
    issuer.gate.set()
    await asyncio.sleep(0.01)
    assert await issuer.get() == "t-2"
    assert issuer.given == 2


async def test_an_expired_token_is_not_used() -> None:
    issuer = Issuer()
    await issuer.get()
    issuer.now = 3595
    assert await issuer.get() == "t-2"


async def test_a_failed_renewal_keeps_the_old_token_and_pauses(caplog: pytest.LogCaptureFixture) -> None:
    issuer = Issuer()
    await issuer.get()
    issuer.now, issuer.fails = 3000, True
    for _ in range(5):
        assert await issuer.get() == "t-1"
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert issuer.given == 2
    assert "could not be renewed" in caplog.text
    issuer.now += 20
    issuer.fails = False
    await issuer.get()
    await asyncio.sleep(0.01)
    assert await issuer.get() == "t-3"


async def test_a_failure_reaches_all_who_wait_and_the_next_tries_again() -> None:
    issuer = Issuer()
    issuer.fails = True
    found = await asyncio.gather(*(issuer.get() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(error, UpstreamError) for error in found)
    assert issuer.given == 1
    issuer.fails = False
    assert await issuer.get() == "t-2"


async def test_a_caller_who_leaves_does_not_take_the_token_away() -> None:
    issuer = Issuer()
    issuer.gate.clear()
    leaver, stayer = asyncio.create_task(issuer.get()), asyncio.create_task(issuer.get())
    await asyncio.sleep(0)
    leaver.cancel()
    issuer.gate.set()
    assert await stayer == "t-1"
    assert issuer.given == 1


async def test_a_short_lived_token_is_usable() -> None:
    issuer = Issuer(lifetime_s=8)
    assert await issuer.get() == "t-1"
    issuer.now = 3
    assert await issuer.get() == "t-1"


def test_it_survives_a_change_of_event_loop() -> None:
    now = [0.0]

    async def fetch() -> Issued:
        return Issued(Secret("t"), 100)

    source = TokenSource(fetch, clock=lambda: now[0])

    async def abandoned() -> None:
        source._start()

    with pytest.raises(RuntimeError, match="stop"):
        asyncio.run(_stop_after(abandoned))
    assert asyncio.run(_get(source)) == "t"


async def _get(source: TokenSource) -> str:
    return (await source.get()).reveal()


async def _stop_after(start: object) -> None:
    await start()  # type: ignore[operator]
    raise RuntimeError("stop")
