"""OpenAI's Node SDK as the judge, in one process that runs every case against the sidecar's own process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.interop import replies
from tests.interop.sdk import Setup, setup
from tests.interop.support import MASTER_KEY, UPSTREAM_KEY, Loop
from tianji_mw.testing import Reply

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent / "node"
INSTALL = "npm ci --prefix tests/interop/node"


def scripts() -> dict[str, list[Reply]]:
    """The answers of each upstream, in the order of the cases in `sdk.mjs`."""
    words = ("Gu", "ten ", "Tag 👋")
    cut = replies.chat_stream(*words)
    limit = replies.openai_error("slow down", "requests", "rate_limit_exceeded")
    openai = [
        replies.plain(replies.chat("Guten Tag 👋")),
        replies.stream(*replies.chat_stream(*words, usage=True)),
        replies.stream(*replies.tool_stream()),
        replies.plain(replies.chat("a pixel")),
        replies.plain(replies.chat('{"name":"Ulm"}')),
        replies.plain(replies.embeddings(encoded=True)),
        replies.plain(replies.moderation()),
        replies.plain(replies.completion()),
        replies.plain(replies.response()),
        replies.stream(*replies.response_stream(*words)),
        replies.plain({"text": "hello there"}),
        Reply(headers={"content-type": "audio/mpeg"}, parts=[b"\x00\xff" * 5000] * 5, chunked=True),
        replies.plain(replies.openai_error("no", "invalid_request_error", "bad", "messages"), 400),
        replies.plain(limit, 429, retry_after="7"),
        replies.plain(limit, 429, retry_after_ms="20"),
        replies.plain(replies.chat("at last")),
        replies.plain(replies.openai_error("too busy", "overloaded"), 529),
        replies.stream(*cut, cut_after=len(b"".join(cut[:2])) + 9),
        replies.stream(*replies.response_stream(*words), cut_after=1900),
        Reply(parts=[b"{}"], delay_s=20),
    ]
    events = replies.message_stream(*words)
    claude = [
        replies.plain(replies.message({"type": "text", "text": "Hi!"})),
        replies.stream(*events, cut_after=len(b"".join(events[:4])) + 9),
    ]
    return {"gpt": openai, "claude": claude, "chat-only": [replies.stream(*replies.chat_stream(*words))]}


@pytest.fixture(scope="module")
def node(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], Setup]]:
    """What the script printed, and the place it ran against."""
    program = shutil.which("node")
    if program is None or not (HERE / "node_modules" / "openai").exists():
        pytest.fail(f"Node or its packages are missing; run: {INSTALL}")
    with setup(loop, "sidecar", tmp_path_factory.mktemp("node") / "config.yaml") as place:
        for model, answers in scripts().items():
            place.script(model, *answers)
        env = {"BASE_URL": f"{place.url}/v1", "API_KEY": MASTER_KEY, "PIXEL": replies.PIXEL, "PATH": os.environ["PATH"]}
        run = subprocess.run([program, HERE / "sdk.mjs"], env=env, capture_output=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr.decode()
        yield json.loads(run.stdout), place


RESULTS: dict[str, Any] = {
    "chat": {"text": "Guten Tag 👋", "total": 29, "id": True},
    "stream": {"text": "Guten Tag 👋", "usage": 29},
    "tools": [["call_1", '{"city":"Ulm"}'], ["call_2", '{"city":"Bonn"}']],
    "images": "a pixel",
    "parsed": {"name": "Ulm"},
    "embeddings": list(replies.VECTOR),
    "moderations": True,
    "completions": " and so on",
    "responses": "Once upon a time.",
    "responsesStream": ["Guten Tag 👋", "completed"],
    "responsesBridged": ["Guten Tag 👋", "Guten Tag 👋"],
    "claude": "Hi!",
    "models": ["gpt", "chat-only", "claude", "dead", "slow"],
    "model": "claude",
    "transcription": "hello there",
    "speech": 50_000,
    "retried": "at last",
}
RAISED: dict[str, tuple[str, int | None, str]] = {
    "wrongKey": ("AuthenticationError", 401, "Authentication failed"),
    "unknownModel": ("NotFoundError", 404, "does not exist"),
    "unreachable": ("InternalServerError", 502, "not reachable"),
    "badRequest": ("BadRequestError", 400, "no"),
    "rateLimit": ("RateLimitError", 429, "slow down"),
    "overloaded": ("InternalServerError", 529, "too busy"),
    "cut": ("APIError", None, "broke off"),
    "cutBridged": ("APIError", None, "broke off"),
    "cutResponse": ("APIError", None, "broke off"),
    "timeout": ("APIConnectionTimeoutError", None, "timed out"),
}


@pytest.mark.parametrize("case", RESULTS)
def test_answers(node: tuple[dict[str, Any], Setup], case: str) -> None:
    assert node[0][case] == RESULTS[case]


@pytest.mark.parametrize("case", RAISED)
def test_errors(node: tuple[dict[str, Any], Setup], case: str) -> None:
    found, (kind, status, text) = node[0][case], RAISED[case]
    assert (found["raised"], found.get("status")) == (kind, status), found
    assert text in found["message"]
    if case == "rateLimit":
        assert (found["retryAfter"], found["code"]) == ("7", "rate_limit_exceeded")


def test_every_case_has_an_expectation(node: tuple[dict[str, Any], Setup]) -> None:
    assert set(node[0]) == set(RESULTS) | set(RAISED)


def test_what_reached_the_upstreams(node: tuple[dict[str, Any], Setup]) -> None:
    requests = [request for llm in node[1].upstreams.values() for request in llm.requests]
    assert len(requests) > 20
    for request in requests:
        assert MASTER_KEY not in f"{request.headers}{request.path}"
        assert UPSTREAM_KEY in f"{request.headers}"
        assert not any(name.startswith("x-stainless") for name in request.headers)
    chat = node[1].upstreams["gpt"].requests[0]
    text = '{"model":"gpt-4.1-2025-04-14","messages":[{"role":"user","content":"hi ü👋"}]}'
    assert chat.body == text.encode()
    assert not (HERE / "package-lock.json").read_text().count("resolved"), "the lock file names no registry"
