"""Helicone's log API against a scripted server, and the headers for its proxy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

from tests.support.calls import a_call
from tests.support.records import a_failure, a_payload, a_record, undelivered
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.callbacks.helicone import Helicone, is_helicone
from tianji_mw.errors import SetupError
from tianji_mw.identity.base import Identity
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Received, Reply, drive

KEY = "sk-helicone-very-secret"
MOMENT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["seconds", "milliseconds"],
    "properties": {
        "seconds": {"type": "integer", "minimum": 0},
        "milliseconds": {"type": "integer", "minimum": 0, "maximum": 999},
    },
}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
LOG = {
    "type": "object",
    "additionalProperties": False,
    "required": ["providerRequest", "providerResponse", "timing"],
    "properties": {
        "providerRequest": {
            "additionalProperties": False,
            "required": ["url", "json", "meta"],
            "properties": {
                "url": {"type": "string", "pattern": "^(https?://.+|custom-model-nopath)$"},
                "json": {"type": "object", "required": ["model"], "properties": {"model": {"type": "string"}}},
                "meta": TEXTS,
            },
        },
        "providerResponse": {
            "additionalProperties": False,
            "required": ["status", "headers"],
            "properties": {
                "json": {"type": "object"},
                "textBody": {"type": "string"},
                "status": {"type": "integer", "minimum": 100, "maximum": 599},
                "headers": TEXTS,
            },
            "oneOf": [{"required": ["json"]}, {"required": ["textBody"]}],
        },
        "timing": {
            "additionalProperties": False,
            "required": ["startTime", "endTime"],
            "properties": {
                "startTime": MOMENT,
                "endTime": MOMENT,
                "timeToFirstToken": {"type": "integer", "minimum": 0},
            },
        },
    },
}


class Service:
    """Keeps logs by the id of their request."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.logs: dict[str, dict[str, Any]] = {}
        self.refuse: set[str] = set()

    def __call__(self, request: Received) -> Reply:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Reply.json({"error": f"no: {request.headers.get('authorization')}"}, status=401)
        assert (request.method, request.path) == ("POST", "/custom/v1/log")
        assert request.headers["content-type"] == "application/json"
        jsonschema.validate(request.json, LOG)
        assert KEY.encode() not in request.body
        if self.answers:
            return self.answers.pop(0)
        request_id = request.json["providerRequest"]["meta"]["Helicone-Request-Id"]
        if request_id in self.refuse:
            return Reply.json({"error": "invalid"}, status=400)
        self.logs[request_id] = request.json
        return Reply.json({"message": "ok"})


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
async def server(service: Service) -> AsyncIterator[FakeLLM]:
    async with FakeLLM(service) as fake:
        yield fake


@pytest.fixture
async def helicone(server: FakeLLM) -> AsyncIterator[Helicone]:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, timeout_s=5)
    await callback.start(Runtime())
    yield callback
    await callback.aclose()


problem = partial(undelivered, hidden=KEY)


async def logged(callback: Helicone, service: Service, **changes: Any) -> dict[str, Any]:
    record = a_record(**changes)
    await callback.write([record])
    return service.logs[record.id]


# --- the log API


async def test_a_call_is_a_log(helicone: Helicone, service: Service) -> None:
    record = a_record(tianji={**a_payload()["tianji"], "time_to_first_token": 0.1204})
    await helicone.write([record])
    log = service.logs[record.id]
    asked, answered = log["providerRequest"], log["providerResponse"]
    assert asked["url"] == "https://api.openai.com/v1/chat/completions"
    assert asked["json"] == {
        "model": "gpt-4o-mini", "messages": record.data["messages"], "temperature": 0.5, "max_tokens": 100,
    }  # fmt: skip
    assert answered == {"json": record.data["response"], "status": 200, "headers": {}}
    assert log["timing"] == {
        "startTime": {"seconds": 1795376000, "milliseconds": 100},
        "endTime": {"seconds": 1795376000, "milliseconds": 920},
        "timeToFirstToken": 120,
    }
    told = {name: asked["meta"][name] for name in ("Helicone-User-Id", "Helicone-Property-team")}
    assert told == {"Helicone-User-Id": "customer-7", "Helicone-Property-team": "ml"}


