"""Rules about tools: which apply, what arguments do, what a denial says; and calls of streams that are hard to read."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from tests.support.calls import a_call
from tests.support.tool_answers import rule
from tianji_mw.apis.tools import Tool
from tianji_mw.call import Call
from tianji_mw.errors import SetupError
from tianji_mw.guardrails.base import GuardrailFailed, Side, Verdict
from tianji_mw.guardrails.tool_permission import ToolPermission
from tianji_mw.guardrails.tools import instead
from tianji_mw.identity.base import Identity
from tianji_mw.runtime import Runtime


async def verdict(fields: Mapping[str, Any], tool: Tool, *, side: Side = "output", call: Call | None = None) -> Verdict:
    check = ToolPermission(**fields)
    await check.start(Runtime())
    (found,) = await check.judge_tools([tool], side, call or a_call())
    return found


async def reason(fields: Mapping[str, Any], tool: Tool, **more: Any) -> str:
    """Why it is denied; empty when it is not."""
    found = await verdict(fields, tool, **more)
    return str(found.detail["detection_message"]) if found.blocked else ""


# --- which rule


@pytest.mark.parametrize(
    ("fields", "name", "denied"),
    [
        ({}, "x", "Tool 'x' denied by default action"),
        ({"default_action": "Allow"}, "x", ""),
        ({"rules": [rule(tool_name="x")]}, "x", ""),
        ({"rules": [rule(tool_name="x")]}, "xy", "Tool 'xy' denied by default action"),
        ({"rules": [rule(tool_name="x.*")]}, "xy", ""),
        ({"rules": [rule("Deny", tool_name="x")], "default_action": "allow"}, "x", "Tool 'x' denied by rule 'r'"),
        ({"rules": [rule(tool_glob="x_*")]}, "x_1", ""),
        ({"rules": [rule(tool_glob=["a", "x_?"])]}, "x_12", "Tool 'x_12' denied by default action"),
        ({"rules": [rule(tool_name="x", tool_type="custom")]}, "x", "Tool 'x' denied by default action"),
        ({"rules": [rule(tool_type="func.*")]}, "x", ""),
        ({"rules": [rule("deny", tool_name="x"), {**rule(tool_name=".*"), "id": "s"}]}, "x",
         "Tool 'x' denied by rule 'r'"),
        ({"rules": [rule(tool_name=".*"), {**rule("deny", tool_name="x"), "id": "s"}]}, "x", ""),
        ({"rules": [rule("deny", tool_name="x")], "allowed_tools": ["*"]}, "y", ""),
        ({"rules": [rule("deny", tool_name="x")], "allowed_tools": ["*"]}, "x", "Tool 'x' denied by rule 'r'"),
        ({"rules": [rule(tool_name="x")]}, "x\n", "Tool 'x\n' denied by default action"),
    ],
)  # fmt: skip
async def test_the_first_rule_that_applies_decides(fields: dict[str, Any], name: str, denied: str) -> None:
    assert await reason(fields, Tool(name)) == denied


@pytest.mark.parametrize(
    ("identity", "passes"),
    [
        (None, False),
        (Identity(key_hash="h", alias="ops"), True),
        (Identity(key_hash="abc"), True),
        (Identity(key_hash="h", team="t"), True),
        (Identity(key_hash="h", alias="other", team="u"), False),
        (Identity(key_hash="h"), False),
    ],
)
async def test_rules_of_keys_and_teams(identity: Identity | None, passes: bool) -> None:
    rules = [rule(tool_name="x", keys=["ops", "abc"], teams="t")]
    assert (await reason({"rules": rules}, Tool("x"), call=a_call(identity=identity)) == "") is passes
    listed = {"allowed_tools": {"ops": ["x"], "t": ["x"], "abc": ["x"]}}
    assert (await reason(listed, Tool("x"), call=a_call(identity=identity)) == "") is passes


@pytest.mark.parametrize(
    ("metadata", "denied"),
    [
        ({}, False), ({"allowed_tools": ["x"]}, False), ({"allowed_tools": ["y"]}, True), ({"allowed_tools": []}, True),
        ({"allowed_tools": {"x": 1}}, True), ({"denied_tools": ["x*"]}, True), ({"denied_tools": ["y"]}, False),
        ({"denied_tools": "x"}, True), ({"denied_tools": 1}, True), ({"denied_tools": ["function"]}, True),
    ],
)  # fmt: skip
async def test_keys_and_requests_take_tools_away(metadata: dict[str, Any], denied: bool) -> None:
    fields = {"default_action": "allow"}
    call = a_call(identity=Identity(key_hash="h", metadata=metadata))
    assert await reason(fields, Tool("x"), call=call) == "Tool 'x' denied by the key's own permissions" * denied
    call = a_call(request={"guardrail_config": metadata})
    assert await reason(fields, Tool("x"), call=call) == "Tool 'x' denied by the request's own permissions" * denied


# --- arguments


MAIL = {"tool_name": "mail", "allowed_param_patterns": {"to[].at": ".*@x[.]org", "kind": "True|1|None|b"}}


@pytest.mark.parametrize(
    ("arguments", "denied"),
    [
        ('{"to": [{"at": "a@x.org"}], "kind": "b"}', ""),
        ('{"to": [{"at": "a@x.org"}, {"at": "b@x.org"}], "kind": 1, "more": {"a": [1]}}', ""),
        ('{"to": [{"at": "a@x.org"}], "kind": true}', ""),
        ('{"to": [{"at": "a@x.org"}], "kind": null}', ""),
        ('{"to": [{"at": "a@x.org"}], "kind": 2}', "The value for path 'kind' does not match the pattern of rule 'r'"),
        ('{"to": [{"at": "a@x.org"}], "kind": "z", "kind": "b"}',
         "The value for path 'kind' does not match the pattern of rule 'r'"),
        ('{"to": [{"at": "a@x.org"}, {"at": "evil"}], "kind": 1}',
         "The value for path 'to[].at' does not match the pattern of rule 'r'"),
        ('{"kind": "b"}', "Missing value for path 'to[].at' required by rule 'r'"),
        ('{"to": {"at": "a@x.org"}, "kind": 1}', "Missing value for path 'to[].at' required by rule 'r'"),
        ("{}", "Missing value for path 'to[].at' required by rule 'r'"),
        ("", "Tool 'mail' is missing arguments required by rule 'r'"),
        (None, "Tool 'mail' is missing arguments required by rule 'r'"),
        ("[]", "Tool 'mail' is missing arguments required by rule 'r'"),
        ('"x"', "Tool 'mail' is missing arguments required by rule 'r'"),
        ('{"to": ', "Tool 'mail' is missing arguments required by rule 'r'"),
        ("[" * 100_000, "Tool 'mail' is missing arguments required by rule 'r'"),
        ('{"kind": ' + "9" * 5000 + "}", "Tool 'mail' is missing arguments required by rule 'r'"),
    ],
)  # fmt: skip
async def test_patterns_of_arguments(arguments: str | None, denied: str) -> None:
    assert await reason({"rules": [rule(**MAIL)]}, Tool("mail", arguments=arguments)) == denied


async def test_a_rule_whose_patterns_do_not_match_gives_way_to_the_next() -> None:
    rules = [rule(**MAIL), {**rule("deny", tool_name="mail"), "id": "next"}]
    assert await reason({"rules": rules}, Tool("mail", arguments="{}")) == "Tool 'mail' denied by rule 'next'"
    allowed = {"rules": [rule(**MAIL)], "default_action": "allow"}
    assert await reason(allowed, Tool("mail", arguments="{}")) == ""
    assert await reason(allowed, Tool("mail", arguments="")) != ""  # no object: the rule denies it itself


async def test_offers_have_no_arguments() -> None:
    """What may be called with some arguments is offered; what may not with some others is not taken away."""
    assert await reason({"rules": [rule(**MAIL)]}, Tool("mail"), side="input") == ""
    denies = {"rules": [rule("deny", **MAIL)], "default_action": "allow"}
    assert await reason(denies, Tool("mail"), side="input") == ""
    good = '{"to": [{"at": "a@x.org"}], "kind": "b"}'
    assert await reason(denies, Tool("mail", arguments=good)) == "Tool 'mail' denied by rule 'r'"


async def test_hostile_arguments_take_linear_time() -> None:
    fields = {"rules": [rule(tool_name="x", allowed_param_patterns={"a": "(a+)+b"})]}
    arguments = orjson.dumps({"a": "a" * 50_000}).decode()
    began = time.perf_counter()
    assert await reason(fields, Tool("x", arguments=arguments)) != ""
    assert time.perf_counter() - began < 1


# --- what is said


async def test_what_a_denial_says() -> None:
    fields = {"violation_message_template": "{tool_name}/{rule_id}/{default_message}/{other}"}
    assert await reason(fields, Tool("{rule_id}")) == (
        "{rule_id}/default/Tool '{rule_id}' denied by default action/{other}"
    )
    fields["on_disallowed_action"] = "rewrite"
    found = await verdict({**fields, "rules": [rule("deny", tool_name="x")]}, Tool("x"))
    expected = "Permission denied: x/r/Tool 'x' denied by rule 'r'/{other} (Rule: r)"
    assert found == instead("tool_permission", expected)
    assert "y" * 129 not in await reason({}, Tool("y" * 500))
    assert await reason({}, Tool("", "web_search")) == "Tool 'web_search' denied by default action"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"rules": [rule()]}, "needs tool_name, tool_type or tool_glob"),
        ({"rules": [rule(tool_name="x"), rule(tool_name="y")]}, "two rules have the id 'r'"),
        ({"rules": [rule("maybe", tool_name="x")]}, "'allow' or 'deny'"),
        ({"rules": [rule(tool_name="x", tool_nmae="y")]}, "Extra inputs"),
        ({"on_disallowed_action": "drop"}, "'block' or 'rewrite'"),
        ({"allowed_tools": 7}, "dictionary"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        ToolPermission(**fields)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tool_name": "(?!x)y"}, r"the rule 'r' has a pattern that is not supported, tool_name: \(\?!x\)y"),
        ({"tool_type": r"(a)\1"}, "tool_type"),
        ({"tool_name": "x", "allowed_param_patterns": {"a.b": "("}}, r"allowed_param_patterns\[a.b\]: \("),
    ],
)
async def test_patterns_that_are_not_supported(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SetupError, match=told):
        await ToolPermission(rules=[rule(**fields)]).start(Runtime())


async def test_a_missing_package_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "re2", None)
    with pytest.raises(SetupError, match=r"pip install 'tianji-mw\[guardrails\]'"):
        await ToolPermission(rules=[rule(tool_name="x")]).start(Runtime())
    await ToolPermission(rules=[rule(tool_glob="x*")]).start(Runtime())  # names with `*` need no package


async def test_one_that_was_not_started_fails() -> None:
    with pytest.raises(GuardrailFailed):
        await ToolPermission().judge_tools([Tool("x")], "output", a_call())
