"""Services of guardrails that fail, in every way and on every side: what the config says happens, and is recorded.

Each test is one vendor, or a check in this process; its cases (fault, side, plain or streamed, policy) run in one
gateway, those of a fault at once, except where a fault needs an address or a deadline of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import orjson
import pytest

from tests.support.aws import forget_aws
from tests.support.echo import echo, events_of, said
from tests.support.faulty_service import FAULTS, MARK, UNREACHABLE, FaultyService
from tests.support.stack import CHAT, STREAM, Ends, Serve
from tianji_mw.call import Call
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Verdict
from tianji_mw.runs import Runs
from tianji_mw.runtime import Runtime
from tianji_mw.testing import Driven, FakeLLM, drive

pytestmark = pytest.mark.slow

KINDS: Final[dict[str, dict[str, Any]]] = {
    "bedrock": {
        "guardrail": "bedrock", "guardrailIdentifier": "abc123", "guardrailVersion": "DRAFT",
        "aws_region_name": "us-east-1", "aws_access_key_id": "AKIATEST", "aws_secret_access_key": "hidden-key",
    },
    "azure_text": {"guardrail": "azure/text_moderations", "api_key": "hidden-key"},
    "azure_shield": {"guardrail": "azure/prompt_shield", "api_key": "hidden-key"},
    "lakera": {"guardrail": "lakera_v2", "api_key": "hidden-key"},
    "generic": {"guardrail": "generic_guardrail_api", "api_key": "hidden-key"},
    "simple": {"guardrail": "generic_guardrail_api", "style": "simple", "api_key": "hidden-key"},
    "moderation": {"guardrail": "openai_moderation", "api_key": "hidden-key"},
}  # fmt: skip
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "closed": {},
    "unreachable": {"unreachable_fallback": "fail_open"},
    "open": {"fail_on_error": False},
    "retry": {"num_retries": 1},
}
MODES: Final = {"input": "pre_call", "output": "post_call"}
_marks = count()


class Plugin(Guardrail):
    """A check in this process that fails as its case says; of a case that heals, at its first question."""

    faults: ClassVar[dict[str, str]] = {}
    asked: ClassVar[Counter[str]] = Counter()

    async def check(self, text: str, call: Call) -> Verdict:
        found = MARK.search(text.encode())
        assert found is not None
        mark = found[0].decode()
        self.asked[mark] += 1
        if mark.endswith("-heals") and self.asked[mark] > 1:
            return ALLOW
        return await self._fail(self.faults[mark], text)

    async def _fail(self, fault: str, text: str) -> Any:
        match fault:
            case "hangs":
                await asyncio.sleep(30)
            case "unreachable":
                raise GuardrailFailed("no connection", unreachable=True)
            case "429":
                raise GuardrailFailed("status 429", retry_after_s=7)
            case "raises":
                raise ValueError(text)
        return GARBAGE[fault]


GARBAGE: Final[dict[str, Any]] = {"a word": "fine", "nothing": None, "a tuple": (False, "", (), {}), "a number": 1}
KINDS["plugin"] = {"guardrail": f"{__name__}:Plugin"}
PLUGIN_FAULTS: Final = ("raises", "unreachable", "429", *GARBAGE)


class Case(NamedTuple):
    """One request. Its mark stands in its text."""

    fault: str
    side: str
    policy: str
    stream: bool
    mark: str

    @property
    def name(self) -> str:
        return f"{self.side}-{self.policy}"

    @property
    def text(self) -> str:
        return f"a text that no error may quote, {self.mark}"


@pytest.fixture(autouse=True)
def machine_without_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_aws(monkeypatch, tmp_path)
    # Nothing here speaks TLS, and every client would read all certificates of the machine.
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))


def sides_of(kind: str) -> list[str]:
    return ["input"] if kind == "azure_shield" else ["input", "output"]


def config(llm: str, service: str, kind: str, fault: str, **more: Any) -> str:
    """A gateway with one guardrail for each side and policy; a request names the one that it wants."""
    where = {{"bedrock": "aws_bedrock_runtime_endpoint"}.get(kind, "api_base"): service} if service else {}
    common = {"timeout": 0.3 if fault == "hangs" else 10.0, "circuit_breaker": {"failures": 0}, **more}
    # One that answers later needs its time on a busy machine.
    patient = {"timeout": max(common["timeout"], 2.0)}
    guardrails = [
        {
            "guardrail_name": f"{side}-{policy}",
            "litellm_params": {
                **KINDS[kind],
                **where,
                "mode": MODES[side],
                **common,
                **(patient if policy == "retry" else {}),
                **options,
            },
        }
        for side in sides_of(kind)
        for policy, options in POLICIES.items()
    ]
    model = {"model": "openai/x", "api_base": f"{llm}/v1", "api_key": "k"}
    models = [{"model_name": "gpt-4o", "litellm_params": model}]
    return orjson.dumps({"model_list": models, "guardrails": guardrails}).decode()


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


async def served(serve: Serve, llm: FakeLLM, text: str) -> Ends:
    llm._default = echo
    layer = Ends(compose(loads(text, env={}), env={}).app, allow_order=True, runtime=Runtime(sleep=no_sleep))
    await serve(layer)
    return layer


async def asked(app: Ends, case: Case) -> Driven:
    messages = [{"role": "user", "content": case.text}]
    return await drive(
        app, {**(STREAM if case.stream else CHAT), "messages": messages, "guardrails": [case.name], "user": case.mark}
    )


def expected(kind: str, fault: str, policy: str) -> tuple[bool, int, int]:
    """Whether the text goes on, the failures, and the further attempts."""
    if policy == "retry":
        # Bedrock tries again by itself when AWS is busy. Where nobody listens, a second attempt is no better.
        own = kind == "bedrock" and fault == "429"
        return fault != "refused", int(fault == "refused"), int(not own)
    return policy == "open" or (policy == "unreachable" and fault in {*UNREACHABLE, "unreachable"}), 1, 0


def cases_of(kind: str, fault: str) -> list[Case]:
    return [
        Case(fault, side, policy, stream, f"case-{next(_marks)}{'-heals' if policy == 'retry' else ''}")
        for side in sides_of(kind)
        for policy in POLICIES
        for stream in (False, True)
    ]


# Those that need a deadline or an address of their own, and all others in one gateway: to make one takes its time.
@pytest.mark.parametrize("faults", [FAULTS[:1], FAULTS[1:-1], FAULTS[-1:]], ids=["hangs", "answers", "refused"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "plugin"])
async def test_a_fault_does_what_the_policy_says(
    llm: FakeLLM, serve: Serve, caplog: pytest.LogCaptureFixture, kind: str, faults: tuple[str, ...]
) -> None:
    caplog.set_level(logging.ERROR, "tianji_mw.guardrails")
    async with FaultyService(faults[0]) as service:
        app = await served(serve, llm, config(llm.url, service.url, kind, faults[0]))
        for fault in faults:
            cases = cases_of(kind, fault)
            service.faults.update({case.mark: fault for case in cases})
            await check_cases(app, llm, cases, kind, caplog)
            for case in cases:
                check_questions(case, service, kind)
        check_counts(app, kind, faults)
    assert "hidden-key" not in caplog.text
    assert "no error may quote" not in caplog.text


@pytest.mark.parametrize("faults", [("hangs",), PLUGIN_FAULTS], ids=["hangs", "answers"])
async def test_a_check_that_fails_does_what_the_policy_says(
    llm: FakeLLM, serve: Serve, caplog: pytest.LogCaptureFixture, faults: tuple[str, ...]
) -> None:
    caplog.set_level(logging.ERROR, "tianji_mw.guardrails")
    app = await served(serve, llm, config(llm.url, "", "plugin", faults[0]))
    for fault in faults:
        cases = cases_of("plugin", fault)
        Plugin.faults.update({case.mark: fault for case in cases})
        await check_cases(app, llm, cases, "plugin", caplog)
        assert [Plugin.asked[case.mark] for case in cases] == [1 + (case.policy == "retry") for case in cases]
    check_counts(app, "plugin", faults)
    assert "no error may quote" not in caplog.text


async def check_cases(app: Ends, llm: FakeLLM, cases: list[Case], kind: str, caplog: pytest.LogCaptureFixture) -> None:
    answers = await asyncio.gather(*(asked(app, case) for case in cases))
    calls = {call.request["user"]: call for call in app.ends}
    sent = {request.json["user"]: request.json["messages"][0]["content"] for request in llm.requests}
    for case, driven in zip(cases, answers, strict=True):
        passes, failures, _ = expected(kind, case.fault, case.policy)
        check_answer(case, driven, passes)
        assert sent.get(case.mark) == (case.text if passes or case.side == "output" else None)
        check_record(case, calls[case.mark], caplog, passes, failures)


def check_answer(case: Case, driven: Driven, passes: bool) -> None:
    assert (driven.status, driven.error) == (200 if passes else 503, None), case
    assert driven.headers["x-tianji-applied-guardrails"] == case.name
    if passes:
        assert said(driven) == case.text
        assert driven.body.endswith(b"data: [DONE]\n\n") is case.stream
        return
    error = driven.json["error"]
    assert (error["code"], error["provider_specific_fields"]["guardrail_name"]) == ("guardrail_unavailable", case.name)
    assert driven.headers.get("retry-after") == ("7" if case.fault == "429" else None)
    assert case.mark.encode() not in driven.body


def check_record(case: Case, call: Any, caplog: pytest.LogCaptureFixture, passes: bool, failures: int) -> None:
    (run,) = call.note(Runs).values()
    assert (run.guardrail, run.side, run.asked, run.failed) == (case.name, case.side, 1, failures), case
    assert run.status == ("guardrail_failed_to_respond" if failures else "success")
    assert (run.characters, run.category, run.masked, run.dry_run) == (len(case.text), "", {}, False)
    # What went on, as the client and the model saw it, and what of it had a verdict.
    assert (run.delivered, run.scanned) == (passes * len(case.text), (not failures) * len(case.text)), case
    assert run.unscanned == ("it failed, and may" if passes and failures else "")
    lines = [record.getMessage() for record in caplog.records if f"call {call.id}:" in record.getMessage()]
    assert len(lines) == failures
    if failures:
        what = "the content passes unchecked" if passes else "the content is not let through"
        assert lines[0].startswith(f"call {call.id}: the guardrail {case.name} failed (")
        assert lines[0].endswith(f"); {what}")


def check_questions(case: Case, service: FaultyService, kind: str) -> None:
    if case.fault == "refused":
        assert not service.asked
    elif case.policy == "retry":
        assert service.asked[case.mark] == 2
    else:
        assert service.asked[case.mark] == (4 if (kind, case.fault) == ("bedrock", "429") else 1)


def check_counts(app: Ends, kind: str, faults: tuple[str, ...]) -> None:
    counts = app.ends[-1].runtime.counts
    for side in sides_of(kind):
        for policy in POLICIES:
            told = [expected(kind, fault, policy) for fault in faults]
            assert counts.get(("guardrail_failures", f"{side}-{policy}"), 0) == 2 * sum(one[1] for one in told)
            assert counts.get(("guardrail_retries", f"{side}-{policy}"), 0) == 2 * sum(one[2] for one in told)


@pytest.mark.parametrize("faults", [FAULTS[:1], FAULTS[1:-1]], ids=["hangs", "answers"])
@pytest.mark.parametrize("kind", ["bedrock", "moderation"])
async def test_a_fault_in_the_middle_of_a_stream(
    llm: FakeLLM, serve: Serve, kind: str, faults: tuple[str, ...]
) -> None:
    """Asked about each part, the service answers once and then fails: the stream ends there, or goes on unchecked."""
    async with FaultyService(faults[0], healthy=1) as service:
        app = await served(
            serve,
            llm,
            config(
                llm.url, service.url, kind, faults[0], release="window", timeout=1.0 if faults[0] == "hangs" else 10.0
            ),
        )
        # Apart in time: parts that come together are one question.
        llm._default = lambda request: replace(echo(request, step=300), pause_s=0.01)
        for fault in faults:
            cases = [Case(fault, "output", policy, True, f"case-{next(_marks)}") for policy in POLICIES]
            service.faults.update({case.mark: fault for case in cases})
            texts = [f"{case.mark}, a sentence that is no secret to anybody; " * 30 for case in cases]
            await asyncio.gather(*(in_the_middle(app, kind, *one) for one in zip(cases, texts, strict=True)))


async def in_the_middle(app: Ends, kind: str, case: Case, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    driven = await drive(app, {**STREAM, "messages": messages, "guardrails": [case.name], "user": case.mark})
    (run,) = next(call for call in app.ends if call.request["user"] == case.mark).note(Runs).values()
    assert (driven.status, run.status) == (200, "guardrail_failed_to_respond"), case
    assert run.delivered == len(said(driven))
    if expected(kind, case.fault, case.policy)[0] and case.policy != "retry":
        assert said(driven) == text
        assert driven.body.endswith(b"data: [DONE]\n\n")
        assert 0 < run.scanned < run.delivered
        assert run.unscanned == "it failed, and may"
    else:
        assert text.startswith(said(driven))
        assert events_of(driven.body)[-1]["error"]["code"] == "guardrail_unavailable"
        assert run.delivered <= run.scanned < len(text)
        assert (run.failed, run.unscanned) == (1, "")
