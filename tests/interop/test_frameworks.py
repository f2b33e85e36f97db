"""Authentication and Guardrails around an LLM endpoint of the user's own, in five frameworks, behind a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.interop.apps import framework_apps, llm
from tests.interop.apps.framework_apps import APPS, NOTES, PATH, wrapped
from tests.interop.support import MASTER_KEY, Loop, served, wait_for

pytestmark = pytest.mark.slow

PLACES = [(name, inside) for name in APPS for inside in ((False,) if name == "django" else (False, True))]
STEPS = (" starts", " stops")
SYNC = "/sync/v1/chat/completions"


@pytest.fixture(scope="module", params=PLACES, ids=lambda place: f"{place[0]}-{'inside' if place[1] else 'around'}")
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, bool, httpx.Client]]:
    framework, inside = request.param
    loop = Loop()
    with served(loop, wrapped(framework, inside)) as url, client(url) as http:
        yield framework, inside, http
    loop.close()


@pytest.fixture
def http(place: tuple[str, bool, httpx.Client]) -> httpx.Client:
    llm.SEEN.clear()
    return place[2]


@pytest.fixture(scope="module")
def fastapi() -> Iterator[httpx.Client]:
    loop = Loop()
    with served(loop, wrapped("fastapi", inside=True)) as url, client(url) as http:
        yield http
    loop.close()


def client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {MASTER_KEY}"}, timeout=10, trust_env=False)


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "own-1", "messages": [{"role": "user", "content": text}], **fields}


def text_of(response: httpx.Response) -> str:
    """The text of a stream."""
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def test_plain(http: httpx.Client) -> None:
    response = http.post(PATH, json=ask("hello ü"))
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "echo: hello ü"
    assert response.headers.get("content-length", str(len(response.content))) == str(len(response.content))
    assert len(response.headers["x-request-id"]) == 36
    assert llm.SEEN == ["master"], "the endpoint sees the call and its identity"


def test_streamed(http: httpx.Client) -> None:
    response = http.post(PATH, json=ask("one two three", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    assert text_of(response) == "echo: one two three"
    assert response.text.endswith("data: [DONE]\n\n")
    assert len(response.headers["x-request-id"]) == 36


def test_without_a_key(http: httpx.Client) -> None:
    response = http.post(PATH, json=ask("hello"), headers={"authorization": ""})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"
    assert llm.SEEN == []
    assert "fine" in http.get("/health", headers={"authorization": ""}).text


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_request_does_not_reach_the_endpoint(http: httpx.Client, stream: bool) -> None:
    response = http.post(PATH, json=ask("about Bluebird", stream=stream))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "content_policy_violation")
    assert llm.SEEN == []


def test_a_blocked_answer(http: httpx.Client) -> None:
    response = http.post(PATH, json=ask("blue_bird"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "content_policy_violation")
    assert "bluebird" not in response.text


def test_a_blocked_stream(http: httpx.Client) -> None:
    response = http.post(PATH, json=ask("a long and harmless start, then blue_bird and more", stream=True))
    assert "harmless" in response.text
    assert "bluebird" not in response.text
    assert json.loads(response.text.split("data: ")[-1])["error"]["code"] == "content_policy_violation"


@pytest.mark.parametrize(("framework", "inside"), PLACES)
def test_the_lifespans_are_one(framework: str, inside: bool) -> None:
    NOTES.clear()
    loop = Loop()
    with served(loop, wrapped(framework, inside)) as url, client(url) as http:
        assert http.post(PATH, json=ask("hello")).status_code == 200
    loop.close()
    happened, app = (
        [note for note in NOTES if note.endswith(STEPS)],
        [] if framework == "django" else ["app starts", "app stops"],
    )
    if framework == "litestar" and inside:
        # Litestar's own middlewares hear of no lifespan: ours start late, once per route, with a warning.
        assert happened == ["app starts", "layer starts", "app stops"]
    elif framework in ("starlette", "fastapi") or not inside:
        assert happened == ["layer starts", *app, "layer stops"]
    else:
        assert sorted(happened) == sorted(["layer starts", *app, "layer stops"])


@pytest.mark.parametrize("stream", [False, True])
def test_background_tasks_run_after_the_response(fastapi: httpx.Client, stream: bool) -> None:
    NOTES.clear()
    response = fastapi.post(PATH, json=ask("hello", stream=stream))
    wait_for(lambda: NOTES, 2)
    expected = [f"background after {len(response.content)} bytes, complete: True"]
    assert list(NOTES) == expected


@pytest.mark.parametrize(
    ("said", "status", "body"),
    [("teapot", 418, {"detail": "short and stout"}), ("own error", 409, {"handled": "own error"})],
)
def test_exception_handlers_still_work(fastapi: httpx.Client, said: str, status: int, body: Any) -> None:
    response = fastapi.post(PATH, json=ask(said))
    assert (response.status_code, response.json()) == (status, body)
    assert len(response.headers["x-request-id"]) == 36


def test_a_crash_of_the_endpoint_is_a_500(fastapi: httpx.Client) -> None:
    assert fastapi.post(PATH, json=ask("crash"), headers={"connection": "close"}).status_code == 500
    assert fastapi.post(PATH, json=ask("hello")).status_code == 200


def test_validation_by_the_framework_still_works(fastapi: httpx.Client) -> None:
    assert fastapi.post("/health").status_code == 405
    assert fastapi.get(PATH).status_code == 405


@pytest.mark.parametrize("framework", ["fastapi", "django"])
def test_an_endpoint_in_a_thread_sees_the_call(framework: str) -> None:
    llm.SEEN.clear()
    loop = Loop()
    with served(loop, framework_apps.wrapped(framework, inside=False)) as url, client(url) as http:
        assert http.post(SYNC, json=ask("hello")).json()["choices"][0]["message"]["content"] == "echo: hello"
    loop.close()
    assert llm.SEEN == ["master"]
