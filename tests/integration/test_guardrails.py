"""Guardrails of a YAML file, through HTTP: what runs, what a failure does, what is replaced, what is recorded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import orjson
import pytest

from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Serve, stream_of
from tianji_mw.call import Call
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.errors import ConfigErrors
from tianji_mw.guardrails.base import (
    ALLOW,
    Guardrail,
    GuardrailFailed,
    Release,
    Said,
    Side,
    Span,
    Verdict,
    block,
    mask,
)
from tianji_mw.runs import Runs
from tianji_mw.testing import FakeLLM, Reply, drive


class NoBird(Guardrail):
    async def check(self, text: str, call: Call) -> Verdict:
        return block("codename", rule="birds") if "bluebird" in text else ALLOW


class Masks(Guardrail):
    word: str = "5550100"

    async def check(self, text: str, call: Call) -> Verdict:
        return mask(*(Span(found.start(), found.end(), "PHONE") for found in re.finditer(self.word, text)))


class Breaks(Guardrail):
    how: str = "raises"
    timeout_s: float = 0.05

    async def check(self, text: str, call: Call) -> Verdict:
        if self.how == "hangs":
            await asyncio.sleep(30)
        if self.how == "garbage":
            return "fine"  # type: ignore[return-value]
        if self.how == "unreachable":
            raise GuardrailFailed("no connection", unreachable=True)
        if self.how == "busy":
            raise GuardrailFailed("status 429", retry_after_s=7)
        raise ValueError(text)


def config(url: str, *entries: dict[str, Any]) -> str:
    guardrails = [
        {"guardrail_name": entry.pop("name"), "litellm_params": {"mode": ["pre_call", "post_call"], **entry}}
        for entry in (dict(entry) for entry in entries)
    ]
    models = [
        {"model_name": "gpt-4o", "litellm_params": {"model": "openai/x", "api_base": f"{url}/v1", "api_key": "k"}}
    ]
    return orjson.dumps({"model_list": models, "guardrails": guardrails}).decode()


def entry(name: str, check: type[Guardrail], **more: Any) -> dict[str, Any]:
    return {"name": name, "guardrail": f"{check.__module__}:{check.__name__}", "default_on": True, **more}


async def served(serve: Serve, text: str) -> Ends:
    layer = Ends(compose(loads(text, env={}), env={}).app, allow_order=True)
    await serve(layer)
    return layer


def request(text: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {**(STREAM if stream else CHAT), "messages": [{"role": "user", "content": text}], **more}


def answer(text: str) -> Reply:
    message = {"role": "assistant", "content": text}
    return Reply.json({**ANSWER, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


async def test_a_block_says_who_and_why_in_litellms_shape(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("birds", NoBird)))
    driven = await drive(app, request("the bluebird flies"))
    assert driven.status == 400
    assert driven.headers["x-litellm-applied-guardrails"] == driven.headers["x-tianji-applied-guardrails"] == "birds"
    error = driven.json["error"]
    assert error["code"] == "content_policy_violation"
    assert error["provider_specific_fields"] == {
        "error": error["message"], "guardrail_name": "birds", "guardrail_mode": "pre_call", "category": "codename",
        "rule": "birds",
    }  # fmt: skip
    assert llm.requests == []
    (run,) = app.ends[-1].note(Runs).values()
    assert (run.guardrail, run.side, run.status, run.category, run.characters) == (
        "birds", "input", "guardrail_intervened", "codename", 18,
    )  # fmt: skip


async def test_what_is_not_on_by_default_runs_where_it_is_named(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("birds", NoBird, default_on=False), entry("phones", Masks)))
    llm.replies += [answer("fine")] * 3
    assert (await drive(app, request("bluebird"))).status == 200
    assert (await drive(app, request("bluebird", guardrails=["birds"]))).status == 400
    assert (await drive(app, request("bluebird", guardrails=[{"birds": {"extra_body": {}}}]))).status == 400
    named = await drive(app, request("fine", guardrails=["birds"]))
    assert named.headers["x-litellm-applied-guardrails"] == "birds,phones"
    assert b"guardrails" not in llm.requests[-1].body
    unknown = await drive(app, request("bluebird", guardrails=["brids"]))
    assert (unknown.status, unknown.json["error"]["code"]) == (400, "unknown_guardrail")


async def test_a_key_may_bring_its_guardrails(llm: FakeLLM, serve: Serve) -> None:
    text = config(llm.url, entry("birds", NoBird, default_on=False))
    keys = [{"key": "sk-a", "metadata": {"guardrails": ["birds"]}}, {"key": "sk-b"}]
    app = await served(serve, orjson.dumps({**orjson.loads(text), "virtual_keys": keys}).decode())
    llm.replies.append(answer("fine"))
    assert (await drive(app, request("bluebird"), headers={"authorization": "Bearer sk-a"})).status == 400
    assert (await drive(app, request("bluebird"), headers={"authorization": "Bearer sk-b"})).status == 200


async def test_pieces_are_replaced_in_requests_and_answers(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("phones", Masks), entry("names", Masks, word="Ada")))
    llm.replies.append(answer("Ada has 5550100"))
    driven = await drive(app, request("I am Ada, call 5550100"))
    assert llm.requests[0].json["messages"][0]["content"] == "I am [PHONE], call [PHONE]"
    assert driven.json["choices"][0]["message"]["content"] == "[PHONE] has [PHONE]"
    assert int(driven.headers["content-length"]) == len(driven.body)
    runs = app.ends[-1].note(Runs).values()
    assert {(run.guardrail, run.side, tuple(run.masked.items())) for run in runs} >= {
        ("phones", "input", (("PHONE", 1),)), ("names", "output", (("PHONE", 1),)),
    }  # fmt: skip


async def test_pieces_are_replaced_on_streams_wherever_they_are_cut(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("phones", Masks, mode="post_call")))
    for cut in range(8):
        llm.replies.append(Reply.events(*stream_of("call ", "5550100"[:cut], "5550100"[cut:], " or 5550100", " now")))
        driven = await drive(app, request("hi", stream=True))
        events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert text == "call [PHONE] or [PHONE] now"
        assert driven.body.endswith(b"data: [DONE]\n\n")


async def test_choices_are_replaced_each_by_itself(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("phones", Masks, mode="post_call")))

    def event(index: int, text: str) -> bytes:
        choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({**ANSWER, "choices": [choice]})

    parts = [event(0, "a 555"), event(1, "b 55"), event(0, "0100"), event(1, "50100")]
    llm.replies.append(Reply.events(*parts, *stream_of()[-2:]))
    driven = await drive(app, request("hi", stream=True, n=2))
    texts = {0: "", 1: ""}
    for line in driven.body.split(b"\n"):
        if line.startswith(b"data: {"):
            choice = orjson.loads(line[6:])["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert texts == {0: "a [PHONE]", 1: "b [PHONE]"}


class AtEnd(Guardrail):
    """Like a service: it is asked once, about all of it."""

    release: ClassVar[Release] = "whole"

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        call.runtime.count("asked", side)
        return [block("end") if "bad end" in one.text else mask(Span(0, 1, "A")) for one in said]


@pytest.mark.parametrize("end", ["good end", "bad end"])
async def test_a_check_of_whole_answers_is_asked_once_before_anything_leaves(
    llm: FakeLLM, serve: Serve, end: str
) -> None:
    app = await served(serve, config(llm.url, entry("it", AtEnd, mode="post_call"), entry("phones", Masks)))
    llm.replies.append(Reply.events(*stream_of("a first word, ", "5550100 and a ", end)))
    driven = await drive(app, request("hi", stream=True))
    assert app.ends[-1].runtime.counts["asked", "output"] == 1
    if end == "bad end":
        assert driven.status == 400
        assert b"first" not in driven.body
    else:
        events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert text == "[A] first word, [PHONE] and a good end"


async def test_an_audit_holds_nothing_back(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("birds", NoBird, mode="post_call", release="audit")))
    llm.replies.append(Reply.events(*stream_of("a blue", "bird ", "flies"), pause_s=0.05))
    driven = await drive(app, request("hi", stream=True))
    assert driven.status == 200
    assert b"a blue" in driven.body
    assert b"content_policy_violation" in driven.body
    assert b"flies" not in driven.body


FAILURES = ["raises", "hangs", "garbage", "unreachable", "busy"]


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("mode", ["pre_call", "post_call"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "policy",
    [
        {},
        {"unreachable_fallback": "fail_open"},
        {"fail_on_error": False},
        {"failure_policy": "fail_open"},
        {"dry_run": True},
    ],
    ids=["closed", "unreachable", "never-fails", "open", "dry"],
)  # fmt: skip
async def test_a_failure_does_what_the_config_says(
    llm: FakeLLM, serve: Serve, how: str, mode: str, stream: bool, policy: dict[str, Any]
) -> None:
    app = await served(serve, config(llm.url, entry("it", Breaks, how=how, mode=mode, **policy)))
    llm.replies.append(Reply.events(*stream_of("secret words")) if stream else answer("secret words"))
    driven = await drive(app, request("hello there", stream=stream))
    unreachable = how in ("hangs", "unreachable")
    passes = bool(policy) and (policy != {"unreachable_fallback": "fail_open"} or unreachable)
    assert driven.status == (200 if passes else 503)
    assert (b"secret words" in driven.body) is passes
    assert bool(llm.requests) is (passes or mode == "post_call")
    if how == "busy" and not passes:
        assert driven.headers["retry-after"] == "7"
    (run,) = app.ends[-1].note(Runs).values()
    assert run.status == "guardrail_failed_to_respond"
    assert app.ends[-1].runtime.counts["guardrail_failures", "it"] == run.failed == run.asked


async def test_attempts_and_dry_runs(llm: FakeLLM, serve: Serve) -> None:
    app = await served(
        serve,
        config(
            llm.url,
            entry("again", Breaks, how="unreachable", num_retries=2, fail_on_error=False, mode="pre_call"),
            entry("dry", NoBird, dry_run=True, mode="pre_call"),
            entry("logs", NoBird, mode="logging_only"),
        ),
    )
    llm.replies.append(answer("fine"))
    assert (await drive(app, request("bluebird"))).status == 200
    assert app.ends[-1].runtime.counts["guardrail_retries", "again"] == 2
    runs = app.ends[-1].note(Runs)
    assert (runs["dry", "input"].status, runs["dry", "input"].dry_run) == ("guardrail_intervened", True)
    assert runs["logs", "input"].category == "codename"
    assert runs["logs", "output"].status == "success"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"unreachable_fallback": "open"}, "unreachable_fallback: must be one of '', 'fail_open' or 'fail_closed'"),
        ({"fail_on_error": "maybe"}, "fail_on_error: expected true or false"),
        ({"num_retries": 9}, "num_retries: must be at most 5"),
        ({"release": "later"}, "release: must be one of 'audit', 'window', 'sentence' or 'whole'"),
        ({"dry_run": "x"}, "dry_run: expected true or false"),
        ({"wrod": "x"}, "the guardrail refuses its options: wrod"),
        ({"guardrail": "no_such_kind"}, "no plugin 'no_such_kind' for guardrails"),
    ],
)
def test_a_wrong_entry_stops_the_start(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        compose(loads(config("http://x", {**entry("it", NoBird), **more}), env={}), env={})
    assert said in caught.value.message


def test_names_are_unique() -> None:
    with pytest.raises(ConfigErrors, match="another guardrail has this name"):
        compose(loads(config("http://x", entry("it", NoBird), entry("it", Masks)), env={}), env={})


@pytest.mark.parametrize(
    ("kind", "options", "answer_", "path"),
    [
        ("openai_moderation", {}, {"results": [{"flagged": True, "categories": {"hate": True}}]}, "/moderations"),
        (
            "azure/text_moderations",
            {},
            {
                "blocklistsMatch": [],
                "categoriesAnalysis": [
                    {"category": name, "severity": 4} for name in ("Hate", "SelfHarm", "Sexual", "Violence")
                ],
            },
            "/contentsafety/text:analyze?api-version=2024-09-01",
        ),
        (
            "azure/prompt_shield",
            {"mode": "pre_call"},
            {"userPromptAnalysis": {"attackDetected": True}, "documentsAnalysis": []},
            "/contentsafety/text:shieldPrompt?api-version=2024-09-01",
        ),
        (
            "lakera_v2",
            {},
            {"flagged": True, "breakdown": [{"detector_type": "prompt_attack", "detected": True, "message_id": 0}]},
            "/v2/guard",
        ),
        (
            "generic_guardrail_api",
            {},
            {"action": "BLOCKED", "blocked_reason": "no"},
            "/beta/litellm_basic_guardrail_api",
        ),
    ],
)
async def test_services_by_litellms_names(
    llm: FakeLLM, serve: Serve, kind: str, options: dict[str, Any], answer_: dict[str, Any], path: str
) -> None:
    async with FakeLLM(lambda request: Reply.json(answer_)) as service:
        named = {"name": "it", "guardrail": kind, "default_on": True, "api_base": service.url, "api_key": "sk-service"}
        app = await served(serve, config(llm.url, {**named, **options}))
        driven = await drive(app, request("something bad"))
        assert driven.status == 400
        assert driven.json["error"]["provider_specific_fields"]["guardrail_name"] == "it"
        assert service.requests[0].path == path
        assert "sk-service" in repr(service.requests[0].headers)
        assert llm.requests == []
        assert "something bad" not in driven.body.decode()


async def test_a_service_without_its_key_stops_the_start(llm: FakeLLM, serve: Serve) -> None:
    text = config(llm.url, {"name": "it", "guardrail": "lakera_v2", "default_on": True})
    with pytest.raises(Exception, match="Lakera: api_key is missing; set it in the config, or the variable LAKERA"):
        await served(serve, text)


def token() -> str:
    """A key of a vendor's form, put together here so that no scanner takes this file for a leak."""
    return "ghp_" + "".join("0Aa9Bb8Cc7Dd"[n % 12] for n in range(36))


