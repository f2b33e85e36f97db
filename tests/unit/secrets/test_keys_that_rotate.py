"""Gateway keys out of a secret manager: a change is followed, and never opens more than it should."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from tests.support.secret_store import memory, resolver_of
from tianji_mw.errors import ConfigError
from tianji_mw.identity.base import Identity
from tianji_mw.identity.keys import Keys, VirtualKey
from tianji_mw.redact import Secret


async def who(keys: Keys, key: str) -> str | None:
    found = await keys.identify(Headers({"authorization": f"Bearer {key}"}))
    return found.alias if found else None


async def test_keys_may_even_change_places(caplog: pytest.LogCaptureFixture) -> None:
    store = memory(a="sk-a", b="sk-b", m="sk-m")
    resolver = resolver_of(store)
    live = {name: await resolver.get(f"secret://mem/{name}") for name in "abm"}
    named = [VirtualKey(identity=Identity(key_hash="", alias=name), live=live[name]) for name in "ab"]
    keys = Keys(master_key=live["m"], virtual_keys=named)
    assert [await who(keys, f"sk-{name}") for name in "abm"] == ["a", "b", "master"]
    store._values.update(a="sk-b", b="sk-a")
    await resolver.refresh()
    assert [await who(keys, f"sk-{name}") for name in "abm"] == ["b", "a", "master"]
    store._values.update(m="sk-b")  # the value of a team's key
    await resolver.refresh()
    assert [await who(keys, f"sk-{name}") for name in "abm"] == ["b", "a", None]
    assert "'master' was changed to the value of another key" in caplog.text


async def test_without_a_value_it_opens_nothing() -> None:
    resolver = resolver_of(memory())
    keys = Keys(master_key=resolver.secret("secret://mem/later"))
    assert await who(keys, "") is None
    assert await who(keys, "unresolved") is None
    assert keys


async def test_equal_keys_stop_the_start() -> None:
    resolver = resolver_of(memory(a="sk-same"))
    live = await resolver.get("secret://mem/a")
    with pytest.raises(ConfigError, match="same value"):
        Keys(master_key=Secret("sk-same"), virtual_keys=[VirtualKey(identity=Identity(key_hash=""), live=live)])
