"""Presidio behind REST, through HTTP: the requests of the contract, and what happens when a service fails."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.presidio.stack import (
    MAIL,
    answer,
    ask,
    sent,
    served,
)
from tests.support.stack import CHAT, Serve, stream_of
from tianji_mw.runs import Runs
from tianji_mw.testing import FakeLLM, Received, Reply, drive

pytestmark = pytest.mark.slow


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
