"""The pure parts of the Presidio guardrail: pieces, overlaps, tokens, places after an anonymizer."""

from __future__ import annotations

import re

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.calls import a_call
from tianji_mw.guardrails.base import GuardrailFailed, Said, Span
from tianji_mw.guardrails.presidio import Presidio
from tianji_mw.guardrails.presidio_findings import (
    Finding,
    Question,
    chunks,
    inside_strings,
    interleaved,
    outside,
    read,
    runs,
    strings_of,
    united,
    within,
)
from tianji_mw.guardrails.presidio_service import _items, _places
from tianji_mw.guardrails.presidio_tokens import Tokens, is_json
from tianji_mw.guardrails.presidio_verdicts import Text, masked
from tianji_mw.guardrails.rewrite import replaced

GOOD = {"entity_type": "PERSON", "start": 0, "end": 4, "score": 0.85}


def test_a_finding_is_read() -> None:
    assert read({**GOOD, "analysis_explanation": None}, 4) == Finding(0, 4, "PERSON", 0.85)


@pytest.mark.parametrize(
    "change",
    [
        {"entity_type": ""}, {"entity_type": None}, {"entity_type": "x" * 300}, {"start": -1}, {"start": 4}, {"end": 5},
        {"start": "0"}, {"end": 2.0}, {"start": True}, {"score": None}, {"score": 2}, {"score": True}, {"score": "1"},
        {"score": float("nan")},
    ],
)  # fmt: skip
def test_what_is_no_finding(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="finding"):
        read({**GOOD, **change}, 4)
    with pytest.raises(ValueError, match="finding"):
        read("x", 4)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(20, 200))
def test_pieces_fit_overlap_and_hold_everything(text: str, most: int) -> None:
    found = chunks(text, most)
    end = 0
    for at, piece in found:
        assert at <= end
        assert text[at : at + len(piece)] == piece
        assert len(orjson.dumps(piece)) - 2 <= most
        end = at + len(piece)
    assert end == len(text)


def test_pieces_overlap_by_4096_characters() -> None:
    found = chunks("ab " * 20_000, 20_000)
    assert [at for at, _ in found] == [0, 15_904, 31_808, 47_712]


def test_a_text_that_is_no_unicode() -> None:
    with pytest.raises(GuardrailFailed):
        chunks("\ud800", 1000)


def test_of_pieces_the_longest_finding_of_an_entity_stays() -> None:
    parts = [
        (0, [Finding(90, 95, "PERSON", 0.9), Finding(1, 3, "DATE", 0.5)]), (80, [Finding(10, 22, "PERSON", 0.8)])
    ]  # fmt: skip
    assert united(parts) == [Finding(1, 3, "DATE", 0.5), Finding(90, 102, "PERSON", 0.8)]
    assert united([]) == []


@pytest.mark.parametrize(
    ("text", "parts", "is_one"),
    [
        ("it was Grace it was Tom Hopper.", ["it was Grace Hopper.", "it was Tom "], True),
        ("ada@example.com", ["c", "m"], False), ("ada@example.com", ["chatcmpl-0123456789", "model"], False),
        ("xx", ["x"], False), ("é🎉", ["🎉", "é"], True), ("ab", [], False), ("ab", ["ba"], False),
    ],
)  # fmt: skip
def test_texts_that_are_others_mixed(text: str, parts: list[str], is_one: bool) -> None:
    assert interleaved(text, parts) is is_one


async def test_a_text_that_is_all_of_an_answer_is_asked_about() -> None:
    """Two channels of the same text: neither is the other one "mixed"."""
    asked: list[str] = []

    class Finds:
        async def analyze(self, text: str, question: Question) -> list[Finding]:
            asked.append(text)
            return [Finding(0, 3, "PERSON", 1)]

        async def aclose(self) -> None: ...

    check = Presidio(mode=("post_call",))
    check._analyzer = Finds()
    verdicts = await check.judge([Said("Ada"), Said("Ada")], "output", a_call())
    assert [[span.label for span in one.spans] for one in verdicts] == [["PERSON"], ["PERSON"]]
    assert asked == ["Ada"]


def test_overlaps_become_one_run() -> None:
    mail, url = Finding(0, 10, "EMAIL_ADDRESS", 0.6), Finding(4, 10, "URL", 0.9)
    assert runs([url, mail]) == [Finding(0, 10, "EMAIL_ADDRESS", 0.6)]
    assert runs([Finding(0, 6, "A", 0.5), Finding(4, 9, "B", 0.7)]) == [Finding(0, 9, "B", 0.7)]
    assert runs([Finding(0, 4, "A", 0.5), Finding(0, 4, "B", 0.7)]) == [Finding(0, 4, "B", 0.7)]
    assert runs([Finding(0, 4, "A", 0.5), Finding(4, 6, "A", 0.7)]) == [
        Finding(0, 4, "A", 0.5), Finding(4, 6, "A", 0.7),
    ]  # fmt: skip


