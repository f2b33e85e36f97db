"""The hold-back window of a stream: what may leave now, so that nothing forbidden ever leaves in full. Pure, no I/O.

Frames stay back until the text behind them is at least `window` characters long: a string of up to `window + 1`
characters is therefore complete in the checked text before its last character could leave, and one of up to `window`
before its first. A client joins each field of a stream for itself (several choices, reasoning beside the answer,
parallel tool calls), so each is checked as it will be joined, besides everything in the order in which it came. What
has to be replaced is replaced in the frames that are still here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from tianji_mw.apis.base import Part
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.joined import Channel, Joined, Piece, pieces
from tianji_mw.guardrails.repeats import Repeats
from tianji_mw.guardrails.rewrite import merged, put

#: The channel of everything together.
_ALL: Channel = ()


class Scan(NamedTuple):
    """A text to check: the new part of one or more channels, with what stood before it."""

    text: str
    channels: Sequence[Channel]
    #: Characters that have come behind the text, which is then not the end of the channel.
    behind: int = 0
    #: Characters at its beginning that were checked before.
    seen: int = 0


class Window:
    """Holds the last `hold` characters of one stream back, or all of it; checks look back `size` characters.

    With `sentences`, what belongs to a sentence that is not complete is held back as well; with `keep`, what has left
    is remembered for `everything`.
    """

    __slots__ = (
        "_again", "_begun", "_held", "_hold", "_joined", "_keep", "_open", "_repeats", "_sentences", "_size",
        "added", "held", "left",
    )  # fmt: skip

    def __init__(
        self, size: int, hold: int | Literal["all"] | None = None, *, sentences: bool = False, keep: bool = False
    ) -> None:
        self._size = size
        self._hold = size if hold is None else hold
        self._sentences = sentences
        self._keep = keep
        #: Characters of the frames that came last, that are held, that have left.
        self.added = self.held = self.left = 0
        #: Frames, the lengths of their texts, and the channels that they belong to.
        self._held: deque[tuple[Frame, int, list[Channel]]] = deque()
        self._joined: dict[Channel, Joined] = {}
        #: Pieces at the end of a channel's text, which may go on: they are replaced when more is known, or when they
        #: would leave.
        self._open: dict[Channel, tuple[str, list[Span]]] = {}
        #: Of streams with events that repeat text: all texts, and what the held ones of these events repeat.
        self._repeats: Repeats | None = None
        self._begun = False
        self._again: dict[Frame, list[Part]] = {}

    def add(self, frames: Iterable[Frame]) -> list[Scan]:
        """Take frames in; the texts to check before anything is released: the new parts with what stood before them."""
        added: dict[Channel, int] = {}
        before = self.held
        for frame in frames:
            if not self._begun:
                self._begun = True
                self._repeats = Repeats() if frame.repeating else None
            text = frame.text or ("" if self._repeats is None else self._new_in(frame, self._repeats))
            found = [(_ALL, None, text), *pieces(frame.data, text)] if text else []
            self._held.append((frame, len(text), [channel for channel, _, _ in found]))
            self.held += len(text)
            for channel, path, piece in found:
                self._joined.setdefault(channel, Joined()).held.append(Piece(frame, path, piece))
                added[channel] = added.get(channel, 0) + len(piece)
                if self._repeats is not None and path is not None:
                    self._repeats.came(channel, piece)
        self.added = self.held - before
        scans: dict[tuple[str, int], list[Channel]] = {}
        for channel, length in added.items():
            self._open.pop(channel, None)
            end = self._joined[channel].end(self._size + length)
            scans.setdefault((end, max(len(end) - length, 0)), []).append(channel)
        # One, as nearly always, for one channel.
        return [Scan(text, channels, seen=seen) for (text, seen), channels in scans.items()]

    def _new_in(self, frame: Frame, repeats: Repeats) -> str:
        """The text of an event that says it repeats what came before, and does not."""
        again, text = repeats.sort(frame.repeats)
        if again:
            self._again[frame] = again
        return text

    def sentences(self, *, last: bool) -> tuple[list[Scan], int]:
        """Sentences that are complete now, with what stood before them, and how many characters are new in them."""
        scans: dict[tuple[str, int, int], list[Channel]] = {}
        new: dict[Channel, int] = {}
        for channel, joined in self._joined.items():
            text, behind, new[channel], seen = joined.sentences(self._size, last=last)
            if text:
                scans.setdefault((text, behind, seen), []).append(channel)
        together = new.pop(_ALL, 0)
        fresh = sum(new.values()) or together
        return [Scan(text, channels, behind, seen) for (text, behind, seen), channels in scans.items()], fresh

    def everything(self) -> list[Scan]:
        """The whole texts of a stream of which nothing has left, or all is kept."""
        scans: dict[str, list[Channel]] = {}
        for channel, joined in self._joined.items():
            text = joined.tail + "".join(piece.text for piece in joined.held)
            scans.setdefault(text, []).append(channel)
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
                frames = self._joined[channel].replace(scan.text, now, scan.behind) if now else set()
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

    def _waits(self, length: int, channels: Sequence[Channel]) -> bool:
        """Whether the first frame stays."""
        if self._hold == "all" or (self.held - length < self._hold and (length or self.held)):
            return True
        own = channels[1:] or channels  # what it adds to everything counts where it adds to nothing else
        return self._sentences and not all(self._joined[channel].held[0].judged for channel in own)

    def release(self, *, last: bool) -> list[Frame]:
        """Frames that may leave: all of them at the end, else those with a full window behind them."""
        out: list[Frame] = []
        while self._held:
            frame, length, channels = self._held[0]
            if not last and self._waits(length, channels):
                break
            self._settle(channels)
            self._held.popleft()
            self.held -= length
            self.left += length
            for channel in channels:
                joined = self._joined[channel]
                piece = joined.held.popleft()
                tail = joined.tail + piece.text
                joined.tail = tail if self._keep else tail[-self._size :] if self._size else ""
                if self._repeats is not None and piece.path is not None:
                    self._repeats.left(channel, piece)
            if self._repeats is not None and (again := self._again.pop(frame, None)):
                self._repeats.retell(frame, again)
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
