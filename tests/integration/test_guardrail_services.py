"""Guardrails that ask services, against scripted HTTP servers: exact requests, decisions, and every way to fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from tests.support.apps import SSEApp, json_app
from tests.support.calls import a_call
from tests.support.stack import ANSWER, CHAT, STREAM, Serve, stream_of
from tianji_mw.call import Call
from tianji_mw.errors import PluginNotFound, SetupError
from tianji_mw.guardrails.azure_prompt_shield import AzurePromptShield
from tianji_mw.guardrails.azure_text_moderation import AzureTextModeration, pieces
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Said, Span, Verdict
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.generic import GenericGuardrail
from tianji_mw.guardrails.lakera import Lakera
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.moderation import OpenAIModeration
from tianji_mw.guardrails.rewrite import replaced
from tianji_mw.guardrails.service import HttpGuardrail, at_once
from tianji_mw.identity.base import Identity
from tianji_mw.plugins import find
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.secrets.live import SecretUnavailable
from tianji_mw.testing import FakeLLM, Received, Reply, drive

KEY = "sk-very-secret-key"
TEXT = "a text that no error may quote"

Start = Callable[[Guardrail], Any]


@pytest.fixture
async def service() -> AsyncIterator[FakeLLM]:
    async with FakeLLM() as fake:
        yield fake


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts a guardrail for the rest of the test."""
    async with AsyncExitStack() as stack:

        async def started(check: Any) -> Any:
            await check.start(Runtime())
            stack.push_async_callback(check.aclose)
            return check

        yield started


async def judged(check: Guardrail, *said: str | Said, side: Any = "input", call: Call | None = None) -> list[Verdict]:
    texts = [one if isinstance(one, Said) else Said(one) for one in said]
    return list(await check.judge(texts, side, call or a_call()))


async def failure(check: Guardrail, *said: str | Said, side: Any = "input") -> GuardrailFailed:
    with pytest.raises(GuardrailFailed) as caught:
        await judged(check, *(said or (TEXT,)), side=side)
    shown = f"{caught.value!r} {caught.value.__cause__!r}"
    assert KEY not in shown
    assert TEXT not in shown
    return caught.value


# --- what all share


def moderation(service: FakeLLM, **fields: Any) -> OpenAIModeration:
    return OpenAIModeration(api_key=Secret(KEY), api_base=f"{service.url}/v1", **fields)


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_gateway_that_answers_is_a_service_that_is_not_there(
    service: FakeLLM, start: Start, status: int
) -> None:
    service.replies.append(Reply.json({"error": TEXT}, status=status))
    failed = await failure(await start(moderation(service)))
    assert failed.unreachable
    assert failed.message == f"OpenAI moderation answered with status {status}"


@pytest.mark.parametrize("status", [201, 302, 400, 401, 403, 404, 500])
async def test_other_statuses_are_failures(service: FakeLLM, start: Start, status: int) -> None:
    service.replies.append(Reply.json({"error": TEXT}, status=status))
    failed = await failure(await start(moderation(service)))
    assert (failed.unreachable, failed.retry_after_s) == (False, None)
    assert str(status) in failed.message


@pytest.mark.parametrize(("asked", "pause"), [("7", 7.0), ("999999", 3600.0), ("soon", None), ("9" * 400, None)])
async def test_a_busy_service_says_when_to_come_back(
    service: FakeLLM, start: Start, asked: str, pause: float | None
) -> None:
    service.replies.append(Reply(status=429, headers={"retry-after": asked}))
    failed = await failure(await start(moderation(service)))
    assert (failed.unreachable, failed.retry_after_s) == (False, pause)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"null", b'{"results":', b"[" * 5000])
async def test_an_answer_that_is_no_object_is_a_failure(service: FakeLLM, start: Start, body: bytes) -> None:
    service.replies.append(Reply(parts=[body]))
    assert "no JSON object" in (await failure(await start(moderation(service)))).message


@pytest.mark.parametrize(
    "reply", [Reply(refuse=True), Reply(parts=[b"{}" * 99], cut_after=3, reset=True), Reply(parts=[b"{}"], cut_after=1)]
)
async def test_a_connection_that_breaks_is_a_service_that_is_not_there(
    service: FakeLLM, start: Start, reply: Reply
) -> None:
    service.replies.append(reply)
    assert (await failure(await start(moderation(service)))).unreachable


async def test_nobody_at_the_address(start: Start) -> None:
    async with FakeLLM() as gone:
        check = moderation(gone)
    assert (await failure(await start(check))).unreachable