async def test_failures_are_sent_with_their_status(helicone: Helicone, service: Service) -> None:
    record = a_failure("It broke.")
    await helicone.write([record])
    answered = service.logs[record.id]["providerResponse"]
    assert (answered["status"], answered["json"]["error"]["message"]) == (500, "It broke.")


@pytest.mark.parametrize(
    ("provider", "base", "api", "url"),
    [
        ("openai", "https://api.openai.com/v1", "responses", "https://api.openai.com/v1/responses"),
        ("anthropic", "https://api.anthropic.com", "messages", "https://api.anthropic.com/v1/messages"),
        ("groq", "https://api.groq.com/openai/v1", "chat_completions", "https://api.groq.com/openai/v1/chat/completions"),
        ("azure", "https://x.openai.azure.com", "embeddings", "https://x.openai.azure.com/openai/deployments/m/embeddings"),
        ("bedrock", "https://bedrock.eu", "chat_completions", "custom-model-nopath"),
        ("openai", "", "chat_completions", "custom-model-nopath"),
        (None, "https://x", "chat_completions", "custom-model-nopath"),
    ],
)  # fmt: skip
async def test_the_true_address(
    helicone: Helicone, service: Service, provider: str | None, base: str, api: str, url: str
) -> None:
    ours = {**a_payload()["tianji"], "api": api, "attempts": []}
    log = await logged(helicone, service, custom_llm_provider=provider, api_base=base, model="m", tianji=ours)
    assert log["providerRequest"]["url"] == url


async def test_what_the_client_says_of_its_call(helicone: Helicone, service: Service) -> None:
    metadata = {
        "requester_metadata": {
            "helicone_user_id": "u9",
            "Helicone-Property-Env": "Prod",
            "helicone_auth": "x",
            "other": 1,
        },
        "requester_custom_headers": {"helicone-session-id": "s1", "helicone-cache-enabled": True, "x-more": "y"},
    }
    meta = (await logged(helicone, service, metadata=metadata))["providerRequest"]["meta"]
    assert (meta["Helicone-User-Id"], meta["Helicone-Session-Id"], meta["Helicone-Property-Env"]) == (
        "u9",
        "s1",
        "Prod",
    )
    assert meta["Helicone-Cache-Enabled"] == "true"
    assert not {name.lower() for name in meta} & {"helicone-auth", "other", "x-more"}


async def test_content_is_left_out_where_it_is_turned_off(server: FakeLLM, service: Service) -> None:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, turn_off_message_logging="true")
    await callback.start(Runtime())
    log = await logged(callback, service, messages="hush")
    await callback.aclose()
    assert log["providerRequest"]["json"]["messages"] == [{"role": "user", "content": "redacted-by-litellm"}]
    assert log["providerResponse"]["json"]["choices"][0]["message"]["content"] == "redacted-by-litellm"


async def test_texts_and_other_answers(helicone: Helicone, service: Service) -> None:
    assert (await logged(helicone, service, response="data: x"))["providerResponse"]["textBody"] == "data: x"
    assert (await logged(helicone, service, response=[1]))["providerResponse"]["json"] == {"data": [1]}


async def test_exactly_the_refused_and_failed_ones_are_named(helicone: Helicone, service: Service) -> None:
    batch = [a_record() for _ in range(30)]
    service.refuse = {batch[3].id, batch[20].id}
    service.answers.append(Reply(status=500))
    found = await problem(helicone, batch)
    assert {record.id for record in found.refused} == service.refuse
    taken = {record.id for record in batch} - service.refuse - {record.id for record in found.failed or ()}
    assert (len(found.failed or ()), service.logs.keys()) == (1, taken)
    service.refuse = set()
    await helicone.write(list(found.failed or ()))
    assert len(service.logs) == 28


async def test_few_requests_at_once(server: FakeLLM, service: Service) -> None:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, requests_at_once=3)
    await callback.start(Runtime())
    await callback.write([a_record() for _ in range(12)])
    await callback.aclose()
    assert (len(service.logs), server.connections) == (12, 3)


