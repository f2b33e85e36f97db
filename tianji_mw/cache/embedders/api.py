"""Vectors of any `/v1/embeddings`: an address of its own, or a deployment of the config.

A deployment is reached through the gateway's own machinery, which whoever starts the cache hands in (`through`); then
keys, retries and spend are its business. The limit of time that a call can bear is set by the cache.

Source: OpenAI API reference, "Create embeddings".
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import urlsplit

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw import http, redact
from tianji_mw.cache.embedders.base import Embedder, EmbeddingFailed, Embeddings
from tianji_mw.errors import MissingExtra, SetupError, TianjiError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Sends the body of a call for embeddings, and gives the body of the answer. Raises TianjiError.
Ask = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]

#: Bytes of UTF-8 for one token; real tokens have about 4 in English and 3 in most other writing.
_BYTES_PER_TOKEN: Final = 4
_CONNECT_S: Final = 2.0


class Api(Embedder):
    """A model behind an API.

    >>> Api(model="text-embedding-3-small", api_base="https://api.openai.com/v1", dimensions=512).model_id
    'text-embedding-3-small:512@api.openai.com'
    """

    title: ClassVar[str] = "the embedding API"
    aliases: ClassVar[Mapping[str, str]] = {
        "redis_semantic_cache_embedding_model": "model",
        "valkey_semantic_cache_embedding_model": "model",
        "qdrant_semantic_cache_embedding_model": "model",
        "semantic_cache_embedding_timeout": "timeout_s",
        "semantic_cache_embedding_max_input_tokens": "max_input_tokens",
    }

    model: str = Field(default="text-embedding-ada-002", min_length=1, max_length=256)
    #: Asked for in every call; for models that can shorten their vectors.
    dimensions: int | None = Field(default=None, ge=1, le=16_384)
    #: Address with version, such as https://api.openai.com/v1. Empty: a deployment of the config named `model`.
    api_base: str = ""
    api_key: Secret | None = None
    #: Seconds for one call, all in.
    timeout_s: float = Field(default=5.0, gt=0, le=120)
    #: Estimated, as 4 bytes of text each; what is longer is cut and told so.
    max_input_tokens: int = Field(default=8191, ge=1, le=1_000_000)
    #: Texts in one call.
    batch_size: int = Field(default=128, ge=1, le=2048)
    #: Any word; another one when the same name has come to mean another model, whose vectors start afresh.
    version: str = Field(default="", max_length=64)

    _ask: Ask | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    _dims: int | None = PrivateAttr(default=None)

    @property
    def model_id(self) -> str:
        size = f":{self.dimensions}" if self.dimensions else ""
        place = urlsplit(self.api_base).hostname or "config"
        return f"{self.model}{size}@{place}" + (f"#{self.version}" if self.version else "")

    def through(self, ask: Ask) -> None:
        """Send calls by `ask` wherever there is no `api_base`; before the start."""
        self._ask = ask

    async def start(self, runtime: Runtime) -> None:
        """Open the client; nothing is asked yet. Raises SetupError, MissingExtra."""
        try:
            import numpy  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("numpy", "semantic") from None
        if not self.api_base:
            if self._ask is None:
                text = "set api_base, or name a deployment of the config as its model"
                raise SetupError(f"{self.title}: no place to send texts to; {text}.")
            return
        parts = urlsplit(self.api_base)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SetupError(f"{self.title}: api_base is no address; write it as https://host/v1.")
        self._client = http.client(timeout_s=self.timeout_s, connect_s=min(_CONNECT_S, self.timeout_s))

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector for each text, in as many calls as `batch_size` asks for. Raises EmbeddingFailed."""
        import numpy as np

        read = [self._cut(text) for text in texts]
        starts = range(0, len(read), self.batch_size)
        parts = [await self._vectors(read[start : start + self.batch_size]) for start in starts]
        vectors = np.concatenate(parts) if parts else np.empty((0, self._dims or 0), np.float32)
        return Embeddings(vectors, [len(cut) < len(text) for cut, text in zip(read, texts, strict=True)])

    async def report(self) -> dict[str, Any]:
        return {"model": self.model_id, "dims": self._dims}

    def _cut(self, text: str) -> str:
        most = self.max_input_tokens * _BYTES_PER_TOKEN
        if len(text) * 4 <= most:
            return text
        raw = text.encode("utf-8", "replace")
        return text if len(raw) <= most else raw[:most].decode("utf-8", "ignore")

    async def _vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        body: dict[str, Any] = {"model": self.model, "input": list(texts), "encoding_format": "float"}
        if self.dimensions:
            body["dimensions"] = self.dimensions
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await (self._posted(body) if self.api_base else self._asked(body))
        except TimeoutError:
            raise EmbeddingFailed(f"{self._where} did not answer within {self.timeout_s:g} s") from None
        vectors = _read(answer, len(texts), self._where)
        if self._dims not in (None, vectors.shape[1]):
            raise EmbeddingFailed(f"{self._where} sent {vectors.shape[1]} dimensions, and {self._dims} before")
        self._dims = vectors.shape[1]
        return vectors

    @property
    def _where(self) -> str:
        return f"{self.title} at {redact.url(self.api_base)}" if self.api_base else f"{self.title}"

    async def _asked(self, body: dict[str, Any]) -> Any:
        if self._ask is None:
            raise EmbeddingFailed(f"{self.title} was not started")
        try:
            return await self._ask(body)
        except TianjiError as error:
            raise EmbeddingFailed(f"{self.title} failed ({type(error).__name__}, status {error.status})") from None

    async def _posted(self, body: dict[str, Any]) -> Any:
        headers = {"content-type": "application/json"}
        if self.api_key:
            headers["authorization"] = f"Bearer {self.api_key.reveal()}"
        raw = orjson.dumps(body)
        try:
            response = await self._sent(raw, headers)
        except (http.HTTPError, TianjiError) as error:
            raise EmbeddingFailed(f"{self._where} cannot be reached ({type(error).__name__})") from None
        if response.status_code != 200:
            raise EmbeddingFailed(f"{self._where} answered {response.status_code}")
        try:
            return orjson.loads(response.content)
        except ValueError:
            raise EmbeddingFailed(f"{self._where} sent no JSON") from None

    async def _sent(self, raw: bytes, headers: Mapping[str, str]) -> Any:
        if self._client is None:
            raise EmbeddingFailed(f"{self.title} was not started")
        url = f"{self.api_base.rstrip('/')}/embeddings"
        try:
            return await self._client.post(url, content=raw, headers=headers)
        except http.BROKEN:  # a kept connection may have been closed just now, and embedding twice harms nobody
            return await self._client.post(url, content=raw, headers=headers)


def _read(answer: Any, count: int, where: str) -> NDArray[np.float32]:
    """The rows of an answer in the order of the texts, of length 1. Raises EmbeddingFailed."""
    import numpy as np

    try:
        items = sorted(answer["data"], key=lambda item: item["index"])
        if [item["index"] for item in items] != list(range(count)):
            raise EmbeddingFailed(f"{where} did not send one vector for each text")
        rows = [_row(item["embedding"]) for item in items]
        with np.errstate(over="ignore"):  # infinity is found below
            vectors = np.array(rows, np.float32)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise EmbeddingFailed(f"{where} sent something else than OpenAI's answer") from None
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True) if vectors.ndim == 2 and vectors.size else np.zeros(1)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise EmbeddingFailed(f"{where} sent a vector without direction (empty, zero or no number)")
    unit: NDArray[np.float32] = vectors / lengths
    return unit


def _row(embedding: Any) -> Any:
    """A list of numbers, or the same as base64 of little-endian float32."""
    import numpy as np

    return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4") if isinstance(embedding, str) else embedding
