"""The hold-back window of a stream: what may leave now, so that nothing forbidden ever leaves in full. Pure, no I/O.

Frames stay back until the text behind them is at least `window` characters long: a string of up to `window + 1`
characters is therefore complete in the checked text before its last character could leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from tianji_mw.frames import Frame


class Window:
    """Holds the last `size` characters of one stream back."""

    __slots__ = ("_context", "_held", "_held_chars", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: deque[Frame] = deque()
        self._held_chars = 0
        self._context = ""

    def add(self, frames: Iterable[Frame]) -> str:
        """Take frames in; the text that must be checked before anything is released: the new part with its context."""
        added = []
        for frame in frames:
            self._held.append(frame)
            self._held_chars += len(frame.text)
            added.append(frame.text)
        new = "".join(added)
        if not new:
            return ""
        text = self._context + new
        self._context = text[-self._size :] if self._size else ""
        return text

    def release(self, *, last: bool) -> list[Frame]:
        """Frames that may leave: all of them at the end, else those with a full window behind them."""
        out: list[Frame] = []
        while self._held:
            behind = self._held_chars - len(self._held[0].text)
            if not last and behind < self._size and (self._held[0].text or self._held_chars):
                break
            frame = self._held.popleft()
            self._held_chars = behind
            out.append(frame)
        return out
