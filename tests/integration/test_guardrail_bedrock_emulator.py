"""Guardrails of Bedrock against an emulator that evaluates them: made with boto3, configured by YAML, seen over HTTP.

Nothing here scripts an answer: the emulator finds words, personal data and patterns by itself. Where it differs from
AWS, the model of the service in botocore is right, and the last test here names the difference: its ids of guardrails
hold a hyphen, it takes no ARN in a path, and it repeats the texts as outputs where nothing was done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
import orjson
import pytest
from botocore.config import Config
from botocore.model import ListShape, Shape, StringShape, StructureShape
from botocore.validate import ParamValidator

from tests.support.aws import forget_aws
from tests.support.echo import echo, said
from tests.support.processes import ROOT, free_port, server
from tests.support.stack import CHAT, STREAM, Ends, Serve
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.runs import Runs
from tianji_mw.testing import Driven, FakeLLM, drive

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ministack")]

PYTHON: Final = ROOT / ".tools" / "ministack" / "bin" / "python"
INSTALL: Final = "make emulators"
LOGIN: Final = {"aws_access_key_id": "AKIATEST", "aws_secret_access_key": "hidden-key", "region_name": "us-east-1"}
BLOCKED: Final = {"INPUT": "Not this question.", "OUTPUT": "Not this answer."}
POLICIES: Final[dict[str, Any]] = {
    "wordPolicyConfig": {"wordsConfig": [{"text": "bluebird"}]},
    "sensitiveInformationPolicyConfig": {
        "piiEntitiesConfig": [
            {"type": "EMAIL", "action": "ANONYMIZE"},
            {"type": "US_SOCIAL_SECURITY_NUMBER", "action": "BLOCK"},
        ],
        "regexesConfig": [
            {"name": "ticket", "pattern": "TICK-\\d+", "action": "ANONYMIZE"},
            {"name": "badge", "pattern": "BADGE-\\d+", "action": "BLOCK"},
        ],
    },
}
BLOCKS: Final = [
    ("where does the bluebird fly", "customWords", "wordPolicy"),
    ("my number is 123-45-6789 you know", "US_SOCIAL_SECURITY_NUMBER", "sensitiveInformationPolicy"),
    ("they wear BADGE-77 at work", "badge", "sensitiveInformationPolicy"),
    ("mail ada@example.com of BADGE-77", "badge", "sensitiveInformationPolicy"),  # a block goes before a mask
]
MASKS: Final = [
    ("mail ada@example.com please", "mail {EMAIL} please"),
    ("see TICK-4711 and TICK-12", "see {ticket} and {ticket}"),
    ("ada@example.com wrote TICK-1 ✓", "{EMAIL} wrote {ticket} ✓"),
]
CLEAN: Final = ["hello there", "bluebirds are not the word 🐦", "TICK- without a number"]
WAYS: Final = [(side, stream) for side in ("INPUT", "OUTPUT") for stream in (False, True)]


class Emulator:
    """The running emulator and a guardrail in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        options: Any = {"endpoint_url": url, "config": Config(retries={"total_max_attempts": 1}), **LOGIN}
        self.runtime = boto3.client("bedrock-runtime", **options)
        self.control = boto3.client("bedrock", **options)
        made = self.control.create_guardrail(
            name="all", blockedInputMessaging=BLOCKED["INPUT"], blockedOutputsMessaging=BLOCKED["OUTPUT"], **POLICIES
        )
        self.id: str = made["guardrailId"]
        self.arn: str = made["guardrailArn"]
        self.version: str = self.control.create_guardrail_version(guardrailIdentifier=self.id)["version"]

    def config(self, llm: str, side: str, **more: Any) -> str:
        params = {
            "guardrail": "bedrock", "mode": "pre_call" if side == "INPUT" else "post_call", "default_on": True,
            "guardrailIdentifier": self.id, "guardrailVersion": "DRAFT", "aws_region_name": "us-east-1",
            "aws_access_key_id": "AKIATEST", "aws_secret_access_key": "hidden-key",
            "aws_bedrock_runtime_endpoint": self.url, **more,
        }  # fmt: skip
        model = {"model": "openai/x", "api_base": f"{llm}/v1", "api_key": "k"}
        guardrails = [{"guardrail_name": "aws", "litellm_params": params}]
        return orjson.dumps(
            {"model_list": [{"model_name": "gpt-4o", "litellm_params": model}], "guardrails": guardrails}
        ).decode()


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    if not PYTHON.exists():
        pytest.fail(f"ministack is not installed; run: {INSTALL}")
    port = free_port()
    command = [str(PYTHON), "-m", "hypercorn", "ministack.app:app", "-b", f"127.0.0.1:{port}"]
    path = tmp_path_factory.mktemp("ministack")
    env = {"GATEWAY_PORT": str(port), "HOME": str(path), "TMPDIR": str(path)}
    with server(command, path, port=port, env=env, probe="/_ministack/health") as running:
        yield Emulator(running.url)