@pytest.mark.parametrize("kind", ["secret_leak", "hide-secrets"])
async def test_keys_do_not_go_out_nor_come_back(llm: FakeLLM, serve: Serve, kind: str) -> None:
    app = await served(serve, config(llm.url, {"name": "leaks", "guardrail": kind, "default_on": True}))
    llm.replies.append(answer(f"use {token()} there"))
    driven = await drive(app, request(f"my key is {token()}, mail me"))
    assert llm.requests[0].json["messages"][0]["content"] == "my key is [GITHUB_TOKEN], mail me"
    assert driven.json["choices"][0]["message"]["content"] == "use [GITHUB_TOKEN] there"
    for cut in (1, 5, 30, 39):
        parts = ["use ", token()[:cut], token()[cut:], " there"]
        llm.replies.append(Reply.events(*stream_of(*parts), pause_s=0.005))
        driven = await drive(app, request("hi", stream=True))
        events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
        text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
        assert text == "use [GITHUB_TOKEN] there"


async def test_personal_data_is_masked_or_blocked_by_kind(llm: FakeLLM, serve: Serve) -> None:
    entities = {"EMAIL_ADDRESS": "MASK", "CREDIT_CARD": "BLOCK"}
    named = {"name": "pii", "guardrail": "pii", "default_on": True, "entities": entities}
    app = await served(serve, config(llm.url, named))
    llm.replies.append(answer("fine"))
    await drive(app, request("write to ada@example.com please"))
    assert llm.requests[0].json["messages"][0]["content"] == "write to [EMAIL_ADDRESS] please"
    blocked = await drive(app, request("my card is 4111 1111 1111 1111"))
    assert (blocked.status, blocked.json["error"]["provider_specific_fields"]["category"]) == (400, "CREDIT_CARD")
    assert "4111" not in blocked.body.decode()
