"""What `content_filter` finds, and where, whatever the text and the patterns."""

from __future__ import annotations

import itertools
import time
from typing import Any, cast

import pytest

from tianji_mw.call import Call
from tianji_mw.errors import SetupError
from tianji_mw.guardrails import content_prebuilt
from tianji_mw.guardrails.base import GuardrailFailed, Said, Verdict
from tianji_mw.guardrails.content_filter import ContentFilter
from tianji_mw.guardrails.content_regex import Regexes
from tianji_mw.guardrails.rewrite import replaced
from tianji_mw.runtime import Runtime

CALL = cast(Call, None)


async def judged(text: str, seen: int = 0, **options: Any) -> Verdict:
    check = ContentFilter(**options)
    async with Runtime() as runtime:
        await check.start(runtime)
        (verdict,) = await check.judge([Said(text, "assistant", seen)], "output", CALL)
        await check.aclose()
        return verdict


async def masked(text: str, **options: Any) -> str:
    return replaced(text, (await judged(text, **options)).spans)


def found(text: str, *patterns: str, once: bool = False) -> list[str]:
    regexes: Regexes[int] = Regexes()
    for at, pattern in enumerate(patterns):
        regexes.add(str(at), pattern, at, once=once)
    return [text[place.start : place.end] for place in regexes.find(text)]


@pytest.mark.parametrize(
    ("text", "pattern", "pieces"),
    [
        ("日本😀 Abc é abc", "abc", ["Abc", "abc"]),
        ("é😀é😀", "é", ["é", "é"]),
        ("a\ud800b abc", "b", ["b", "b"]),
        ("concat cat", r"\bcat\b", ["cat"]),
        ("x" * 40_000 + "abc" + "x" * 40_000 + "abc", "abc", ["abc", "abc"]),
        ("key=" + "é" * 30_000 + " key=b", r"key=\S+", ["key=" + "é" * 30_000, "key=b"]),
    ],
)
def test_places_are_in_characters(text: str, pattern: str, pieces: list[str]) -> None:
    assert found(text, pattern) == pieces


def test_behind_many_places_the_rest_is_one() -> None:
    text = "é" * 5_000
    pieces = found(text, "é")
    assert "".join(pieces) == text
    assert len(pieces) == 2_001


HOSTILE = [r"(a+)+$", r"(a|aa)+!", r"(.*a){12}b", r"(x+x+)+y", r"a*b|a", r"(a|a?)+c"]


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("once", [False, True])
def test_hostile_patterns_stay_linear(pattern: str, once: bool) -> None:
    def spent(size: int) -> float:
        regexes: Regexes[int] = Regexes()
        regexes.add("x", pattern, 0, once=once)
        text = "a" * size
        began = time.process_time()
        list(regexes.find(text))
        return time.process_time() - began

    small, large = min(spent(2**20) for _ in range(3)), min(spent(2**23) for _ in range(3))
    assert large < 30 * small + 0.2  # eight times is linear, 64 times would be square


WORDS = [
    ("kill", "skill, KILL, k\u200bill, ｋｉｌｌ, kíll", "skill, #, #, #, #"),
    ("kill*", "killing skill", "#ing skill"),
    ("*ass*", "classy", "cl#y"),
    ("f*ck", "fck f-ck fuck f**ck fu ck", "# # # f**ck fu ck"),
    ("a b*d", "a bd, a bad, a baad", "#, #, a baad"),
    ("杀*人", "我要杀个人了", "我要#了"),
]


@pytest.mark.parametrize(("word", "text", "result"), WORDS)
async def test_words_and_stars(word: str, text: str, result: str) -> None:
    words = [{"keyword": word, "action": "MASK"}]
    assert await masked(text, blocked_words=words, keyword_redaction_tag="#") == result


@pytest.mark.parametrize(
    ("keyword", "text", "result"),
    [
        ("kill*", "kills killer", "# killer"),
        ("*kill", "skill askill", "# askill"),
        ("col*r", "color colr colour", "# # colour"),
    ],
)
async def test_stars_of_categories_are_one_character_or_none(keyword: str, text: str, result: str) -> None:
    own = [{"category_name": "own", "keywords": [{"keyword": keyword}], "default_action": "MASK"}]
    assert await masked(text, own_categories=own, keyword_redaction_tag="#") == result


async def test_masks_do_not_depend_on_their_order() -> None:
    words = [{"keyword": word, "action": "MASK"} for word in ("new york", "york city", "city")]
    results = {await masked("in new york city", blocked_words=list(order)) for order in itertools.permutations(words)}
    assert results == {"in [KEYWORD_REDACTED]"}