@pytest.mark.parametrize("slow", [{"delay_s": 5}, {"pause_s": 0.1, "parts": [b" "] * 50}])
async def test_silence_and_trickles_end_in_time(service: FakeLLM, start: Start, slow: dict[str, Any]) -> None:
    service.replies.append(Reply(**slow))
    check = await start(moderation(service, timeout_s=0.4))
    async with asyncio.timeout(3):
        failed = await failure(check)
    assert (failed.unreachable, failed.message) == (True, "OpenAI moderation did not answer in time")


async def test_an_answer_is_not_read_without_end(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply(parts=[b" " * (1 << 20)] * 20))
    assert not (await failure(await start(moderation(service)))).unreachable


@pytest.mark.parametrize("key", ["sk-\nx: y", "sk-\u20ac"])
async def test_a_key_that_is_no_header_value(service: FakeLLM, start: Start, key: str) -> None:
    check = await start(OpenAIModeration(api_key=Secret(key), api_base=service.url))
    assert not (await failure(check)).unreachable
    assert not service.requests


async def test_a_text_that_is_no_unicode(service: FakeLLM, start: Start) -> None:
    assert not (await failure(await start(moderation(service)), "\ud800")).unreachable


async def test_a_key_that_changed_is_read_again(service: FakeLLM, start: Start) -> None:
    class Changing(Secret):
        async def renew(self) -> bool:
            self._value = "new"
            return True

    service.replies += [Reply.json({}, status=401), Reply.json({"results": [{"flagged": False}]})]
    check = await start(OpenAIModeration(api_key=Changing(KEY), api_base=service.url))
    assert await judged(check, TEXT) == [ALLOW]
    assert [r.headers["authorization"] for r in service.requests] == [f"Bearer {KEY}", "Bearer new"]


@pytest.mark.parametrize(
    ("check", "told"),
    [
        (OpenAIModeration(), "api_key is missing; set it in the config, or the variable OPENAI_API_KEY"),
        (AzureTextModeration(api_key="k"), "api_base is missing; set it in the config, or the variable AZURE_"),
        (AzurePromptShield(api_base="https://x"), "Azure Prompt Shield: api_key is missing"),
        (OpenAIModeration(api_key="k", api_base="api.openai.com"), "api_base is no address"),
        (GenericGuardrail(), "api_base is missing; set it in the config, or the variable GENERIC_GUARDRAIL_API_BASE"),
        (OpenAIModeration(api_key="k", api_base="http://[::1"), "api_base is no address"),
        (OpenAIModeration(api_key="k", api_base="http://x:99999999"), "api_base is no address"),
    ],
)
async def test_what_is_missing_stops_the_start(check: HttpGuardrail, told: str) -> None:
    with pytest.raises(SetupError) as caught:
        await check.start(Runtime())
    assert told in caught.value.message


async def test_a_check_that_was_not_started_or_was_closed_fails(service: FakeLLM) -> None:
    check = moderation(service)
    await failure(check)
    await check.start(Runtime())
    await check.aclose()
    await check.aclose()
    await failure(check)


async def test_blank_texts_are_not_sent(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({"results": [{"flagged": True, "categories": {"hate": True}}]}))
    check = await start(moderation(service))
    assert await judged(check, "", " \n") == [ALLOW, ALLOW]
    assert [v.blocked for v in await judged(check, "", "x", " ")] == [False, True, False]
    assert service.requests[0].json["input"] == ["x"]


def test_the_same_setting_under_two_names() -> None:
    with pytest.raises(ValidationError, match="the same setting"):
        AzureTextModeration(api_key="k", api_base="https://x", endpoint="https://y")


@pytest.mark.parametrize("name", ["azure_prompt_shield", "azure_text_moderation", "generic", "lakera", "moderation"])
def test_each_file_is_one_plugin(name: str) -> None:
    assert issubclass(find("guardrails", name, Guardrail), HttpGuardrail)


def test_the_shared_base_is_no_plugin() -> None:
    with pytest.raises(PluginNotFound, match="defines none"):
        find("guardrails", "service", Guardrail)


async def test_a_key_that_is_not_there_yet(service: FakeLLM, start: Start) -> None:
    class Missing(Secret):
        def reveal(self) -> str:
            raise SecretUnavailable("not yet")

        async def renew(self) -> bool:
            raise SecretUnavailable("not yet")

    check = await start(OpenAIModeration(api_key=Missing("x"), api_base=service.url))
    assert not (await failure(check)).unreachable
    assert not service.requests


