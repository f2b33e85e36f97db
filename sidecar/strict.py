"""Judges a request head: what is ambiguous to any two HTTP readers is refused before an app sees it.

Framing inside the body, deadlines and byte limits are the protocol's; paths and credentials are the app's.
RFC 9112 sections 3.2 and 6, RFC 9110 section 7.2.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

#: Headers that say who calls. A second one, or a twin spelt with `_`, could be read by another hop than ours.
IDENTITY_HEADERS: Final = (
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "ocp-apim-subscription-key",
    "x-request-id",
)
_FRAMING: Final = (b"host", b"content-length", b"transfer-encoding", b"content-type", b"expect")
#: CGI and WSGI fold `_` and `-` together, so these must not come in through the other spelling either.
_TWINS: Final = (
    b"content-length",
    b"transfer-encoding",
    b"content-type",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-real-ip",
)


class Refused(Exception):
    """The request must not be served; the connection ends with `status`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class HeadRules:
    """What a head may hold. `HeadRules.of(("x-team-key",))` guards one more identity header.

    It knows nothing of valid keys or routes.
    """

    max_headers: int = 100
    single: frozenset[bytes] = field(default_factory=lambda: frozenset((*_FRAMING, *_encode(IDENTITY_HEADERS))))
    twins: frozenset[bytes] = field(default_factory=lambda: frozenset((*_TWINS, *_encode(IDENTITY_HEADERS))))

    @classmethod
    def of(cls, identity_headers: Sequence[str], *, max_headers: int = 100) -> HeadRules:
        """Rules with these identity headers beside the usual ones."""
        identity = _encode((*IDENTITY_HEADERS, *identity_headers))
        return cls(max_headers, frozenset((*_FRAMING, *identity)), frozenset((*_TWINS, *identity)))

    def check(self, headers: Sequence[tuple[bytes, bytes]], url: bytes, version: str) -> Mapping[bytes, bytes]:
        """The headers by name (the last one where a name may repeat), or `Refused`. Names must be in lower case.

        One dict and one join carry the usual case: this runs for every request.
        """
        if len(headers) > self.max_headers:
            raise Refused(431, f"more than {self.max_headers} headers")
        seen = dict(headers)
        if len(seen) != len(headers):
            self._refuse_repeats(headers)
        if b"_" in b"".join(seen):
            self._refuse_twins(seen)
        if url[:1] != b"/" or b"#" in url:
            # Absolute form would let the target name another host than the Host header that routing and logs see.
            raise Refused(400, "the request target must be a path; this is not a forward proxy")
        if version == "1.1":
            if not seen.get(b"host"):
                raise Refused(400, "the Host header is missing")
        elif version != "1.0":
            raise Refused(505, "HTTP/1.1 and HTTP/1.0 only")
        coding = seen.get(b"transfer-encoding")
        if coding is not None:
            _check_coding(coding, seen, version)
        expect = seen.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise Refused(417, "the only expectation understood is 100-continue")
        return seen

    def _refuse_repeats(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        met: set[bytes] = set()
        for name, _ in headers:
            if name in met and name in self.single:
                raise Refused(400, f"the header {name.decode('ascii')} is repeated")
            met.add(name)

    def _refuse_twins(self, names: Iterable[bytes]) -> None:
        for name in names:
            if b"_" in name and name.replace(b"_", b"-") in self.twins:
                raise Refused(400, f"write the header {name.decode('ascii')} with '-' instead of '_'")


def _check_coding(coding: bytes, seen: Mapping[bytes, bytes], version: str) -> None:
    if b"content-length" in seen:
        raise Refused(400, "Content-Length and Transfer-Encoding exclude each other")
    if version != "1.1":
        raise Refused(400, "HTTP/1.0 has no Transfer-Encoding")  # RFC 9112, 6.1: to be treated as faulty framing
    if coding.lower() != b"chunked":
        raise Refused(400, "the only transfer coding understood is chunked")


def answer(status: int, message: str, extra: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """A whole HTTP response that ends the connection, its body in OpenAI's error shape."""
    kind = "api_error" if status >= 500 else "timeout_error" if status == 408 else "invalid_request_error"
    error = {"message": f"HTTP request refused: {message}.", "type": kind, "param": None, "code": "bad_http"}
    body = json.dumps({"error": error}).encode()
    lines = [
        b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"connection: close",
        *(b"%s: %s" % pair for pair in extra),
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def without_upgrade(method: bytes, url: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The same head without its wish to upgrade, as bytes to parse."""
    lines = [b"%s %s HTTP/%s" % (method, url, version.encode())]
    for name, value in headers:
        kept = value
        if name == b"connection":
            tokens = (token.strip() for token in value.split(b","))
            kept = b", ".join(token for token in tokens if token.lower() in (b"close", b"keep-alive"))
        if name != b"upgrade" and (kept or name != b"connection"):
            lines.append(b"%s: %s" % (name, kept))
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _encode(names: Iterable[str]) -> tuple[bytes, ...]:
    return tuple(name.lower().encode("ascii") for name in names)
