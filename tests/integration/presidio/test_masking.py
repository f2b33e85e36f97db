"""Presidio of a YAML file, through HTTP, over the real engine: what is masked, blocked and restored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.presidio.stack import (
    CARD,
    MAIL,
    App,
    answer,
    ask,
    events_of,
    responses_of,
    sent,
    served,
)
from tests.support.presidio_server import text_of
from tests.support.stack import CHAT, Serve, delta, stream_of
from tianji_mw.guardrails import presidio_local
from tianji_mw.runs import Runs
from tianji_mw.testing import Driven, FakeLLM, Reply, drive

pytestmark = pytest.mark.slow


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
