"""Events that repeat text of a stream, as those of the Responses API do up to three times: they say what has left.

Text that they claim to repeat and that never came before is new text, and judged like any other. Pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tianji_mw.apis.base import Part
from tianji_mw.frames import Frame
from tianji_mw.guardrails.joined import Channel, Piece
from tianji_mw.guardrails.rewrite import put


class _Channel:
    """A text: its parts as they came, as they left, and how many are still here."""

    __slots__ = ("came", "here", "left")

    def __init__(self) -> None:
        self.came: list[str] = []
        self.left: list[str] = []
        self.here = 0


class Repeats:
    """The texts of one stream by channel: as they came, and as they left."""

    __slots__ = ("_channels",)

    def __init__(self) -> None:
        self._channels: dict[Channel, _Channel] = {}

    def came(self, channel: Channel, text: str) -> None:
        """Remember a part of a text that came."""
        known = self._channels.setdefault(channel, _Channel())
        known.came.append(text)
        known.here += 1

    def left(self, channel: Channel, piece: Piece) -> None:
        """Remember it as it leaves."""
        known = self._channels[channel]
        known.left.append(piece.text)
        known.here -= 1

    def sort(self, parts: Iterable[Part]) -> tuple[list[Part], str]:
        """Texts that came before, and those that did not, joined."""
        known = {_text(channel.came) for channel in self._channels.values()}
        again: list[Part] = []
        fresh: list[str] = []
        for part in parts:
            if part.text in known:
                again.append(part)
            elif part.text:
                fresh.append(part.text)
        return again, "".join(fresh)

    def retell(self, frame: Frame, again: Sequence[Part]) -> None:
        """Put into a frame that leaves what has left of the texts that it repeats."""
        # Another text of the same words may not have left yet.
        gone = [channel for channel in self._channels.values() if not channel.here]
        told = {_text(channel.came): _text(channel.left) for channel in gone}
        changed = [part for part in again if told.get(part.text, part.text) != part.text]
        for part in changed:
            put(frame.data, part.path, told[part.text])
        if changed:
            frame.edit(frame.data)


def _text(parts: list[str]) -> str:
    """The parts joined; also in their place, so that they are joined once."""
    if len(parts) > 1:
        parts[:] = ["".join(parts)]
    return parts[0] if parts else ""
