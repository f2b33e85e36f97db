"""Anthropic's Messages as a client API: requests, frames, usage, replay and errors."""

from __future__ import annotations

import httpx2
import orjson
import pytest
from anthropic import Anthropic
from hypothesis import given
from hypothesis import strategies as st

from tianji_mw import errors
from tianji_mw.apis import sse
from tianji_mw.apis.base import Seen, Usage
from tianji_mw.apis.count_tokens import CountTokens
from tianji_mw.apis.messages import Messages, type_of_status

API = Messages()
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["type", "delta", "content", "message", "usage", "error", "content_block", "text", "input", "input_tokens", "x"]
    ) , inner | st.sampled_from(
        ["message_start", "content_block_start", "content_block_delta", "message_delta", "text_delta", "thinking",
         "tool_use"]
    ), max_size=4),
    max_leaves=12,
)  # fmt: skip


def body(**fields: object) -> dict[str, object]:
    return {"model": "claude", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}], **fields}


# --- requests


@pytest.mark.parametrize("fields", [{}, {"max_tokens": None}, {"max_tokens": 1}, {"stream": True}, {"top_k": 3}])
def test_good_requests_pass(fields: dict[str, object]) -> None:
    API.validate(body(**fields))


def test_max_tokens_is_not_required() -> None:
    API.validate({"model": "claude", "messages": []})


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"model": "m"}, "messages"),
        (body(messages="Hi"), "messages"),
        (body(messages=["Hi"]), "messages"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=-1), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(max_tokens=True), "max_tokens"),
        (body(max_tokens="5"), "max_tokens"),
        (body(model=3), "model"),
        (body(stream="yes"), "stream"),
    ],
)
def test_wrong_requests_name_the_field(request_: dict[str, object], param: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        API.validate(request_)
    assert caught.value.param == param


def test_texts_reads_every_text_with_its_place() -> None:
    request = body(
        system=[{"type": "text", "text": "sys", "cache_control": {"type": "ephemeral"}}],
        messages=[
            {"role": "user", "content": "plain"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "thought", "signature": "c2ln"},
                    {"type": "redacted_thinking", "data": "opaque"},
                    {"type": "text", "text": "said"},
                    {
                        "type": "tool_use",
                        "id": "t1",
                        "name": "f",
                        "input": {"id": "deep", "l": [{"name": "deeper"}, 1]},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": "result"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "content": [
                            {"type": "text", "text": "part"},
                            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
                        ],
                    },
                    {
                        "type": "document",
                        "title": "T",
                        "source": {"type": "text", "media_type": "text/plain", "data": "doc"},
                    },
                    {
                        "type": "search_result",
                        "source": "src",
                        "title": "st",
                        "content": [{"type": "text", "text": "hit"}],
                    },
                    {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
                    {"type": "invented", "words": {"inner": "new"}},
                ],
            },
        ],
    )
    found = list(API.texts(request))
    assert [part.text for part in found] == [
        "sys", "plain", "thought", "said", "deep", "deeper", "result", "part", "T", "doc", "src", "st", "hit", "new",
    ]  # fmt: skip
    assert [part.role for part in found] == [
        "system", "user", "assistant", "assistant", "assistant", "assistant",
        # What was found stands in a message of the user, and no user wrote it.
        "tool", "tool", "tool", "tool", "tool", "tool", "tool", "user",
    ]  # fmt: skip
    for part in found:  # each path leads to its text, so that a guardrail can put another one there
        value: object = request
        for key in part.path:
            value = value[key]  # type: ignore[index]
        assert value == part.text


def test_system_may_be_a_string() -> None:
    assert next(iter(API.texts(body(system="be kind")))).path == ("system",)


def test_deep_tool_input_is_read_without_recursion() -> None:
    deep: object = "bottom"
    for _ in range(5000):
        deep = [deep]
    message = {"role": "assistant", "content": [{"type": "tool_use", "input": deep}]}
    assert [part.text for part in API.texts(body(messages=[message]))] == ["bottom"]


# --- frames


def delta(**fields: object) -> dict[str, object]:
    return {"type": "content_block_delta", "index": 0, "delta": fields}


def block(**fields: object) -> dict[str, object]:
    return {"type": "content_block_start", "index": 0, "content_block": fields}


