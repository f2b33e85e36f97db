"""The Presidio guardrail of a YAML file, through HTTP, over the real engine: in this process and behind REST."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from tests.support.presidio_server import PresidioServer, text_of
from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Serve, delta, stream_of
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails import presidio_local
from tianji_mw.guardrails.presidio import Presidio
from tianji_mw.guardrails.runs import Runs
from tianji_mw.runtime import Runtime
from tianji_mw.testing import Driven, FakeLLM, Received, Reply, drive

pytestmark = pytest.mark.slow

MAIL = "ada@example.com"
CARD = "4111 1111 1111 1111"
SETTINGS: dict[str, Any] = {
    "pii_entities_config": {"EMAIL_ADDRESS": "MASK", "CREDIT_CARD": "BLOCK", "PHONE_NUMBER": "MASK"},
    "presidio_score_thresholds": {"ALL": 0.35},
}
App = Callable[..., Any]


@pytest.fixture(scope="module")
def real() -> Any:
    """Presidio with the installed model."""
    return presidio_local.build({"en": ""})


@pytest.fixture(scope="module")
def blank() -> Any:
    return presidio_local.build({"en": "none"})


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Nobody may look up a host: everything here is on loopback."""
    asked: list[Any] = []
    found = socket.getaddrinfo

    def look(host: Any, *args: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1", None):
            asked.append(host)
        return found(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    yield asked
    assert not asked


@pytest.fixture
async def presidio(blank: Any) -> AsyncIterator[FakeLLM]:
    """The REST services."""
    async with FakeLLM(PresidioServer(blank)) as fake:
        yield fake


@pytest.fixture(params=["local", "rest", "rest+anonymizer"])
async def app(
    request: Any, llm: FakeLLM, serve: Serve, presidio: FakeLLM, blank: Any, monkeypatch: pytest.MonkeyPatch
) -> App:
    """Builds the app of a YAML file whose guardrail is Presidio, in each of the ways to run it."""
    monkeypatch.setattr(presidio_local, "build", lambda models: blank)

    async def build(**options: Any) -> Any:
        env = {}
        if request.param != "local":
            env["PRESIDIO_ANALYZER_API_BASE"] = presidio.url.removeprefix("http://")
        if request.param == "rest+anonymizer":
            env["PRESIDIO_ANONYMIZER_API_BASE"] = presidio.url
        return await served(serve, llm, env, **options)

    return build


async def served(serve: Serve, llm: FakeLLM, env: dict[str, str] | None = None, **options: Any) -> Any:
    params = {"guardrail": "presidio", "mode": ["pre_call", "post_call"], "default_on": True, **SETTINGS, **options}
    model = {"model": "openai/x", "api_base": f"{llm.url}/v1", "api_key": "k"}
    text = yaml.safe_dump({
        "model_list": [{"model_name": "gpt-4o", "litellm_params": model}],
        "guardrails": [{"guardrail_name": "pii", "litellm_params": params}],
    })  # fmt: skip
    layer = Ends(compose(loads(text, env=env or {}), env=env or {}).app, allow_order=True)
    await serve(layer)
    return layer


def ask(text: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {**(STREAM if stream else CHAT), "messages": [{"role": "user", "content": text}], **more}


def answer(**message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return Reply.json({**ANSWER, "choices": [choice]})


def events_of(body: bytes) -> list[Any]:
    return [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


def sent(llm: FakeLLM, at: int = -1) -> str:
    found: str = llm.requests[at].json["messages"][0]["content"]
    return found


# --- mask, block, unmask, however it runs


async def test_requests_and_answers_are_masked(app: App, llm: FakeLLM) -> None:
    gateway = await app()
    llm.replies.append(answer(content=f"write to {MAIL}", reasoning_content=f"the mail is {MAIL}"))
    driven = await drive(gateway, ask(f"I am {MAIL}, phone 212-555-5555"))
    assert sent(llm) == "I am <EMAIL_ADDRESS>, phone <PHONE_NUMBER>"
    message = driven.json["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (
        "write to <EMAIL_ADDRESS>", "the mail is <EMAIL_ADDRESS>",
    )  # fmt: skip
    runs = {run.side: run for run in gateway.ends[-1].note(Runs).values()}
    assert dict(runs["input"].masked) == {"EMAIL_ADDRESS": 1, "PHONE_NUMBER": 1}
    assert runs["output"].status == "guardrail_intervened"


async def test_places_are_code_points(app: App, llm: FakeLLM) -> None:
    gateway = await app()
    llm.replies.append(answer(content=f"🎉🎉 日本語 {MAIL} 👩‍👩‍👧 \u00e9"))
    driven = await drive(gateway, ask(f"👋🏽 你好 {MAIL} 🇫🇷 naïve 212-555-5555 終"))
    assert sent(llm) == "👋🏽 你好 <EMAIL_ADDRESS> 🇫🇷 naïve <PHONE_NUMBER> 終"
    assert driven.json["choices"][0]["message"]["content"] == "🎉🎉 日本語 <EMAIL_ADDRESS> 👩‍👩‍👧 \u00e9"


async def test_streams_are_masked_wherever_they_are_cut(app: App, llm: FakeLLM) -> None:
    gateway = await app()
    for cut in (1, 4, 9):
        llm.replies.append(Reply.events(*stream_of("🎉 write to ", MAIL[:cut], MAIL[cut:], " now 日本")))
        driven = await drive(gateway, ask("hi", stream=True))
        assert text_of(driven.body) == "🎉 write to <EMAIL_ADDRESS> now 日本"
        assert driven.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_blocked_entities_end_requests_and_answers(app: App, llm: FakeLLM, stream: bool) -> None:
    gateway = await app()
    llm.replies.append(Reply.events(*stream_of("the card ", CARD)) if stream else answer(content=f"the card is {CARD}"))
    refused = await drive(gateway, ask(f"my card is {CARD}", stream=stream))
    assert (refused.status, llm.requests) == (400, [])
    fields = refused.json["error"]["provider_specific_fields"]
    assert (fields["error"], fields["guardrail_name"]) == ("Blocked entity detected: CREDIT_CARD", "pii")
    ended = await drive(gateway, ask("hi", stream=stream))
    assert ended.status == 400
    assert CARD.encode() not in refused.body + ended.body


def calls(driven: Driven) -> Any:
    return orjson.loads(driven.json["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])


async def test_tokens_come_back_as_what_they_stand_for(app: App, llm: FakeLLM) -> None:
    gateway = await app(output_parse_pii=True)
    function = {"name": "send", "arguments": '{"to": "<EMAIL_ADDRESS_1>", "cc": "new@example.org"}'}
    llm.replies.append(
        answer(
            content="I wrote to <EMAIL_ADDRESS_1>, not to <EMAIL_ADDRESS_3> or new@example.org",
            reasoning_content="<EMAIL_ADDRESS_1> it is",
            tool_calls=[{"id": "c1", "type": "function", "function": function}],
        )
    )
    body = ask(f"{MAIL}, bob@example.net, again {MAIL}, and <EMAIL_ADDRESS_2> is no token")
    body["messages"].append({"role": "user", "content": f"use {MAIL}"})
    driven = await drive(gateway, body)
    assert sent(llm) == (
        "<EMAIL_ADDRESS_1>, <EMAIL_ADDRESS_3>, again <EMAIL_ADDRESS_1>, and <EMAIL_ADDRESS_2> is no token"
    )
    assert llm.requests[0].json["messages"][1]["content"] == "use <EMAIL_ADDRESS_1>"
    message = driven.json["choices"][0]["message"]
    assert message["content"] == f"I wrote to {MAIL}, not to bob@example.net or <EMAIL_ADDRESS>"
    assert message["reasoning_content"] == f"{MAIL} it is"
    assert calls(driven) == {"to": MAIL, "cc": "<EMAIL_ADDRESS>"}
    assert driven.status == 200


@pytest.mark.parametrize("mode", ["pre_call", ["pre_call", "post_call"]])
async def test_tokens_come_back_on_streams(app: App, llm: FakeLLM, mode: Any) -> None:
    gateway = await app(output_parse_pii=True, mode=mode)
    token = "<EMAIL_ADDRESS_1>"
    for cut in range(1, len(token), 3):
        parts = ["I wrote to ", token[:cut], token[cut:], " as you said, <b>", " and ", token, " again " * 20]
        llm.replies.append(Reply.events(*stream_of(*parts)))
        driven = await drive(gateway, ask(f"write to {MAIL}", stream=True))
        assert text_of(driven.body) == f"I wrote to {MAIL} as you said, <b> and {MAIL}" + " again " * 20


async def test_a_token_that_the_limit_cut_off_comes_back(app: App, llm: FakeLLM) -> None:
    for mode in ("pre_call", ["pre_call", "post_call"]):
        gateway = await app(output_parse_pii=True, mode=mode)
        llm.replies.append(Reply.events(*stream_of("I wrote to ", "<EMAIL_", "ADDR")))
        llm.replies.append(answer(content="I wrote to <EMAIL_ADDRESS"))
        driven = await drive(gateway, ask(f"write to {MAIL}", stream=True))
        assert text_of(driven.body) == f"I wrote to {MAIL}"
        driven = await drive(gateway, ask(f"write to {MAIL}"))
        assert driven.json["choices"][0]["message"]["content"] == f"I wrote to {MAIL}"


@pytest.mark.parametrize("mode", ["pre_call", ["pre_call", "post_call"]])
async def test_arguments_of_tools_stay_json(app: App, llm: FakeLLM, tmp_path: Path, mode: Any) -> None:
    """The original holds what JSON must escape; the stream cuts the token, and the quotes around it."""
    file = tmp_path / "own.json"
    own = {"name": "own", "supported_language": "en", "supported_entity": "QUOTED",
           "patterns": [{"name": "q", "regex": r'nick "[a-z]+\\?"', "score": 0.9}]}  # fmt: skip
    file.write_bytes(orjson.dumps([own]))
    gateway = await app(
        output_parse_pii=True, mode=mode, presidio_ad_hoc_recognizers=str(file), pii_entities_config={"QUOTED": "MASK"}
    )
    value = 'nick "ada\\"'
    arguments = '{"text": "' + "x" * 90 + ' <QUOTED_1>", "more": ["<QUOTED_1>", 1]}'
    parts = [arguments[at : at + 7] for at in range(0, len(arguments), 7)]

    def call(text: str, **more: Any) -> bytes:
        return delta(tool_calls=[{"index": 0, "function": {"arguments": text, **more}}])

    llm.replies.append(
        Reply.events(call("", name="send"), *map(call, parts), delta(finish="tool_calls"), b"data: [DONE]\n\n")
    )
    driven = await drive(gateway, ask(f"it is {value}.", stream=True))
    assert sent(llm) == "it is <QUOTED_1>."
    events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
    found = [c["function"]["arguments"] for e in events for c in e["choices"][0]["delta"].get("tool_calls") or ()]
    assert orjson.loads("".join(found)) == {"text": "x" * 90 + " " + value, "more": [value, 1]}
    # The client sends it back: what is masked in its arguments leaves JSON.
    history = [{"role": "assistant", "content": None, "tool_calls": [
        {"id": "c", "type": "function", "function": {"name": "send", "arguments": orjson.dumps({"a": value}).decode()}},
    ]}]  # fmt: skip
    llm.replies.append(answer(content="ok"))
    await drive(gateway, {**CHAT, "messages": history})
    again = llm.requests[-1].json["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert orjson.loads(again)["a"]


async def test_a_request_may_ask_for_more_and_not_for_less(app: App, llm: FakeLLM) -> None:
    gateway = await app()
    llm.replies += [answer(content="ok")] * 3
    await drive(gateway, ask(f"{MAIL} at 10.1.2.3", guardrail_config={"entities": ["IP_ADDRESS"]}))
    assert sent(llm) == "<EMAIL_ADDRESS> at <IP_ADDRESS>"
    assert "guardrail_config" not in llm.requests[0].json
    wrong = await drive(gateway, ask("x", guardrail_config={"language": 1}))
    assert (wrong.status, wrong.json["error"]["param"]) == (400, "guardrail_config.language")
    replaces = await app(request_config="replace")
    await drive(replaces, ask(f"{MAIL} at 10.1.2.3", guardrail_config={"entities": ["IP_ADDRESS"]}))
    assert sent(llm) == f"{MAIL} at <IP_ADDRESS>"


async def test_thresholds_deny_and_allow_lists(app: App, llm: FakeLLM) -> None:
    llm.replies += [answer(content="ok")] * 3
    text = f"{MAIL}, bob@example.net, 212-555-5555"  # with blanks alone, an anonymizer makes neighbours one
    await drive(await app(presidio_score_thresholds={"ALL": 1, "PHONE_NUMBER": 0.3}), ask(text))
    assert sent(llm) == "<EMAIL_ADDRESS>, <EMAIL_ADDRESS>, <PHONE_NUMBER>"
    await drive(await app(presidio_entities_deny_list=["EMAIL_ADDRESS"]), ask(text))
    assert sent(llm) == f"{MAIL}, bob@example.net, <PHONE_NUMBER>"
    await drive(await app(allow_list=[MAIL]), ask(text))
    assert sent(llm) == f"{MAIL}, <EMAIL_ADDRESS>, <PHONE_NUMBER>"


async def test_large_texts_are_analyzed_in_pieces(app: App, llm: FakeLLM) -> None:
    gateway = await app(presidio_analyze_chunk_size_bytes=1000)
    llm.replies.append(answer(content="ok"))
    text = "".join(f"word{at} 日本 user{at}@example.com " for at in range(80))
    await drive(gateway, ask(text))
    assert sent(llm) == "".join(f"word{at} 日本 <EMAIL_ADDRESS> " for at in range(80))


async def test_scopes(app: App, llm: FakeLLM) -> None:
    llm.replies += [answer(content=MAIL)] * 2
    driven = await drive(await app(presidio_filter_scope="input"), ask(MAIL))
    assert (sent(llm), driven.json["choices"][0]["message"]["content"]) == ("<EMAIL_ADDRESS>", MAIL)
    driven = await drive(await app(presidio_run_on="output"), ask(MAIL))
    assert (sent(llm), driven.json["choices"][0]["message"]["content"]) == (MAIL, "<EMAIL_ADDRESS>")


async def test_logging_only_changes_nothing(app: App, llm: FakeLLM) -> None:
    gateway = await app(logging_only=True)
    llm.replies.append(answer(content=MAIL))
    driven = await drive(gateway, ask(f"{MAIL} {CARD}"))
    assert sent(llm) == f"{MAIL} {CARD}"
    assert driven.json["choices"][0]["message"]["content"] == MAIL
    assert {run.status for run in gateway.ends[-1].note(Runs).values()} == {"guardrail_intervened"}


@pytest.mark.parametrize("release", ["window", "sentence", "whole"])
async def test_what_came_back_is_not_masked_again(app: App, llm: FakeLLM, release: str) -> None:
    gateway = await app(output_parse_pii=True, release=release)
    parts = ["I wrote to <EMAIL_", "ADDRESS_1>. ", "Then to new@exam", "ple.org. ", *["And on it goes. "] * 60]
    llm.replies.append(Reply.events(*stream_of(*parts)))
    driven = await drive(gateway, ask(f"write to {MAIL}", stream=True))
    assert text_of(driven.body) == f"I wrote to {MAIL}. Then to <EMAIL_ADDRESS>. " + "And on it goes. " * 60


@pytest.mark.parametrize("mode", ["pre_call", ["pre_call", "post_call"]])
async def test_messages(app: App, llm: FakeLLM, mode: Any) -> None:
    gateway = await app(output_parse_pii=True, mode=mode)
    body = {"model": "gpt-4o", "max_tokens": 9, "messages": [{"role": "user", "content": MAIL}]}
    llm.replies.append(answer(content="to <EMAIL_ADDRESS_1> only"))
    driven = await drive(gateway, body, path="/v1/messages")
    assert MAIL.encode() not in llm.requests[0].body
    assert driven.json["content"][0]["text"] == f"to {MAIL} only"
    llm.replies.append(Reply.events(*stream_of("to <EMAIL_", "ADDRESS_1> o", "nly")))
    driven = await drive(gateway, {**body, "stream": True}, path="/v1/messages")
    deltas = [event["delta"] for event in events_of(driven.body) if event["type"] == "content_block_delta"]
    assert "".join(one["text"] for one in deltas) == f"to {MAIL} only"


def responses_of(text: str, *parts: str) -> tuple[dict[str, Any], list[bytes]]:
    """An answer of the Responses API, plain and as a stream whose last events repeat the text."""
    content = {"type": "output_text", "annotations": [], "text": text}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [content]}
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m",
             "output": [item], "usage": None}  # fmt: skip
    place = {"item_id": "m1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        *({"type": "response.output_text.delta", **place, "delta": part} for part in parts),
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.content_part.done", **place, "part": content},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return whole, [b"event: %b\ndata: %b\n\n" % (str(e["type"]).encode(), orjson.dumps(e)) for e in events]


@pytest.mark.parametrize("mode", ["pre_call", ["pre_call", "post_call"]])
async def test_responses(app: App, llm: FakeLLM, mode: Any) -> None:
    gateway = await app(output_parse_pii=True, mode=mode)
    body = {"model": "gpt-4o", "input": MAIL}
    whole, events = responses_of("to <EMAIL_ADDRESS_1> only", "to <EMA", "IL_ADDRESS_1> only")
    llm.replies += [Reply.json(whole), Reply.events(*events)]
    driven = await drive(gateway, body, path="/v1/responses")
    assert llm.requests[0].json["input"] == "<EMAIL_ADDRESS_1>"
    assert driven.json["output"][0]["content"][0]["text"] == f"to {MAIL} only"
    driven = await drive(gateway, {**body, "stream": True}, path="/v1/responses")
    deltas = [event["delta"] for event in events_of(driven.body) if event["type"].endswith("text.delta")]
    assert "".join(deltas) == f"to {MAIL} only"


@pytest.mark.parametrize(
    ("text", "parts"), [("<EMAIL_ADDRESS_1>", ("<EMAIL_", "ADDRESS_1>")), ("b@c.org", ("b@c", ".org"))]
)
async def test_events_of_responses_that_repeat_text(
    llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: Any, text: str, parts: Any
) -> None:
    monkeypatch.setattr(presidio_local, "build", lambda models: blank)
    gateway = await served(serve, llm, output_parse_pii=True)
    llm.replies.append(Reply.events(*responses_of(text, *parts)[1]))
    driven = await drive(gateway, {"model": "gpt-4o", "input": MAIL, "stream": True}, path="/v1/responses")
    assert driven.status == 200
    assert text.encode() not in driven.body


async def test_arguments_that_hold_numbers_stay_json(app: App, llm: FakeLLM) -> None:
    gateway = await app(pii_entities_config={"CREDIT_CARD": "MASK"}, mode="pre_call")
    function = {"name": "pay", "arguments": '{"card": 4111111111111111, "text": "4111111111111111\\n"}'}
    history = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    ]
    llm.replies.append(answer(content="ok"))
    await drive(gateway, {**CHAT, "messages": history})
    arguments = llm.requests[0].json["messages"][0]["tool_calls"][0]["function"]["arguments"]
    assert orjson.loads(arguments) == {"card": "<CREDIT_CARD>", "text": "<CREDIT_CARD>\n"}


# --- with a model


async def test_names_and_places_with_the_installed_model(llm: FakeLLM, serve: Serve) -> None:
    gateway = await served(
        serve, llm, output_parse_pii=True, pii_entities_config={"PERSON": "MASK", "LOCATION": "MASK"}
    )
    llm.replies.append(answer(content="Dear <PERSON_1> of <LOCATION_1>, Barack Obama is in Berlin."))
    llm.replies.append(Reply.events(*stream_of("Dear <PER", "SON_1> of <LOCATION_1>, ", "Barack Obama is in Berlin.")))
    for stream in (False, True):
        driven = await drive(gateway, ask("My name is Grace Hopper and I live in Paris.", stream=stream))
        assert sent(llm) == "My name is <PERSON_1> and I live in <LOCATION_1>."
        text = text_of(driven.body) if stream else driven.json["choices"][0]["message"]["content"]
        assert text == "Dear Grace Hopper of Paris, <PERSON> is in <LOCATION>."


@pytest.mark.parametrize("anonymizer", [False, True])
async def test_names_come_back_through_the_services(real: Any, llm: FakeLLM, serve: Serve, anonymizer: bool) -> None:
    """The real engine with its model, behind REST: mask in, restore out, also where the stream cuts the token."""
    async with FakeLLM(PresidioServer(real)) as service:
        env = {"PRESIDIO_ANALYZER_API_BASE": service.url, "PRESIDIO_ANONYMIZER_API_BASE": service.url * anonymizer}
        entities = {"PERSON": "MASK", "LOCATION": "MASK", "CREDIT_CARD": "BLOCK"}
        gateway = await served(serve, llm, env, output_parse_pii=True, pii_entities_config=entities)
        told, back = "🎉 Dear <PERSON_1> of <LOCATION_1>, Barack Obama is in Berlin.", "🎉 Dear Grace Hopper of Paris, "
        llm.replies += [answer(content=told), Reply.events(*stream_of(*told))]  # one character in each event
        for stream in (False, True):
            driven = await drive(gateway, ask("🎉 My name is Grace Hopper and I live in Paris.", stream=stream))
            assert sent(llm) == "🎉 My name is <PERSON_1> and I live in <LOCATION_1>."
            text = text_of(driven.body) if stream else driven.json["choices"][0]["message"]["content"]
            assert text == f"{back}<PERSON> is in <LOCATION>."
        refused = await drive(gateway, ask(f"Grace Hopper, card {CARD}"))
        assert (refused.status, len(llm.requests)) == (400, 2)
        assert b"Grace" not in refused.body


async def test_choices_of_a_stream_are_not_found_in_each_other(
    real: Any, llm: FakeLLM, serve: Serve, monkeypatch: Any
) -> None:
    monkeypatch.setattr(presidio_local, "build", lambda models: real)
    gateway = await served(serve, llm, pii_entities_config={"PERSON": "MASK"})

    def event(index: int, text: str) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**ANSWER, "choices": [choice]})

    parts = [event(0, "it was Grace "), event(1, "it was Tom "), event(0, "Hopper."), event(1, "Hanks.")]
    llm.replies.append(Reply.events(*parts, *stream_of()[-2:]))
    driven = await drive(gateway, ask("hi", stream=True, n=2))
    texts = {0: "", 1: ""}
    for line in driven.body.split(b"\n"):
        if line.startswith(b"data: {"):
            choice = orjson.loads(line[6:])["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "it was <PERSON>.", 1: "it was <PERSON>."}


async def test_the_loop_goes_on_while_the_engine_works(real: Any) -> None:
    check = Presidio(engine=real, threads=1)
    await check.start(Runtime())
    from tests.integration.test_guardrail_services import a_call, judged

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.ensure_future(tick())
    began = time.monotonic()
    await judged(check, "Grace Hopper lives in Paris. " * 300, call=a_call(request={}))
    assert ticks > (time.monotonic() - began) * 5
    ticking.cancel()
    await check.aclose()


# --- REST alone: requests, failures


async def test_the_requests_as_the_contract_has_them(
    presidio: FakeLLM, llm: FakeLLM, serve: Serve, tmp_path: Path
) -> None:
    own = [{"name": "zip", "supported_language": "en", "supported_entity": "ZIP",
            "patterns": [{"name": "z", "regex": "Z[0-9]+", "score": 0.9}], "context": ["zip"]}]  # fmt: skip
    file = tmp_path / "own.json"
    file.write_bytes(orjson.dumps(own))
    gateway = await served(
        serve, llm, mode="pre_call", presidio_analyzer_api_base=presidio.url, presidio_anonymizer_api_base=presidio.url,
        pii_entities_config={"EMAIL_ADDRESS": "MASK", "ZIP": "MASK"}, presidio_ad_hoc_recognizers=str(file),
        allow_list=["a"], api_key="sk-presidio",
    )  # fmt: skip
    llm.replies.append(answer(content="ok"))
    body = ask(f"{MAIL} Z12")
    body["messages"] += [
        {"role": "user", "content": " "},
        {"role": "user", "content": [{"type": "text", "text": "🎉"}]},
    ]
    await drive(gateway, body)
    assert sent(llm) == "<EMAIL_ADDRESS> <ZIP>"
    asked = [(r.path, r.json) for r in presidio.requests]
    assert {r.headers["authorization"] for r in presidio.requests} == {"Bearer sk-presidio"}
    assert sorted(r["text"] for path, r in asked if path == "/analyze") == [f"{MAIL} Z12", "🎉"]
    first = next(r for path, r in asked if path == "/analyze" and r["text"] != "🎉")
    assert first.pop("correlation_id") == gateway.ends[-1].id
    assert first == {
        "text": f"{MAIL} Z12", "language": "en", "entities": ["EMAIL_ADDRESS", "ZIP"], "ad_hoc_recognizers": own,
        "allow_list": ["a"],
    }  # fmt: skip
    ((_, change),) = [one for one in asked if one[0] == "/anonymize"]
    assert change["text"] == f"{MAIL} Z12"
    assert [tuple(sorted(one)) for one in change["analyzer_results"]] == [("end", "entity_type", "score", "start")] * 2


async def test_the_requests_to_the_byte_against_a_script(llm: FakeLLM, serve: Serve) -> None:
    text = "né: Grace Hopper"
    found = {"entity_type": "PERSON", "start": 4, "end": 16, "score": 0.85}
    items = [{"operator": "replace", "entity_type": "PERSON", "start": 4, "end": 12, "text": "<PERSON>"}]
    script = {
        "/analyze": Reply.json([{**found, "analysis_explanation": None}]),
        "/anonymize": Reply.json({"text": "né: <PERSON>", "items": items}),
    }
    async with FakeLLM(lambda request: script[request.path]) as service:
        env = {"PRESIDIO_ANALYZER_API_BASE": f"{service.url}/", "PRESIDIO_ANONYMIZER_API_BASE": service.url}
        gateway = await served(serve, llm, env, mode="pre_call", pii_entities_config=None, presidio_language="fr")
        llm.replies.append(answer(content="ok"))
        await drive(gateway, ask(text))
        assert sent(llm) == "né: <PERSON>"
        assert [(r.method, r.path, r.json) for r in service.requests] == [
            ("POST", "/analyze", {"text": text, "language": "fr", "correlation_id": gateway.ends[-1].id}),
            ("POST", "/anonymize", {"text": text, "analyzer_results": [found]}),
        ]
        assert all("authorization" not in r.headers for r in service.requests)


BAD = [
    Reply(parts=[b"<html>"]), Reply(headers={"content-type": "application/json"}, parts=[b"<html>"]),
    Reply.json({"error": "no"}), Reply.json({"error": "no"}, status=500), Reply.json([], status=422), Reply.json("x"),
    Reply.json([1]), Reply.json([{"entity_type": "EMAIL_ADDRESS", "start": 0, "end": 999, "score": 1}]),
    Reply.json([{"entity_type": "EMAIL_ADDRESS", "start": 3, "end": 2, "score": 1}]),
    Reply(headers={"content-type": "text/plain"}, parts=[b"[]"]), Reply(status=204), Reply(garbage=b"garbage\r\n\r\n"),
    Reply(refuse=True), Reply(delay_s=5), Reply(status=503),
    Reply(headers={"content-type": "application/json"}, parts=[b"[" + b" " * 99], cut_after=9, reset=True),
]  # fmt: skip
GONE = (Reply(refuse=True), Reply(delay_s=5), Reply(status=503), BAD[-1])


@pytest.mark.parametrize("reply", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("side", ["input", "output"])
async def test_an_analyzer_that_fails_lets_nothing_pass(
    blank: Any, llm: FakeLLM, serve: Serve, caplog: pytest.LogCaptureFixture, reply: Reply, side: str
) -> None:
    with caplog.at_level(logging.DEBUG, logger="tianji_mw"):
        async with FakeLLM(lambda request: reply) as service:
            gateway = await served(
                serve, llm, {"PRESIDIO_ANALYZER_API_BASE": service.url}, presidio_filter_scope=side, timeout=0.4
            )
            llm.replies += [answer(content=f"secret {MAIL}"), Reply.events(*stream_of("secret ", MAIL))]
            for stream in (False, True):
                driven = await drive(gateway, ask(f"secret {MAIL}", stream=stream))
                assert (driven.status, driven.json["error"]["code"]) == (503, "guardrail_unavailable")
                assert b"secret" not in driven.body
            assert len(llm.requests) == (0 if side == "input" else 2)
    assert MAIL not in caplog.text


@pytest.mark.parametrize("reply", [*GONE, BAD[2]], ids=range(5))
async def test_only_who_is_gone_lets_pass_when_the_config_says_so(llm: FakeLLM, serve: Serve, reply: Reply) -> None:
    async with FakeLLM(lambda request: reply) as service:
        gateway = await served(
            serve, llm, {"PRESIDIO_ANALYZER_API_BASE": service.url}, unreachable_fallback="fail_open", timeout=0.4
        )
        llm.replies.append(answer(content=MAIL))
        driven = await drive(gateway, ask(MAIL))
        assert driven.status == (503 if reply is BAD[2] else 200)
        runs = {run.side: run for run in gateway.ends[-1].note(Runs).values()}
        assert runs["input"].status == "guardrail_failed_to_respond"
        if reply is not BAD[2]:
            assert sent(llm) == MAIL
            for run in runs.values():
                assert (run.failed, run.scanned, run.unscanned) == (run.asked, 0, "it failed, and may")


async def test_a_busy_analyzer_says_when_to_come_back(llm: FakeLLM, serve: Serve) -> None:
    async with FakeLLM(lambda request: Reply(status=429, headers={"retry-after": "7"})) as service:
        gateway = await served(serve, llm, {"PRESIDIO_ANALYZER_API_BASE": service.url})
        driven = await drive(gateway, ask(MAIL))
        assert (driven.status, driven.headers["retry-after"]) == (503, "7")


@pytest.mark.parametrize(
    "reply",
    [
        Reply.json({"text": MAIL, "items": []}), Reply.json({"text": "x"}), Reply.json([]), Reply(status=500),
        Reply.json({"text": f"{MAIL}", "items": [{"start": 0, "end": 2, "entity_type": "X"}]}),
        Reply.json({"text": "<X> else", "items": [{"start": 0, "end": 3, "entity_type": "X"}]}),
        Reply.json({"text": "<X>", "items": [{"start": 0, "end": 9, "entity_type": "X"}]}), Reply(refuse=True),
    ],
    ids=range(8),
)  # fmt: skip
async def test_an_anonymizer_that_fails_lets_nothing_pass(
    presidio: FakeLLM, llm: FakeLLM, serve: Serve, reply: Reply
) -> None:
    async with FakeLLM(lambda request: reply) as service:
        env = {"PRESIDIO_ANALYZER_API_BASE": presidio.url, "PRESIDIO_ANONYMIZER_API_BASE": service.url}
        gateway = await served(serve, llm, env)
        driven = await drive(gateway, ask(f"to {MAIL}"))
        assert (driven.status, llm.requests) == (503, [])


async def test_at_most_eight_questions_at_once(llm: FakeLLM, serve: Serve) -> None:
    def slow(request: Received) -> Reply:
        return Reply.json([], delay_s=0.1)

    async with FakeLLM(slow) as service:
        gateway = await served(serve, llm, {"PRESIDIO_ANALYZER_API_BASE": service.url}, mode="pre_call")
        llm.replies.append(answer(content="ok"))
        body = {**CHAT, "messages": [{"role": "user", "content": f"text {at}"} for at in range(20)]}
        driving = asyncio.ensure_future(drive(gateway, body))
        most = 0
        while not driving.done():
            most = max(most, service.open_connections)
            await asyncio.sleep(0.01)
        assert (len(service.requests), most) == (20, 8)


async def test_the_mock_asks_nobody(llm: FakeLLM, serve: Serve) -> None:
    gateway = await served(serve, llm, mock_redacted_text={"text": "gone <X>", "items": []}, mode="pre_call")
    llm.replies.append(answer(content="ok"))
    await drive(gateway, ask("anything"))
    assert sent(llm) == "gone <X>"


# --- the start


async def failed_start(check: Presidio) -> str:
    with pytest.raises(SetupError) as caught:
        await check.start(Runtime())
    await check.aclose()
    return caught.value.message


def with_pattern(pattern: Any) -> bytes:
    return orjson.dumps([{"name": "x", "supported_entity": "X", "patterns": [pattern]}])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read"), (b"{", "no JSON"), (b"{}", "must hold a list"),
        (b'[{"name": "x"}]', "must hold a list"), (b'[{"name": "x", "supported_entity": "X"}]', "must hold a list"),
        (with_pattern({"name": "p", "regex": "(", "score": 1}), "not valid"), (with_pattern(1), "not valid"),
    ],
)  # fmt: skip
async def test_recognizers_that_cannot_be_read_stop_the_start(
    tmp_path: Path, blank: Any, content: bytes | None, told: str
) -> None:
    file = tmp_path / "own.json"
    if content is not None:
        file.write_bytes(content)
    assert told in await failed_start(Presidio(engine=blank, ad_hoc_recognizers=str(file)))


async def test_what_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch, blank: Any) -> None:
    assert "'PERSON'" in await failed_start(Presidio(engine=blank, entities={"PERSON": "mask"}))
    assert "'no_model' is not installed" in await failed_start(Presidio(nlp_model="no_model"))
    assert "the language is 'de'" in await failed_start(Presidio(language="de", engine=blank))
    assert "the language is 'fr'" in await failed_start(Presidio(language="fr", nlp_model={"en": "none"}))
    assert "no spaCy model for the language 'de'" in await failed_start(Presidio(language="de"))
    assert "no language 'zz'" in await failed_start(Presidio(language="zz", nlp_model="none"))
    assert "analyzer_api_base is no address" in await failed_start(Presidio(analyzer_api_base="ftp://x"))
    assert "anonymizer_api_base is no address" in await failed_start(
        Presidio(engine=blank, anonymizer_api_base="http://x:999999")
    )
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[presidio\]"):
        await Presidio().start(Runtime())


async def test_a_language_that_was_not_loaded_is_the_clients_fault(
    llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presidio_local, "build", lambda models: blank)
    driven = await drive(await served(serve, llm), ask("x", guardrail_config={"language": "de"}))
    assert (driven.status, driven.json["error"]["param"]) == (400, "guardrail_config.language")


async def test_an_engine_that_hangs_ends_in_time(llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: Any) -> None:
    class Slow:
        supported_languages = ("en",)
        get_supported_entities = blank.get_supported_entities

        def analyze(self, **options: Any) -> Any:
            time.sleep(1)
            raise ValueError(options["text"])

    monkeypatch.setattr(presidio_local, "build", lambda models: Slow())
    gateway = await served(serve, llm, timeout=0.2)
    began = time.monotonic()
    driven = await drive(gateway, ask(MAIL))
    assert driven.status == 503
    assert time.monotonic() - began < 0.9


async def test_an_engine_that_breaks_lets_nothing_pass(
    llm: FakeLLM, serve: Serve, blank: Any, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(**options: Any) -> Any:
        raise ValueError(options["text"])

    class Broken:
        supported_languages = ("en",)
        get_supported_entities = blank.get_supported_entities
        analyze = staticmethod(breaks)

    monkeypatch.setattr(presidio_local, "build", lambda models: Broken())
    driven = await drive(await served(serve, llm), ask(MAIL))
    assert (driven.status, llm.requests) == (503, [])
    assert MAIL not in caplog.text
