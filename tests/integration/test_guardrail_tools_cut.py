"""`tool_permission`: calls of tools on streams that are cut at any place, in text and in bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration.test_guardrail_tools import BAD, GOOD, SAID, guarded
from tests.support.tool_answers import (
    APIS,
    CALLED,
    FINISHED,
    Call,
    ask,
    cut,
    function,
    sdk_reads,
    spoken,
    stream,
)
from tianji_mw.apis import by_name
from tianji_mw.apis.base import Api
from tianji_mw.testing import Driven, started


async def through(api: str, action: str, events: Sequence[bytes]) -> Driven:
    async with started(guarded(api, action, events)) as app:
        return await ask(app, api, streamed=True)


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("action", ["block", "rewrite"])
async def test_arguments_in_two_pieces_cut_at_every_place(api: str, action: str) -> None:
    for at in range(1, len(BAD[1])):
        driven = await through(api, action, stream(api, GOOD, BAD, content="Look.", cuts=(at,)))
        assert all(orjson.dumps(part)[1:-1] not in driven.body for part in cut(BAD[1], (at,)) if len(part) > 3)
        assert b"command" not in driven.body
        if action == "rewrite":
            text, called, _ = spoken(api, sdk_reads(api, driven.body))
            assert text.startswith("Look.")
            assert SAID in text
            assert called == [(GOOD[0], orjson.loads(GOOD[1]))]


@given(
    api=st.sampled_from(APIS),
    action=st.sampled_from(["block", "rewrite"]),
    calls=st.lists(st.sampled_from([GOOD, BAD]), min_size=1, max_size=3),
    cuts=st.lists(st.integers(1, 40), max_size=6),
    packets=st.lists(st.integers(1, 3000), max_size=12),
)
@settings(max_examples=150, deadline=None)
def test_however_bytes_and_pieces_are_cut(
    api: str, action: str, calls: list[Call], cuts: list[int], packets: list[int]
) -> None:
    whole = b"".join(stream(api, *calls, content="Hm.", cuts=cuts))
    places = [0, *sorted({place for place in packets if place < len(whole)}), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(places)]
    driven = asyncio.run(through(api, action, parts))
    assert b"command" not in driven.body
    assert b"everything" not in driven.body
    if BAD not in calls:
        assert driven.body == whole
    elif action == "rewrite":
        text, called, end = spoken(api, sdk_reads(api, driven.body))
        good = [(name, orjson.loads(arguments)) for name, arguments in calls if (name, arguments) == GOOD]
        assert (called, text.count(SAID)) == (good, calls.count(BAD))
        assert end == (CALLED if good else FINISHED)[api]


def test_apis_without_tools_have_none() -> None:
    api: Api = by_name("embeddings")
    assert list(api.tools.offers({"tools": [function("shell")]})) == []
