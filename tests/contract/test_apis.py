"""What every client API promises: total on any JSON, errors that its SDKs understand, streams that end."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tianji_mw.apis import ALL, TEXT, by_name, sse
from tianji_mw.apis.base import Api, Usage
from tianji_mw.errors import (
    AuthenticationFailed,
    Blocked,
    InvalidRequest,
    Overloaded,
    RateLimited,
    TianjiError,
    UpstreamError,
    UpstreamTimeout,
    UpstreamTruncated,
)

_KEYS = [
    "messages", "content", "role", "text", "type", "choices", "delta", "message", "tool_calls", "function",
    "arguments", "name", "input", "output", "usage", "index", "error", "prompt", "model", "stream", "id",
    "finish_reason", "data", "prompt_tokens", "input_tokens", "output_tokens", "item", "part", "response",
    "status", "refusal", "documents", "reasoning_content", "thinking", "partial_json", "content_block",
    "query", "system", "tools", "instructions",
]  # fmt: skip
_WORDS = [
    "user", "assistant", "hi", "", "content_block_delta", "message_delta", "response.output_text.delta",
    "error", "text", "text_delta", "response.completed", "message_start", "function_call", "output_text",
    "tool_use", "stop",
]  # fmt: skip
KEYS = st.sampled_from(_KEYS)
WORDS = st.sampled_from([*_WORDS, "é\x00"])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-5, 10**19), st.floats(allow_nan=False), WORDS)
JSONS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=5)),
    max_leaves=25,
)
OBJECTS = st.dictionaries(KEYS, JSONS, max_size=6)
EVENTS = st.one_of(st.just(""), WORDS)
KINDS = {"text", "tool", "thinking", "usage", "stop", "error", "other"}
every = pytest.mark.parametrize("api", ALL, ids=lambda api: api.name)


@every
@settings(max_examples=25, deadline=None)
@given(JSONS, EVENTS)
def test_reading_an_answer_is_total(api: Api, data: Any, event: str) -> None:
    before = copy.deepcopy(data)
    for seen in (api.see(data, event), api.see_whole(data)):
        assert seen.kind in KINDS
        assert isinstance(seen.text, str)
    usage = api.usage(data)
    assert usage is None or isinstance(usage, Usage)
    if usage is not None:
        assert min(usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.reasoning_tokens) >= 0
    assert api.is_end(b"data: x\n\n", data, event) in (True, False)
    assert before == data


@every
@settings(max_examples=25, deadline=None)
@given(OBJECTS)
def test_a_request_is_refused_or_readable(api: Api, request: dict[str, Any]) -> None:
    before = copy.deepcopy(request)
    try:
        api.validate(request)
    except InvalidRequest:
        return
    for part in api.texts(request):
        assert isinstance(part.text, str)
        value: Any = request
        for step in part.path:
            value = value[step]  # the path leads to where the text stands
        assert isinstance(value, str)
        assert part.text in value or value in part.text
    assert before == request


@every
@settings(max_examples=25, deadline=None)
@given(OBJECTS)
def test_splitting_an_answer_is_total_and_gives_a_stream_that_ends(api: Api, answer: dict[str, Any]) -> None:
    try:
        events = api.split(answer)
    except NotImplementedError:
        return
    except TianjiError:
        return
    splitter = sse.Splitter(1 << 24)
    assert splitter.feed(b"".join(events)) == list(events)
    last = [(raw, *sse.parse(raw)) for raw in events][-1]
    name, payload = last[1], last[2]
    data = orjson.loads(payload) if payload and payload != b"[DONE]" else None
    assert api.is_end(last[0], data, name)


ERRORS = [
    AuthenticationFailed(),
    InvalidRequest("Wrong.", param="messages"),
    Blocked("No."),
    RateLimited("Slow.", headers={"retry-after": "1"}),
    Overloaded("Full."),
    UpstreamTimeout("Late."),
    UpstreamTruncated("Cut."),
    UpstreamError("Odd.", status=418),
    TianjiError('Quotes " and \n lines and é.'),
]


@every
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_are_in_the_shape_of_the_api(api: Api, error: TianjiError) -> None:
    body = orjson.loads(api.error(error, "req-1"))
    assert body["error"]["message"] == error.message
    assert isinstance(body["error"]["type"], str)
    if api.name in ("messages", "count_tokens"):
        assert body["type"] == "error"
    else:
        assert set(body["error"]) >= {"message", "type", "param", "code"}


@every
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_event_is_one_event_that_ends_the_stream(api: Api, error: TianjiError) -> None:
    raw = api.error_event(error, "req-1")
    assert sse.Splitter().feed(raw) == [raw]
    name, payload = sse.parse(raw)
    data = orjson.loads(payload or b"null")
    assert api.see(data, name).kind == "error" or api.name not in {a.name for a in TEXT if _streams(a)}
    if _streams(api):
        assert api.is_end(raw, data, name)
    assert orjson.dumps(error.message) in raw


def _streams(api: Api) -> bool:
    return type(api).split is not Api.split


def test_names_are_unique_and_found() -> None:
    assert len({api.name for api in ALL}) == len(ALL)
    assert all(by_name(api.name) is api for api in ALL)


@every
def test_apis_are_stateless(api: Api) -> None:
    assert not vars(api)
    assert api.paths
    assert api.methods


@every
@settings(max_examples=25, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_of_an_event_are_judged(api: Api, raw: bytes) -> None:
    name, payload = sse.parse(raw)
    try:
        data = orjson.loads(payload or b"")
    except orjson.JSONDecodeError:
        data = None
    assert api.is_end(raw, data, name) in (True, False)
