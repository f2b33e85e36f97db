"""What is kept beside a vector: where its answer lies, which answer it is, and what the question says. JSON."""

from __future__ import annotations

from dataclasses import dataclass

import orjson


@dataclass(frozen=True, slots=True)
class Payload:
    """`key`: of the entry with the answer. `answer`: equal for answers that say the same. `meaning`: encoded."""

    key: str
    answer: str
    meaning: str

    def encode(self) -> bytes:
        return orjson.dumps((1, self.key, self.answer, self.meaning))

    @classmethod
    def decode(cls, raw: bytes) -> Payload | None:
        """The payload in these bytes; None for those of another version, or no payload at all."""
        try:
            version, key, answer, meaning = orjson.loads(raw)
        except (orjson.JSONDecodeError, TypeError, ValueError):
            return None
        return cls(str(key), str(answer), str(meaning)) if version == 1 else None