def test_pieces_are_cut_after_blanks_and_lose_nothing() -> None:
    assert pieces("ab cd  efghi", 4) == ["ab ", "cd  ", "efgh", "i"]
    assert pieces("", 4) == [""]
    assert pieces("abcd", 4) == ["abcd"]
    text = "w\U0001f600rd " * 5000
    found = pieces(text, 10_000)
    assert "".join(found) == text
    assert max(map(len, found)) <= 10_000


async def test_eight_questions_at_once_and_the_first_failure_ends_them() -> None:
    running = most = done = 0

    async def question(fails: bool = False) -> int:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        if fails:
            raise GuardrailFailed("x")
        done += 1
        return done

    assert await at_once([question] * 20) == list(range(1, 21))
    assert most == 8
    done = 0
    with pytest.raises(GuardrailFailed):
        await at_once([lambda: question(True), *[question] * 20])
    await asyncio.sleep(0.05)
    assert done <= 8


# --- OpenAI moderation


async def test_moderation_sends_all_texts_in_one_call_and_heeds_every_result(service: FakeLLM, start: Start) -> None:
    bad = {"flagged": True, "categories": {"hate": False, "violence": True}, "category_scores": {"violence": 0.97}}
    service.replies.append(Reply.json({"id": "modr-1", "results": [{"flagged": False, "categories": {}}, bad]}))
    verdicts = await judged(await start(moderation(service)), "hello", TEXT)
    (request,) = service.requests
    assert (request.method, request.path) == ("POST", "/v1/moderations")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.json == {"model": "omni-moderation-latest", "input": ["hello", TEXT]}
    assert verdicts[0] == ALLOW
    assert (verdicts[1].blocked, verdicts[1].category) == (True, "violence")
    assert verdicts[1].detail == {
        "error": "Violated OpenAI moderation policy",
        "moderation_result": {
            "violated_categories": ["violence"], "category_scores": {"violence": 0.97}, "thresholds": {},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thresholds", "result", "category"),
    [
        ({"hate": 0.5}, {"flagged": False, "categories": {"hate": False}, "category_scores": {"hate": 0.5}}, "hate"),
        ({"hate": 0.9}, {"flagged": True, "categories": {"hate": True}, "category_scores": {"hate": 0.8}}, ""),
        ({"hate": 0}, {"flagged": False, "categories": {}, "category_scores": {"hate": 0}}, "hate"),
        (
            {"hate": 0.9},
            {"flagged": True, "categories": {"hate": True, "sexual": True}, "category_scores": {"hate": 0.8}},
            "sexual",
        ),
        ({}, {"flagged": True, "categories": {"illicit": None}, "category_scores": {"illicit": None}}, "flagged"),
        ({}, {"flagged": False, "categories": {"hate": False}}, ""),
    ],
)
async def test_moderation_thresholds(
    service: FakeLLM, start: Start, thresholds: Any, result: Any, category: str
) -> None:
    service.replies.append(Reply.json({"results": [result]}))
    (verdict,) = await judged(await start(moderation(service, thresholds=thresholds)), TEXT)
    assert (verdict.blocked, verdict.category) == (bool(category), category)


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"results": []}, {"results": [{"flagged": False}] * 2}, {"results": ["x"]},
        {"results": [{"flagged": "no"}]},
        {"results": [{"flagged": False, "categories": []}]}, {"results": [{"flagged": False, "category_scores": 1}]},
        {"results": [{"flagged": False, "category_scores": {"hate": True}}]}, {"results": [{"flagged": False}]},
    ],
)  # fmt: skip
async def test_moderation_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(moderation(service, thresholds={"hate": 0.5})))


# --- Azure text moderation


def azure(kind: Any, service: FakeLLM, **fields: Any) -> Any:
    return kind(api_key=Secret(KEY), api_base=f"{service.url}/", **fields)


def severities(**found: int) -> dict[str, Any]:
    every = {"Hate": 0, "SelfHarm": 0, "Sexual": 0, "Violence": 0, **found}
    return {"blocklistsMatch": [], "categoriesAnalysis": [{"category": k, "severity": v} for k, v in every.items()]}