@pytest.fixture(autouse=True)
def machine_without_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_aws(monkeypatch, tmp_path)


class Gateway:
    """The gateway that a YAML file makes, before an upstream that repeats the question."""

    def __init__(self, app: Ends, llm: FakeLLM) -> None:
        self.app, self.llm = app, llm

    async def ask(self, text: str, *, stream: bool) -> Driven:
        self.llm.requests.clear()
        messages = [{"role": "user", "content": text}]
        return await drive(self.app, {**(STREAM if stream else CHAT), "messages": messages})

    def run(self) -> Any:
        (run,) = self.app.ends[-1].note(Runs).values()
        return run


@pytest.fixture
def gateway(aws: Emulator, llm: FakeLLM, serve: Serve) -> Any:
    llm._default = echo

    async def made(side: str, **more: Any) -> Gateway:
        text = aws.config(llm.url, side, **more)
        app = Ends(compose(loads(text, env={}), env={}).app, allow_order=True)
        await serve(app)
        return Gateway(app, llm)

    return made


@pytest.mark.parametrize(("side", "stream"), WAYS)
async def test_what_it_blocks_does_not_go_on(gateway: Any, side: str, stream: bool, aws: Emulator) -> None:
    made = await gateway(side)
    for text, category, policy in BLOCKS:
        driven = await made.ask(text, stream=stream)
        assert driven.status == 400
        told = driven.json["error"]["provider_specific_fields"]
        assert (told["category"], told["bedrock_guardrail_response"]) == (category, BLOCKED[side])
        assert (told["guardrail_name"], told["guardrailIdentifier"]) == ("aws", aws.id)
        assert [one["policy"] for one in told["assessments"]] == [policy]
        assert not any(word in driven.body for word in (b"bluebird fly", b"6789", b"BADGE-", b"ada@"))
        assert bool(made.llm.requests) is (side == "OUTPUT")
        assert (made.run().status, made.run().category) == ("guardrail_intervened", category)


@pytest.mark.parametrize(("side", "stream"), WAYS)
async def test_what_it_makes_anonymous_goes_on_so(gateway: Any, side: str, stream: bool) -> None:
    made = await gateway(side)
    for text, masked in MASKS:
        driven = await made.ask(text, stream=stream)
        assert (driven.status, said(driven)) == (200, masked)
        sent = made.llm.requests[0].json["messages"][0]["content"]
        assert sent == (masked if side == "INPUT" else text)
        assert (made.run().status, made.run().masked) == ("guardrail_intervened", {"ANONYMIZED": 1})


