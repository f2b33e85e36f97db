"""Text completions over Chat: one prompt in, text out, and nothing promised that a chat model cannot do."""

from __future__ import annotations

import copy
from typing import Any

import httpx2
import openai
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from tests.unit.bridges.support import kept
from tianji_mw.apis import sse
from tianji_mw.apis.completions import Completions
from tianji_mw.bridges.base import Context, Event
from tianji_mw.bridges.completions_over_chat import CompletionsOverChat
from tianji_mw.errors import InvalidRequest, UnsupportedParams, UpstreamMalformed

BRIDGE = CompletionsOverChat()
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def context(**more: Any) -> Context:
    return Context(call_id="abc", model="alias", created=7, **more)


def request(body: dict[str, Any], ctx: Context | None = None) -> dict[str, Any]:
    return kept(BRIDGE.request, body, ctx or context())


# --- requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Hello", ["Hello"]])
def test_a_prompt_becomes_one_user_message(prompt: object) -> None:
    out = request(
        {"model": "m", "prompt": prompt, "max_tokens": 5, "temperature": 0, "n": 2, "stop": ["x"], "user": None}
    )
    message = {"role": "user", "content": "Hello"}
    assert out == {"model": "m", "messages": [message], "max_tokens": 5, "temperature": 0, "n": 2, "stop": ["x"]}


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (["a", "b"], "one prompt"),
        ([1, 2], "token ids"),
        ([[1], [2]], "token ids"),
        ([[1]], "token ids"),
        (None, "token ids"),
    ],
)
def test_prompts_a_chat_model_cannot_take(prompt: object, why: str) -> None:
    with pytest.raises(InvalidRequest, match=f"no text completions.*{why}") as caught:
        request({"prompt": prompt}, context(drop_params=True))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(("name", "value"), [("echo", True), ("suffix", "x"), ("best_of", 3)])
def test_parameters_of_continuing(name: str, value: object) -> None:
    with pytest.raises(UnsupportedParams) as caught:
        request({"prompt": "a", name: value})
    assert caught.value.param == name
    ctx = context(drop_params=True)
    assert name not in request({"prompt": "a", name: value}, ctx)
    assert ctx.dropped == [name]


def test_defaults_of_those_are_no_reason_to_refuse() -> None:
    ctx = context()
    assert set(request({"prompt": "a", "echo": False, "suffix": None, "best_of": 1}, ctx)) == {"messages"}
    assert ctx.dropped == []


def test_logprobs_and_stream_options() -> None:
    out = request({"prompt": "a", "logprobs": 2, "stream": True})
    assert (out["logprobs"], out["top_logprobs"], out["stream_options"]) == (True, 2, {"include_usage": True})
    assert request({"prompt": "a", "logprobs": 0})["top_logprobs"] == 0


# --- answers ----------------------------------------------------------------------------------------------------


def test_a_whole_answer() -> None:
    token = {
        "token": "Hi",
        "logprob": -0.5,
        "top_logprobs": [{"token": "Hi", "logprob": -0.5}, {"token": "Ho", "logprob": -2}],
    }
    end = {"token": "!", "logprob": -1, "top_logprobs": []}
    body = {
        "choices": [
            {"index": 0, "message": {"content": "Hi!"}, "finish_reason": "stop", "logprobs": {"content": [token, end]}},
            {"index": 1, "message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"},
            {"index": 2, "message": {"content": "x"}, "finish_reason": "length"},
        ],
        "usage": USAGE,
    }
    before = copy.deepcopy(body)
    answer = BRIDGE.answer(body, context())
    assert body == before
    found = Completion.model_validate(answer)
    assert (found.id, found.model, found.created) == ("cmpl-abc", "alias", 7)
    assert [(c.index, c.text, c.finish_reason) for c in found.choices] == [
        (0, "Hi!", "stop"),
        (1, "", "stop"),
        (2, "x", "length"),
    ]
    assert answer["choices"][0]["logprobs"] == {
        "tokens": ["Hi", "!"],
        "token_logprobs": [-0.5, -1],
        "top_logprobs": [{"Hi": -0.5, "Ho": -2}, {}],
        "text_offset": [0, 2],
    }
    assert answer["usage"] == USAGE


