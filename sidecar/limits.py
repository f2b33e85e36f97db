"""The deadlines and limits of a port, and what its connections share. Data only: the protocol enforces them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from uvicorn.server import ServerState

from sidecar.strict import HeadRules

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAMES_KEPT: Final = 1_000


@dataclass(frozen=True, slots=True)
class EdgeLimits:
    """Deadlines and limits of one port."""

    header_timeout_s: float = 10.0
    keep_alive_s: float = 75.0
    send_timeout_s: float = 30.0
    max_header_bytes: int = 16_384
    max_chunk_extension_bytes: int = 1_024
    max_connections: int | None = None
    head: HeadRules = field(default_factory=HeadRules)


class EdgeState(ServerState):
    """What all connections of one port share; `counts` holds what was refused or cut, by reason."""

    def __init__(self, limits: EdgeLimits) -> None:
        super().__init__()
        self.limits = limits
        self.draining = False
        self.counts: dict[str, int] = {}
        #: Names of headers as apps write them, and the same checked and in lower case.
        self.header_names: dict[bytes, bytes] = {}
        self._lines: tuple[object, bytes] = (None, b"")

    def head_lines(self) -> bytes:
        """The headers of every answer, as bytes; uvicorn makes a new list of them once a second, with the date."""
        headers = self.default_headers
        if self._lines[0] is not headers:
            self._lines = headers, b"".join([b"%b: %b\r\n" % pair for pair in headers])
        return self._lines[1]

    def learn_name(self, given: bytes) -> bytes:
        """A header's name in lower case; RuntimeError for what is none (RFC 9110, section 5.1)."""
        if not _NAME.fullmatch(given):
            raise RuntimeError(f"the app sent a header whose name is none: {given[:100]!r}")
        if len(self.header_names) >= _NAMES_KEPT:
            self.header_names.clear()
        name = self.header_names[given] = given.lower()
        return name

    def count(self, event: str) -> None:
        """Count something a client never sees explained."""
        self.counts[event] = self.counts.get(event, 0) + 1
