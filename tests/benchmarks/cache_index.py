"""Latency, recall and memory of the embedded index; run from the project's root, on a quiet machine:

.venv/bin/python -m tests.benchmarks.cache_index [points, default 100000] [dims, default 384]

All points are in one partition, which is the worst case. Kinds of points: `random` in all directions; `clustered`, 50
around each centre with a cosine of 0.7 among them; `topics`, 20 centres with 0.81, as in one domain's questions.
Queries: at a cosine of 0.95, 0.85 and 0.7 from a point, and `fresh` ones, made as the points are. Recall: how often the
first match is the nearest one, and how often its cosine is within 0.001 of that one's.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from tianji_mw.cache.indexes.base import Point
from tianji_mw.cache.indexes.embedded import Embedded
from tianji_mw.runtime import Runtime

QUERIES: Final = 500
ROUNDS: Final = 3
PAYLOAD: Final = b"x" * 200

F32 = NDArray[np.float32]


def unit(rows: NDArray[Any]) -> F32:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Made:
    """Points of one kind, and queries to them."""

    def __init__(self, kind: str, count: int, dims: int) -> None:
        self.rng = np.random.default_rng(5)
        self.dims = dims
        centres, self.cosine = {"random": (0, 0.0), "clustered": (count // 50, 0.84), "topics": (20, 0.9)}[kind]
        self.centres = self._random(centres)
        self.points = self.fresh(count)

    def _random(self, count: int) -> F32:
        return unit(self.rng.standard_normal((count, self.dims)).astype(np.float32))

    def near(self, rows: F32, cosine: float) -> F32:
        other = self._random(len(rows))
        other = unit(other - (other * rows).sum(axis=1, keepdims=True) * rows)
        return unit(cosine * rows + (1 - cosine**2) ** 0.5 * other)

    def fresh(self, count: int) -> F32:
        if not len(self.centres):
            return self._random(count)
        return self.near(self.centres[self.rng.integers(0, len(self.centres), count)], self.cosine)

    def queries(self) -> dict[str, F32]:
        some = self.points[self.rng.choice(len(self.points), QUERIES, replace=False)]
        return {**{f"{cosine}": self.near(some, cosine) for cosine in (0.95, 0.85, 0.7)}, "fresh": self.fresh(QUERIES)}


def shown(times: list[float]) -> str:
    found = np.percentile(np.array(times) * 1000, [50, 95, 99, 100])
    return "p50 {:.3f}  p95 {:.3f}  p99 {:.3f}  max {:.2f} ms".format(*found)


async def main() -> None:
    count, dims = (int(sys.argv[at]) if len(sys.argv) > at else usual for at, usual in ((1, 100_000), (2, 384)))
    process = psutil.Process()
    for kind in ("random", "clustered", "topics"):
        made = Made(kind, count, dims)
        gc.collect()
        before = process.memory_info().rss
        async with Runtime() as runtime:
            index = Embedded(max_points=count, max_bytes=1 << 34)
            await index.start(runtime, model_id="benchmark", dims=dims)
            times = []
            for number, row in enumerate(made.points):
                point = Point("p", f"{number:032x}", row, PAYLOAD, 3600)
                began = time.perf_counter()
                await index.add([point])
                times.append(time.perf_counter() - began)
            report = await index.report()
            taken = (process.memory_info().rss - before) / 1e6
            print(f"{kind}: {count} points of {dims}, {taken:.0f} MB more (told: {report['bytes'] / 1e6:.0f} MB)")
            print(f"  add           {shown(times)}")
            for name, queries in made.queries().items():
                await searched(index, made.points, name, queries)
            await index.aclose()


async def searched(index: Embedded, points: F32, name: str, queries: F32) -> None:
    """Print how fast and how well these are found."""
    times, firsts = [], []
    for _ in range(ROUNDS):
        for query in queries:
            began = time.perf_counter()
            matches = await index.search("p", query, 3)
            times.append(time.perf_counter() - began)
            firsts.append(int(matches[0].id, 16))
    first = close = 0
    for query, found in zip(queries, firsts, strict=False):
        cosines = points @ query
        first += int(cosines.argmax()) == found
        close += bool(cosines.max() - cosines[found] <= 0.001)
    print(f"  search {name:6} {shown(times)}  recall {first / len(queries):.3f} ({close / len(queries):.3f})")


if __name__ == "__main__":
    asyncio.run(main())
