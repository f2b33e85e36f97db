"""Which guardrails run on a call: by request, key, team, model and tag; and what happens to those out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import orjson
import pytest

from tests.integration.test_guardrails import AtEnd, Breaks, Masks, NoBird, answer, config, entry, request, served
from tests.support.stack import Serve, stream_of
from tianji_mw.call import Call
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.errors import ConfigErrors
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Verdict, block, mask
from tianji_mw.guardrails.base import Span as Piece
from tianji_mw.runs import Runs
from tianji_mw.testing import FakeLLM, Reply, drive


def extended(text: str, **more: Any) -> str:
    return orjson.dumps({**orjson.loads(text), **more}).decode()


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer sk-{name}"}


async def test_keys_and_teams_choose(llm: FakeLLM, serve: Serve) -> None:
    text = config(
        llm.url,
        entry("birds", NoBird, default_on=False, teams=["payments"], keys=["intern"]),
        entry("phones", Masks),
    )
    keys = [
        {"key": "sk-team", "team": "payments"},
        {"key": "sk-intern", "alias": "intern"},
        {"key": "sk-named", "guardrails": ["birds"]},
        {"key": "sk-free", "disable_global_guardrails": True},
        {"key": "sk-opted", "metadata": {"opted_out_global_guardrails": ["phones"]}},
        {"key": "sk-wrong", "metadata": {"guardrails": ["gone"]}},
        {"key": "sk-other", "team": "sales"},
    ]
    app = await served(serve, extended(text, virtual_keys=keys))
    for name in ("team", "intern", "named"):
        assert (await drive(app, request("bluebird"), headers=key(name))).status == 400, name
    for name, sent in (("other", "[PHONE]"), ("free", "5550100"), ("opted", "5550100")):
        llm.replies.append(answer("fine"))
        assert (await drive(app, request("bluebird 5550100"), headers=key(name))).status == 200, name
        assert llm.requests[-1].json["messages"][0]["content"] == f"bluebird {sent}"
    wrong = await drive(app, request("hi"), headers=key("wrong"))
    assert (wrong.status, "'gone'" in wrong.json["error"]["message"]) == (503, True)


async def test_clients_cannot_opt_out(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("birds", NoBird)))
    for way in (
        {"guardrails": []},
        {"metadata": {"guardrails": {"birds": False}}},
        {"metadata": {"disable_global_guardrails": True, "opted_out_global_guardrails": ["birds"]}},
        {"disable_global_guardrails": True},
    ):
        assert (await drive(app, request("bluebird", **way))).status == 400


async def test_models_choose(llm: FakeLLM, serve: Serve) -> None:
    text = config(llm.url, entry("birds", NoBird, default_on=False))
    models = orjson.loads(text)["model_list"]
    guarded = [
        {"model_name": name, "litellm_params": {**models[0]["litellm_params"], "guardrails": ["birds"]}}
        for name in ("safe", "team/*")
    ]
    router = {"model_group_alias": {"sure": "safe"}}
    app = await served(serve, extended(text, model_list=[*models, *guarded], router_settings=router))
    for model, status in (("gpt-4o", 200), ("safe", 400), ("sure", 400), ("team/any", 400)):
        llm.replies.append(answer("fine"))
        assert (await drive(app, request("bluebird", model=model))).status == status, model


async def test_tags_choose_the_mode(llm: FakeLLM, serve: Serve) -> None:
    modes = {"tags": {"strict": ["pre_call", "post_call"], "watch": "logging_only"}, "default": "post_call"}
    app = await served(serve, config(llm.url, entry("birds", NoBird, mode=modes)))
    cases: list[tuple[dict[str, Any], dict[str, str], int, bool]] = [
        ({}, {}, 400, True),
        ({"metadata": {"tags": ["strict"]}}, {}, 400, False),
        ({"tags": ["watch"]}, {}, 200, True),
        ({}, {"x-litellm-tags": "other, watch"}, 200, True),
        ({"tags": ["watch", "strict"]}, {}, 400, False),
    ]
    for body, headers, status, sent in cases:
        llm.replies.append(answer("a bluebird"))
        before = len(llm.requests)
        driven = await drive(app, request("bluebird", **body), headers=headers)
        assert (driven.status, len(llm.requests) > before) == (status, sent), (body, headers)


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ({"tags": {"a": "sometimes"}}, "must be one of"),
        ({"tag": {"a": "pre_call"}, "default": "pre_call"}, "unknown key"),
        ({}, "needs at least one mode"),
    ],
)
def test_wrong_modes_stop_the_start(mode: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigErrors, match=said):
        loads(config("http://x", entry("it", NoBird, mode=mode)), env={})


def test_names_that_do_not_exist_stop_the_start() -> None:
    text = config("http://x", entry("birds", NoBird))
    params = {**orjson.loads(text)["model_list"][0]["litellm_params"], "guardrails": ["brids"]}
    wrong = extended(
        text,
        model_list=[{"model_name": "m", "litellm_params": params}],
        virtual_keys=[{"key": "sk-a", "guardrails": ["nope"]}],
    )
    with pytest.raises(ConfigErrors) as caught:
        compose(loads(wrong, env={}), env={})
    assert "there is no guardrail 'brids'" in caught.value.message
    assert "there is no guardrail 'nope'" in caught.value.message


async def test_streams_alone_or_other_answers_alone(llm: FakeLLM, serve: Serve) -> None:
    text = config(
        llm.url, entry("s", NoBird, stream_scope="streaming"), entry("p", NoBird, stream_scope="non_streaming")
    )
    app = await served(serve, text)
    for stream, name in ((True, "s"), (False, "p")):
        driven = await drive(app, request("bluebird", stream=stream))
        assert driven.headers["x-litellm-applied-guardrails"] == name


async def test_the_message_is_the_operators(llm: FakeLLM, serve: Serve) -> None:
    template = "No {category} please ({guardrail_name}): {default_message} {other}"
    app = await served(serve, config(llm.url, entry("it", NoBird, violation_message_template=template)))
    message = (await drive(app, request("bluebird"))).json["error"]["message"]
    assert message == "No codename please (it): The request was blocked by the guardrail 'it' (codename). {other}"


class Hears(Guardrail):
    """Notes what it was asked about."""

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        for one in said:
            call.runtime.count(f"heard {side}", f"{one.role}: {one.text}")
        return [ALLOW] * len(said)


TALK = [
    {"role": "system", "content": "be nice"},
    {"role": "user", "content": "old"},
    {"role": "assistant", "content": "hm"},
    {"role": "tool", "tool_call_id": "1", "content": "result"},
    {"role": "user", "content": "new"},
]


@pytest.mark.parametrize(
    ("options", "heard"),
    [
        ({}, ["system: be nice", "user: old", "assistant: hm", "tool: result", "user: new"]),
        ({"skip_system_message_in_guardrail": True, "skip_tool_message_in_guardrail": True},
         ["user: old", "assistant: hm", "user: new"]),
        ({"scan_only_tool_results": True}, ["tool: result"]),
        ({"experimental_use_latest_role_message_only": True}, ["user: new"]),
    ],
)  # fmt: skip
async def test_texts_that_the_config_leaves_out(
    llm: FakeLLM, serve: Serve, options: dict[str, Any], heard: list[str]
) -> None:
    app = await served(serve, config(llm.url, entry("ears", Hears, mode="pre_call", **options)))
    llm.replies.append(answer("fine"))
    assert (await drive(app, {**request(""), "messages": TALK})).status == 200
    call = app.ends[-1]
    assert [text for event, text in call.runtime.counts if event == "heard input"] == heard
    (run,) = call.note(Runs).values()
    assert run.delivered == sum(len(str(message["content"])) for message in TALK)
    assert (run.scanned == run.delivered) is not bool(options)
    assert run.unscanned == ("the config leaves texts out" if options else "")


async def test_the_setting_for_all_guardrails(llm: FakeLLM, serve: Serve) -> None:
    text = config(
        llm.url, entry("ears", Hears, mode="pre_call"),
        entry("all", Hears, mode="pre_call", skip_system_message_in_guardrail=False),
    )  # fmt: skip
    settings = {"skip_system_message_in_guardrail": True}
    app = await served(serve, extended(text, litellm_settings=settings))
    llm.replies.append(answer("fine"))
    await drive(app, {**request(""), "messages": TALK})
    counts = app.ends[-1].runtime.counts
    assert (counts["heard input", "system: be nice"], counts["heard input", "user: new"]) == (1, 2)


class Away(Guardrail):
    """Cannot be reached until `back` is counted."""

    async def check(self, text: str, call: Call) -> Verdict:
        call.runtime.count("asked", "away")
        if ("back", "") not in call.runtime.counts:
            raise GuardrailFailed("no connection", unreachable=True)
        return ALLOW


async def test_what_cannot_be_reached_is_left_alone_for_a_while(llm: FakeLLM, serve: Serve) -> None:
    options = {"circuit_breaker": {"failures": 3, "cooldown": 0.2}, "mode": "pre_call"}
    app = await served(serve, config(llm.url, entry("away", Away, **options)))
    for _ in range(5):
        assert (await drive(app, request("hi"))).status == 503
    runtime = app.ends[-1].runtime
    assert runtime.counts["asked", "away"] == 3
    assert runtime.degraded == {"guardrail away": "it cannot be reached"}
    runtime.count("back", "")
    clock = runtime.clock
    runtime.clock = lambda: clock() + 1_000_000_000
    llm.replies.append(answer("fine"))
    assert (await drive(app, request("hi"))).status == 200
    assert (runtime.counts["asked", "away"], runtime.degraded) == (4, {})


async def test_a_breaker_may_be_switched_off(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("away", Away, circuit_breaker=False, mode="pre_call")))
    for _ in range(8):
        assert (await drive(app, request("hi"))).status == 503
    assert app.ends[-1].runtime.counts["asked", "away"] == 8


class Slow(Guardrail):
    """Like a service: it takes its time, and is asked once."""

    release: ClassVar[Release] = "whole"

    pause_s: float = 0.0

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        call.runtime.count("asked", side)
        await asyncio.sleep(self.pause_s)
        call.runtime.count("answered", side)
        return [
            block("bad") if "bad" in one.text else mask(Piece(0, 1, "A")) if "Ada" in one.text else ALLOW
            for one in said
        ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_during_the_call_the_answer_waits_and_the_request_does_not(
    llm: FakeLLM, serve: Serve, stream: bool
) -> None:
    app = await served(serve, config(llm.url, entry("it", Slow, mode="during_call", pause_s=0.2)))
    for text, status in (("good", 200), ("bad", 400), ("I am Ada", 400)):
        llm.replies.append(Reply.events(*stream_of("fine")) if stream else answer("fine"))
        before = len(llm.requests)
        driven = await drive(app, request(text, stream=stream))
        assert (driven.status, b"fine" in driven.body) == (status, status == 200), text
        assert len(llm.requests) == before + 1
        (run,) = app.ends[-1].note(Runs).values()
        assert run.scanned == run.delivered == len(text)  # it went to the model, whatever the verdict


async def test_during_the_call_nobody_waits_for_a_verdict_that_is_not_needed(llm: FakeLLM, serve: Serve) -> None:
    checks = [entry("slow", Slow, mode="during_call", pause_s=20), entry("birds", NoBird, mode="pre_call")]
    app = await served(serve, config(llm.url, *checks))
    assert (await drive(app, request("bluebird"))).status == 400
    assert ("answered", "input") not in app.ends[-1].runtime.counts
    assert llm.requests == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_only_logs_runs_beside_the_call(llm: FakeLLM, serve: Serve, stream: bool) -> None:
    app = await served(serve, config(llm.url, entry("it", Slow, mode="logging_only", pause_s=0.05)))
    parts = ["a bad ", "word ", "or two"]
    llm.replies.append(Reply.events(*stream_of(*parts)) if stream else answer("".join(parts)))
    driven = await drive(app, request("I am Ada", stream=stream))
    assert driven.status == 200
    assert b"content_policy_violation" not in driven.body
    assert llm.requests[0].json["messages"][0]["content"] == "I am Ada"
    call = app.ends[-1]
    assert (call.runtime.counts["asked", "output"], call.runtime.counts["answered", "output"]) == (1, 1)
    runs = call.note(Runs)
    assert [(run.status, run.category, run.scanned == run.delivered) for run in runs.values()] == [
        ("guardrail_intervened", "A", True), ("guardrail_intervened", "bad", True),
    ]  # fmt: skip


async def test_an_audit_by_a_service_asks_once_at_the_end(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("it", Slow, mode="post_call", release="audit")))
    llm.replies.append(Reply.events(*stream_of("a bad ", "word ", "or two"), pause_s=0.02))
    driven = await drive(app, request("hi", stream=True))
    assert joined(driven.body) == "a bad word or two"
    assert b"content_policy_violation" in driven.body
    assert app.ends[-1].runtime.counts["asked", "output"] == 1


class BySentence(Guardrail):
    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        for one in said:
            call.runtime.count("sentence", one.text[-40:])
        return [
            block("bad") if "bad" in one.text
            else mask(Piece(one.text.index("Ada"), one.text.index("Ada") + 3, "NAME")) if "Ada" in one.text else ALLOW
            for one in said
        ]  # fmt: skip


def joined(body: bytes) -> str:
    events = [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if "choices" in event)


async def test_sentences_wait_for_their_end_and_are_asked_about_once(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("it", BySentence, mode="post_call", release="sentence")))
    parts = ["Hello, ", "I am ", "A", "da. How", " are you", "? Pi is 3.", "14 or so"]
    llm.replies.append(Reply.events(*stream_of(*parts), pause_s=0.01))
    driven = await drive(app, request("hi", stream=True))
    assert joined(driven.body) == "Hello, I am [NAME]. How are you? Pi is 3.14 or so"
    call = app.ends[-1]
    asked = [text for event, text in call.runtime.counts if event == "sentence"]
    assert len(asked) == 3
    assert asked[0] == "Hello, I am Ada. "
    (run,) = call.note(Runs).values()
    assert run.scanned == run.delivered == sum(len(part) for part in parts)


async def test_a_bad_sentence_does_not_begin_to_leave(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url, entry("it", BySentence, mode="post_call", release="sentence")))
    llm.replies.append(Reply.events(*stream_of("Well. ", "This sentence ", "is bad. ", "Or not."), pause_s=0.01))
    driven = await drive(app, request("hi", stream=True))
    assert joined(driven.body) == "Well. "
    assert b"content_policy_violation" in driven.body


CHECKS: list[dict[str, Any]] = [
    entry("it", Masks), entry("it", AtEnd), entry("it", BySentence, release="sentence"),
    entry("it", Masks, release="audit"), entry("it", NoBird), entry("it", Breaks, fail_on_error=False),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(CHECKS)))
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("text", ["Hi 5550100. All well. ", "a bluebird. and a bad end", ""])
async def test_what_was_delivered_was_scanned_or_the_record_says_why(
    llm: FakeLLM, serve: Serve, number: int, stream: bool, text: str
) -> None:
    app = await served(serve, config(llm.url, CHECKS[number]))
    parts = [text[at : at + 3] for at in range(0, len(text), 3)]
    llm.replies.append(Reply.events(*stream_of(*parts)) if stream else answer(text))
    driven = await drive(app, request("good words", stream=stream))
    runs = app.ends[-1].note(Runs)
    assert runs["it", "input"].delivered == len("good words")
    for run in runs.values():
        assert (run.delivered <= run.scanned) is (run.unscanned == "")
        assert bool(run.unscanned) is (bool(run.failed) and bool(run.delivered))
    if driven.status == 200 and b"content_policy_violation" not in driven.body:
        if not text:
            assert ("it", "output") not in runs
            return
        assert runs["it", "output"].delivered == len(text)
        assert runs["it", "output"].scanned == (0 if CHECKS[number]["guardrail"].endswith("Breaks") else len(text))
