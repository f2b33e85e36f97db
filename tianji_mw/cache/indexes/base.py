"""What an index is: vectors by id, each in one partition, and the nearest ones to a vector within a partition.

A partition is a tenant's requests of one shape: nothing outside of it is ever looked at. The answers themselves are in
a cache store; here is only what finding them needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from tianji_mw.plugins import PluginSettings
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class IndexFailed(Exception):
    """The index could not do it. `message` names the reason; no content."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class Match(NamedTuple):
    """A neighbour: `similarity` is the cosine, in [-1, 1]; `payload` is what was put beside the vector."""

    id: str
    similarity: float
    payload: bytes


class Point(NamedTuple):
    """One vector to keep: float32, of length 1. `partition` and `id` are ASCII: letters, digits, `:._-`."""

    partition: str
    id: str
    vector: NDArray[np.float32]
    payload: bytes
    ttl_s: float


class VectorIndex(PluginSettings):
    """Base of the indexes. A subclass's fields are its configuration, and construction has no side effect."""

    #: Answers without waiting for anything outside of this process.
    instant: ClassVar[bool] = False

    async def start(self, runtime: Runtime, *, model_id: str, dims: int) -> None:
        """Open the index of this embedding model. Vectors of another model that it still holds are never matched."""

    async def aclose(self) -> None:
        """Close it; what is embedded and persisted is written."""

    async def search(self, partition: str, vector: NDArray[np.float32], k: int) -> list[Match]:
        """The up to `k` nearest points of the partition that have not expired, nearest first. Raises IndexFailed."""
        raise NotImplementedError

    async def add(self, points: Sequence[Point]) -> None:
        """Keep them, in the place of older ones with the same partition and id. Raises IndexFailed."""
        raise NotImplementedError

    async def delete(self, partition: str, ids: Sequence[str]) -> None:
        """Forget them. Raises IndexFailed."""
        raise NotImplementedError

    async def purge(self, partition_prefix: str) -> int:
        """Forget every point of the partitions that begin so ("": all); how many. Raises IndexFailed."""
        raise NotImplementedError

    async def ping(self) -> None:
        """Ask the cheapest question. Raises IndexFailed."""

    async def report(self) -> dict[str, Any]:
        """Figures for people: `points`, `partitions`, memory in bytes."""
        return {}
