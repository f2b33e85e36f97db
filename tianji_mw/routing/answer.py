"""What affinity wants to know of an answer on its way: its id, and the encrypted reasoning in it.

Only the Responses API has either. What a provider encrypted, only the same account there can read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from tianji_mw.apis.base import JSON
from tianji_mw.frames import FRAMES_KEY, Annotation

if TYPE_CHECKING:
    from starlette.types import Message

#: Encrypted contents of one request or answer that are looked at: the last ones.
MOST_SEALS: Final = 16
_FIELD: Final = "encrypted_content"
_ID: Final = b'"id"'
_SEAL: Final = b'"encrypted_content"'


class Answer:
    """`call.note(Answer)`, made before the attempt by whom wants to know its id, its encrypted contents, or both."""

    __slots__ = ("id", "seals", "wants_id", "wants_seals")

    def __init__(self) -> None:
        #: Empty: it shows none.
        self.id = ""
        self.seals: list[str] = []
        self.wants_id = self.wants_seals = False

    def read(self, messages: Sequence[Message]) -> None:
        """Parts of its body, as they leave. Frames that hold nothing of it are not decoded."""
        for message in messages:
            note: Annotation | None = message.get(FRAMES_KEY)
            for frame in note.frames if note is not None and note.body is message["body"] else ():
                opens = self.wants_id and not self.id and _ID in frame.raw
                if not (opens or (self.wants_seals and _SEAL in frame.raw)):
                    continue
                data = frame.data
                found = data.get("response", data) if isinstance(data, dict) else None
                if not isinstance(found, dict):
                    continue
                if opens and isinstance(answer_id := found.get("id"), str):
                    self.id = answer_id
                if self.wants_seals:
                    self.seals += seals_in([found.get("item"), *_listed(found.get("output"))])
                    del self.seals[:-MOST_SEALS]


def seals_in(items: Sequence[JSON]) -> Iterator[str]:
    """The encrypted contents among the items of a request's `input` or an answer's `output`."""
    for item in items:
        if isinstance(item, dict) and isinstance(seal := item.get(_FIELD), str) and seal:
            yield seal


def _listed(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []
