"""Malformed HTTP/1.1 requests, and how a strict server answers each: run against any URL by `doctor --url`.

Two servers that read one request differently are how requests are smuggled past a guard. In embedded mode the host
server is not ours, so this shows what it lets through.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import urlsplit

_WAIT_S: Final = 2.0
_TAIL: Final = b"Connection: close\r\n\r\n"


class Case(NamedTuple):
    """One request; `wanted` are the statuses of a strict server (0: closed without an answer)."""

    name: str
    request: bytes
    wanted: frozenset[int]


def cases(host: bytes) -> list[Case]:
    """The table, for a server that calls itself `host`."""
    refused, too_large = frozenset({400, 0}), frozenset({400, 413, 431, 0})
    post = b"POST /health/liveliness HTTP/1.1\r\nHost: " + host + b"\r\n"
    get = b"GET /health/liveliness HTTP/1.1\r\n"
    named = get + b"Host: " + host + b"\r\n"
    smuggled = b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"
    rows = [
        (
            "Content-Length and Transfer-Encoding",
            post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + smuggled,
            refused,
        ),
        ("two different Content-Length", post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n123456", refused),
        ("Content-Length: +5", post + b"Content-Length: +5\r\n\r\n12345", refused),
        ("Content-Length: -1", post + b"Content-Length: -1\r\n\r\n", refused),
        ("Transfer-Encoding: xchunked", post + b"Transfer-Encoding: xchunked\r\n\r\n" + smuggled, refused | {501}),
        ("space before the colon", named + b"X-A : 1\r\n" + _TAIL, refused),
        ("bare LF line ends", (named + _TAIL).replace(b"\r\n", b"\n"), refused),
        ("folded header", named + b"X-A: 1\r\n 2\r\n" + _TAIL, refused),
        ("NUL in a header", named + b"X-A: 1\x002\r\n" + _TAIL, refused),
        ("no Host", get + _TAIL, refused),
        ("two Host headers", named + b"Host: other\r\n" + _TAIL, refused),
        ("wrong CRLF after a chunk", post + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345XX0\r\n\r\n", refused),
        (
            "chunk size 2^64+5",
            post + b"Transfer-Encoding: chunked\r\n\r\n10000000000000005\r\n12345\r\n0\r\n\r\n",
            refused | {413},
        ),
        ("one header of 1 MiB", named + b"X-A: " + b"a" * (1 << 20) + b"\r\n" + _TAIL, too_large),
        ("20,000 headers", named + b"".join(b"X-%d: 1\r\n" % i for i in range(20_000)) + _TAIL, too_large),
        (
            "absolute form",
            b"GET http://evil/health/liveliness HTTP/1.1\r\nHost: " + host + b"\r\n" + _TAIL,
            refused | {404},
        ),
        ("X_Api_Key beside X-Api-Key", named + b"X_Api_Key: a\r\nX-Api-Key: b\r\n" + _TAIL, refused),
    ]
    return [Case(*row) for row in rows]


def probe(url: str) -> Iterator[tuple[bool | None, str]]:
    """Send each case on a connection of its own; whether the answer is the wanted one."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        yield False, f"--url must be an address such as http://127.0.0.1:4000, not {url!r}"
        return
    secure = parts.scheme == "https"
    address = (parts.hostname, parts.port or (443 if secure else 80))
    for case in cases(parts.netloc.encode("ascii", "ignore")):
        try:
            statuses = _statuses(address, secure, case.request)
        except OSError as error:
            yield False, f"{url}: {error}"
            return
        good = len(statuses) <= 1 and (statuses or [0])[0] in case.wanted
        shown = ",".join(map(str, statuses)) or "closed"
        yield (
            good,
            f"{case.name}: {shown}"
            + ("" if good else f" (wanted {'/'.join(str(s) for s in sorted(case.wanted) if s)})"),
        )


def _statuses(address: tuple[str, int], secure: bool, request: bytes) -> list[int]:
    """Status of every answer on the connection. A server that hangs up while we write has answered, too."""
    with socket.create_connection(address, _WAIT_S) as plain:
        sock = ssl.create_default_context().wrap_socket(plain, server_hostname=address[0]) if secure else plain
        sock.settimeout(_WAIT_S)
        received = b""
        try:
            sock.sendall(request)
        except (ConnectionError, TimeoutError):
            pass
        try:
            while data := sock.recv(65536):
                received += data
        except (ConnectionError, TimeoutError):
            pass
    return [int(line[9:12]) for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.") and line[9:12].isdigit()]
