"""Vectors in memory, and the nearest ones within a partition: sketches of 512 bits choose, int8 vectors decide.

The bits are the signs of a random rotation (Charikar 2002): their Hamming distance follows the angle between two
vectors, and numpy counts 192 bits of 100,000 vectors in 0.3 ms. The best 2048 by those are judged by all bits, and the
best of these by what is stored of the vectors, 8 bits a dimension, which errs by about 0.0005 in the cosine. Partitions
of up to 512 points are compared in full. Against a graph (HNSW) this finds more, adds faster, and deletes without
traces.

All points stand in one table; a partition knows its rows. Nothing here waits, locks or reads a clock, and only one
thread may use it.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tianji_mw.cache.indexes.base import Match

_WORDS: Final = 8
_BITS: Final = 64 * _WORDS
#: Words that are looked at for all rows of a large partition; their distances fit into a byte, with room for `_FAR`.
_COARSE_WORDS: Final = 3
_FAR: Final = 255
#: How many are left after that.
_COARSE_KEPT: Final = 2048
#: Numbers that one search may compare in full; 512 vectors of 384 dimensions.
_COMPARED: Final = 512 * 384
#: Rows handled at once, so that intermediate results stay in the processor's second cache.
_SLICE: Final = 32_768
#: What a point needs besides vector, id and payload: sketch, columns, and Python's objects for them; measured.
_OVERHEAD_BYTES: Final = 250

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
Bits = NDArray[np.uint64]
Rows = NDArray[np.int32]


class Packed(NamedTuple):
    """A vector as it is kept: `values` times `scale`."""

    values: I8
    scale: float


def packed(vector: F32) -> Packed:
    """A vector in 8 bits a dimension. Raises ValueError for one without direction."""
    top = float(np.abs(vector).max(initial=0.0))
    if not np.isfinite(top) or top <= 0:
        raise ValueError("a vector without direction")
    scale = top / 127
    return Packed(np.rint(vector / np.float32(scale)).astype(np.int8), scale)


class _Partition:
    """The rows of one partition, in no order, and where each point stands."""

    __slots__ = ("count", "name", "names", "number", "rows")

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.rows: Rows = np.empty(4, np.int32)
        self.count = 0
        self.names: dict[str, int] = {}


class Sketches:
    """The table. Its columns are reserved for `max_points`; memory is taken as rows are filled."""

    def __init__(self, dims: int, max_points: int, max_bytes: int) -> None:
        self.dims = dims
        self.bytes = 0
        self.evicted = 0
        self._max_bytes = max_bytes
        self._compared = min(_COARSE_KEPT // 2, max(128, _COMPARED // dims))
        self._values: I8 = np.zeros((max_points, dims), np.int8)
        self._scales: F32 = np.zeros(max_points, np.float32)
        self._bits: Bits = np.zeros((max_points, _WORDS), np.uint64)
        self._coarse_bits: Bits = np.zeros((_COARSE_WORDS, max_points), np.uint64)  # the first words, by columns
        self._expires = np.zeros(max_points, np.float64)  # seconds; 0: the row is free
        self._owner = np.zeros(max_points, np.int32)
        self._place = np.zeros(max_points, np.int32)  # of the row among the rows of its partition
        self._used = np.zeros(max_points, np.int64)
        self._texts: list[tuple[str, bytes] | None] = []  # name and payload
        self._free: list[int] = []
        self._partitions: dict[str, _Partition] = {}
        self._numbers: dict[int, _Partition] = {}
        self._next_number = 1
        self._tick = 0
        power = (max(dims, _BITS) - 1).bit_length()
        # The same signs in every process; those of another numpy would do as well, as sketches are never kept.
        self._signs: F32 = np.random.default_rng(384).choice(np.array([-1, 1], np.float32), 1 << power)
        self._left, self._right = _hadamard(power // 2), _hadamard(power - power // 2)
        self._distance = np.empty(max_points, np.uint8)
        self._xored = np.empty(min(_SLICE, max_points), np.uint64)
        self._counted = np.empty(min(_SLICE, max_points), np.uint8)

    def __len__(self) -> int:
        return len(self._texts) - len(self._free)

    @property
    def partitions(self) -> int:
        return len(self._partitions)

    def beginning(self, prefix: str) -> list[str]:
        """The partitions that begin so."""
        return [name for name in self._partitions if name.startswith(prefix)]

    def add(self, partition: str, name: str, vector: Packed, payload: bytes, expires: float) -> list[tuple[str, str]]:
        """Keep a point, in the place of an older one of this name. Returns what had to go for it (partition, name).

        Raises ValueError for a point that is larger than everything may be.
        """
        size = self._size(name, payload)
        if size > self._max_bytes:
            raise ValueError("a point larger than max_bytes")
        self.remove(partition, name)
        gone = []
        while self.bytes + size > self._max_bytes or (not self._free and len(self._texts) == len(self._used)):
            gone.append(self._evict())
        place = self._partitions.get(partition)
        if place is None:
            place = self._partitions[partition] = _Partition(partition, self._next_number)
            self._numbers[place.number] = place
            self._next_number += 1
        row = self._free.pop() if self._free else len(self._texts)
        if row == len(self._texts):
            self._texts.append(None)
        if place.count == len(place.rows):
            place.rows = np.concatenate([place.rows, np.empty_like(place.rows)])
        place.rows[place.count] = row
        place.names[name] = row
        self._place[row] = place.count
        place.count += 1
        self._texts[row] = (name, payload)
        self._values[row] = vector.values
        self._scales[row] = vector.scale
        sketch = self._sketch(vector.values.astype(np.float32))
        self._bits[row] = sketch
        self._coarse_bits[:, row] = sketch[:_COARSE_WORDS]
        self._owner[row] = place.number
        self._expires[row] = expires
        self._touch(row)
        self.bytes += size
        return gone

    def remove(self, partition: str, name: str) -> bool:
        """Forget a point; whether it was there."""
        place = self._partitions.get(partition)
        row = place.names.pop(name, None) if place is not None else None
        if place is None or row is None:
            return False
        text = self._texts[row]
        assert text is not None
        self.bytes -= self._size(*text)
        hole, last = self._place[row], place.rows[place.count - 1]
        place.rows[hole], self._place[last] = last, hole
        place.count -= 1
        self._texts[row] = None
        self._expires[row] = 0.0
        self._owner[row] = 0
        self._used[row] = np.iinfo(np.int64).max
        self._free.append(row)
        if place.count == 0:
            del self._partitions[partition], self._numbers[place.number]
        return True

    def points(self, partition: str) -> list[str]:
        """The points of a partition."""
        place = self._partitions.get(partition)
        return list(place.names) if place is not None else []

    def expired(self, now: float, most: int) -> list[tuple[str, str]]:
        """Partition and name of up to `most` points whose time has passed."""
        top = len(self._texts)
        rows = np.flatnonzero((self._expires[:top] <= now) & (self._owner[:top] != 0))[:most]
        return [(self._numbers[int(self._owner[row])].name, self._name(int(row))) for row in rows]

    def search(self, partition: str, vector: F32, k: int, now: float) -> list[Match]:
        """The nearest points of a partition that have not expired, nearest first."""
        place = self._partitions.get(partition)
        if place is None or k < 1:
            return []
        rows = place.rows[: place.count]
        if place.count > self._compared:
            rows = self._promising(place, self._sketch(vector))
        rows = rows[(self._expires[rows] > now) & (self._owner[rows] == place.number)]
        # Row by row, as a product of matrices would wait for threads on cores that serve calls.
        values = np.take(self._values, rows, axis=0).astype(np.float32)  # `take` has a fifth of the time of `[rows]`
        similarity = np.vecdot(values, vector) * self._scales[rows]
        if k < len(rows):
            best = np.argpartition(-similarity, k - 1)[:k]
            rows, similarity = rows[best], similarity[best]
        found = []
        for at in np.argsort(-similarity, kind="stable"):
            text = self._texts[rows[at]]
            assert text is not None
            found.append(Match(text[0], float(np.clip(similarity[at], -1, 1)), text[1]))
        if found:
            self._touch(int(rows[np.argmax(similarity)]))
        return found

    # --- inside

    def _promising(self, place: _Partition, sketch: Bits) -> Rows:
        """Rows of the partition that are near by their sketches."""
        rows = place.rows[: place.count]
        if place.count > _COARSE_KEPT:
            rows = self._coarse(place, sketch)
        distance = _sums(np.bitwise_count(np.take(self._bits, rows, axis=0) ^ sketch))
        return rows[np.argpartition(distance, self._compared - 1)[: self._compared]]

    def _coarse(self, place: _Partition, sketch: Bits) -> Rows:
        """About `_COARSE_KEPT` rows of the partition that are nearest by the first bits."""
        top, rows = len(self._texts), place.rows[: place.count]
        if place.count * 3 < top:  # reading its rows one by one is cheaper than reading all
            rows = np.sort(rows)
            return rows[_lowest(self._distances(np.take(self._coarse_bits, rows, axis=1), sketch), _COARSE_KEPT)]
        distance = self._distances(self._coarse_bits[:, :top], sketch)
        distance[self._owner[:top] != place.number] = _FAR
        return _lowest(distance, _COARSE_KEPT)

    def _distances(self, bits: Bits, sketch: Bits) -> NDArray[np.uint8]:
        words, count = bits.shape
        distance = self._distance[:count]
        for start in range(0, count, _SLICE):
            end = min(start + _SLICE, count)
            xored, counted, part = self._xored[: end - start], self._counted[: end - start], distance[start:end]
            for word in range(words):
                np.bitwise_xor(bits[word, start:end], sketch[word], out=xored)
                np.bitwise_count(xored, out=counted if word else part)
                if word:
                    np.add(part, counted, out=part)
        return distance

    def _sketch(self, vector: F32) -> Bits:
        """Signs of a rotation: random signs, then the Walsh-Hadamard transform, as a product from two sides."""
        signed = np.zeros(len(self._signs), np.float32)
        signed[: self.dims] = vector
        signed *= self._signs
        rotated = self._left @ signed.reshape(len(self._left), -1) @ self._right
        return np.packbits(rotated.ravel()[:_BITS] > 0).view(np.uint64)

    def _evict(self) -> tuple[str, str]:
        """Forget the point that was not used for the longest time."""
        row = int(np.argmin(self._used[: len(self._texts)]))
        partition, name = self._numbers[int(self._owner[row])].name, self._name(row)
        self.remove(partition, name)
        self.evicted += 1
        return partition, name

    def _name(self, row: int) -> str:
        text = self._texts[row]
        assert text is not None
        return text[0]

    def _touch(self, row: int) -> None:
        self._tick += 1
        self._used[row] = self._tick

    def _size(self, name: str, payload: bytes) -> int:
        return self.dims + len(name) + len(payload) + _OVERHEAD_BYTES


def _hadamard(power: int) -> F32:
    """The Hadamard matrix of 2**power rows (Sylvester)."""
    matrix = np.ones((1, 1), np.float32)
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def _lowest(distance: NDArray[np.uint8], count: int) -> Rows:
    """Where about `count` of the lowest stand. Some show where the border lies, unless they are a bad sample."""
    border = _border(distance[::7].copy(), count // 7)
    found = np.flatnonzero(distance <= border)
    if border == _FAR or not count // 2 <= len(found) <= 3 * count:
        border = _border(distance, count)
        nearer = np.flatnonzero(distance < border)
        found = np.concatenate([nearer, np.flatnonzero(distance == border)[: count - len(nearer)]])
    return found.astype(np.int32)


def _border(distance: NDArray[np.uint8], count: int) -> int:
    """The smallest distance that at least so many keep to; found sooner than by sorting."""
    low, high = 0, _FAR
    while low < high:
        middle = (low + high) // 2
        if np.count_nonzero(distance <= middle) >= count:
            high = middle
        else:
            low = middle + 1
    return low


def _sums(counts: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Sums of rows of eight small numbers, all lanes of a word at once; numpy adds short rows one by one."""
    lanes = counts.view(np.uint64).ravel()
    even = np.uint64(0x00FF00FF00FF00FF)
    pairs = (lanes & even) + (lanes >> np.uint64(8) & even)
    sums: NDArray[np.uint64] = pairs * np.uint64(0x0001000100010001) >> np.uint64(48)
    return sums
