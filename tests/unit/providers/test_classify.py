"""What an error body says, and the code and status that clients get for it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw.providers import classify
from tianji_mw.providers.classify import Reported

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["error", "message", "code", "type"]), inner)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "no", "type": "t", "code": "c", "param": "p"}}, Reported("no", "c", "t", "p")),
        (
            {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}},
            Reported("busy", "", "overloaded_error"),
        ),
        ({"error": {"code": 400, "message": "no", "status": "INVALID"}}, Reported("no", "400")),
        ([{"error": {"code": 404, "message": "gone"}}], Reported("gone", "404")),
        (
            {"object": "error", "message": "bad", "type": "BadRequestError", "code": 400},
            Reported("bad", "400", "BadRequestError"),
        ),
        ({"detail": "Not Found"}, Reported("Not Found")),
        ({"error": "just text"}, Reported("just text")),
        ({"error": None, "message": "flat", "code": "x"}, Reported("flat", "x")),
        ({"error": {"message": "m", "innererror": {"code": "Inner"}}}, Reported("m", inner="Inner")),
        ({"error": {"message": "m", "inner_error": {"code": "Inner"}}}, Reported("m", inner="Inner")),
        ({"error": {"code": True}}, Reported()),
        ("text", Reported("text")),
        (7, Reported()),
        ([], Reported()),
    ],
)
def test_facts_of_a_body(body: Any, expected: Reported) -> None:
    assert classify.read(orjson.dumps(body)) == expected


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"\xff\xfe", b"{"])
def test_no_json_says_nothing(body: bytes) -> None:
    assert classify.read(body) == Reported()


@pytest.mark.parametrize(
    "text",
    [
        "This model's maximum context length is 8192 tokens.",
        "prompt is too long: 210000 tokens > 200000 maximum",
        "Input is TOO LONG for requested model",
        "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
        "`inputs` tokens + `max_new_tokens` must be <= 4096",
        "the request exceeds the available context size. try increasing it",
        "current length is 9000 while limit is 8192",
        "maximum input length is 4096 tokens",
        "input too long: 9000 input tokens, limit is 8192",
        "Invalid 'input': string too long. Expected a string with maximum length 1048576",
    ],
)
@pytest.mark.parametrize("status", [400, 413, 422])
def test_texts_of_a_full_context(text: str, status: int) -> None:
    assert classify.code_of(Reported(text), status) == "context_length_exceeded"


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        # Texts refine 400, 413 and 422 alone.
        (Reported("prompt is too long"), 500, None),
        (Reported("too many tokens per minute"), 429, "rate_limit_exceeded"),
        # A single field, not the conversation.
        (Reported("string too long. expected a string with maximum length 64 for Invalid 'user'"), 400, None),
        (
            Reported("string too long. expected a string with maximum length", "string_above_max_length"),
            400,
            "string_above_max_length",
        ),
        # Structured codes decide.
        (Reported("prompt is too long", "rate_limit_exceeded"), 413, "rate_limit_exceeded"),
        (Reported("x", "", "insufficient_quota"), 429, "insufficient_quota"),
        (Reported("x", "DeploymentNotFound"), 404, "model_not_found"),
        (Reported("x", "400", "", None, "ResponsibleAIPolicyViolation"), 400, "content_filter"),
        (
            Reported("The response was filtered due to Azure's content management policy"),
            400,
            "content_policy_violation",
        ),
        (Reported("Your request was rejected as a result of the safety system"), 400, "content_policy_violation"),
        # A status as code says nothing that the status line does not.
        (Reported("Access denied", "401"), 401, "invalid_api_key"),
        (Reported("slow down", "429"), 429, "rate_limit_exceeded"),
        (Reported("odd", "unsupported_value"), 400, "unsupported_value"),
        # The user's words, quoted in a 400, make it no rate limit.
        (Reported("cannot parse: 'error 429 rate limit'"), 400, None),
    ],
)
def test_codes(found: Reported, status: int, code: str | None) -> None:
    assert classify.code_of(found, status) == code


@pytest.mark.parametrize(
    ("found", "status"),
    [
        (Reported("m", "429"), 429),
        (Reported("m", "200"), 502),
        (Reported("m", "", "overloaded_error"), 529),
        (Reported("m", "", "authentication_error"), 401),
        (Reported("m", "context_length_exceeded"), 400),
        (Reported("Rate limit reached"), 429),
        (Reported("upstream said 429"), 429),
        (Reported("order 42911 failed"), 502),
        (Reported("boom"), 502),
    ],
)
def test_status_of_an_error_without_one(found: Reported, status: int) -> None:
    assert classify.status_of(found) == status


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"error": {"message": "m"}}, True),
        ({"object": "error", "message": "m"}, True),
        ({"type": "error", "error": {}}, True),
        ({"error": None, "choices": []}, False),
        ({"error": {"message": "m"}, "choices": []}, False),
        ({"id": "resp", "status": "failed", "error": {"message": "m"}, "output": []}, False),
        ([], False),
        (None, False),
    ],
)
def test_errors_in_disguise(data: Any, error: bool) -> None:
    assert classify.is_error(data) is error


@settings(deadline=None)
@given(JSON, st.integers(100, 599))
def test_any_json_has_a_code_and_a_status(data: Any, status: int) -> None:
    found = classify.of(data)
    code = classify.code_of(found, status)
    assert code is None or isinstance(code, str)
    assert 400 <= classify.status_of(found) <= 599
