"""Text completions: requests, chunks, and a plain answer as a stream."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion

from tianji_mw.apis import sse
from tianji_mw.apis.base import Part, Seen, Usage
from tianji_mw.apis.completions import Completions, has_tokens
from tianji_mw.errors import InvalidRequest

API = Completions()


@pytest.mark.parametrize("prompt", ["a", ["a", "b"], [1, 2], [[1], [2, 3]], []])
def test_right_prompts(prompt: object) -> None:
    API.validate({"prompt": prompt})


@pytest.mark.parametrize("prompt", [None, 1, {"a": 1}, ["a", 1], [True], [{"text": "a"}], [["a"]]])
def test_wrong_prompts(prompt: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        API.validate({"prompt": prompt})
    assert caught.value.param == "prompt"


def test_texts() -> None:
    assert list(API.texts({"prompt": "a", "suffix": "b"})) == [
        Part(("prompt",), "user", "a"),
        Part(("suffix",), "user", "b"),
    ]
    assert list(API.texts({"prompt": ["a", "b"]})) == [
        Part(("prompt", 0), "user", "a"),
        Part(("prompt", 1), "user", "b"),
    ]
    assert list(API.texts({"prompt": [1, 2]})) == []


@pytest.mark.parametrize(
    ("value", "found"), [([1], True), ([[1], [2]], True), ("a", False), (["a"], False), ([], False)]
)
def test_has_tokens(value: object, found: bool) -> None:
    assert has_tokens(value) is found


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ({"choices": [{"text": "a"}, {"text": "b"}]}, Seen("text", "ab")),
        ({"choices": [{"text": "a", "finish_reason": "stop"}]}, Seen("text", "a")),
        ({"choices": [{"text": "", "finish_reason": "stop"}]}, Seen("stop")),
        ({"choices": [], "usage": {}}, Seen("usage")),
        ({"error": {"message": "x"}}, Seen("error")),
        ({"choices": "x"}, Seen("other")),
        (None, Seen("other")),
    ],
)
def test_see(data: object, seen: Seen) -> None:
    assert API.see(data, "") == seen


def test_whole_answers() -> None:
    answer = {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"text": "a", "index": 0, "finish_reason": "stop", "logprobs": None},
            {"text": "b", "index": 1, "finish_reason": "length", "logprobs": None},
        ],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    assert API.see_whole(answer) == Seen("text", "a\nb")
    assert API.usage(answer) == Usage(1, 2, source="provider")
    *events, done = API.split(answer)
    assert done == b"data: [DONE]\n\n"
    chunks = [orjson.loads(sse.parse(event)[1] or b"") for event in events]
    assert [Completion.model_validate(chunk).choices[0].text for chunk in chunks[:2]] == ["a", "b"]
    assert API.usage(chunks[2]) == Usage(1, 2, source="provider")
    assert API.is_end(events[0], chunks[0], "")
    assert API.is_end(done, None, "")


@given(st.recursive(st.none() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.sampled_from(
    ["choices", "text", "usage", "error", "finish_reason"]), v), max_leaves=10))  # fmt: skip
def test_reading_answers_is_total(data: object) -> None:
    API.see(data, "")
    API.see_whole(data)
    API.usage(data)
    API.is_end(b"data: x\n\n", data, "")
