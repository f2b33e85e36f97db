"""Five servers carry the gateway and a wrapped app: plain, streamed, blocked, broken off. Each is a real process."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.interop.support import MASTER_KEY, SERVERS, UPSTREAM_KEY, Loop, fake_llm, process, wait_for
from tianji_mw.testing import FakeLLM, Reply

pytestmark = pytest.mark.slow

GATEWAY, OWN = "/v1/chat/completions", "/own/v1/chat/completions"
ANSWER = (
    b'{ "id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},'
    b'"finish_reason":"stop"}],"odd":1.50,"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2} }'
)
DONE = b"data: [DONE]\n\n"
#: What a generator of the wrapped app may see when nobody wants its stream any more.
BROKEN_OFF = ("CancelledError", "GeneratorExit", "ClientDisconnect")


def event(text: str | None) -> bytes:
    """One event of a stream; None for the stop."""
    delta, reason = ({}, "stop") if text is None else ({"content": text}, None)
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return (
        b"data: " + json.dumps({"id": "c1", "object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"
    )


def ask(text: str, stream: bool = False) -> bytes:
    return json.dumps(
        {"model": "public", "messages": [{"role": "user", "content": text}], "stream": stream, "odd": 1.5}
    ).encode()


class Place:
    """A running server, its upstream, and a client."""

    def __init__(self, url: str, llm: FakeLLM) -> None:
        headers = {"authorization": f"Bearer {MASTER_KEY}", "content-type": "application/json"}
        self.url, self.llm = url, llm
        self.http = httpx.Client(base_url=url, headers=headers, timeout=20, trust_env=False)

    def post(self, path: str, body: bytes, **options: Any) -> httpx.Response:
        return self.http.post(path, content=body, **options)

    def arrivals(self, path: str, body: bytes) -> tuple[httpx.Response, list[float], bytes]:
        """The response, when each piece of it arrived (seconds since the first), and its bytes."""
        times, pieces = [], []
        with self.http.stream("POST", path, content=body) as response:
            for piece in response.iter_raw():
                times.append(time.monotonic())
                pieces.append(piece)
        return response, [moment - times[0] for moment in times], b"".join(pieces)


@pytest.fixture(scope="module", params=list(SERVERS))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    loop = Loop()
    with fake_llm(loop) as llm, process(request.param, "tests.interop.apps.served:app", UPSTREAM=llm.url) as url:
        place = Place(url, llm)
        yield place
        place.http.close()
    loop.close()


@pytest.fixture(autouse=True)
def fresh(place: Place) -> None:
    place.llm.replies.clear()
    place.llm.requests.clear()


def test_plain_through_the_gateway(place: Place) -> None:
    place.llm.replies.append(Reply(headers={"content-type": "application/json"}, parts=[ANSWER]))
    body = ask("hello ü")
    response = place.post(GATEWAY, body)
    assert (response.status_code, response.content) == (200, ANSWER)
    assert response.headers["content-length"] == str(len(ANSWER))
    assert len(response.headers["x-request-id"]) == 36
    assert UPSTREAM_KEY not in str(response.headers)
    [seen] = place.llm.requests
    assert seen.body == body.replace(b'"public"', b'"hidden"')
    assert seen.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert MASTER_KEY not in str(seen.headers)


def test_plain_from_the_wrapped_app(place: Place) -> None:
    response = place.post(OWN, ask("hello"))
    assert response.json()["choices"][0]["message"]["content"] == "echo: hello"
    assert len(response.headers["x-request-id"]) == 36
    assert place.http.get("/own/state", headers={"authorization": ""}).status_code == 200


@pytest.mark.parametrize("path", [GATEWAY, OWN])
def test_a_stream_arrives_one_by_one(place: Place, path: str) -> None:
    words = [f"word{i:02}, " for i in range(20)]
    parts = [*map(event, words), event(None), DONE]
    place.llm.replies.append(Reply.events(*parts, pause_s=0.05))
    response, times, data = place.arrivals(path, ask("".join(words).strip(), stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    if path == GATEWAY:
        assert data == b"".join(parts)
    else:
        assert data.count(b"data: ") == 23
        assert data.endswith(DONE)
    apart = sum(later - earlier > 0.02 for earlier, later in itertools.pairwise(times))
    assert apart >= 15, times
    assert 0.8 < times[-1] < 4


@pytest.mark.parametrize("path", [GATEWAY, OWN])
@pytest.mark.parametrize("stream", [False, True])
def test_blocked_before_the_first_byte(place: Place, path: str, stream: bool) -> None:
    response = place.post(path, ask("what is Bluebird?", stream))
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "content_policy_violation"
    assert len(response.headers["x-request-id"]) == 36
    assert place.llm.requests == []


def test_a_blocked_answer(place: Place) -> None:
    place.llm.replies.append(
        Reply(headers={"content-type": "application/json"}, parts=[ANSWER.replace(b'"hi"', b'"Bluebird"')])
    )
    response = place.post(GATEWAY, ask("hello"))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "content_policy_violation"
    assert b"Bluebird" not in response.content


def test_blocked_after_the_first_byte(place: Place) -> None:
    words = ["this is allowed, ", "and this too, ", "but blue", "bird leaks ", *["never seen "] * 40]
    dropped = place.llm.dropped
    place.llm.replies.append(Reply.events(*map(event, words), event(None), DONE, pause_s=0.05))
    response, _, data = place.arrivals(GATEWAY, ask("hello", stream=True))
    assert response.status_code == 200
    assert data.startswith(event(words[0]))
    assert b"bird leaks" not in data
    assert b"never" not in data
    assert json.loads(data.split(b"data: ")[-1])["error"]["code"] == "content_policy_violation"
    wait_for(lambda: place.llm.dropped > dropped, 2)


def test_blocked_after_the_first_byte_in_the_wrapped_app(place: Place) -> None:
    before = len(place.http.get("/own/state").json())
    words = [*["fine"] * 8, "blue_bird", *["never"] * 40]
    _, _, data = place.arrivals(OWN, ask(" ".join(words), stream=True))
    assert b"fine" in data
    assert b"bluebird" not in data
    assert b"never" not in data
    assert json.loads(data.split(b"data: ")[-1])["error"]["code"] == "content_policy_violation"
    wait_for(lambda: len(place.http.get("/own/state").json()) > before, 5)
    assert place.http.get("/own/state").json()[-1] in BROKEN_OFF


@pytest.mark.parametrize("when", ["before the head", "in the stream", "plain"])
def test_a_client_that_leaves_cancels_the_upstream(place: Place, when: str) -> None:
    dropped = place.llm.dropped
    parts = [event(f"word{i:03}, ") for i in range(200)]
    place.llm.replies.append(
        Reply.events(*parts, pause_s=0.05)
        if when == "in the stream"
        else Reply(headers={"content-type": "application/json"}, parts=[ANSWER], delay_s=15)
    )
    with httpx.Client(headers=dict(place.http.headers), trust_env=False) as leaving:
        if when == "in the stream":
            with leaving.stream("POST", place.url + GATEWAY, content=ask("x", stream=True), timeout=10) as response:
                next(response.iter_raw())
        else:
            with pytest.raises(httpx.ReadTimeout):
                leaving.post(place.url + GATEWAY, content=ask("x", stream=when != "plain"), timeout=0.3)
    wait_for(lambda: place.llm.dropped > dropped, 3)


def test_a_client_that_leaves_ends_the_stream_of_the_wrapped_app(place: Place) -> None:
    before = len(place.http.get("/own/state").json())
    body = ask("word " * 100, stream=True)
    with place.http.stream("POST", OWN, content=body) as response:
        next(response.iter_raw())
    wait_for(lambda: len(place.http.get("/own/state").json()) > before, 5)
    assert place.http.get("/own/state").json()[-1] in BROKEN_OFF


def test_a_wrong_key(place: Place) -> None:
    response = place.post(GATEWAY, ask("hello"), headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert response.json()["error"]["type"] == "authentication_error"
    assert place.llm.requests == []


def test_a_cut_upstream_ends_with_the_error_event(place: Place) -> None:
    parts = [event(f"word{i:03}, ") for i in range(5)]
    place.llm.replies.append(Reply.events(*parts, cut_after=sum(map(len, parts)) - 10))
    _, _, data = place.arrivals(GATEWAY, ask("x", stream=True))
    assert data.startswith(parts[0])
    assert "error" in json.loads(data.split(b"data: ")[-1])