def test_what_is_left_of_a_finding() -> None:
    one = Finding(0, 10, "PERSON", 1)
    assert list(outside(one, [], "- - - - - ")) == [one]
    assert list(outside(one, [(0, 4)], "John Smith")) == [Finding(4, 10, "PERSON", 1)]
    assert list(outside(one, [(0, 4), (4, 10)], "John Smith")) == []
    assert list(outside(one, [(4, 10)], "---- Smith")) == []


def test_findings_of_json_stay_within_its_strings() -> None:
    text = '{"a": "Ada\\nBob", "n": 41111}'
    found = inside_strings([Finding(7, 20, "PERSON", 1), Finding(11, 15, "B", 1), Finding(23, 28, "CARD", 1)], text)
    assert text[found[0].start : found[0].end] == "Ada\\nBob"
    assert text[found[-2].start : found[-2].end] == "\\nBob"
    assert not within(strings_of(text), found[-1].start)
    assert within(strings_of(text), found[0].start)


def test_thousands_of_findings_take_no_time_of_the_loop() -> None:
    """Each step was quadratic or worse once, and 100 kB of a tool's arguments held the loop for minutes: beyond what a
    test may take.
    """
    text = orjson.dumps([f"write to user{at}@example.com now" for at in range(2000)]).decode()
    found = [Finding(*one.span(), "MAIL", 1) for one in re.finditer(r"user\d+@example.com", text)]
    spans = masked(text, inside_strings(found, text), None)
    made = replaced(text, spans)
    items = [{"start": one.start(), "end": one.end(), "entity_type": "MAIL"} for one in re.finditer("<MAIL>", made)]
    assert _places(text, made, _items(items, made), found) == [one[:2] for one in found]
    assert orjson.loads(made) == ["write to <MAIL> now"] * 2000


# --- tokens


def test_a_value_has_one_token_and_a_token_one_value() -> None:
    tokens = Tokens()
    tokens.avoid(["what is <PERSON_2>?"])
    assert tokens.token("PERSON", "Ada") == "<PERSON_1>"
    assert tokens.token("PERSON", "Bob") == "<PERSON_3>"
    assert tokens.token("PERSON", "Ada") == "<PERSON_1>"
    assert tokens.token("my thing", "x") == "<MY_THING_1>"
    assert len(tokens.token("X" * 300, "y")) < 64


def restored(tokens: Tokens, text: str) -> str:
    return replaced(text, tokens.restored(text))


def some(**values: str) -> Tokens:
    tokens = Tokens()
    for entity, value in values.items():
        tokens.token(entity, value)
    return tokens


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("<PERSON_1> and <PERSON_2>", "Ada and <PERSON_2>"), ("<<PERSON_1>>", "<Ada>"), ("<person_1>", "Ada"),
        ("cut <PERSON_1", "cut Ada"), ("cut <PERSO", "cut Ada"), ("cut <PER", "cut <PER"), ("a <", "a <"),
        ("<PERSON_1>x", "Adax"), ("", ""), ("\\u003cPERSON_1\\u003e", "Ada"),
    ],
)  # fmt: skip
def test_tokens_become_what_they_stand_for(text: str, now: str) -> None:
    assert restored(some(PERSON="Ada"), text) == now


def test_a_cut_token_that_could_be_several_stays() -> None:
    tokens = some(PERSON="Ada")
    for number in range(11):
        tokens.token("PERSON", f"p{number}")
    assert restored(tokens, "<PERSON_") == "<PERSON_"
    assert restored(tokens, "<PERSON_1") == "Ada"
    assert restored(tokens, "<PERSON_12") == "p10"


def test_in_json_the_original_is_escaped() -> None:
    value = 'Ada "A"\n\\ Ü'
    tokens = some(PERSON=value)
    assert orjson.loads(restored(tokens, '{"name": "<PERSON_1>"}')) == {"name": value}
    assert orjson.loads(restored(tokens, '["\\u003cPERSON_1\\u003e"]')) == [value]
    assert restored(tokens, 'he said "<PERSON_1>"') == f'he said "{value}"'


def test_json_goes_on_in_the_later_parts_of_a_stream() -> None:
    tokens = some(PERSON='A"B')
    first = '{"text": "' + "x" * 100
    assert restored(tokens, first) == first
    assert restored(tokens, first[-64:] + ' <PERSON_1>"}') == first[-64:] + ' A\\"B"}'