async def test_a_busy_service_is_left_alone(server: FakeLLM, service: Service) -> None:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, requests_at_once=1)
    await callback.start(Runtime())
    service.answers += [Reply.json({}), Reply(status=429, headers={"retry-after": "11"})]
    batch = [a_record() for _ in range(5)]
    found = await problem(callback, batch)
    await callback.aclose()
    assert (found.failed, found.refused, found.retry_after_s) == (batch[1:], [], 11.0)
    assert len(server.requests) == 2


async def test_a_wrong_key_waits_for_a_right_one(server: FakeLLM) -> None:
    callback = Helicone(api_key=Secret("wrong-secret-key"), api_base=server.url, requests_at_once=1)
    await callback.start(Runtime())
    batch = [a_record() for _ in range(5)]
    found = await problem(callback, batch)
    await callback.aclose()
    assert (found.failed, len(server.requests)) == (batch, 2)
    assert "wrong-secret-key" not in found.message


async def test_silence_ends(server: FakeLLM, service: Service) -> None:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, timeout_s=0.2)
    await callback.start(Runtime())
    service.answers.append(Reply(delay_s=5))
    record = a_record()
    async with asyncio.timeout(3):
        found = await problem(callback, [record])
    await callback.aclose()
    assert found.failed == [record]


async def test_odd_records_do_no_harm(helicone: Helicone, service: Service) -> None:
    good = a_record()
    odd = [
        Record("not-json", b"{"),
        Record("empty", b"{}"),
        a_record(messages=None, response=None, metadata=None, model_parameters=None, startTime=None, endTime="x"),
        a_record(messages="\U0001f600\x00", tianji="x", model=None, hidden_params={"additional_headers": {"a": 1}}),
    ]
    found = await problem(helicone, [*odd, good])
    assert ([record.id for record in found.refused], found.failed) == (["not-json"], [])
    assert len(service.logs) == 4


async def test_what_is_missing_stops_the_start() -> None:
    with pytest.raises(SetupError, match="HELICONE_API_KEY"):
        await Helicone().start(Runtime())


# --- the proxy


@pytest.mark.parametrize(
    ("url", "is_one"),
    [
        ("https://oai.helicone.ai/v1", True),
        ("https://ANTHROPIC.helicone.ai", True),
        ("https://helicone.ai.", True),
        ("https://oai.hconeai.com/v1", True),
        ("https://proxy.internal:8787/v1", True),
        ("http://proxy.internal/v1", True),
        ("http://oai.helicone.ai/v1", False),
        ("https://helicone.ai.evil.com", False),
        ("https://evilhelicone.ai", False),
        ("https://oai.helicone.ai@evil.com/", False),
        ("https://evil.com/?x=helicone.ai", False),
        ("https://evil.com#.helicone.ai", False),
        ("https://evil.com\\.helicone.ai", False),
        ("https://api.openai.com/v1", False),
        ("https://[::1", False),
        ("", False),
    ],
)
def test_which_addresses_are_helicone(url: str, is_one: bool) -> None:
    assert is_helicone(url, ["proxy.internal"]) is is_one


def given(callback: Helicone, base: str, **fields: Any) -> dict[str, str]:
    """The headers that an attempt at this address gets."""
    call = a_call(**fields)
    callback.on_request(call)
    deployment: Any = SimpleNamespace(provider=SimpleNamespace(base=base))
    return {name: value for give in call.upstream_headers for name, value in give(deployment).items()}


PROXY = "https://oai.helicone.ai/v1"


