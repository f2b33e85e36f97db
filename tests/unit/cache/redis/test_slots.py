"""Hash slots and scripts: what lies together, and what is refused before it is sent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from tianji_mw.redis.errors import KeysApart, RedisFailed
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.slots import SLOTS, slot_of, tagged

_KEYS = st.text(alphabet="ab{}:é", max_size=12)


@given(_KEYS)
def test_the_slot_is_the_one_of_redis(key: str) -> None:
    assert slot_of(key) == slot_of(key.encode()) == key_slot(key.encode())
    assert 0 <= slot_of(key) < SLOTS


@given(st.text(alphabet="abc:-", min_size=1), st.lists(_KEYS, min_size=1))
def test_one_tag_is_one_slot(tag: str, parts: list[str]) -> None:
    assert len({slot_of(tagged(tag, part)) for part in parts}) == 1


@pytest.mark.parametrize("tag", ["", "a}b", "{"])
def test_what_is_no_tag(tag: str) -> None:
    with pytest.raises(ValueError, match="without braces"):
        tagged(tag, "x")


class _Server:
    """Takes what a script sends."""

    def __init__(self, *, knows: bool) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self._knows = knows

    async def run(self, *command: Any, key: str, repeatable: bool) -> str:
        self.sent.append((*command, key, repeatable))
        if command[0] == "EVALSHA" and not self._knows:
            raise RedisFailed("no such script", code="NOSCRIPT")
        return "done"


async def test_a_script_goes_by_its_hash_and_in_full_once() -> None:
    script = Script("return 1")
    for knows, names in ((True, ["EVALSHA"]), (False, ["EVALSHA", "EVAL"])):
        server = _Server(knows=knows)
        assert await script.run(server, ["{t}:a", "{t}:b"], [5]) == "done"  # type: ignore[arg-type]
        assert [sent[0] for sent in server.sent] == names
        assert server.sent[-1][2:] == (2, "{t}:a", "{t}:b", 5, "{t}:a", False)


@pytest.mark.parametrize("keys", [[], ["a", "b"], ["{a}:x", "{b}:x"]])
async def test_keys_of_several_slots_are_never_sent(keys: list[str]) -> None:
    server = _Server(knows=True)
    with pytest.raises(KeysApart):
        await Script("return 1").run(server, keys)  # type: ignore[arg-type]
    assert not server.sent
