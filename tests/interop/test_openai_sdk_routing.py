"""OpenAI's own Python SDK in front of routing: what it raises, what its retries find, what it reads of a stream."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import delta, stream_of
from tianji_mw.testing import Reply
from tianji_mw.transport import client

pytestmark = pytest.mark.slow

USER: Any = [{"role": "user", "content": "hi"}]
GROUP = "gpt-4o"


def sdk(routing: Any, **options: Any) -> openai.AsyncOpenAI:
    given: dict[str, Any] = {"api_key": "sk-x", "base_url": "http://tianji/v1", "max_retries": 0, **options}
    return openai.AsyncOpenAI(http_client=client(routing.app), **given)


def pair(urls: Any, **params: Any) -> list[dict[str, Any]]:
    return [entry(GROUP, url, order=at, info={"id": name}, **params) for at, (name, url) in enumerate(urls.items())]


async def test_a_failure_is_not_seen(tmp_path: Any) -> None:
    async with routed({"bad": fails(500), "good": ok}, pair, tmp_path=tmp_path) as routing, sdk(routing) as api:
        answer = await api.chat.completions.with_raw_response.create(model=GROUP, messages=USER)
        assert answer.headers["x-litellm-model-id"] == "good"
        assert answer.parse().choices[0].message.content == "Hello you"


async def test_a_stream_that_breaks_early_is_whole(tmp_path: Any) -> None:
    says = {"bad": [Reply.events(delta(role="assistant"), cut_after=60, reset=True)], "good": ok}
    async with routed(says, pair, tmp_path=tmp_path) as routing, sdk(routing) as api:
        stream = await api.chat.completions.create(model=GROUP, messages=USER, stream=True)
        said = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert "".join(said) == "Hello you"


async def test_a_stream_that_breaks_late_raises_and_goes_on_where_that_is_wanted(tmp_path: Any) -> None:
    events = [*stream_of("Hello")[:2], delta(" never")]
    broken = Reply.events(*events, cut_after=sum(map(len, events[:2])), reset=True)

    async def read(api: openai.AsyncOpenAI) -> str:
        said = ""
        async for chunk in await api.chat.completions.create(model=GROUP, messages=USER, stream=True):
            said += chunk.choices[0].delta.content or ""
        return said

    async with routed({"bad": [broken], "good": ok}, pair, tmp_path=tmp_path) as routing, sdk(routing) as api:
        with pytest.raises(openai.APIError, match="broke"):
            await read(api)
    models = lambda urls: [{**one, "model_info": {"supports_assistant_prefill": True}} for one in pair(urls)]  # noqa: E731
    settings = {"enable_mid_stream_fallback_continuation": True}
    says = {"bad": [broken], "good": [Reply.events(*stream_of(", and on"))]}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing, sdk(routing) as api:
        assert await read(api) == "Hello, and on"


async def test_nobody_left_is_a_rate_limit_with_a_time(tmp_path: Any) -> None:
    says = {"a": fails(429, headers={"retry-after": "33"}), "b": fails(429, headers={"retry-after": "44"})}
    async with routed(says, pair, tmp_path=tmp_path) as routing, sdk(routing) as api:
        for _ in range(2):
            with pytest.raises(openai.RateLimitError):
                await api.chat.completions.create(model=GROUP, messages=USER)
        with pytest.raises(openai.RateLimitError, match="No deployments available") as raised:
            await api.chat.completions.create(model=GROUP, messages=USER)
        assert 30 <= int(raised.value.response.headers["retry-after"]) <= 33
        assert raised.value.type == "all_deployments_in_cooldown"
        assert sum(routing.asked().values()) == 2


async def test_what_a_client_says_of_its_retries_goes_through(tmp_path: Any) -> None:
    models = lambda urls: [*pair({"bad": urls["bad"]}), entry("other", urls["good"], info={"id": "good"})]  # noqa: E731
    async with routed({"bad": fails(500), "good": ok}, models, tmp_path=tmp_path) as routing, sdk(routing) as api:
        answer = await api.chat.completions.with_raw_response.create(
            model=GROUP, messages=USER, extra_body={"fallbacks": ["other"], "num_retries": 0}
        )
        assert answer.headers["x-litellm-attempted-fallbacks"] == "1"
        assert routing.asked() == {"bad": 1, "good": 1}
