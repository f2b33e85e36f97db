"""What an embedder is: texts in, vectors out, of one model with one number of dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, model_validator

from tianji_mw.plugins import in_our_names
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class EmbeddingFailed(Exception):
    """No vectors. `message` names the reason, never a text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Embedded(NamedTuple):
    """`vectors`: float32, one row per text, of length 1. `truncated`: texts of which a part was not read."""

    vectors: NDArray[np.float32]
    truncated: Sequence[bool]


class Embedder(BaseModel):
    """Base of the embedders. A subclass's fields are its configuration, and construction has no side effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, protected_namespaces=())

    #: Environment variables that fill a field which the config leaves out, in this order.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: LiteLLM's and other names of our fields.
    aliases: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _our_names(cls, fields: Any) -> Any:
        return in_our_names(fields, cls.aliases)

    @property
    def model_id(self) -> str:
        """The model, with its version: vectors of two of them are never compared."""
        raise NotImplementedError

    async def start(self, runtime: Runtime) -> None:
        """Load the model; raise SetupError, MissingExtra."""

    async def aclose(self) -> None:
        """Let it go again."""

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """One vector for each text. Raises EmbeddingFailed."""
        raise NotImplementedError

    async def report(self) -> dict[str, Any]:
        """Figures for people: `model`, `dims`, memory."""
        return {}