async def test_text_moderation_asks_as_the_contract_says(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json(severities(Hate=4, Sexual=2)))
    check = azure(AzureTextModeration, service, blocklistNames=["b1"], severity_threshold_by_category={"Sexual": 4})
    (verdict,) = await judged(await start(check), TEXT)
    (request,) = service.requests
    assert request.path == "/contentsafety/text:analyze?api-version=2024-09-01"
    assert request.headers["ocp-apim-subscription-key"] == KEY
    assert request.json == {
        "text": TEXT, "categories": ["Hate", "SelfHarm", "Sexual", "Violence"], "blocklistNames": ["b1"],
        "haltOnBlocklistHit": False, "outputType": "FourSeverityLevels",
    }  # fmt: skip
    assert (verdict.blocked, verdict.category) == (True, "Hate")
    assert verdict.detail["severities"] == {"Hate": 4}
    assert verdict.detail["thresholds"] == {"Hate": 2}


@pytest.mark.parametrize(
    ("fields", "found", "blocked"),
    [
        ({}, {}, False),
        ({}, {"Hate": 2}, True),
        ({"severity_threshold": 4}, {"Hate": 2}, False),
        ({"threshold": 4}, {"Hate": 4}, True),
        ({"severity_threshold": 0}, {}, True),
        ({"severity_threshold": 6, "severity_threshold_by_category": {"Hate": 2}}, {"Hate": 2}, True),
        ({"severity_threshold": 2, "severity_threshold_by_category": {"Hate": 6}}, {"Hate": 4}, False),
        ({"severity_threshold_by_category": {"Hate": 6}}, {"Violence": 2}, True),
        ({"outputType": "EightSeverityLevels", "severity_threshold": 7}, {"Violence": 7}, True),
    ],
)
async def test_text_moderation_thresholds(
    service: FakeLLM, start: Start, fields: Any, found: Any, blocked: bool
) -> None:
    service.replies.append(Reply.json(severities(**found)))
    (verdict,) = await judged(await start(azure(AzureTextModeration, service, **fields)), TEXT)
    assert verdict.blocked is blocked


async def test_text_moderation_blocks_on_a_blocklist_and_does_not_tell_the_word(service: FakeLLM, start: Start) -> None:
    match = {"blocklistName": "b1", "blocklistItemId": "7", "blocklistItemText": "bluebird"}
    service.replies.append(Reply.json({"blocklistsMatch": [match, match], "categoriesAnalysis": []}))
    check = azure(AzureTextModeration, service, blocklistNames=["b1"], haltOnBlocklistHit=True)
    (verdict,) = await judged(await start(check), "the bluebird")
    assert (verdict.blocked, verdict.category, verdict.detail["blocklists"]) == (True, "blocklist", ["b1"])
    assert "bluebird" not in repr(verdict)


async def test_text_moderation_scans_long_texts_in_pieces(start: Start) -> None:
    def answer(request: Received) -> Reply:
        assert len(request.json["text"]) <= 10_000
        return Reply.json(severities(Violence=6 if "bad" in request.json["text"] else 0))

    async with FakeLLM(answer) as service:
        check = await start(azure(AzureTextModeration, service))
        long = "w\u00f6rd " * 2000
        assert await judged(check, long + "x" * 10_001, "short") == [ALLOW, ALLOW]
        assert len(service.requests) == 4
        assert "".join(r.json["text"] for r in service.requests).count("w\u00f6rd ") == 2000
        (good, bad) = await judged(check, "short", long + "bad")
        assert (good.blocked, bad.blocked, bad.detail["severities"]) == (False, True, {"Violence": 6})


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"categoriesAnalysis": []}, {"categoriesAnalysis": "x"}, {"categoriesAnalysis": [1]},
        {"categoriesAnalysis": [{"category": "Hate"}]}, {**severities(), "blocklistsMatch": {}},
        {"categoriesAnalysis": [{"category": "Hate", "severity": None}]}, {**severities(), "blocklistsMatch": [1]},
    ],
)  # fmt: skip
async def test_text_moderation_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(azure(AzureTextModeration, service)))


@pytest.mark.parametrize("fields", [{"categories": []}, {"severity_threshold": 8}, {"categories": ["Spam"]}])
def test_text_moderation_settings_that_cannot_be(fields: Any) -> None:
    with pytest.raises(ValidationError):
        AzureTextModeration(**fields)


# --- Azure Prompt Shield


def shield(prompt: bool, *documents: bool) -> Reply:
    found = {"documentsAnalysis": [{"attackDetected": one} for one in documents]}
    return Reply.json({"userPromptAnalysis": {"attackDetected": prompt}, **found})