SEEN = [
    (delta(type="text_delta", text="hi"), Seen("text", "hi")),
    (delta(type="input_json_delta", partial_json='{"a'), Seen("tool", '{"a')),
    (delta(type="thinking_delta", thinking="hm"), Seen("thinking", "hm")),
    (delta(type="signature_delta", signature="c2ln"), Seen("other")),
    (delta(type="citations_delta", citation={"type": "page_location", "cited_text": "quote"}), Seen("text", "quote")),
    (delta(type="brand_new_delta", words="secret"), Seen("text", "secret")),
    (block(type="text", text=""), Seen("other")),
    (block(type="text", text="early"), Seen("text", "early")),
    (block(type="tool_use", id="t", name="get_rate", input={}), Seen("tool", "get_rate")),
    (block(type="tool_use", id="t", name="f", input={"a": 1}), Seen("tool", 'f{"a":1}')),
    (block(type="thinking", thinking="", signature=""), Seen("other")),
    (
        block(type="web_search_tool_result", content=[{"title": "found", "encrypted_content": "x"}]),
        Seen("text", "found"),
    ),
    ({"type": "content_block_stop", "index": 0}, Seen("other")),
    ({"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 1}}}, Seen("usage")),
    ({"type": "message_start", "message": {"content": [{"type": "text", "text": "odd"}]}}, Seen("text", "odd")),
    ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}}, Seen("stop")),
    ({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1}}, Seen("usage")),
    ({"type": "message_stop"}, Seen("other")),
    ({"type": "ping"}, Seen("other")),
    ({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}, Seen("error")),
    ({"type": "new_event", "payload": {"text": "hidden"}}, Seen("text", "hidden")),
    (["no", "object"], Seen("other")),
]


@pytest.mark.parametrize(("data", "seen"), SEEN)
def test_see(data: object, seen: Seen) -> None:
    assert API.see(data, "") == seen


def test_see_falls_back_on_the_event_name() -> None:
    assert API.see({"delta": {"type": "text_delta", "text": "hi"}}, "content_block_delta") == Seen("text", "hi")


def test_see_whole_joins_all_blocks() -> None:
    answer = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "hm"},
            {"type": "text", "text": "a se"},
            {"type": "text", "text": "ntence"},
            {"type": "tool_use", "name": "f", "input": {"x": "y"}},
        ],
    }
    assert API.see_whole(answer) == Seen("text", 'hm\na sentence\nf{"x":"y"}')
    assert API.see_whole({"type": "message", "content": []}) == Seen("other")
    assert API.see_whole({"content": [{"type": "tool_use", "name": "f", "input": {}}]}) == Seen("tool", "f")
    assert API.see_whole({"type": "error", "error": {"message": "x"}}) == Seen("error")
    assert API.see_whole(None) == Seen("other")


@given(JSON_VALUES, st.sampled_from(["", "message_start", "content_block_delta", "x"]))
def test_reading_is_total(data: object, event: str) -> None:
    API.see(data, event)
    API.see_whole(data)
    API.usage(data)
    API.is_end(b"", data, event)
    if isinstance(data, dict):
        list(API.texts({"messages": [data], "system": data}))


@pytest.mark.parametrize(
    ("data", "event", "end"),
    [
        ({"type": "message_stop"}, "message_stop", True),
        ({"type": "error", "error": {}}, "error", True),
        (None, "message_stop", True),
        ({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, "message_delta", False),
        ({"type": "ping"}, "ping", False),
        (None, "", False),
    ],
)
def test_is_end(data: object, event: str, end: bool) -> None:
    assert API.is_end(b"", data, event) is end


# --- usage


def test_usage_counts_cached_tokens_in() -> None:
    found = {
        "input_tokens": 10,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 2,
        "output_tokens": 9,
        "output_tokens_details": {"thinking_tokens": 4},
    }
    expected = Usage(17, 9, 5, 2, 4, "provider")
    assert API.usage({"type": "message", "content": [], "usage": found}) == expected
    assert API.usage({"type": "message_start", "message": {"usage": found}}) == expected


def test_stream_usage_merges_to_the_right_sum() -> None:
    start = API.usage({"type": "message_start", "message": {"usage": {
        "input_tokens": 10, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 0,
         "output_tokens": 1}}})  # fmt: skip
    bare = API.usage({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}})
    repeated = API.usage({"type": "message_delta", "delta": {}, "usage": {
        "input_tokens": 10, "cache_read_input_tokens": 5, "output_tokens": 9}})  # fmt: skip
    assert start is not None
    assert bare is not None
    assert repeated is not None
    assert start == Usage(15, 1, 5, 0, 0, "provider")
    for last in (bare, repeated):
        assert Usage().merged(start).merged(last) == Usage(15, 9, 5, 0, 0, "provider")
    # What a bridged stream sends: zeros first, everything at the end.
    assert Usage(source="provider").merged(repeated) == Usage(15, 9, 5, 0, 0, "provider")


def test_merging_nothing_changes_nothing() -> None:
    known = Usage(3, 4, 1, 1, 2, "provider")
    assert known.merged(Usage()) == known
    assert Usage().merged(known) == known
    assert Usage(3, 4, source="estimated").merged(Usage(output_tokens=5, source="provider")) == Usage(
        3, 5, source="provider"
    )


