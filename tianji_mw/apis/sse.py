"""Server-sent events: cuts a byte stream into events, and one event into its fields.

Sans I/O and total: any bytes give events, whatever the cut positions. Limits bound what is kept in memory.
Follows the WHATWG HTML standard, section 9.2.6 (event stream interpretation): lines end in CRLF, LF or CR; a blank
line ends an event; a leading BOM is ignored. It decodes no JSON.
"""

from __future__ import annotations

import re
from typing import Final

from tianji_mw.errors import UpstreamMalformed

#: Default bound of one event, and so of one line.
MAX_EVENT_BYTES: Final = 1 << 20

#: Two line ends in a row. A CR that may be the first half of a CRLF is not taken for a line end by itself.
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r(?!\n))")
_LINE_END: Final = re.compile(r"\r\n|\n|\r")
_BOM: Final = b"\xef\xbb\xbf"


class Splitter:
    """Incremental cutter of an event stream; `feed` returns the raw bytes of each complete event.

    The joined output (with `tail`) is always the joined input: nothing is normalised.

    >>> s = Splitter()
    >>> s.feed(b"data: 1\\n\\nda"), s.feed(b"ta: 2\\n\\n"), s.tail
    ([b'data: 1\\n\\n'], [b'data: 2\\n\\n'], b'')
    """

    __slots__ = ("_buffer", "_max_event", "_scanned")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._buffer = b""
        self._scanned = 0
        self._max_event = max_event_bytes

    @property
    def tail(self) -> bytes:
        """Bytes after the last complete event."""
        return self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        """Add bytes; the events they complete.

        Raises UpstreamMalformed when one event grows over the limit.
        """
        buffer = self._buffer + data if self._buffer else data
        if b"\r" in buffer:
            events, rest = self._cut_any(buffer)
        else:
            events, rest = self._cut_lf(buffer)
        self._buffer = rest
        # Whole events count too: whether a stream is refused must not depend on where the packets were cut.
        if len(buffer) > self._max_event and max(map(len, [*events, rest])) > self._max_event:
            self._buffer, self._scanned = b"", 0
            raise UpstreamMalformed(f"one event of the stream is larger than {self._max_event} bytes")
        return events

    def _cut_lf(self, buffer: bytes) -> tuple[list[bytes], bytes]:
        # Nearly every provider ends lines with LF alone: two C calls cut the whole packet.
        end = buffer.rfind(b"\n\n", max(0, self._scanned - 1))
        if end < 0:
            self._scanned = len(buffer)
            return [], buffer
        self._scanned = 0
        whole, rest = buffer[: end + 2], buffer[end + 2 :]
        if whole.find(b"\n\n") == end:
            return [buffer if not rest else whole], rest
        *parts, odd = whole.split(b"\n\n")
        events = [part + b"\n\n" for part in parts]
        if odd:  # `rfind` found the overlapping pair of three line ends in a row: the spare one opens the next event
            rest = odd + rest
            self._scanned = len(rest)
        return events, rest

    def _cut_any(self, buffer: bytes) -> tuple[list[bytes], bytes]:
        events: list[bytes] = []
        start, position = 0, max(0, self._scanned - 3)
        while match := _BLANK_LINE.search(buffer, position):
            if match.end() == len(buffer) and buffer.endswith(b"\r"):
                break  # perhaps the first half of a CRLF: wait for the next byte
            events.append(buffer[start : match.end()])
            start = position = match.end()
        self._scanned = len(buffer) - start
        return events, buffer[start:]

    def finish(self) -> bytes:
        """The bytes after the last complete event, once the stream has ended."""
        rest, self._buffer, self._scanned = self._buffer, b"", 0
        return rest


def parse(raw: bytes) -> tuple[str, bytes | None]:
    """Event name and data of one raw event; data is None when the event has no `data` line (comments, pings).

    Several `data` lines are joined by LF. Undecodable bytes stay in the data: the JSON decoder judges them.
    """
    # Fast path: `data: {...}` and two LFs, which is what OpenAI and most compatible servers send.
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return "", raw[6:-2]
    name, data = "", None
    body = raw[3:] if raw.startswith(_BOM) else raw
    for line in _LINE_END.split(body.decode("utf-8", "surrogateescape")):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            data = value if data is None else f"{data}\n{value}"
        elif field == "event":
            name = value
    return name, None if data is None else data.encode("utf-8", "surrogateescape")


def encode(data: bytes, event: str = "") -> bytes:
    """One event on the stream; `data` is a single line (JSON without line ends)."""
    if event:
        # A name read from an upstream may hold bytes that are no UTF-8; `parse` keeps them as surrogates.
        return b"event: %b\ndata: %b\n\n" % (event.encode("utf-8", "surrogateescape"), data)
    return b"data: %b\n\n" % data
