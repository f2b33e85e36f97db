"""The JSON schema guardrail: what fits, what does not, and that no verdict tells a part of the answer."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.stack import ANSWER, CHAT, STREAM, gateway, stream_of
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Said, Verdict
from tianji_mw.guardrails.json_schema import JsonSchema
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.plugins import find
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply, drive

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["city"],
    "properties": {
        "city": {"type": "string", "maxLength": 10},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}},
    },
    "additionalProperties": {"type": "integer"},
    "$defs": {"day": {"type": "number", "minimum": 0}},
}


CALL: Any = None


async def started(schema: dict[str, Any] = SCHEMA, **options: Any) -> JsonSchema:
    check = JsonSchema(schema=schema, **options)
    await check.start(Runtime())
    return check


async def verdict(text: str, check: JsonSchema | None = None) -> Verdict:
    (found,) = await (check or await started()).judge([Said(text, "assistant")], "output", CALL)
    return found


@pytest.mark.parametrize(
    "text",
    [
        '{"city": "Bern"}',
        ' {"city": "Bern", "days": [1, 2.5], "n": 3}\n',
        '```json\n{"city": "Bern"}\n```',
        '\n```\n{"city": "Bern"}```\n',
        '```JSON\r\n{"city": "Bern"}\r\n```',
    ],
)
async def test_what_fits(text: str) -> None:
    assert await verdict(text) is ALLOW


@pytest.mark.parametrize(
    ("text", "path", "rule"),
    [
        ("{}", "$", "required"),
        ("[]", "$", "type"),
        ('{"city": 5}', "$.city", "type"),
        ('{"city": "secret-value"}', "$.city", "maxLength"),
        ('{"city": "Bern", "days": [1, -2]}', "$.days[1]", "minimum"),
        ('{"city": "Bern", "secret-name": "x"}', "$.*", "type"),
        ("secret text", "$", "json"),
        ("", "$", "json"),
        ('{"city": "Bern"', "$", "json"),
        ('{"city": NaN}', "$", "json"),
        ('{"city": "Bern"}{"city": "Bern"}', "$", "json"),
        ('Here it is:\n```json\n{"city": "Bern"}\n```', "$", "json"),
        ('```python\n{"city": "Bern"}\n```', "$", "json"),
        ("\ud800", "$", "json"),
        ("[" * 5000, "$", "json"),
    ],
)
async def test_what_does_not_fit(text: str, path: str, rule: str) -> None:
    found = await verdict(text)
    assert found.blocked
    assert found.category == "json_schema"
    assert (found.detail["path"], found.detail["rule"]) == (path, rule)
    assert "secret" not in str(found)


async def test_fences_can_be_refused() -> None:
    check = await started(strip_fences=False)
    assert (await verdict('```json\n{"city": "Bern"}\n```', check)).blocked
    assert await verdict('{"city": "Bern"}', check) is ALLOW


async def test_pieces_pass_with_the_text_that_they_are_of() -> None:
    whole = '{"city": "stop"}'
    found = await (await started()).judge([Said(whole), Said("stop"), Said("other")], "output", CALL)
    assert [one.blocked for one in found] == [False, False, True]


@pytest.mark.parametrize(("pieces", "passes"), [(['{"ci', 'ty": ', '"Bern"}'], True), (['{"ci', 'ty": 5}'], False)])
@pytest.mark.parametrize("stream", [False, True])
async def test_in_a_stack(llm: FakeLLM, serve: Any, pieces: list[str], passes: bool, stream: bool) -> None:
    app = await serve(Guardrails(gateway(llm.url), checks=[JsonSchema(schema=SCHEMA)]))
    if stream:
        llm.replies.append(Reply.events(*stream_of(*pieces)))
    else:
        message = {"role": "assistant", "content": "".join(pieces)}
        llm.replies.append(Reply.json({**ANSWER, "choices": [{**ANSWER["choices"][0], "message": message}]}))
    driven = await drive(app, STREAM if stream else CHAT)
    assert driven.status == (200 if passes else 400)
    assert (b"content_policy_violation" in driven.body) is not passes
    assert (b"ty" + bytes([92]) + b'":' in driven.body) is passes


async def test_another_draft() -> None:
    schema = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert (await verdict("3", await started(schema))).blocked
    assert await verdict("4", await started(schema)) is ALLOW


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"properties": {"a": {"type": "strange"}}}, ("$.properties.a.type",)),
        ({"minLength": -1}, ("$.minLength", "minimum")),
        ({"items": {"$ref": "http://127.0.0.1:1/x.json"}}, ("$.items.$ref", "out of the schema")),
    ],
)
async def test_schemas_that_are_no_use(schema: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(SetupError) as caught:
        await started(schema)
    for word in words:
        assert word in caught.value.message


async def test_a_reference_to_nothing_is_a_failure() -> None:
    with pytest.raises(GuardrailFailed, match="points to nothing"):
        await verdict("1", await started({"$ref": "#/$defs/none"}))


async def test_an_answer_that_is_nested_too_deep() -> None:
    check = await started({"type": "array", "items": {"$ref": "#"}})
    with pytest.raises(GuardrailFailed, match="too deep"):
        await verdict("[" * 900 + "]" * 900, check)


async def test_before_the_start_and_after_the_end() -> None:
    check = JsonSchema(schema=SCHEMA)
    with pytest.raises(GuardrailFailed, match="not started"):
        await verdict("{}", check)
    await check.start(Runtime())
    await check.aclose()
    with pytest.raises(GuardrailFailed, match="not started"):
        await verdict("{}", check)


async def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtra, match="json-schema"):
        await started()


def test_settings() -> None:
    assert find("guardrails", "json_schema", Guardrail) is JsonSchema
    check = JsonSchema(schema_=SCHEMA)
    assert check.runs_on("output")
    assert not JsonSchema(schema=SCHEMA, mode=("pre_call",)).runs_on("input")
    with pytest.raises(ValidationError):
        JsonSchema()
    with pytest.raises(ValidationError):
        JsonSchema(schema=SCHEMA, other=1)
