"""Tool names and call ids: kept where possible, else changed the same way every time."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tianji_mw.bridges import names
from tianji_mw.bridges.base import Context


def context() -> Context:
    return Context(call_id="c1", model="m", created=0)


def test_good_names_stay() -> None:
    ctx = context()
    assert names.sent("get_rate-2", ctx) == "get_rate-2"
    assert ctx.notes == {}


@given(st.text(max_size=100))
def test_any_name_fits_and_comes_back(name: str) -> None:
    ctx = context()
    short = names.sent(name, ctx)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", short)
    assert names.restored(short, ctx) == name
    assert names.sent(name, context()) == short


def test_names_that_look_alike_stay_apart() -> None:
    ctx = context()
    assert len({names.sent(name, ctx) for name in ("a.b", "a/b", "a_b", "a b")}) == 4


@given(st.text(min_size=1, max_size=80))
def test_ids_fit_and_stay_paired(value: str) -> None:
    found = names.call_id(value, 40)
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,40}", found)
    assert names.call_id(found, 40) == found


def test_a_thought_signature_is_cut_off_and_noted() -> None:
    ctx = context()
    assert names.client_call_id("call_1__thought__a+b/c==", 0, ctx) == "call_1"
    assert ctx.notes == {names.THOUGHT_SIGNATURES: {"call_1": "a+b/c=="}}


def test_a_missing_id_is_made_up() -> None:
    assert names.client_call_id("", 3, context()) == "toolu_c1_3"
