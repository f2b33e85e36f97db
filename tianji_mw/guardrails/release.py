"""The hold-back window of a stream: what may leave now, so that nothing forbidden ever leaves in full. Pure, no I/O.

Frames stay back until the text behind them is at least `window` characters long: a string of up to `window + 1`
characters is therefore complete in the checked text before its last character could leave, and one of up to `window`
before its first. A client joins each field of a stream for itself (several choices, reasoning beside the answer,
parallel tool calls), so each is checked as it will be joined, besides everything in the order in which it came. What
has to be replaced is replaced in the frames that are still here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Literal, NamedTuple

from tianji_mw.apis.base import JSON
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.rewrite import merged, put

Channel = tuple[str | int, ...]
Path = tuple[str | int, ...]

#: Members that number the things of which a stream consists, in the APIs that stream.
_NUMBERS: Final = ("index", "output_index", "content_index", "summary_index")
#: The channel of everything together.
_ALL: Channel = ()


class Scan(NamedTuple):
    """A text to check: the new part of one or more channels, with what stood before it."""

    text: str
    channels: Sequence[Channel]


class _Piece:
    """A string of a frame that is held; of the channel of everything it is no single string, and has no path."""

    __slots__ = ("frame", "path", "text")

    def __init__(self, frame: Frame, path: Path | None, text: str) -> None:
        self.frame = frame
        self.path = path
        self.text = text


class _Joined:
    """What a client joins to one text: the last characters that have left, and the pieces that are held."""

    __slots__ = ("held", "tail")

    def __init__(self) -> None:
        self.tail = ""
        self.held: deque[_Piece] = deque()

    def end(self, length: int) -> str:
        """The last characters; of a stream that is held whole no more of it is touched than that."""
        parts: list[str] = []
        for piece in reversed(self.held):
            if length <= 0:
                break
            parts.append(piece.text[-length:])
            length -= len(piece.text)
        if length > 0:
            parts.append(self.tail[-length:])
        return "".join(reversed(parts))

    def place(self, text: str, span: Span) -> int:
        """Where a piece of `text`, the end of all that is here, begins."""
        return len(self.tail) + sum(len(piece.text) for piece in self.held) - len(text) + span.start

    def replace(self, text: str, spans: Iterable[Span]) -> set[Frame] | None:
        """Replace pieces of `text`, its end, in what is held; the frames that changed, or None when it has left."""
        changed: set[Frame] = set()
        base = self.place(text, Span(0, 0, ""))
        for span in reversed(merged(spans, len(text))):
            start, end = base + span.start, base + span.end
            if start < len(self.tail):
                return None
            new = span.replacement if span.replacement is not None else f"[{span.label}]"
            at = len(self.tail)
            for piece in self.held:
                first, last = max(start - at, 0), min(end - at, len(piece.text))
                at += len(piece.text)
                if first < last:
                    piece.text = piece.text[:first] + new + piece.text[last:]
                    new = ""
                    changed.add(piece.frame)
        return changed


class Window:
    """Holds the last `hold` characters of one stream back, or all of it; checks look back `size` characters."""

    __slots__ = ("_held", "_held_chars", "_hold", "_joined", "_open", "_size")

    def __init__(self, size: int, hold: int | Literal["all"] | None = None) -> None:
        self._size = size
        self._hold = size if hold is None else hold
        #: Frames, the lengths of their texts, and the channels that they belong to.
        self._held: deque[tuple[Frame, int, list[Channel]]] = deque()
        self._held_chars = 0
        self._joined: dict[Channel, _Joined] = {}
        #: Pieces at the end of a channel's text, which may go on: they are replaced when more is known, or when they
        #: would leave.
        self._open: dict[Channel, tuple[str, list[Span]]] = {}

    def add(self, frames: Iterable[Frame]) -> list[Scan]:
        """Take frames in; the texts to check before anything is released: the new parts with what stood before them."""
        added: dict[Channel, int] = {}
        for frame in frames:
            text = frame.text
            found = [(_ALL, None, text), *pieces(frame.data, text)] if text else []
            self._held.append((frame, len(text), [channel for channel, _, _ in found]))
            self._held_chars += len(text)
            for channel, path, piece in found:
                self._joined.setdefault(channel, _Joined()).held.append(_Piece(frame, path, piece))
                added[channel] = added.get(channel, 0) + len(piece)
        scans: dict[str, list[Channel]] = {}
        for channel, length in added.items():
            self._open.pop(channel, None)
            scans.setdefault(self._joined[channel].end(self._size + length), []).append(channel)
        return [Scan(text, channels) for text, channels in scans.items()]  # one, as nearly always, for one channel

    def everything(self) -> list[Scan]:
        """The whole texts of a stream of which nothing has left."""
        scans: dict[str, list[Channel]] = {}
        for channel, joined in self._joined.items():
            scans.setdefault("".join(piece.text for piece in joined.held), []).append(channel)
        return [Scan(text, channels) for text, channels in scans.items()]

    def replace(self, scans: Sequence[Scan], found: Sequence[Sequence[Span]], *, last: bool = True) -> bool:
        """Replace what was found; False when that cannot be done, as it has left or stands in no single string.

        Before the `last` part of a stream, what stands at the end of a text waits: the rest of it may be on its way.
        """
        changed: set[Frame] = set()
        wanted = False
        for scan, spans in zip(scans, found, strict=True):
            now, later = _sorted_out(scan.text, spans, None if last else self._hold)
            for channel in scan.channels if spans else ():
                if later:
                    self._open[channel] = (scan.text, later)
                frames = self._joined[channel].replace(scan.text, now) if now else set()
                if frames is None:
                    return False
                if now and later:  # the text has another length now
                    self._open[channel] = (scan.text[min(span.start for span in later) :], _moved(later))
                wanted = wanted or bool(now)
                if channel != _ALL:
                    changed |= frames
        self._write(changed)
        return bool(changed) or not wanted or bool(self._open.keys() - {_ALL})

    def _write(self, changed: set[Frame]) -> None:
        for joined in self._joined.values():
            for piece in joined.held:
                if piece.path is not None and piece.frame in changed:
                    put(piece.frame.data, piece.path, piece.text)
        for frame in changed:
            frame.edit(frame.data)

    def _settle(self, channels: Iterable[Channel]) -> None:
        """Replace what waits in the first frame of these channels, which leaves."""
        for channel in channels:
            text, spans = self._open.get(channel, ("", []))
            joined = self._joined[channel]
            if spans and joined.place(text, spans[0]) < len(joined.tail) + len(joined.held[0].text):
                del self._open[channel]
                changed = joined.replace(text, spans)
                if channel != _ALL and changed:
                    self._write(changed)

    def release(self, *, last: bool) -> list[Frame]:
        """Frames that may leave: all of them at the end, else those with a full window behind them."""
        out: list[Frame] = []
        while self._held:
            frame, length, channels = self._held[0]
            behind = self._held_chars - length
            if not last and (self._hold == "all" or (behind < self._hold and (length or self._held_chars))):
                break
            self._settle(channels)
            self._held.popleft()
            self._held_chars = behind
            for channel in channels:
                joined = self._joined[channel]
                tail = joined.tail + joined.held.popleft().text
                joined.tail = tail[-self._size :] if self._size else ""
            out.append(frame)
        return out


def _sorted_out(
    text: str, spans: Sequence[Span], hold: int | Literal["all"] | None
) -> tuple[Sequence[Span], list[Span]]:
    """What is replaced now, and what may go on and is held whole anyhow."""
    if hold is None:
        return spans, []
    first = 0 if hold == "all" else len(text) - hold
    later = [span for span in merged(spans, len(text)) if span.end == len(text) and span.start > first]
    if not later:
        return spans, []
    return [span for span in merged(spans, len(text)) if span not in later], later


def _moved(spans: list[Span]) -> list[Span]:
    """The same pieces of a text that begins with the first of them."""
    start = min(span.start for span in spans)
    return [span._replace(start=span.start - start, end=span.end - start) for span in spans]


def pieces(data: JSON, text: str) -> Iterator[tuple[Channel, Path, str]]:
    """The strings in a frame that are part of its text: whose continuation each is, where it stands, and itself."""
    root = tuple(data[name] for name in _NUMBERS if isinstance(data.get(name), int)) if isinstance(data, dict) else ()
    waiting: list[tuple[Channel, Path, JSON]] = [(("", *root), (), data)]
    while waiting:
        channel, path, value = waiting.pop()
        if isinstance(value, str):
            if value and value in text:
                yield channel, path, value
        elif isinstance(value, dict):
            waiting.extend(((*channel, key), (*path, key), item) for key, item in value.items())
        elif isinstance(value, list):
            for at, item in enumerate(value):
                number = item.get("index") if isinstance(item, dict) else None
                waiting.append(((*channel, number if isinstance(number, int) else at), (*path, at), item))
