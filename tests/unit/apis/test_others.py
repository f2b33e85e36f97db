"""Embeddings, moderations, rerank, models, passthrough, and the table of all APIs with the routes it gives."""

from __future__ import annotations

import pytest

from tianji_mw.apis import ALL, TEXT, by_name
from tianji_mw.apis.base import Api, Part, Seen, Usage
from tianji_mw.apis.embeddings import Embeddings
from tianji_mw.apis.moderations import Moderations
from tianji_mw.apis.rerank import Rerank
from tianji_mw.errors import InvalidRequest, PluginNotFound
from tianji_mw.routes import Routes


@pytest.mark.parametrize("api", [Embeddings(), Moderations()])
def test_an_input_of_strings_or_parts(api: Api) -> None:
    assert list(api.texts({"input": "a"})) == [Part(("input",), "user", "a")]
    assert [p.text for p in api.texts({"input": ["a", "b"]})] == ["a", "b"]
    mixed = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert list(api.texts({"input": mixed})) == [Part(("input", 0, "text"), "user", "a")]
    assert list(api.texts({"input": [[1, 2]]})) == []
    for wrong in ({}, {"input": None}, {"input": 1}, {"input": "a", "model": 7}):
        with pytest.raises(InvalidRequest):
            api.validate(wrong)
    api.validate({"input": "a"})


@pytest.mark.parametrize("api", [Embeddings(), Moderations(), Rerank()])
def test_answers_without_text(api: Api) -> None:
    assert api.see_whole({"data": [{"embedding": [0.1]}]}) == Seen("other")
    assert api.see_whole({"error": {"message": "x"}}) == Seen("error")
    assert api.see_whole(None) == Seen("other")
    assert api.usage(None) is None
    with pytest.raises(NotImplementedError):
        api.split({})


def test_usage_of_embeddings() -> None:
    assert Embeddings().usage({"usage": {"prompt_tokens": 8, "total_tokens": 8}}) == Usage(8, source="provider")


def test_rerank_requests() -> None:
    api = Rerank()
    request = {"query": "q", "documents": ["a", {"title": "b", "year": 1999, "text": "c"}, 7]}
    api.validate(request)
    assert list(api.texts(request)) == [
        Part(("query",), "user", "q"),
        Part(("documents", 0), "tool", "a"),
        Part(("documents", 1, "title"), "tool", "b"),
        Part(("documents", 1, "text"), "tool", "c"),
    ]
    assert [p.text for p in api.texts({"query": "q", "texts": ["a"]})] == ["q", "a"]
    for wrong, param in (({}, "query"), ({"query": 1, "documents": []}, "query"), ({"query": "q"}, "documents")):
        with pytest.raises(InvalidRequest) as caught:
            api.validate(wrong)  # type: ignore[arg-type]
        assert caught.value.param == param


@pytest.mark.parametrize(
    ("answer", "usage"),
    [
        ({"meta": {"tokens": {"input_tokens": 20}, "billed_units": {"search_units": 1}}}, Usage(20, source="provider")),
        ({"meta": {"billed_units": {"input_tokens": 3, "output_tokens": 1}}}, Usage(3, 1, source="provider")),
        ({"meta": {"billed_units": {"search_units": 1}}}, None),
        ({"usage": {"total_tokens": 5}}, Usage(5, source="provider")),
        ({"usage": {"total_tokens": 5, "prompt_tokens": 4}}, Usage(4, source="provider")),
        ({"usage": "x", "meta": []}, None),
    ],
)
def test_rerank_usage(answer: object, usage: Usage | None) -> None:
    assert Rerank().usage(answer) == usage


def test_the_tables() -> None:
    names = [api.name for api in ALL]
    assert len(set(names)) == len(names)
    assert set(TEXT) < set(ALL)
    assert names[len(TEXT) :] == ["models", "passthrough"]
    for api in ALL:
        assert by_name(api.name) is api


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(PluginNotFound, match="Did you mean 'responses'"):
        by_name("respones")
    with pytest.raises(PluginNotFound, match="There are: chat_completions, "):
        by_name("zzz")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/v1/chat/completions", "chat_completions"),
        ("POST", "/chat/completions", "chat_completions"),
        ("POST", "/openai/deployments/x/chat/completions", "chat_completions"),
        ("POST", "/v1/completions", "completions"),
        ("POST", "/completions", "completions"),
        ("POST", "/v1/engines/x/completions", "completions"),
        ("POST", "/openai/deployments/x/completions", "completions"),
        ("POST", "/app/completions", None),
        ("POST", "/api/v1/embeddings", "embeddings"),
        ("POST", "/openai/deployments/x/embeddings", "embeddings"),
        ("POST", "/v1/responses", "responses"),
        ("POST", "/openai/responses", "responses"),
        ("GET", "/v1/responses", None),
        ("POST", "/v1/moderations", "moderations"),
        ("POST", "/v2/rerank", "rerank"),
        ("GET", "/v1/models", "models"),
        ("GET", "/models/gpt", "models"),
        ("POST", "/v1/audio/transcriptions", "passthrough"),
        ("GET", "/v1/files/file-1/content", "passthrough"),
        ("DELETE", "/files/file-1", "passthrough"),
        ("POST", "/v1/vector_stores/vs_1/files/f_1/content", "passthrough"),
        ("POST", "/v1/fine_tuning/jobs/j/cancel", "passthrough"),
        ("GET", "/app/v1/files", None),
    ],
)
def test_routes(method: str, path: str, name: str | None) -> None:
    api = Routes(ALL).match({"type": "http", "method": method, "path": path, "root_path": ""})
    assert (api.name if api else None) == name
