"""Guardrails of Bedrock against a scripted server. boto3 writes the requests; what it wrote is checked as it came."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.integration.secret_stores.servers import Answer, Asked, Scripted, scripted
from tests.support.stack import ANSWER, CHAT, gateway, stream_of
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Said, Verdict
from tianji_mw.guardrails.bedrock import Bedrock
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.plugins import find
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply, drive

pytestmark = pytest.mark.slow

ARN = "arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc123"
SENTENCE = "Sorry, I cannot help"
TEXT = "my secret-mail is a@b.c"
CALL: Any = None
Make = Callable[..., Any]


@pytest.fixture(autouse=True)
def machine_without_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("AWS_BEARER_TOKEN_BEDROCK", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def slept() -> list[float]:
    return []


@pytest.fixture
async def make(slept: list[float]) -> AsyncIterator[Make]:
    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with AsyncExitStack() as stack:

        async def build(url: str, **settings: Any) -> Bedrock:
            settings = {
                "guardrailIdentifier": "abc123", "guardrailVersion": "DRAFT", "aws_region_name": "eu-west-1",
                "aws_access_key_id": "AKIATEST", "aws_secret_access_key": "hidden-key",
                "aws_bedrock_runtime_endpoint": url, "timeout_s": 5, **settings,
            }  # fmt: skip
            check = Bedrock(**settings)
            await check.start(Runtime(sleep=sleep))
            stack.push_async_callback(check.aclose)
            return check

        yield build


@pytest.fixture
def served() -> Iterator[Callable[..., Scripted]]:
    """Starts scripted servers for the rest of the test."""
    with ExitStack() as stack:
        yield lambda *answers, **options: stack.enter_context(scripted(*answers, **options))


def answer(*assessments: Any, outputs: Any = (), action: str | None = None, **more: Any) -> Answer:
    action = action or ("GUARDRAIL_INTERVENED" if assessments or outputs else "NONE")
    outputs = outputs if outputs is None else [{"text": text} for text in outputs]
    body = {"action": action, "outputs": outputs, "assessments": list(assessments), "usage": {}, **more}
    return 200, json.dumps(body), {"content-type": "application/json"}


def refused(status: int, code: str, message: str = "told by the test", **headers: str) -> Answer:
    body = json.dumps({"message": message})
    return status, body, {"content-type": "application/json", "x-amzn-errortype": code, **headers}


def pii(action: str = "ANONYMIZED", match: str = "a@b.c") -> dict[str, Any]:
    return {"sensitiveInformationPolicy": {"piiEntities": [{"type": "EMAIL", "match": match, "action": action}]}}


def texts_of(asked: Asked) -> list[str]:
    return [block["text"]["text"] for block in json.loads(asked.body)["content"]]


async def verdicts(check: Bedrock, *texts: str, side: Any = "input") -> list[Verdict]:
    return list(await check.judge([Said(text) for text in texts], side, CALL))


async def fails(check: Bedrock, word: str, *texts: str) -> GuardrailFailed:
    with pytest.raises(GuardrailFailed, match=word) as caught:
        await verdicts(check, *(texts or (TEXT,)))
    assert "secret" not in caught.value.message
    assert "told by" not in caught.value.message
    return caught.value


async def test_the_request(make: Make, served: Any) -> None:
    server = served(answer())
    check = await make(server.url, aws_session_token="token", outputScope="FULL", guardrailVersion=7)
    assert await verdicts(check, "one", "", " \n", "zwei ✓") == [ALLOW] * 4
    (asked,) = server.asked
    assert (asked.method, asked.path) == ("POST", "/guardrail/abc123/version/7/apply")
    assert json.loads(asked.body) == {
        "source": "INPUT",
        "outputScope": "FULL",
        "content": [{"text": {"text": "one"}}, {"text": {"text": "zwei ✓"}}],
    }
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
    assert "/eu-west-1/bedrock/aws4_request" in headers["authorization"]
    assert headers["x-amz-security-token"] == "token"
    assert headers["content-type"] == "application/json"


async def test_an_arn_and_the_output_side(make: Make, served: Any) -> None:
    server = served(answer())
    check = await make(server.url, guardrailIdentifier=ARN)
    await verdicts(check, "one", side="output")
    assert server.asked[0].path == f"/guardrail/{ARN.replace(':', '%3A').replace('/', '%2F')}/version/DRAFT/apply"
    assert json.loads(server.asked[0].body)["source"] == "OUTPUT"


async def test_empty_texts_are_not_sent(make: Make, served: Any) -> None:
    server = served(answer())
    assert await verdicts(await make(server.url), "", "  ") == [ALLOW, ALLOW]
    assert not server.asked


@pytest.mark.parametrize(
    ("assessment", "category", "told"),
    [
        (
            {"topicPolicy": {"topics": [{"name": "Legal", "type": "DENY", "action": "BLOCKED", "detected": True}]}},
            "Legal",
            {"name": "Legal", "type": "DENY", "action": "BLOCKED", "detected": True},
        ),
        (
            {"contentPolicy": {"filters": [{"type": "VIOLENCE", "confidence": "HIGH", "action": "BLOCKED"}]}},
            "VIOLENCE",
            {"type": "VIOLENCE", "confidence": "HIGH", "action": "BLOCKED"},
        ),
        (
            {"wordPolicy": {"customWords": [{"match": "secret-mail", "action": "BLOCKED"}], "managedWordLists": None}},
            "customWords",
            {"action": "BLOCKED"},
        ),
        (
            {
                "sensitiveInformationPolicy": {
                    "piiEntities": [{"type": "EMAIL", "match": "a@b.c", "action": "ANONYMIZED"}],
                    "regexes": [{"name": "id", "regex": "secret.*", "match": "secret-mail", "action": "BLOCKED"}],
                }
            },
            "id",
            {"name": "id", "action": "BLOCKED"},
        ),
        (
            {"contextualGroundingPolicy": {"filters": [
                {"type": "GROUNDING", "threshold": 0.8, "score": 0.2, "action": "BLOCKED"}]}},
            "GROUNDING",
            {"type": "GROUNDING", "threshold": 0.8, "score": 0.2, "action": "BLOCKED"},
        ),
    ],
)  # fmt: skip
async def test_blocks(make: Make, served: Any, assessment: Any, category: str, told: Any) -> None:
    server = served(answer(assessment, outputs=[SENTENCE]))
    found = await verdicts(await make(server.url), TEXT, "another")
    for verdict in found:
        assert (verdict.blocked, verdict.category, verdict.spans) == (True, category, ())
        assert verdict.detail == {
            "error": "Violated guardrail policy",
            "bedrock_guardrail_response": SENTENCE,
            "guardrailIdentifier": "abc123",
            "guardrailVersion": "DRAFT",
            "assessments": [{"policy": next(iter(assessment)), "matches": [told]}],
        }
        assert "secret" not in str(verdict)


async def test_texts_made_anonymous_replace_those_that_changed(make: Make, served: Any) -> None:
    server = served(answer(pii(), outputs=["one", "my secret-mail is {EMAIL}"]))
    first, second = await verdicts(await make(server.url, mask_request_content=False), "one", TEXT)
    assert first is ALLOW
    assert not second.blocked
    assert second.spans == ((0, len(TEXT), "ANONYMIZED", "my secret-mail is {EMAIL}"),)


@pytest.mark.parametrize(
    ("given", "category"),
    [
        (answer(pii(), outputs=["only one"]), "anonymized"),
        (answer(pii(), outputs=None), "anonymized"),
        (answer(pii(), outputs=[TEXT, "two"]), "anonymized"),
        (answer(action="GUARDRAIL_INTERVENED", outputs=[TEXT, SENTENCE]), "unexplained"),
        (answer(pii("NONE"), outputs=["a", "b"]), "unexplained"),
        (answer(action="GUARDRAIL_INTERVENED", assessments=None, outputs=None), "unexplained"),
        (answer({"topicPolicy": None}, None, outputs=["a", "b"]), "unexplained"),
    ],
)
async def test_what_nobody_can_explain_is_blocked(make: Make, served: Any, given: Answer, category: str) -> None:
    found = await verdicts(await make(served(given).url), TEXT, "two")
    assert [(verdict.blocked, verdict.category) for verdict in found] == [(True, category)] * 2
    assert "secret" not in str(found)


async def test_not_intervened_passes_whatever_was_found(make: Make, served: Any) -> None:
    given = answer(pii("NONE"), action="NONE", outputs=None, guardrailCoverage=None)
    assert await verdicts(await make(served(given).url), TEXT) == [ALLOW]


async def test_findings_of_automated_reasoning_block_where_configured(make: Make, served: Any) -> None:
    given = answer({"automatedReasoningPolicy": {"findings": [{"invalid": {"x": "secret"}}]}}, action="NONE")
    url = served(given).url
    assert await verdicts(await make(url), TEXT) == [ALLOW]
    (found,) = await verdicts(await make(url, automated_reasoning_blocks=["invalid", "impossible"]), TEXT)
    assert (found.blocked, found.category) == (True, "invalid")
    assert "secret" not in str(found)


@pytest.mark.parametrize(
    "body",
    [
        '{"Output": {"__type": "com.amazon.coral.service#InternalServerException"}, "action": "NONE"}',
        '{"__type": "ThrottlingException"}',
        '{"action": null}',
        "{}",
        "[]",
        "null",
        "<html>secret</html>",
        "",
        '{"action": "GUARDRAIL_INTERVENED", "assessments": [{"x": {"y": [{"action": "BLOCKED"}]}}], "outputs": [{}]}',
        '{"action": "GUARDRAIL_INTERVENED", "assessments": 5}',
    ],
)
async def test_answers_that_are_none(make: Make, served: Any, body: str) -> None:
    check = await make(served((200, body, {"content-type": "application/json"})).url)
    error = await fails(check, "Bedrock")
    assert not error.unreachable


async def test_throttling_is_tried_again_three_times(make: Make, served: Any, slept: list[float]) -> None:
    busy = refused(429, "ThrottlingException")
    server = served(busy, busy, busy, answer())
    assert await verdicts(await make(server.url), TEXT) == [ALLOW]
    assert slept == [0.5, 1.0, 2.0]
    assert len(server.asked) == 4


@pytest.mark.parametrize(("headers", "pause"), [({}, 4.0), ({"retry-after": "17"}, 17.0)])
async def test_throttling_without_end(make: Make, served: Any, headers: Any, pause: float) -> None:
    server = served(refused(429, "ThrottlingException", **headers))
    error = await fails(await make(server.url), "429 .ThrottlingException")
    assert (error.retry_after_s, error.unreachable) == (pause, False)
    assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("status", "code", "unreachable"),
    [
        (400, "ValidationException", False),
        (400, "ServiceQuotaExceededException", False),
        (403, "AccessDeniedException", False),
        (404, "ResourceNotFoundException", False),
        (500, "InternalServerException", False),
        (502, "BadGateway", True),
        (503, "ServiceUnavailableException", True),
        (504, "Timeout", True),
    ],
)
async def test_errors(make: Make, served: Any, status: int, code: str, unreachable: bool) -> None:
    server = served(refused(status, code, "told by secret"))
    error = await fails(await make(server.url), f"status {status}")
    assert (error.unreachable, error.retry_after_s) == (unreachable, None)
    assert len(server.asked) == 1


async def test_a_gateway_that_answers_with_a_page(make: Make, served: Any) -> None:
    error = await fails(await make(served((502, "<html>secret</html>")).url), "status 502")
    assert error.unreachable


async def test_nobody_answers(make: Make) -> None:
    error = await fails(await make("http://127.0.0.1:1"), "EndpointConnectionError")
    assert error.unreachable


async def test_no_answer_in_time(make: Make, served: Any) -> None:
    def late(asked: Asked) -> Answer:
        time.sleep(1)
        return answer()

    error = await fails(await make(served(by_request=late).url, timeout_s=0.2), "ReadTimeoutError")
    assert error.unreachable


def limited(most: int, status: int = 400) -> Callable[[Asked], Answer]:
    """A server that takes `most` characters, and makes addresses anonymous."""

    def by_request(asked: Asked) -> Answer:
        texts = texts_of(asked)
        if sum(map(len, texts)) > most:
            return refused(status, "ValidationException", "Input exceeds the maximum of text units")
        if any("bomb" in text for text in texts):
            return answer(pii("BLOCKED"), outputs=[SENTENCE])
        new = [text.replace("a@b.c", "{EMAIL}") for text in texts]
        return answer(pii(), outputs=new) if new != texts else answer()

    return by_request


@pytest.mark.parametrize("status", [400, 429])
async def test_large_texts_are_split_at_blanks_and_put_together_again(make: Make, served: Any, status: int) -> None:
    server = served(by_request=limited(1500, status))
    check = await make(server.url, chunk_budget_chars=4000)
    long = "word a@b.c " * 900
    found = await verdicts(check, "short", long, "", "x" * 3000, "a@b.c", " " * 9000 + "end")
    assert [bool(verdict.spans) for verdict in found] == [False, True, False, False, True, False]
    assert found[1].spans[0].replacement == long.replace("a@b.c", "{EMAIL}")
    assert found[4].spans[0].replacement == "{EMAIL}"
    assert max(sum(map(len, texts_of(asked))) for asked in server.asked[1:]) <= 4000
    assert all(text.strip() for asked in server.asked for text in texts_of(asked))
    assert "".join(text for asked in server.asked for text in texts_of(asked)).count("{EMAIL}") == 0


async def test_a_block_of_one_piece_blocks(make: Make, served: Any) -> None:
    server = served(by_request=limited(1500))
    found = await verdicts(await make(server.url), "word " * 1000 + "bomb", "other")
    assert [verdict.blocked for verdict in found] == [True, True]


async def test_splitting_has_an_end(make: Make, served: Any) -> None:
    server = served(by_request=limited(10))
    await fails(await make(server.url), "status 400", "word " * 2000)
    assert len(server.asked) < 10


async def test_nothing_of_a_text_is_logged(make: Make, served: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    check = await make(served(answer(pii(), outputs=["secret {EMAIL}"])).url)
    await verdicts(check, TEXT)
    assert "secret" not in caplog.text
    assert "hidden-key" not in caplog.text


async def test_in_a_stack(make: Make, served: Any, llm: FakeLLM, serve: Any) -> None:
    server = served(by_request=limited(5000))
    app = await serve(Guardrails(gateway(llm.url), checks=[await make(server.url)]))
    llm.replies.append(Reply.json(ANSWER))
    asked = {**CHAT, "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXT}]}
    assert (await drive(app, asked)).status == 200
    assert [one["content"] for one in llm.requests[0].json["messages"]] == ["be brief", "my secret-mail is {EMAIL}"]
    assert [json.loads(one.body)["source"] for one in server.asked] == ["INPUT", "OUTPUT"]
    llm.replies.append(Reply.events(*stream_of("the bo", "mb")))
    streamed = await drive(app, {**asked, "stream": True})
    assert b"content_policy_violation" in streamed.body
    assert b"the bo" not in streamed.body


class _Turned(Secret):
    """A key of a secret manager that has another value by now."""

    async def renew(self) -> bool:
        changed, self._value = self._value != "new", "new"
        return changed


@pytest.mark.parametrize("cured", [True, False])
async def test_a_key_that_was_changed_is_read_again_once(make: Make, served: Any, cured: bool) -> None:
    stale = refused(403, "UnrecognizedClientException")
    server = served(stale, answer() if cured else stale)
    check = await make(server.url, aws_secret_access_key=_Turned("old"))
    if cured:
        assert await verdicts(check, TEXT) == [ALLOW]
    else:
        await fails(check, "UnrecognizedClientException")
    assert len(server.asked) == 2


async def test_a_role(make: Make, served: Any) -> None:
    sts = served((200, (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        "<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>of-the-role</SessionToken>"
        "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
    ), {"content-type": "text/xml"}))  # fmt: skip
    server = served(answer())
    role = "arn:aws:iam::123456789012:role/guard"
    more = {"aws_session_name": "tests", "aws_external_id": "outside"}
    check = await make(server.url, aws_role_name=role, aws_sts_endpoint=sts.url, **more)
    for _ in range(2):
        assert await verdicts(check, TEXT) == [ALLOW]
    (asked,) = sts.asked
    assert "Action=AssumeRole" in asked.body
    assert "RoleSessionName=tests" in asked.body
    assert "ExternalId=outside" in asked.body
    headers = {name.lower(): value for name, value in server.asked[1].headers.items()}
    assert "Credential=ASIAROLE/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "of-the-role"


async def test_a_profile(make: Make, served: Any, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[ours]\naws_access_key_id = AKIAOURS\naws_secret_access_key = s\n", "utf-8")
    (tmp_path / "config").write_text("[profile ours]\nregion = us-west-2\n", "utf-8")
    server = served(answer())
    login = {"aws_access_key_id": None, "aws_secret_access_key": None, "aws_region_name": None}
    await verdicts(await make(server.url, aws_profile_name="ours", **login), TEXT)
    authorization = server.asked[0].headers["Authorization"]
    assert "Credential=AKIAOURS/" in authorization
    assert "/us-west-2/bedrock/" in authorization


async def test_a_bearer_token_counts_where_the_config_has_no_login(
    make: Make, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_BEARER_TOKEN_BEDROCK", "from-the-environment")
    server = served(answer())
    await verdicts(await make(server.url), TEXT)
    assert server.asked[0].headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
    # botocore gives such a token to addresses with TLS only, which this server is not.
    check = await make(server.url, aws_access_key_id=None, aws_secret_access_key=None)
    await fails(check, "InvalidEndpointConfigurationError")
    assert len(server.asked) == 1


async def test_no_credentials(make: Make, served: Any) -> None:
    login = {"aws_access_key_id": None, "aws_secret_access_key": None}
    error = await fails(await make(served(answer()).url, **login), "NoCredentialsError")
    assert not error.unreachable
    with pytest.raises(SetupError, match="no AWS credentials"):
        await make("http://127.0.0.1:1", aws_role_name="arn:aws:iam::123456789012:role/guard", **login)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"aws_region_name": None}, "aws_region_name"),
        ({"aws_secret_access_key": None}, "only used together"),
        ({"aws_profile_name": "nobody"}, "ProfileNotFound"),
        ({"aws_bedrock_runtime_endpoint": "no address"}, "ValueError"),
    ],
)
async def test_wrong_settings(make: Make, settings: dict[str, Any], word: str) -> None:
    with pytest.raises(SetupError, match=word):
        await make(settings.pop("aws_bedrock_runtime_endpoint", "http://127.0.0.1:1"), **settings)


async def test_without_the_sdk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match="aws"):
        await make("http://127.0.0.1:1")


async def test_before_the_start() -> None:
    check = Bedrock(guardrail_identifier="abc123", guardrail_version="1", output_scope="FULL")
    await check.aclose()
    await fails(check, "not started")


def test_settings() -> None:
    assert find("guardrails", "bedrock", Guardrail) is Bedrock
    for wrong in ({}, {"guardrailVersion": "latest"}, {"guardrailVersion": "1", "strange": 1}, {"outputScope": "x"}):
        with pytest.raises(ValidationError):
            Bedrock(guardrailIdentifier="abc123", **wrong)