async def test_prompt_shield_sends_user_texts_and_tool_results(service: FakeLLM, start: Start) -> None:
    service.replies.append(shield(False, False, True))
    said = [
        Said("be nice", "system"),
        Said(TEXT),
        Said("page 1", "tool"),
        Said("page 2", "tool"),
        Said("a", "assistant"),
    ]
    verdicts = await judged(await start(azure(AzurePromptShield, service)), *said)
    (request,) = service.requests
    assert request.path == "/contentsafety/text:shieldPrompt?api-version=2024-09-01"
    assert request.headers["ocp-apim-subscription-key"] == KEY
    assert request.json == {"userPrompt": TEXT, "documents": ["page 1", "page 2"]}
    assert [v.blocked for v in verdicts] == [False, False, False, True, False]
    assert verdicts[3].category == "indirect_attack"


async def test_prompt_shield_blocks_the_user_text(service: FakeLLM, start: Start) -> None:
    service.replies.append(shield(True))
    (verdict,) = await judged(await start(azure(AzurePromptShield, service)), TEXT)
    assert service.requests[0].json == {"userPrompt": TEXT, "documents": []}
    assert (verdict.blocked, verdict.category) == (True, "user_prompt_attack")
    assert TEXT not in repr(verdict)


async def test_prompt_shield_keeps_to_the_limits_of_documents(start: Start) -> None:
    def answer(request: Received) -> Reply:
        documents = request.json["documents"]
        assert len(documents) <= 5
        assert sum(map(len, documents)) <= 10_000
        assert len(request.json.get("userPrompt", "")) <= 10_000
        return shield("bad" in request.json.get("userPrompt", ""), *("bad" in one for one in documents))

    async with FakeLLM(answer) as service:
        check = await start(azure(AzurePromptShield, service))
        small = [Said("d", "tool")] * 12
        verdicts = await judged(check, *small, Said("word " * 4000 + "bad", "tool"), Said("word " * 2001 + "bad"))
        assert [v.blocked for v in verdicts] == [*[False] * 12, True, True]
        assert sum(len(r.json["documents"]) for r in service.requests) == 15
        assert sum("userPrompt" in r.json for r in service.requests) == 2


async def test_prompt_shield_has_nothing_to_ask(service: FakeLLM, start: Start) -> None:
    check = await start(azure(AzurePromptShield, service))
    assert await judged(check, Said("be nice", "system")) == [ALLOW]
    assert not service.requests
    assert check.runs_on("input")
    assert not check.model_copy(update={"mode": ("post_call",)}).runs_on("output")


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"userPromptAnalysis": None}, {"userPromptAnalysis": {"attackDetected": "false"}},
        {"userPromptAnalysis": {"attackDetected": False}, "documentsAnalysis": []},
        {"userPromptAnalysis": {"attackDetected": False}, "documentsAnalysis": [{}]},
    ],
)  # fmt: skip
async def test_prompt_shield_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(azure(AzurePromptShield, service)), TEXT, Said("page", "tool"))


# --- Lakera

CARD = "my card is 4111111111111111 ok"


def lakera(service: FakeLLM, **fields: Any) -> Lakera:
    return Lakera(api_key=Secret(KEY), api_base=service.url, **fields)


def detected(kind: str, at: int | None = 0, found: bool = True) -> dict[str, Any]:
    return {"project_id": "p", "policy_id": "pol", "detector_type": kind, "detected": found, "message_id": at}


def place(start: Any, end: Any, at: Any = 0, kind: str = "pii/credit_card") -> dict[str, Any]:
    return {"start": start, "end": end, "text": "4111111111111111", "detector_type": kind, "message_id": at}


def flagged(breakdown: Any = None, payload: Any = None) -> Reply:
    answer = {"flagged": True, "payload": payload, "breakdown": breakdown, "metadata": {"request_uuid": "8b2b"}}
    return Reply.json(answer)


async def test_lakera_asks_as_the_contract_says(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({"flagged": False, "breakdown": [detected("prompt_attack", found=False)]}))
    check = await start(lakera(service, project_id="project-1", metadata={"session_id": "s"}))
    said = [Said("be nice", "developer"), Said(CARD), Said("page", "function"), Said("x", "critic")]
    assert await judged(check, *said) == [ALLOW] * 4
    (request,) = service.requests
    assert request.path == "/v2/guard"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.json == {
        "messages": [
            {"role": "system", "content": "be nice"}, {"role": "user", "content": CARD},
            {"role": "tool", "content": "page"}, {"role": "user", "content": "x"},
        ],
        "project_id": "project-1", "payload": True, "breakdown": True, "dev_info": True,
        "metadata": {"session_id": "s"},
    }  # fmt: skip


