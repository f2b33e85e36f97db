"""Hostile and broken HTTP against the sidecar's server: what is refused, and what must pass."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest

from tests.support import edge as support
from tests.support.edge import (
    CHUNKED,
    HOST,
    SECOND,
    Edge,
    Recorder,
    post,
    read_all,
    read_answer,
    running,
    statuses,
    wait_for,
)

edge = support.edge  # a fixture

BAD: dict[str, tuple[int, bytes]] = {
    "content-length and transfer-encoding": (400, post(HOST, b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n")),
    "transfer-encoding and content-length": (400, post(HOST, CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n")),
    "two different content-lengths": (400, post(HOST, b"Content-Length: 5", b"Content-Length: 6", body=b"hello")),
    "two equal content-lengths": (400, post(HOST, b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    "content-length list": (400, post(HOST, b"Content-Length: 5, 5", body=b"hello")),
    "content-length +5": (400, post(HOST, b"Content-Length: +5", body=b"hello")),
    "content-length -1": (400, post(HOST, b"Content-Length: -1", body=b"hello")),
    "transfer-encoding xchunked": (400, post(HOST, b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "transfer-encoding chunked, identity": (400, post(HOST, b"Transfer-Encoding: chunked, identity")),
    "transfer-encoding gzip, chunked": (400, post(HOST, b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n")),
    "two transfer-encodings": (400, post(HOST, CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    "transfer-encoding in HTTP/1.0": (400, post(HOST, CHUNKED, body=b"0\r\n\r\n", version=b"1.0")),
    "space before colon": (400, post(HOST, b"X-A : b")),
    "bare LF everywhere": (400, b"GET / HTTP/1.1\nHost: gateway\n\n"),
    "bare LF after one header": (400, b"GET / HTTP/1.1\r\nHost: gateway\nX-A: b\r\n\r\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: gateway\rX-A: b\r\n\r\n"),
    "obs-fold": (400, post(HOST, b"X-A: b\r\n c")),
    "NUL in a header value": (400, post(HOST, b"X-A: b\0c")),
    "control character in a header value": (400, post(HOST, b"X-A: b\x01c")),
    "header without colon": (400, post(HOST, b"X-A")),
    "no host": (400, post(b"X-A: b")),
    "empty host": (400, post(b"Host:")),
    "two hosts": (400, post(HOST, b"Host: other")),
    "64 KiB chunk extension": (400, post(HOST, CHUNKED, body=b"5;" + b"a" * 65_536 + b"\r\nhello\r\n0\r\n\r\n")),
    "2 KiB chunk extension": (400, post(HOST, CHUNKED, body=b"5;" + b"a" * 2_048 + b"\r\nhello\r\n0\r\n\r\n")),
    "64 KiB of trailers": (400, post(HOST, CHUNKED, body=b"0\r\n" + b"X-T: %s\r\n" % (b"a" * 250) * 260 + b"\r\n")),
    "wrong CRLF after a chunk": (400, post(HOST, CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n")),
    "LF after a chunk size": (400, post(HOST, CHUNKED, body=b"5\nhello\r\n0\r\n\r\n")),
    "chunk size 2^64+5": (400, post(HOST, CHUNKED, body=b"10000000000000005\r\nhello\r\n0\r\n\r\n")),
    "one 1 MiB header": (431, post(HOST, b"X-A: " + b"a" * 1_048_576)),
    "head one byte too large": (431, post(HOST, b"X-A: " + b"a" * (16_385 - len(post(HOST, b"X-A: "))))),
    "a 64 KiB target": (431, b"GET /" + b"a" * 65_536 + b" HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "20,000 headers": (431, post(HOST, *(b"a: b" for _ in range(20_000)))),
    "101 headers": (431, post(HOST, *(b"x-%d: b" % number for number in range(100)))),
    "absolute form": (400, b"GET http://evil/admin HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "absolute form of our own host": (400, b"GET http://gateway/v1 HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "asterisk form": (400, b"OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "CONNECT": (400, b"CONNECT evil:443 HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "fragment in the target": (400, b"GET /v1#x HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "byte above 127 in the target": (400, b"GET /\xff HTTP/1.1\r\nHost: gateway\r\n\r\n"),
    "X_Api_Key and X-Api-Key": (400, post(HOST, b"X-Api-Key: a", b"X_Api_Key: b")),
    "X_Api_Key alone": (400, post(HOST, b"X_Api_Key: b")),
    "Content_Length": (400, post(HOST, b"Content_Length: 5")),
    "custom identity header with _": (400, post(HOST, b"X_Team_Key: b")),
    "two authorizations": (400, post(HOST, b"Authorization: Bearer a", b"Authorization: Bearer b")),
    "two x-api-keys": (400, post(HOST, b"X-Api-Key: a", b"x-api-key: a")),
    "two content-types": (400, post(HOST, b"Content-Type: application/json", b"Content-Type: text/plain")),
    "unknown expectation": (417, post(HOST, b"Expect: the-unexpected", b"Content-Length: 0")),
    "HTTP/2.0": (505, b"GET / HTTP/2.0\r\nHost: gateway\r\n\r\n"),
    "HTTP/0.9": (505, b"GET /\r\n\r\n"),
    "HTTP/2 preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS hello": (400, bytes.fromhex("16030100c8010000c40303")),
    "not HTTP": (400, b"\0\1\2\3\4\5\6\7\r\n\r\n"),
}


@pytest.fixture(scope="module")
def shared() -> Iterator[Edge]:
    with running(Recorder(), header_timeout_s=5, identity_headers=("X-Team-Key",)) as server:
        yield server


@pytest.mark.parametrize("row", BAD)
def test_ambiguous_request_is_refused_once(shared: Edge, row: str) -> None:
    status, request = BAD[row]
    shared.app.paths.clear()
    received = shared.talk(request, SECOND)
    assert statuses(received) == [status]
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["message"].startswith("HTTP request refused: ")
    assert shared.app.paths == []


@pytest.mark.parametrize("row", ["64 KiB chunk extension", "wrong CRLF after a chunk", "one 1 MiB header", "no host"])
def test_refused_alike_when_it_comes_in_pieces(shared: Edge, row: str) -> None:
    status, request = BAD[row]
    size = max(7, len(request) // 40)
    shared.app.ends.clear()
    with closing(shared.connect()) as sock:
        try:
            for start in range(0, len(request), size):
                sock.sendall(request[start : start + size])
                time.sleep(0.002)
            sock.sendall(SECOND)
        except ConnectionError:
            pass
        assert statuses(read_all(sock)) == [status]
    # An app that was already reading such a body is told that nothing more comes.
    assert shared.app.ends in ([], ["http.disconnect"])
    assert "/smuggled" not in shared.app.paths


GOOD: dict[str, tuple[bytes, bytes]] = {
    "plain": (post(HOST, b"Content-Length: 5", body=b"hello"), b"hello"),
    "HTTP/1.0 without host": (post(b"Content-Length: 5", body=b"hello", version=b"1.0"), b"hello"),
    "chunked": (post(HOST, CHUNKED, body=b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"), b"hello"),
    "chunked, capitals": (post(HOST, b"Transfer-Encoding: Chunked", body=b"5\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "short chunk extension": (post(HOST, CHUNKED, body=b"5;a=b\r\nhello\r\n0\r\n\r\n"), b"hello"),
    "10,000 chunks of one byte": (post(HOST, CHUNKED, body=b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n"), b"x" * 10_000),
    "leading line ends": (b"\r\n\r\n" + post(HOST, b"Content-Length: 0"), b""),
    "head of the largest size": (post(HOST, b"X-A: " + b"a" * (16_384 - len(post(HOST, b"X-A: ")))), b""),
    "100 headers": (post(HOST, *(b"x-%d: b" % number for number in range(99))), b""),
    "other underscores": (post(HOST, b"my_header: b"), b""),
    "repeated list header": (post(HOST, b"X-Forwarded-For: a", b"X-Forwarded-For: b"), b""),
    "2 MiB body behind a long head": (
        post(HOST, b"X-A: " + b"a" * 15_000, b"Content-Length: 2097152", body=b"y" * 2_097_152),
        b"y" * 2_097_152,
    ),
    "h2c upgrade with a body (Java)": (
        post(HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"Content-Length: 5", body=b"hello"),
        b"hello",
    ),
    "websocket upgrade": (post(HOST, b"Connection: Upgrade", b"Upgrade: websocket", b"Content-Length: 0"), b""),
}


@pytest.mark.parametrize("row", GOOD)
@pytest.mark.parametrize("pieces", [1, 3])
def test_legitimate_request_passes_and_the_connection_stays(shared: Edge, row: str, pieces: int) -> None:
    request, body = GOOD[row]
    shared.app.bodies.clear()
    with closing(shared.connect()) as sock:
        size = len(request) // pieces + 1
        for start in range(0, len(request), size):
            sock.sendall(request[start : start + size])
            time.sleep(0.01 * (pieces - 1))
        assert statuses(read_answer(sock)) == [200]
        assert shared.app.bodies == [body]
        if "1.0" not in row:
            sock.sendall(SECOND)
            assert statuses(read_answer(sock)) == [200]


def test_second_request_sent_too_early_gets_no_answer(shared: Edge) -> None:
    shared.app.paths.clear()
    received = shared.talk(post(HOST, b"Content-Length: 5", body=b"hello" + SECOND), SECOND)
    assert statuses(received) == [200]
    received = shared.talk(post(HOST, b"Content-Length: 0", target=b"/slow"), SECOND, pause=0.05)
    assert statuses(received) == [200]
    assert b"connection: close" in received
    assert shared.app.paths == ["/v1", "/slow"]


def test_pipelining_client_that_leaves_is_noticed(shared: Edge) -> None:
    shared.app.ends.clear()
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 0", target=b"/wait") + SECOND)
        time.sleep(0.1)
    wait_for(lambda: shared.app.ends == ["http.disconnect"])


def test_trailers_do_not_become_headers(shared: Edge) -> None:
    shared.app.headers.clear()
    request = post(HOST, CHUNKED, b"Connection: close", body=b"5\r\nhello\r\n0\r\nX-Api-Key: stolen\r\n\r\n")
    assert statuses(shared.talk(request)) == [200]
    assert b"x-api-key" not in dict(shared.app.headers[0])


def test_upgrade_body_is_not_taken_for_a_request(shared: Edge) -> None:
    shared.app.paths.clear()
    head = post(HOST, b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: %d" % len(SECOND))
    with closing(shared.connect()) as sock:
        sock.sendall(head)
        time.sleep(0.05)
        sock.sendall(SECOND)
        assert statuses(read_answer(sock)) == [200]
    assert shared.app.paths == ["/v1"]
    assert shared.app.bodies[-1] == SECOND


def test_early_answer_reaches_a_client_that_is_still_sending(shared: Edge) -> None:
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 8388608", target=b"/early"))
        for _ in range(128):  # urllib3 and others send all of the body before they read
            sock.sendall(b"z" * 65_536)
        received = read_all(sock)
    assert statuses(received) == [413]
    assert b"connection: close" in received


def test_final_answer_instead_of_100_continue_closes(shared: Edge) -> None:
    request = post(HOST, b"Content-Length: 5", b"Expect: 100-continue", target=b"/early")
    received = shared.talk(request, SECOND, pause=0.1)
    assert statuses(received) == [413]
    assert b"connection: close" in received


def test_100_continue_is_sent_to_who_asks(shared: Edge) -> None:
    with closing(shared.connect()) as sock:
        sock.sendall(post(HOST, b"Content-Length: 5", b"Expect: 100-continue"))
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"hello")
        assert statuses(read_answer(sock)) == [200]


def test_broken_bytes_never_get_two_answers_nor_break_the_server(shared: Edge) -> None:
    """Known requests with bytes changed, dropped or doubled: one answer or none each, then the server still serves."""
    rng = random.Random(20)
    seeds = [request for request, _ in GOOD.values() if len(request) < 2000]
    with ExitStack() as stack:
        asked = []
        for _ in range(150):
            request = bytearray(rng.choice(seeds))
            for _ in range(rng.randint(1, 3)):
                place = rng.randrange(len(request))
                request[place : place + rng.randint(0, 3)] = rng.choice((b"", b"\r\n", b"\n", b"\0", b":", b"0", b" "))
            sock = stack.enter_context(closing(shared.connect()))
            sock.sendall(bytes(request) + SECOND)
            asked.append((sock, bytes(request)))
        time.sleep(0.7)
        answers = []
        for sock, sent in asked:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                answers.append((sent, statuses(sock.recv(65_536))))
    assert [(sent, codes) for sent, codes in answers if len(codes) > 1] == []
    assert {code for _, codes in answers for code in codes} >= {200, 400}
    assert statuses(shared.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200]


@pytest.mark.parametrize("row", ["no host", "64 KiB chunk extension", "one 1 MiB header", "NUL in a header value"])
def test_refused_alike_on_the_loop_of_asyncio(monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setattr(support, "loop_factory", lambda: None)
    status, request = BAD[row]
    with running(Recorder()) as server:
        assert statuses(server.talk(request, SECOND)) == [status]
        assert statuses(server.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))) == [200]


def test_server_header_is_off_and_date_is_on(edge: Edge) -> None:
    received = edge.talk(post(HOST, b"Content-Length: 0", b"Connection: close"))
    assert b"\r\ndate: " in received
    assert b"\r\nserver:" not in received
    assert b"\r\ndate: " in edge.talk(b"nonsense\r\n\r\n")