def test_headers_for_the_proxy() -> None:
    headers = [
        (b"helicone-session-path", b"/a/b"),
        (b"helicone-property-env", b"prod"),
        (b"helicone-auth", b"Bearer stolen"),
        (b"helicone-target-url", b"https://evil.com"),
        (b"helicone-openai-api-base", b"https://evil.com"),
        (b"helicone-fallbacks", b"[]"),
        (b"x-litellm-session-id", b"s1"),
    ]
    request = {
        "user": "customer-7",
        "metadata": {"helicone_prompt_id": "p1", "helicone_property_colour": "r\u00f6d\r\n"},
    }
    identity = Identity(key_hash="h", alias="ci", team="ml", user="u1")
    callback = Helicone(api_key=KEY, mode="proxy", proxy_headers={"Helicone-Cache-Enabled": "true"})
    found = given(callback, PROXY, headers=headers, request=request, identity=identity)
    assert len(found.pop("helicone-request-id")) == 36
    assert found == {
        "helicone-auth": f"Bearer {KEY}",
        "helicone-user-id": "customer-7",
        "helicone-session-id": "s1",
        "helicone-session-path": "/a/b",
        "helicone-prompt-id": "p1",
        "helicone-property-env": "prod",
        "helicone-property-colour": "r?d??",
        "helicone-property-team": "ml",
        "helicone-property-key": "ci",
        "helicone-cache-enabled": "true",
    }


@pytest.mark.parametrize(
    ("fields", "request_fields"),
    [
        ({"turn_off_message_logging": True}, {}),
        ({"message_logging": False}, {}),
        ({}, {"turn_off_message_logging": True}),
    ],
)
def test_redaction_is_asked_of_the_proxy(fields: dict[str, Any], request_fields: dict[str, Any]) -> None:
    callback = Helicone(api_key=KEY, mode="proxy", **fields)
    found = given(callback, PROXY, request=request_fields, headers=[(b"helicone-omit-request", b"false")])
    assert (found["helicone-omit-request"], found["helicone-omit-response"]) == ("true", "true")


@pytest.mark.parametrize("base", ["https://api.openai.com/v1", "https://helicone.ai.evil.com", ""])
def test_other_hosts_get_no_header(base: str) -> None:
    assert given(Helicone(api_key=KEY, mode="proxy"), base, request={}) == {}


def test_the_mode_log_sets_no_header() -> None:
    assert given(Helicone(api_key=KEY), PROXY, request={}) == {}


@pytest.mark.parametrize("mode", ["log", "proxy"])
async def test_what_went_through_the_proxy_is_not_logged_again(server: FakeLLM, service: Service, mode: Any) -> None:
    callback = Helicone(api_key=Secret(KEY), api_base=server.url, mode=mode)
    await callback.start(Runtime())
    ours = a_payload()["tianji"]
    through = a_record(api_base=PROXY, tianji={**ours, "attempts": [{**ours["attempts"][0], "api_base": PROXY}]})
    direct = a_record()
    await callback.write([through, direct])
    await callback.aclose()
    assert service.logs.keys() == {direct.id}


CONFIG = """
model_list:
  - model_name: through
    litellm_params: {{model: openai/m, api_base: 'http://127.0.0.1:{port}/v1', api_key: sk-key}}
  - model_name: direct
    litellm_params: {{model: openai/m, api_base: 'http://localhost:{port}/v1', api_key: sk-key}}
litellm_settings:
  num_retries: 0
  callbacks: ["helicone"]
callback_settings:
  helicone: {{mode: proxy, proxy_hosts: ["127.0.0.1"], helicone_api_key: {key}, helicone_api_base: '{api}'}}
"""


async def test_from_yaml_only_calls_through_the_proxy_get_its_headers(
    tmp_path: Path, serve: Serve, server: FakeLLM, service: Service
) -> None:
    path = tmp_path / "config.yaml"
    async with FakeLLM(lambda request: Reply.json(ANSWER)) as llm:
        port = llm.url.rpartition(":")[2]
        path.write_text(CONFIG.format(port=port, key=KEY, api=server.url))
        app = await serve(Stack.from_config(path, env={"DEFAULT_FLUSH_INTERVAL_SECONDS": "0.02"}).app)
        for model in ("through", "direct"):
            assert (await drive(app, {**CHAT, "model": model}, headers={"helicone-session-id": "s1"})).status == 200
        async with asyncio.timeout(20):
            while not service.logs:
                await asyncio.sleep(0.02)
    through, direct = (request.headers for request in llm.requests)
    assert (through["helicone-auth"], through["helicone-session-id"]) == (f"Bearer {KEY}", "s1")
    assert not any(name.startswith("helicone") for name in direct)
    (log,) = service.logs.values()
    assert log["providerRequest"]["url"] == f"http://localhost:{port}/v1/chat/completions"