async def test_lakera_sees_answers_as_the_assistants(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({"flagged": False}))
    await judged(await start(lakera(service)), "hi", side="output")
    sent = service.requests[0].json
    assert sent == {
        "messages": [{"role": "assistant", "content": "hi"}], "payload": True, "breakdown": True, "dev_info": True,
    }  # fmt: skip


async def test_lakera_blocks_and_does_not_tell_what_it_found(service: FakeLLM, start: Start) -> None:
    seen = [detected("pii/credit_card", 1), detected("prompt_attack", 0, found=False)]
    service.replies.append(flagged(seen, [place(11, 27, 1)]))
    verdicts = await judged(await start(lakera(service)), "hi", CARD)
    assert [v.blocked for v in verdicts] == [False, True]
    assert verdicts[1].category == "pii/credit_card"
    assert verdicts[1].detail["lakera_guardrail_response"] == {
        "flagged": True,
        "breakdown": [{"detector_type": "pii/credit_card", "detected": True, "message_id": 1}],
        "metadata": {"request_uuid": "8b2b"},
    }
    assert "4111" not in repr(verdicts)


@pytest.mark.parametrize("on_flagged", ["mask", "monitor"])
async def test_lakera_masks_personal_data(service: FakeLLM, start: Start, on_flagged: str) -> None:
    email = place(0, 2, 1, "pii/email")
    service.replies.append(flagged([detected("pii/credit_card"), detected("pii/email", 1)], [place(11, 27), email]))
    verdicts = await judged(await start(lakera(service, on_flagged=on_flagged)), CARD, "a@ and more", "c")
    assert replaced(CARD, verdicts[0].spans) == "my card is [MASKED CREDIT_CARD] ok"
    assert verdicts[1].spans == (Span(0, 2, "EMAIL", "[MASKED EMAIL]"),)
    assert verdicts[2] == ALLOW
    assert not any(v.blocked for v in verdicts)


@pytest.mark.parametrize(
    ("breakdown", "payload"),
    [
        ([detected("pii/email"), detected("prompt_attack")], [place(11, 27)]),
        ([detected("pii/email")], None),
        ([detected("pii/email")], []),
        ([detected("pii/email")], [place(11, 99)]),
        ([detected("pii/email")], [place(-1, 5)]),
        ([detected("pii/email")], [place(5, 5)]),
        ([detected("pii/email")], [place("0", 5)]),
        ([detected("pii/email")], [place(True, 5)]),
        ([detected("pii/email")], [place(0, 5, 7)]),
        ([detected("pii/email")], [place(0, 5, None)]),
        ([detected("pii/email")], ["x"]),
        ([detected("pii/email"), detected("pii/email", 1)], [place(11, 27)]),
        ([], [place(11, 27)]),
        (None, None),
    ],
)
async def test_lakera_blocks_what_it_cannot_mask(service: FakeLLM, start: Start, breakdown: Any, payload: Any) -> None:
    service.replies.append(flagged(breakdown, payload))
    verdicts = await judged(await start(lakera(service, on_flagged="mask")), CARD, "other")
    assert verdicts[0].blocked


async def test_lakera_monitor_lets_attacks_pass_and_keeps_the_reason(service: FakeLLM, start: Start) -> None:
    service.replies.append(flagged([detected("prompt_attack")]))
    (verdict,) = await judged(await start(lakera(service, on_flagged="monitor")), TEXT)
    assert (verdict.blocked, verdict.spans, verdict.category) == (False, (), "prompt_attack")


@pytest.mark.parametrize(
    "answer", [{}, {"flagged": None}, {"flagged": "true"}, {"flagged": True, "breakdown": {}},
               {"flagged": True, "breakdown": ["x"]}],
)  # fmt: skip
async def test_lakera_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(lakera(service)))


@pytest.mark.parametrize("missing", ["payload", "breakdown"])
def test_lakera_masks_only_what_it_is_told(missing: str) -> None:
    with pytest.raises(ValidationError, match="needs payload and breakdown"):
        Lakera(on_flagged="mask", **{missing: False})


# --- any service, in LiteLLM's words or in simple ones

PATH = "/beta/litellm_basic_guardrail_api"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def generic(service: FakeLLM, **fields: Any) -> GenericGuardrail:
    return GenericGuardrail(**{"api_key": Secret(KEY), "api_base": service.url, **fields})


