"""The official clients as judges of what the bridges say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import httpx2
import orjson
import pytest
from anthropic import Anthropic
from openai import OpenAI

from tianji_mw.apis import sse
from tianji_mw.bridges.base import Event

# Their asserts explain themselves as those of a test do.
pytest.register_assert_rewrite("tests.unit.bridges.support", "tests.unit.bridges.responses")


def _http(stream: bytes) -> httpx2.Client:
    headers = {"content-type": "text/event-stream"}
    return httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=stream))
    )


@pytest.fixture
def anthropic_reads() -> Callable[[Iterable[Event]], dict[str, Any]]:
    """The message that Anthropic's client builds from these events."""

    def read(events: Iterable[Event]) -> dict[str, Any]:
        stream = b"".join(sse.encode(orjson.dumps(event.data), event.name) for event in events)
        client = Anthropic(api_key="k", http_client=_http(stream), max_retries=0)
        with client.messages.stream(model="m", max_tokens=5, messages=[{"role": "user", "content": "Hi"}]) as found:
            return found.get_final_message().to_dict(mode="json")

    return read


@pytest.fixture
def openai_reads() -> Callable[[Iterable[Event]], dict[str, Any]]:
    """The chat completion that OpenAI's client builds from these chunks."""

    def read(events: Iterable[Event]) -> dict[str, Any]:
        stream = b"".join(sse.encode(orjson.dumps(event.data)) for event in events) + b"data: [DONE]\n\n"
        client = OpenAI(api_key="k", http_client=_http(stream), max_retries=0)
        with client.chat.completions.stream(model="m", messages=[{"role": "user", "content": "Hi"}]) as found:
            return found.get_final_completion().to_dict(mode="json")

    return read
