"""What is kept of an answer for those who look at it after the call: references to the bytes that really left.

Nothing is decoded and nothing copied; a layer that wants it says so with `call.keep()` in its `on_request`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tianji_mw.frames import Form

#: Times of so many messages are noted: the first content stands in one of them.
_TIMED: Final = 8


class Kept:
    """The bodies that left, in order, up to `most` bytes; audio and files are not kept."""

    __slots__ = ("bodies", "form", "headers", "left_out", "most", "size", "times")

    def __init__(self, most: int) -> None:
        self.most = most
        self.form: Form = "opaque"
        self.headers: Iterable[tuple[bytes, bytes]] = ()
        self.bodies: list[bytes] = []
        self.size = 0
        #: Bytes that were too many.
        self.left_out = 0
        #: When the first bodies left, in nanoseconds of the clock, and how many bytes had left then.
        self.times: list[tuple[int, int]] = []

    def start(self, form: Form, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """An answer begins."""
        self.form, self.headers = form, headers

    def take(self, body: bytes, now: int) -> None:
        """A part of it leaves."""
        self.size += len(body)
        if len(self.times) < _TIMED:
            self.times.append((now, self.size))
        if self.form == "opaque" or self.size > self.most:
            self.left_out += len(body)
        else:
            self.bodies.append(body)
