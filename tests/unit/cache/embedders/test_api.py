"""Embeddings over HTTP against a small server on loopback, and through the gateway's own machinery."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from tests.support.loopback import Loopback
from tianji_mw.cache.embedders.api import Api
from tianji_mw.cache.embedders.base import EmbeddingFailed
from tianji_mw.errors import RateLimited, SetupError
from tianji_mw.runtime import Runtime

Answer = Callable[[dict[str, Any]], Any]


def vectors(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    """OpenAI's answer: the vector of a text is its length and 1; in reverse order, as servers may send it."""
    data = [
        {"object": "embedding", "index": at, "embedding": [float(len(text)), 1.0]}
        for at, text in enumerate(body["input"])
    ]
    return {"object": "list", "data": data[::-1], "model": body["model"], **more}


class Service(Loopback):
    """Answers each request with `answer(body)`; an int is a status, None closes the connection."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
                size = int(head.partition("content-length:")[2].split()[0])
                body = orjson.loads(await reader.readexactly(size))
                self.heads.append(head)
                self.bodies.append(body)
                answer = self.answer(body)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is None:
                    break
                status, raw = (answer, b"secret words") if isinstance(answer, int) else (200, answer)
                raw = raw if isinstance(raw, bytes) else orjson.dumps(raw)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def asked(answer: Answer, **fields: Any) -> AsyncIterator[tuple[Api, Service]]:
    async with Service(answer) as service, Runtime() as runtime:
        embedder = Api(**{"model": "m", "api_base": f"{service.url}/v1", **fields})
        await embedder.start(runtime)
        try:
            yield embedder, service
        finally:
            await embedder.aclose()


async def test_vectors_in_the_order_of_the_texts() -> None:
    async with asked(vectors, api_key="sk-of-the-test", dimensions=2) as (embedder, service):
        found, truncated = await embedder.embed(["a", "bbb", "cc"])
        wanted = np.array([[1, 1], [3, 1], [2, 1]], np.float32)
        assert found == pytest.approx(wanted / np.linalg.norm(wanted, axis=1, keepdims=True))
        assert found.dtype == np.float32
        assert truncated == [False] * 3
        assert service.bodies == [
            {"model": "m", "input": ["a", "bbb", "cc"], "encoding_format": "float", "dimensions": 2}
        ]
        assert "post /v1/embeddings " in service.heads[0]
        assert "authorization: bearer sk-of-the-test" in service.heads[0]
        assert (await embedder.report())["dims"] == 2
        assert (await embedder.embed([])).vectors.shape == (0, 2)


async def test_base64_answers() -> None:
    def packed(body: dict[str, Any]) -> Any:
        answer = vectors(body)
        for item in answer["data"]:
            item["embedding"] = base64.b64encode(np.array(item["embedding"], "<f4").tobytes()).decode()
        return answer

    async with asked(packed) as (embedder, _):
        assert (await embedder.embed(["ccc"])).vectors[0] == pytest.approx(np.array([3, 1]) / 10**0.5)


async def test_batches() -> None:
    async with asked(vectors, batch_size=2) as (embedder, service):
        found, _ = await embedder.embed(["a", "bb", "ccc", "dddd", "eeeee"])
        assert [len(body["input"]) for body in service.bodies] == [2, 2, 1]
        assert found[:, 0] / found[:, 1] == pytest.approx([1, 2, 3, 4, 5])


@pytest.mark.parametrize("text", ["x" * 41, "é" * 21, "語" * 14])
async def test_too_long_texts_are_cut_and_told(text: str) -> None:
    async with asked(vectors, semantic_cache_embedding_max_input_tokens=10) as (embedder, service):
        _, truncated = await embedder.embed([text, "x" * 40])
        assert truncated == [True, False]
        sent = service.bodies[0]["input"][0]
        assert text.startswith(sent)
        assert 37 < len(sent.encode()) <= 40


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (401, "answered 401"),
        (500, "answered 500"),
        (302, "answered 302"),
        (b"<html>", "no JSON"),
        (b"[1]", "OpenAI's answer"),
        ({"data": None}, "OpenAI's answer"),
        ({"data": [{"index": 0}]}, "OpenAI's answer"),
        ({"data": [{"index": 0, "embedding": "no base64!"}]}, "OpenAI's answer"),
        ({"data": [{"index": 0, "embedding": "abcd"}]}, "OpenAI's answer"),
        ({"data": [{"index": 0, "embedding": ["x"]}]}, "OpenAI's answer"),
        ({"data": [{"index": 0, "embedding": 5}]}, "without direction"),
        ({"data": [{"index": 0, "embedding": []}]}, "without direction"),
        ({"data": [{"index": 0, "embedding": [0.0, 0.0]}]}, "without direction"),
        ({"data": [{"index": 0, "embedding": [None, 1.0]}]}, "without direction"),
        ({"data": [{"index": 0, "embedding": [1e39, 1.0]}]}, "without direction"),
        ({"data": []}, "one vector for each"),
        ({"data": [{"index": 1, "embedding": [1.0]}]}, "one vector for each"),
        ({"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]}, "one vector for each"),
    ],
)
async def test_wrong_answers(answer: Any, message: str) -> None:
    async with asked(lambda _: answer) as (embedder, service):
        with pytest.raises(EmbeddingFailed, match=message) as caught:
            await embedder.embed(["my words"])
        assert "words" not in caught.value.message
        assert len(service.bodies) == 1


async def test_dimensions_must_not_change() -> None:
    sizes = iter([2, 3])
    async with asked(lambda _: {"data": [{"index": 0, "embedding": [1.0] * next(sizes)}]}) as (embedder, _):
        await embedder.embed(["a"])
        with pytest.raises(EmbeddingFailed, match="3 dimensions, and 2 before"):
            await embedder.embed(["a"])


async def test_broken_connection_is_tried_once_more() -> None:
    answers = iter([vectors, lambda _: None, vectors, lambda _: None, lambda _: None])
    async with asked(lambda body: next(answers)(body)) as (embedder, service):
        await embedder.embed(["a"])
        await embedder.embed(["a"])
        assert len(service.bodies) == 3
        with pytest.raises(EmbeddingFailed, match="cannot be reached"):
            await embedder.embed(["a"])


async def test_silence_ends_at_the_limit() -> None:
    async def silence(_: dict[str, Any]) -> None:
        await asyncio.sleep(30)

    async with asked(silence, semantic_cache_embedding_timeout=0.1) as (embedder, service):
        with pytest.raises(EmbeddingFailed, match=r"within 0\.1 s"):
            await embedder.embed(["a"])
        assert len(service.bodies) == 1


async def test_through_a_deployment() -> None:
    asked_for = []

    async def ask(body: dict[str, Any]) -> dict[str, Any]:
        asked_for.append(body)
        if len(asked_for) == 2:
            raise RateLimited("my words")
        if len(asked_for) == 3:
            await asyncio.sleep(30)
        return vectors(body)

    async with Runtime() as runtime:
        embedder = Api(redis_semantic_cache_embedding_model="my-embedder", timeout_s=0.1)
        with pytest.raises(SetupError, match="set api_base"):
            await embedder.start(runtime)
        embedder.through(ask)
        await embedder.start(runtime)
        assert (await embedder.embed(["abc"])).vectors.shape == (1, 2)
        assert asked_for == [{"model": "my-embedder", "input": ["abc"], "encoding_format": "float"}]
        for message in ("RateLimited, status 429", r"within 0\.1 s"):
            with pytest.raises(EmbeddingFailed, match=message) as caught:
                await embedder.embed(["abc"])
            assert "words" not in caught.value.message
        await embedder.aclose()


async def test_wrong_address() -> None:
    with pytest.raises(SetupError, match="https://host/v1"):
        await Api(api_base="api.example.com/v1").start(Runtime())


async def test_not_started() -> None:
    with pytest.raises(EmbeddingFailed, match="not started"):
        await Api(api_base="http://127.0.0.1:9/v1").embed(["a"])


def test_model_id_tells_models_apart() -> None:
    ids = [
        Api(model="m").model_id,
        Api(model="n").model_id,
        Api(model="m", dimensions=5).model_id,
        Api(model="m", version="2").model_id,
        Api(model="m", api_base="http://user:password@one.internal/v1?key=1").model_id,
    ]
    assert len(set(ids)) == len(ids)
    assert ids[-1] == "m@one.internal"