async def test_generic_asks_as_the_contract_says(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({}))
    headers = [
        (b"user-agent", b"x"),
        (b"authorization", b"Bearer sk-client"),
        (b"x-tenant", b"t"),
        (b"x-litellm-a", b"1"),
    ]
    call = a_call(headers=[*headers, (b"x-secret", b"s")], request={"model": "gpt-4o", "messages": [], "tools": TOOLS})
    call.identity = Identity(key_hash="abc", alias="key", team="t1", user="u1")
    params = {"threshold": 0.7}
    check = await start(
        generic(
            service, headers={"X-Own": "1", "X-Token": Secret("t")}, extra_headers=["X-Tenant"],
            additional_provider_specific_params=params,
        )
    )  # fmt: skip
    assert await judged(check, Said("be nice", "system"), "hello", call=call) == [ALLOW, ALLOW]
    (request,) = service.requests
    assert request.path == PATH
    shown = {name: request.headers[name] for name in ("x-api-key", "x-own", "x-token", "content-type")}
    assert shown == {"x-api-key": KEY, "x-own": "1", "x-token": "t", "content-type": "application/json"}
    assert request.json == {
        "input_type": "request", "litellm_call_id": call.id, "litellm_trace_id": None, "litellm_version": None,
        "model": "gpt-4o", "texts": ["be nice", "hello"], "images": None, "tools": TOOLS, "tool_calls": None,
        "structured_messages": [{"role": "system", "content": "be nice"}, {"role": "user", "content": "hello"}],
        "request_data": {
            "user_api_key_hash": "abc", "user_api_key_alias": "key", "user_api_key_user_id": "u1",
            "user_api_key_user_email": None, "user_api_key_team_id": "t1", "user_api_key_team_alias": None,
            "user_api_key_end_user_id": None, "user_api_key_org_id": None,
        },
        "request_headers": {
            "user-agent": "x", "authorization": "[present]", "x-tenant": "t", "x-litellm-a": "1",
            "x-secret": "[present]",
        },
        "additional_provider_specific_params": params,
    }  # fmt: skip


async def test_generic_asks_about_answers(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({"action": "GUARDRAIL_INTERVENED", "texts": ["he***"]}))
    check = await start(generic(service, api_key=None, api_base=f"{service.url}{PATH}"))
    (verdict,) = await judged(check, Said("hello", "assistant"), side="output")
    (request,) = service.requests
    assert request.path == PATH
    assert "x-api-key" not in request.headers
    sent = {key: request.json[key] for key in ("input_type", "texts", "structured_messages", "tools", "model")}
    assert sent == {
        "input_type": "response", "texts": ["hello"], "structured_messages": None, "tools": None, "model": None,
    }  # fmt: skip
    assert replaced("hello", verdict.spans) == "he***"


ROWS = [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}]
CHANGED = [ROWS[0], {"role": "user", "content": "2"}]


@pytest.mark.parametrize(
    ("answer", "texts"),
    [
        ({"action": "NONE", "texts": []}, ["one", "two"]),
        ({"action": None, "texts": ["one", "two"]}, ["one", "two"]),
        ({"action": "NONE", "texts": ["1", "two"]}, ["1", "two"]),
        ({"action": "GUARDRAIL_INTERVENED", "texts": ["one", ""]}, ["one", ""]),
        ({"texts": ["1", "two"], "structured_messages": ROWS}, ["1", "two"]),
        ({"texts": ["1", "two"], "structured_messages": CHANGED}, ["one", "2"]),
        ({"texts": ["1", "two"], "structured_messages": [{"content": "2"}]}, ["1", "two"]),
        ({"tools": TOOLS, "images": []}, ["one", "two"]),
    ],
)
async def test_generic_rewrites_by_position(service: FakeLLM, start: Start, answer: Any, texts: list[str]) -> None:
    service.replies.append(Reply.json(answer))
    check = await start(generic(service))
    verdicts = await judged(check, "one", "two", call=a_call(request={"tools": TOOLS}))
    found = [replaced(text, verdict.spans) for text, verdict in zip(("one", "two"), verdicts, strict=True)]
    assert found == texts
    assert not any(v.blocked for v in verdicts)


@pytest.mark.parametrize(("reason", "told"), [("no cats", "no cats"), (None, "Content violates policy")])
async def test_generic_blocks(service: FakeLLM, start: Start, reason: Any, told: str) -> None:
    service.replies.append(Reply.json({"action": "BLOCKED", "blocked_reason": reason, "texts": ["x"]}))
    verdicts = await judged(await start(generic(service)), "one", "two")
    assert [(v.blocked, v.detail) for v in verdicts] == [(True, {"error": told})] * 2


