"""OpenAI's own Python SDK in front of routing: what it raises, what its retries find, what it reads of a stream."""

from __future__ import annotations

from functools import partial
from typing import Any

import openai
import orjson
import pytest

from tests.support.routed import entry, fails, ok, routed
from tests.support.stack import delta, stream_of
from tianji_mw.testing import Received, Reply
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


async def test_the_headers_of_routing(tmp_path: Any) -> None:
    models = lambda urls: [*pair({"bad": urls["bad"]}), entry("other", urls["good"], rpm=9, info={"id": "good"})]  # noqa: E731
    settings = {"optional_pre_call_checks": ["enforce_model_rate_limits"], "fallbacks": [{GROUP: ["other"]}]}
    says = {"bad": fails(503), "good": ok}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing, sdk(routing) as api:
        answer = await api.chat.completions.with_raw_response.create(
            model=GROUP, messages=USER, extra_body={"include_fallback_errors": True, "num_retries": 0}
        )
        (error,) = orjson.loads(answer.headers["x-litellm-fallback-errors"])
        assert (error["type"], error["code"]) == ("ServiceUnavailableError", "503")
        assert answer.headers["x-ratelimit-limit-requests"] == "9"
        assert answer.headers["x-ratelimit-remaining-requests"] == "8"


# --- encrypted reasoning


def sealed(name: str, request: Received) -> Reply:
    """An answer with reasoning that only this upstream can read; it refuses what others have encrypted."""
    given_ = request.json["input"]
    seals = [item["encrypted_content"] for item in given_ if "encrypted_content" in item]
    if any(not seal.startswith(name) for seal in seals):
        return Reply.json({"error": {"message": "The encrypted content could not be verified."}}, status=400)
    seal = f"{name}{len(seals)}" + "x" * 5_000
    reasoning = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": seal}
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m",
             "output": [reasoning], "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}}  # fmt: skip
    if not request.json.get("stream"):
        return Reply.json(whole)
    begun = {**whole, "status": "in_progress", "output": []}
    return Reply.events(
        event({"type": "response.created", "sequence_number": 0, "response": begun}),
        event({"type": "response.output_item.done", "sequence_number": 1, "output_index": 0, "item": reasoning}),
        event({"type": "response.completed", "sequence_number": 2, "response": {**whole, "output": []}}),
    )


def event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_goes_back_to_who_encrypted_it(tmp_path: Any, stream: bool) -> None:
    async def ask(api: openai.AsyncOpenAI, said: Any) -> Any:
        given: Any = {"model": GROUP, "input": said, "store": False, "include": ["reasoning.encrypted_content"]}
        if not stream:
            return (await api.responses.create(**given)).output
        events = [event async for event in await api.responses.create(**given, stream=True)]
        return [event.item for event in events if event.type == "response.output_item.done"]

    models = lambda urls: [entry(GROUP, url, info={"id": name}) for name, url in urls.items()]  # noqa: E731
    settings = {
        "routing_strategy": "simple-shuffle", "num_retries": 0,
        "optional_pre_call_checks": ["encrypted_content_affinity"],
    }  # fmt: skip
    says = {name: partial(sealed, name) for name in "ab"}
    async with routed(says, models, tmp_path=tmp_path, router_settings=settings) as routing, sdk(routing) as api:
        for _ in range(10):
            said: list[Any] = list(USER)
            for turn in range(4):
                (reasoning,) = await ask(api, said)
                assert reasoning.encrypted_content[1:2] == str(turn)
                said += [reasoning.model_dump(exclude_none=True), *USER]
        assert min(routing.asked().values()) > 0