@pytest.mark.parametrize(
    ("text", "is_one"),
    [('{"a"', True), (" [1, 2]", True), ("{", True), ("[link](x)", False), ("{x}", False), ("", False), ("{}", True)],
)
def test_what_counts_as_json(text: str, is_one: bool) -> None:
    assert is_json(text) is is_one


def test_what_is_restored_belongs_to_the_caller() -> None:
    tokens = some(PERSON="Ann")
    text = "<PERSON_1> met Anna and Ann"
    spans = tokens.restored(text)
    assert tokens.own(text, spans) == [(0, 3), (17, 20)]


def test_places_after_restoring_are_those_before() -> None:
    text = Text("a <T_1> b <T_2> Bob", [Span(2, 7, "R", "long value"), Span(10, 15, "R", "x")], [])
    at = text.now.index("Bob")
    verdict = text.verdict([Span(at, at + 3, "PERSON", "<PERSON>")])
    assert replaced(text.text, verdict.spans) == "a long value b x <PERSON>"
    assert verdict.category == "PERSON"


# --- what an anonymizer did


def places(text: str, made: str, items: list[tuple[int, int]], findings: list[tuple[int, int]]) -> object:
    read_items = _items([{"start": s, "end": e, "entity_type": "X"} for s, e in items], made)
    return _places(text, made, read_items, [Finding(s, e, "X", 1) for s, e in findings])


def test_items_are_found_in_the_original() -> None:
    assert places("Ada met Bob.", "<P> met <P>.", [(8, 11), (0, 3)], [(0, 3), (8, 11)]) == [(0, 3), (8, 11)]
    # Two neighbours as one, an empty replacement.
    assert places("call Ada Bob", "call ", [(5, 5)], [(5, 8), (9, 12)]) == [(5, 12)]
    assert places("aaaa", "Xaa", [(0, 1)], [(0, 1), (1, 2)]) == [(0, 2)]


@pytest.mark.parametrize(
    ("made", "items"),
    [
        ("<P> met Bob.", [(0, 3)]), ("other text", [(0, 3)]), ("<P> met <P>.", []), ("<P> met <P>.", [(0, 99)]),
        ("<P> met <P>.", [(0, 3), (2, 11)]), ("<P> met <P>!", [(0, 3), (8, 11)]),
    ],
)  # fmt: skip
def test_an_anonymizer_that_cannot_be_believed(made: str, items: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match=r"item|fit|left|leaves|replaced"):
        places("Ada met Bob.", made, items, [(0, 3), (8, 11)])


# --- settings


def test_litellms_names_and_ours() -> None:
    theirs = Presidio(
        presidio_analyzer_api_base="a:1", pii_entities_config={"PERSON": "MASK"}, presidio_run_on="input",
        presidio_language="de", presidio_score_thresholds={"ALL": 0.5}, presidio_ad_hoc_recognizers="",
    )  # fmt: skip
    assert theirs == Presidio(
        analyzer_api_base="a:1", entities={"PERSON": "mask"}, filter_scope="input", language="de",
        score_thresholds={"ALL": 0.5},
    )  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"entities": {"PERSON": "hide"}}, {"score_thresholds": {"ALL": 2}}, {"filter_scope": "left"},
        {"language": "e n"}, {"analyze_chunk_size_bytes": 10}, {"threads": 0}, {"unknown": 1}, {"timeout_s": 0},
        {"request_config": "yes"}, {"language": "de", "presidio_language": "de"},
    ],
)  # fmt: skip
def test_wrong_settings(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Presidio(**fields)


@pytest.mark.parametrize(
    ("fields", "sides"),
    [
        ({"mode": ("pre_call",)}, "i"), ({"mode": ("post_call",)}, "o"), ({}, "io"), ({"logging_only": True}, "io"),
        ({"mode": ("pre_call",), "output_parse_pii": True}, "io"), ({"filter_scope": "input"}, "i"),
        ({"filter_scope": "output"}, "o"), ({"filter_scope": "both", "mode": ("pre_call",)}, "io"),
        ({"mode": ("pre_mcp_call",), "filter_scope": "both", "output_parse_pii": True}, ""),
    ],
)  # fmt: skip
def test_the_sides_it_runs_on(fields: dict[str, object], sides: str) -> None:
    check = Presidio(**fields)
    assert "".join(side[0] for side in ("input", "output") if check.runs_on(side)) == sides


def test_how_streams_wait() -> None:
    assert (Presidio().release, Presidio().window) == ("whole", 400)
    tokens = Presidio(mode=("pre_call",), output_parse_pii=True)
    assert (tokens.release, tokens.window) == ("window", 64)
    assert Presidio(output_parse_pii=True).release == "whole"
