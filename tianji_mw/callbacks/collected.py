"""What the `Callbacks` layer keeps of an answer while it passes: references to its bytes, and when it really began."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tianji_mw.apis.base import JSON
from tianji_mw.frames import Form, Frame

if TYPE_CHECKING:
    from tianji_mw.taps import Batch


class Collected:
    """A note on the call. `most` bytes are kept; what goes beyond them is left out, and counted."""

    __slots__ = ("_said", "first", "form", "frame", "left_out", "limits", "parts", "size")

    def __init__(self) -> None:
        self.form: Form = "opaque"
        self.parts: list[bytes] = []
        self.size = 0
        self.left_out = 0
        #: When the first frame with content came, in nanoseconds of the clock: no role, no ping. 0 before.
        self.first = 0
        #: The provider's rate limits, as its headers say them.
        self.limits: dict[str, str] | None = None
        #: The first frame with data; of a plain answer the only one.
        self.frame: Frame | None = None
        self._said = False

    def take(self, batch: Batch, most: int, now: int) -> None:
        """Keep the frames of a batch."""
        self.form = batch.form
        if not self._said:
            self._listen(batch.frames, now)
        for frame in batch.frames:
            raw = frame.raw
            if self.size + len(raw) > most or batch.form == "opaque":
                self.left_out += len(raw)
            else:
                self.size += len(raw)
                self.parts.append(raw)

    def _listen(self, frames: Sequence[Frame], now: int) -> None:
        for frame in frames:
            if self.frame is None and frame.data is not None:
                self.frame = frame
            if frame.kind in ("text", "tool", "thinking"):
                self._said, self.first = True, now
                return

    @property
    def opening(self) -> JSON:
        """The content of the first frame: it has the answer's id."""
        return self.frame.data if self.frame is not None else None

    @property
    def whole(self) -> JSON:
        """A plain answer, decoded; None for others."""
        return self.opening if self.form == "whole" else None