PREBUILT = [
    ("visa", "4111 1111 1111 1111", True),
    ("visa", "4111 1111 1111 1112", False),
    ("mastercard", "5555555555554444", True),
    ("mastercard", "4111111111111111", False),
    ("amex", "378282246310005", True),
    ("discover", "6011111111111117", True),
    ("credit_card", "378282246310005", True),
    ("us_ssn", "536-90-4399", True),
    ("us_ssn", "000-90-4399", False),
    ("us_ssn_no_dash", "my ssn is 536904399", True),
    ("email", "ada@example.com", True),
    ("iban", "DE89370400440532013000", True),
    ("iban", "DE89370400440532013001", False),
    ("ipv4", "10.0.0.1", True),
    ("ipv6", "10.0.0.1", False),
    ("ipv6", "2001:db8::1", True),
    ("url", "see https://example.com/x", True),
    ("us_phone", "call (415) 555-2671", True),
    ("fr_phone", "+33612345678", True),
    ("br_cnpj", "11.222.333/0001-81", True),
    ("br_cnpj", "11.222.333/0001-82", False),
    ("passport_us", "passport number 123456789", True),
    ("passport_us", "order number 123456789", False),
    ("passport_us", "passport 12 of order 123456789", False),
    ("passport_france", "passeport: 12AB34567", True),
    ("fr_postal_code", "code postal 75001", True),
    ("fr_postal_code", "room 75001", False),
    ("eu_vat", "VAT: DE123456789", True),
    ("street_address", "at 221 Baker Street now", True),
    ("street_address", "2 days on the road", False),
    ("aws_access_key", "AK" + "IA" + "Q3EGS7V2XK4MNB5T", True),
    ("github_token", "gh" + "p_" + "0Aa9Bb8Cc7Dd" * 3, True),
]


@pytest.mark.parametrize(("name", "text", "seen"), PREBUILT)
async def test_prebuilt_patterns(name: str, text: str, seen: bool) -> None:
    verdict = await judged(text, patterns=[{"pattern_type": "prebuilt", "pattern_name": name, "action": "MASK"}])
    assert bool(verdict.spans) is seen
    assert all(span.replacement == f"[{name.upper()}_REDACTED]" for span in verdict.spans)


@pytest.mark.parametrize("name", sorted(content_prebuilt.KNOWN))
def test_every_name_has_a_finder(name: str) -> None:
    assert list(content_prebuilt.find("nothing here", [name])) == []
    assert content_prebuilt.longest([name]) >= 64


async def test_what_was_judged_before_is_not_judged_without_its_context() -> None:
    own = [{"category_name": "own", "keywords": [{"keyword": "sink"}], "exceptions": ["kitchen"]}]
    assert (await judged("sink it. More", own_categories=own)).blocked
    assert not (await judged("sink it. More", seen=9, own_categories=own)).blocked
    words = [{"keyword": "kill"}]
    assert not (await judged("kill of him. More", seen=12, blocked_words=words)).blocked
    assert (await judged("kill of him. More kill", seen=12, blocked_words=words)).blocked
    regex = [{"pattern_type": "regex", "name": "x", "pattern": r"\bkill\b"}]
    assert (await judged("kill of him. More kill", seen=12, patterns=regex)).blocked


async def test_it_says_nothing_of_the_text() -> None:
    own = [{"category_name": "own", "identifier_words": ["sec*et"], "additional_block_words": ["plan"]}]
    verdict = await judged("The secret plan", own_categories=own)
    assert (verdict.category, verdict.detail) == ("own", {"severity": "high"})


async def test_the_window_covers_the_longest_thing() -> None:
    async with Runtime() as runtime:
        for options, window in (
            ({"blocked_words": [{"keyword": "x" * 90}]}, 90),
            ({"patterns": [{"pattern_type": "regex", "name": "x", "pattern": r"E-\d{300}"}]}, 302),
            ({"patterns": [{"pattern_type": "prebuilt", "pattern_name": "email"}]}, 320),
            ({}, 400),
        ):
            check = ContentFilter(**cast(Any, options))
            await check.start(runtime)
            assert check.window >= window


async def test_not_started() -> None:
    with pytest.raises(GuardrailFailed):
        await ContentFilter().check("text", CALL)


async def test_two_filters_keep_their_words_apart() -> None:
    async with Runtime() as runtime:
        one, other = (ContentFilter(blocked_words=cast(Any, [{"keyword": word}])) for word in ("one", "other"))
        await one.start(runtime)
        await other.start(runtime)
        assert (await one.check("one", CALL)).blocked
        assert not (await other.check("one", CALL)).blocked
        await one.aclose()
        assert (await other.check("other", CALL)).blocked


@pytest.mark.parametrize("pattern", [r"(?!a)b", r"(a)\1", r"a\Z", "((a{100}){100}){100}", "a*"])
def test_patterns_that_are_refused(pattern: str) -> None:
    with pytest.raises(SetupError) as caught:
        found("", pattern)
    assert f"the regex '0' ({pattern})" in caught.value.message
