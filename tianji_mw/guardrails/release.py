"""The hold-back window of a stream: what may leave now, so that nothing forbidden ever leaves in full. Pure, no I/O.

Frames stay back until the text behind them is at least `window` characters long: a string of up to `window + 1`
characters is therefore complete in the checked text before its last character could leave. A client joins each field
of a stream for itself (several choices, reasoning beside the answer, parallel tool calls), so each is checked as it
will be joined, besides everything in the order in which it came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from tianji_mw.apis.base import JSON
from tianji_mw.frames import Frame

Channel = tuple[str | int, ...]

#: Members that number the things of which a stream consists, in the APIs that stream.
_NUMBERS = ("index", "output_index", "content_index", "summary_index")
#: The channel of everything together.
_ALL: Channel = ()


class Window:
    """Holds the last `size` characters of one stream back."""

    __slots__ = ("_context", "_held", "_held_chars", "_size")

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: deque[Frame] = deque()
        self._held_chars = 0
        self._context: dict[Channel, str] = {}

    def add(self, frames: Iterable[Frame]) -> list[str]:
        """Take frames in; the texts to check before anything is released: the new parts with what stood before them."""
        added: dict[Channel, str] = {}
        for frame in frames:
            self._held.append(frame)
            text = frame.text
            if text:
                self._held_chars += len(text)
                added[_ALL] = added.get(_ALL, "") + text
                for channel, piece in channels(frame.data, text):
                    added[channel] = added.get(channel, "") + piece
        texts = []
        for channel, new in added.items():
            text = self._context.get(channel, "") + new
            self._context[channel] = text[-self._size :] if self._size else ""
            texts.append(text)
        return list(dict.fromkeys(texts))  # with one channel, as nearly always, there is one text

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


def channels(data: JSON, text: str) -> Iterator[tuple[Channel, str]]:
    """The strings in a frame that are part of its text, each with the place that tells whose continuation it is."""
    root = tuple(data[name] for name in _NUMBERS if isinstance(data.get(name), int)) if isinstance(data, dict) else ()
    waiting: list[tuple[Channel, JSON]] = [(("", *root), data)]
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, str):
            if value and value in text:
                yield place, value
        elif isinstance(value, dict):
            waiting.extend(((*place, key), item) for key, item in value.items())
        elif isinstance(value, list):
            for at, item in enumerate(value):
                number = item.get("index") if isinstance(item, dict) else None
                waiting.append(((*place, number if isinstance(number, int) else at), item))