@pytest.mark.parametrize(
    "body", [None, {}, {"choices": []}, {"choices": [{}]}, {"choices": [{"message": {}}, {}]}, "x"]
)
def test_answers_of_another_shape(body: object) -> None:
    with pytest.raises(UpstreamMalformed):
        BRIDGE.answer(body, context())


# --- streams ----------------------------------------------------------------------------------------------------


def delta(message: dict[str, Any], reason: str | None = None, index: int = 0, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": message, "finish_reason": reason, **more}]}


STREAM = [
    delta({"role": "assistant", "content": ""}),
    delta({"reasoning_content": "hm"}),
    delta({"content": "Hel"}, logprobs={"content": [{"token": "Hel", "logprob": -1, "top_logprobs": []}]}),
    delta({"content": "lo"}, logprobs={"content": [{"token": "lo", "logprob": -1, "top_logprobs": []}]}),
    delta({}, "stop"),
    {"choices": [], "usage": USAGE},
]


def play(chunks: list[Any], options: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    ctx = context()
    request({"prompt": "a", "stream": True, "stream_options": options}, ctx)
    before = copy.deepcopy(chunks)
    bridge = BRIDGE.stream(ctx)
    events = [event.data for chunk in chunks for event in bridge.feed(Event(chunk))] + [e.data for e in bridge.finish()]
    assert chunks == before
    assert bridge.ended
    assert list(bridge.finish()) == []
    return events


def test_without_being_asked_usage_rides_on_the_last_chunk() -> None:
    events = play(STREAM)
    assert [Completion.model_validate(e).choices[0].text for e in events if e["choices"][0]["finish_reason"]] == [""]
    assert [e["choices"][0]["text"] for e in events] == ["Hel", "lo", ""]
    assert [e["choices"][0]["logprobs"] and e["choices"][0]["logprobs"]["text_offset"] for e in events] == [
        [0],
        [3],
        None,
    ]
    assert ["usage" in e for e in events] == [False, False, True]
    assert all(e["choices"] for e in events)


def test_asked_for_usage_comes_alone() -> None:
    events = play(STREAM, {"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == USAGE
    assert Completions().usage(events[-1]) is not None
    assert "usage" not in events[-2]


def test_the_sdk_reads_the_stream() -> None:
    body = b"".join(sse.encode(orjson.dumps(event)) for event in play(STREAM)) + b"data: [DONE]\n\n"
    transport = httpx2.MockTransport(
        lambda request: httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)
    )
    client = openai.OpenAI(api_key="k", base_url="http://test/v1", http_client=httpx2.Client(transport=transport))
    chunks = list(client.completions.create(model="m", prompt="a", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None


def test_text_in_the_last_chunk_and_several_choices() -> None:
    events = play([delta({"content": "a"}, "length"), delta({"content": "b"}, "tool_calls", index=1)])
    found = [(e["choices"][0]["index"], e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events]
    assert found == [(0, "a", None), (1, "b", None), (0, "", "length"), (1, "", "stop")]


def test_an_error_goes_through() -> None:
    error = {"message": "boom", "type": "api_error"}
    events = play([*STREAM[:3], {"error": error}])
    assert events[-1] == {"error": error}
    assert Completions().is_end(b"", events[-1], "")


def test_a_stream_without_its_end_is_not_ended() -> None:
    bridge = BRIDGE.stream(context())
    for chunk in STREAM[:4]:
        list(bridge.feed(Event(chunk)))
    assert not bridge.ended


CHUNKS = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "message", "error", "usage", "index", "logprobs", "finish_reason"]
            )
            | st.sampled_from(["token", "logprob", "top_logprobs", "refusal"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.lists(CHUNKS, max_size=5))
def test_streams_are_total(chunks: list[Any]) -> None:
    bridge = BRIDGE.stream(context())
    events = [event.data for chunk in chunks for event in bridge.feed(Event(chunk))]
    orjson.dumps(events + [event.data for event in bridge.finish()])


@given(CHUNKS)
def test_answers_are_total(body: Any) -> None:
    try:
        orjson.dumps(BRIDGE.answer(body, context()))
    except UpstreamMalformed:
        pass
