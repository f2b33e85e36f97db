"""What an embedder is: texts in, vectors out, of one model with one number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ConfigDict

from tianji_mw.plugins import PluginSettings
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EmbeddingFailed(Exception):
    """No vectors. `message` names the reason, never a text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Embeddings(NamedTuple):
    """`vectors`: float32, one row per text, of length 1. `truncated`: texts of which a part was not read."""

    vectors: NDArray[np.float32]
    truncated: Sequence[bool]


class Embedder(PluginSettings):
    """Base of the embedders. A subclass's fields are its configuration, and construction has no side effect."""

    model_config = ConfigDict(protected_namespaces=())

    #: Numbers of a vector, where that is known before the first one.
    dims: ClassVar[int | None] = None

    @property
    def model_id(self) -> str:
        """The model, with its version: vectors of two of them are never compared."""
        raise NotImplementedError

    async def start(self, runtime: Runtime) -> None:
        """Load the model; raise SetupError, MissingExtra."""

    async def aclose(self) -> None:
        """Let it go again."""

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """One vector for each text. Raises EmbeddingFailed."""
        raise NotImplementedError

    async def report(self) -> dict[str, Any]:
        """Figures for people: `model`, `dims`, memory."""
        return {}