@pytest.mark.parametrize(("side", "stream"), WAYS)
async def test_clean_texts_go_on_as_they_are(gateway: Any, side: str, stream: bool) -> None:
    made = await gateway(side)
    for text in CLEAN:
        driven = await made.ask(text, stream=stream)
        assert driven.body == b"".join(echo(made.llm.requests[0]).parts)
        assert made.llm.requests[0].json["messages"][0]["content"] == text
        assert (made.run().status, made.run().asked, made.run().failed) == ("success", 1, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_of_several_messages_those_that_changed_are_replaced(gateway: Any, stream: bool) -> None:
    made = await gateway("INPUT")
    texts = ["be kind", "ada@example.com", "hello", "and TICK-9"]
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
    driven = await drive(made.app, {**(STREAM if stream else CHAT), "messages": messages})
    sent = [one["content"] for one in made.llm.requests[0].json["messages"]]
    assert sent == ["be kind", "{EMAIL}", "hello", "and {ticket}"]
    assert said(driven) == "and {ticket}"


async def test_a_version_is_the_guardrail_as_it_was(gateway: Any, aws: Emulator) -> None:
    made = await gateway("INPUT", guardrailVersion=aws.version)
    assert (await made.ask("the bluebird", stream=False)).status == 400
    assert said(await made.ask("mail ada@example.com", stream=False)) == "mail {EMAIL}"


@pytest.mark.parametrize(("side", "stream"), WAYS)
async def test_a_guardrail_that_is_not_there_fails(gateway: Any, side: str, stream: bool) -> None:
    """404 is an answer: `unreachable_fallback` does not let such calls pass."""
    for more in ({"guardrailIdentifier": "nobody"}, {"guardrailVersion": "99"}):
        made = await gateway(side, unreachable_fallback="fail_open", **more)
        driven = await made.ask("hello there", stream=stream)
        assert (driven.status, said(driven)) == (503, "")
        assert driven.json["error"]["code"] == "guardrail_unavailable"
        assert made.run().status == "guardrail_failed_to_respond"
        assert bool(made.llm.requests) is (side == "OUTPUT")


def foreign(value: Any, shape: Shape, at: str = "answer") -> Iterator[str]:
    """Values of lists and objects that the model does not know: fields, and members of enumerations."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        for name, item in value.items():
            if name in shape.members:
                yield from foreign(item, shape.members[name], f"{at}.{name}")
            else:
                yield f"{at}.{name}"
    elif isinstance(shape, ListShape) and isinstance(value, list):
        for item in value:
            yield from foreign(item, shape.member, at)
    elif isinstance(shape, StringShape) and shape.enum and value not in shape.enum:
        yield f"{at}={value}"


@pytest.mark.parametrize("source", ["INPUT", "OUTPUT"])
@pytest.mark.parametrize("text", [BLOCKS[0][0], BLOCKS[1][0], BLOCKS[2][0], *(text for text, _ in MASKS), *CLEAN])
def test_its_answers_are_what_the_model_of_aws_says(aws: Emulator, text: str, source: Any) -> None:
    raw: list[bytes] = []

    def keep(response_dict: Any, **_: Any) -> None:
        raw.append(response_dict["body"])

    aws.runtime.meta.events.register("before-parse.bedrock-runtime.ApplyGuardrail", keep)
    try:
        aws.runtime.apply_guardrail(
            guardrailIdentifier=aws.id, guardrailVersion="DRAFT", source=source, content=[{"text": {"text": text}}]
        )
    finally:
        aws.runtime.meta.events.unregister("before-parse.bedrock-runtime.ApplyGuardrail", keep)
    answer = orjson.loads(raw[0])
    shape = aws.runtime.meta.service_model.operation_model("ApplyGuardrail").output_shape
    # AWS writes both lists of a policy; the emulator leaves those out in which nothing was found.
    missing = ParamValidator().validate(answer, shape).generate_report().splitlines()
    lists = ('"managedWordLists"', '"piiEntities"', '"regexes"')
    assert [line for line in missing if not line.startswith("Missing required") or not line.endswith(lists)] == []
    assert list(foreign(answer, shape)) == []


async def test_where_it_differs_from_aws(gateway: Any, aws: Emulator) -> None:
    """A difference that is gone has to leave this test. ARNs are tested against a scripted server for this reason."""
    operation = aws.runtime.meta.service_model.operation_model("ApplyGuardrail")
    pattern = operation.input_shape.members["guardrailIdentifier"].metadata["pattern"]
    assert re.fullmatch(pattern, "abc123")
    assert re.fullmatch(pattern, "arn:aws:bedrock:eu-west-1:123456789012:guardrail/abc123")
    assert not re.fullmatch(pattern, aws.id)
    answer = aws.runtime.apply_guardrail(
        guardrailIdentifier=aws.id, guardrailVersion="DRAFT", source="INPUT", content=[{"text": {"text": "hello"}}]
    )
    assert (answer["action"], [one["text"] for one in answer["outputs"]]) == ("NONE", ["hello"])
    made = await gateway("INPUT", guardrailIdentifier=aws.arn)
    assert (await made.ask("hello", stream=False)).status == 503