@pytest.mark.parametrize(
    "answer",
    [
        {"action": "MAYBE"}, {"action": ["NONE"]}, {"texts": ["1"]}, {"texts": ["1", "2", "3"]}, {"texts": ["1", 2]},
        {"texts": "12"}, {"tools": [{"type": "function"}]}, {"images": ["x"]}, {"structured_messages": ROWS[:1]},
        {"structured_messages": [{"role": "system", "content": "one"}, ROWS[1]]},
        {"structured_messages": [{"role": "user", "content": None}, ROWS[1]]},
    ],
)  # fmt: skip
async def test_generic_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(generic(service)), "one", "two")


async def test_simple_requests(start: Start) -> None:
    def answer(request: Received) -> Reply:
        prompt = request.json["prompt"]
        if prompt == "bad":
            return Reply.json({"action": "block", "message": "no"})
        return Reply.json({"action": "allow", "modified_content": "new" if prompt == "old" else ""})

    async with FakeLLM(answer) as service:
        check = await start(generic(service, style="simple", api_base=f"{service.url}/guard/"))
        verdicts = await judged(check, "good", "old", "bad")
        assert {r.path for r in service.requests} == {"/guard/"}
        assert {"prompt": "good", "response": "", "metadata": {"hook": "pre_call"}} in [
            r.json for r in service.requests
        ]
        assert verdicts[0] == ALLOW
        assert replaced("old", verdicts[1].spans) == "new"
        assert (verdicts[2].blocked, verdicts[2].detail) == (True, {"error": "no"})


async def test_simple_answers(service: FakeLLM, start: Start) -> None:
    service.replies.append(Reply.json({"action": "allow"}))
    messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "last"}]
    check = await start(generic(service, style="simple"))
    assert await judged(check, "hi", side="output", call=a_call(request={"messages": messages})) == [ALLOW]
    assert service.requests[0].json == {"prompt": "last", "response": "hi", "metadata": {"hook": "post_call"}}


@pytest.mark.parametrize("answer", [{}, {"action": "BLOCK"}, {"action": "allow", "modified_content": 1}])
async def test_simple_answers_that_decide_nothing(service: FakeLLM, start: Start, answer: Any) -> None:
    service.replies.append(Reply.json(answer))
    await failure(await start(generic(service, style="simple")))


# --- through the layer


async def test_what_a_service_rewrites_goes_on_and_streams_ask_it_once(service: FakeLLM, serve: Serve) -> None:
    service.replies += [Reply.json({"texts": ["h*"]}), Reply.json({"texts": ["H***o you"]})]
    app = SSEApp(stream_of("Hel", "lo", " you"))
    driven = await drive(await serve(Guardrails(app, checks=[generic(service)])), STREAM)
    assert [r.json["texts"] for r in service.requests] == [["hi"], ["Hello you"]]
    assert orjson.loads(app.requests[0])["messages"][0]["content"] == "h*"
    assert b"H***o you" in driven.body
    assert b"Hel" not in driven.body


async def test_a_block_tells_the_client_why(service: FakeLLM, serve: Serve) -> None:
    service.replies.append(Reply.json({"results": [{"flagged": True, "categories": {"violence": True}}]}))
    app = json_app(ANSWER)
    driven = await drive(await serve(Guardrails(app, checks=[moderation(service)])), CHAT)
    assert driven.status == 400
    assert "violence" in driven.json["error"]["message"]
    assert not app.requests


@pytest.mark.parametrize(("fail_open", "status"), [("never", 503), ("unreachable", 200)])
async def test_a_service_that_is_not_there(serve: Serve, fail_open: Any, status: int) -> None:
    async with FakeLLM() as gone:
        entry = Entry(check=lakera(gone), name="lakera", fail_open=fail_open)
    driven = await drive(await serve(Guardrails(json_app(ANSWER), checks=[entry])), CHAT)
    assert driven.status == status


async def test_a_busy_service_reaches_the_client_as_a_pause(service: FakeLLM, serve: Serve) -> None:
    service.replies.append(Reply(status=429, headers={"retry-after": "7"}))
    driven = await drive(await serve(Guardrails(json_app(ANSWER), checks=[azure(AzureTextModeration, service)])), CHAT)
    assert (driven.status, driven.headers["retry-after"]) == (503, "7")
