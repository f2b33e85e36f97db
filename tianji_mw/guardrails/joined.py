"""What a client joins of a stream: the strings of its frames by channel, such as the text of one choice. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from tianji_mw.apis.base import JSON
from tianji_mw.frames import Frame
from tianji_mw.guardrails.base import Span
from tianji_mw.guardrails.rewrite import merged

Channel = tuple[str | int, ...]
Path = tuple[str | int, ...]

#: Members that number the things of which a stream consists, in the APIs that stream.
_NUMBERS: Final = ("index", "output_index", "content_index", "summary_index")
#: Where a sentence ends; a point needs a blank behind it, which scripts without blanks do not have.
_SENTENCE_END: Final = re.compile(r"""[.!?…]["')\]»”’]*\s+|[。！？｡]["'」』）”’]*|[؟।။]|\n""")
#: Characters after which something without an end counts as a sentence, such as the arguments of a tool.
_LONG_SENTENCE: Final = 2000


class Piece:
    """A string of a frame that is held; of the channel of everything it is no single string, and has no path."""

    __slots__ = ("frame", "judged", "path", "size", "text")

    def __init__(self, frame: Frame, path: Path | None, text: str) -> None:
        self.frame = frame
        self.path = path
        self.text = text
        #: Its length, as it came.
        self.size = len(text)
        #: It is part of a whole sentence that was asked about.
        self.judged = False


class Joined:
    """What a client joins to one text: the last characters that have left, and the pieces that are held."""

    __slots__ = ("held", "rest", "tail")

    def __init__(self) -> None:
        self.tail = ""
        #: Of a piece in which a sentence ends, the characters behind that, which were not asked about; 0 without one.
        self.rest = 0
        self.held: deque[Piece] = deque()

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

    def sentences(self, size: int, *, last: bool) -> tuple[str, int, int, int]:
        """Whole sentences that were not asked about, with `size` characters before them; what stands behind them; how
        many characters are new; how many were asked about. Empty where none is complete.
        """
        waiting = [piece for piece in self.held if not piece.judged]
        text = "".join(piece.text for piece in waiting)
        asked = max(len(waiting[0].text) - self.rest, 0) if waiting and self.rest else 0
        end = len(text) if last or len(text) >= _LONG_SENTENCE else 0
        for found in _SENTENCE_END.finditer(text, asked) if not end else ():
            end = found.end()
        if end <= asked:
            return "", 0, 0, 0
        at = fresh = self.rest = 0
        for piece in waiting:
            at += len(piece.text)
            if at > end:
                self.rest = at - end
                break
            piece.judged = True
            fresh += piece.size
        everything, behind = self.end(size + len(text)), len(text) - end
        shown = everything[: len(everything) - behind]
        return shown, behind, fresh, max(len(shown) - (end - asked), 0)

    def place(self, text: str, span: Span, behind: int = 0) -> int:
        """Where a piece of `text`, the end of all that is here but for `behind` characters, begins."""
        return len(self.tail) + sum(len(piece.text) for piece in self.held) - behind - len(text) + span.start

    def replace(self, text: str, spans: Iterable[Span], behind: int = 0) -> set[Frame] | None:
        """Replace pieces of `text`, its end, in what is held; the frames that changed, or None when it has left."""
        changed: set[Frame] = set()
        base = self.place(text, Span(0, 0, ""), behind)
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


def pieces(data: JSON, text: str) -> list[tuple[Channel, Path, str]]:
    """The strings in a frame that are part of its text: whose continuation each is, where it stands, and itself."""
    found = list(_strings(data, text))
    whole = [piece for piece in found if piece[2] == text]
    return whole or found  # beside a string that is all of the text, others are like a part of it by chance


def _strings(data: JSON, text: str) -> Iterator[tuple[Channel, Path, str]]:
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