@pytest.mark.parametrize(
    "data", [None, [], {}, {"usage": None}, {"type": "ping"}, {"type": "message_start", "message": 1}]
)
def test_no_usage(data: object) -> None:
    assert API.usage(data) is None


# --- replay


ANSWER = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        {"type": "redacted_thinking", "data": "b3BhcXVl"},
        {"type": "text", "text": "Hello", "citations": [{
            "type": "char_location", "cited_text": "q", "document_index": 0, "document_title": None,
            "start_char_index": 0, "end_char_index": 1, "file_id": None}]},
        {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": [1, "x"]}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 3, "output_tokens": 7, "cache_read_input_tokens": 1},
}  # fmt: skip


def final_message(stream: bytes) -> dict[str, object]:
    """What Anthropic's own client makes of an event stream."""
    transport = httpx2.MockTransport(
        lambda _: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    )
    client = Anthropic(api_key="k", http_client=httpx2.Client(transport=transport), max_retries=0)
    with client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]) as events:
        return events.get_final_message().to_dict(mode="json")


def test_split_gives_a_stream_that_the_official_client_puts_together_again() -> None:
    stream = API.split(ANSWER)
    names = [sse.parse(event)[0] for event in stream]
    assert names[0] == "message_start"
    assert names[-2:] == ["message_delta", "message_stop"]
    found = final_message(b"".join(stream))
    assert {key: found[key] for key in ("id", "role", "model", "stop_reason")} == {
        key: ANSWER[key] for key in ("id", "role", "model", "stop_reason")
    }
    for got, wanted in zip(found["content"], ANSWER["content"], strict=True):  # type: ignore[call-overload]
        assert {key: got[key] for key in wanted} == wanted
    assert found["usage"]["output_tokens"] == 7  # type: ignore[index]


def test_split_is_seen_like_the_plain_answer() -> None:
    frames = [sse.parse(event) for event in API.split(ANSWER)]
    seen = [API.see(orjson.loads(payload or b"null"), name) for name, payload in frames]
    assert [s.kind for s in seen if s.kind not in ("other", "usage")] == [
        "thinking",
        "text",
        "text",
        "tool",
        "tool",
        "stop",
    ]
    usages = [u for name, payload in frames if (u := API.usage(orjson.loads(payload or b"null")))]
    assert usages[0].merged(usages[1]) == API.usage(ANSWER)


def test_split_of_an_error_is_one_error_event() -> None:
    error = {"type": "error", "error": {"type": "api_error", "message": "x"}}
    assert [sse.parse(event)[0] for event in API.split(error)] == ["error"]


# --- errors


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (errors.InvalidRequest("x"), "invalid_request_error"),
        (errors.UnsupportedParams("x"), "invalid_request_error"),
        (errors.Blocked("x"), "invalid_request_error"),
        (errors.MethodNotAllowed("x"), "invalid_request_error"),
        (errors.AuthenticationFailed(), "authentication_error"),
        (errors.PermissionDenied("x"), "permission_error"),
        (errors.UnknownModel("x"), "not_found_error"),
        (errors.BodyTooLarge("x"), "request_too_large"),
        (errors.RateLimited("x"), "rate_limit_error"),
        (errors.NoDeployment("x"), "rate_limit_error"),
        (errors.ReceiveTimeout("x"), "timeout_error"),
        (errors.UpstreamTimeout("x"), "timeout_error"),
        (errors.UpstreamError("x", status=504), "timeout_error"),
        (errors.Overloaded("x"), "overloaded_error"),
        (errors.UpstreamError("x", status=529), "overloaded_error"),
        (errors.UpstreamMalformed("x"), "api_error"),
        (errors.UpstreamError("x", status=402), "billing_error"),
        (errors.SetupError("x"), "api_error"),
    ],
)
def test_errors_have_anthropics_shape(error: errors.TianjiError, kind: str) -> None:
    expected = {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": "req"}
    assert orjson.loads(API.error(error, "req")) == expected
    name, payload = sse.parse(API.error_event(error, "req"))
    assert name == "error"
    assert orjson.loads(payload or b"") == expected


def test_every_status_has_a_type() -> None:
    assert {type_of_status(status) for status in range(400, 600)} >= {"api_error", "invalid_request_error"}


def test_count_tokens() -> None:
    api = CountTokens()
    assert api.usage({"input_tokens": 5}) is None
    assert api.see_whole({"input_tokens": 5}) == Seen("other")
    assert [part.text for part in api.texts(body())] == ["Hi"]
    with pytest.raises(NotImplementedError):
        api.split({"input_tokens": 5})
    with pytest.raises(errors.InvalidRequest):
        api.validate({"model": "m"})
