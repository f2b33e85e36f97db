"""`tool_permission` from a YAML file, through HTTP: tools of requests, calls of answers, plain and streamed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from tests.support.apps import SSEApp
from tests.support.stack import ANSWER, DONE, Ends, Serve, delta
from tests.support.tool_answers import (
    APIS,
    CALLED,
    FINISHED,
    Call,
    ask,
    chat_answer,
    cut,
    function,
    reply,
    sdk_reads,
    spoken,
    stream,
)
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.tool_permission import ToolPermission
from tianji_mw.runs import Runs
from tianji_mw.testing import FakeLLM, Reply, started

SECRET = "rm-everything-now"
RULES: list[dict[str, Any]] = [
    {"id": "mail", "tool_name": "send_mail", "decision": "allow",
     "allowed_param_patterns": {"to[]": ".*@example[.]com"}},
    {"id": "reads", "tool_name": "read_.*", "decision": "allow"},
    {"id": "search", "tool_type": "web_search.*", "decision": "allow"},
    {"id": "no-shell", "tool_name": "shell", "decision": "deny"},
]  # fmt: skip
GOOD = ("read_file", '{"path": "notes/a.txt"}')
BAD = ("shell", orjson.dumps({"command": SECRET}).decode())
DENIED = "Tool 'shell' denied by rule 'no-shell'"
SAID = f"Permission denied: {DENIED} (Rule: no-shell)"


def config(url: str, keys: Sequence[dict[str, Any]] = (), **params: Any) -> str:
    tools = {"guardrail": "tool_permission", "mode": ["pre_call", "post_call"], "default_on": True, "rules": RULES}
    upstreams = [("gpt-4o", "openai/x", f"{url}/v1"), ("claude", "anthropic/claude-sonnet-4-5", url)]
    text = {
        "model_list": [
            {"model_name": name, "litellm_params": {"model": model, "api_base": base, "api_key": "k"}}
            for name, model, base in upstreams
        ],
        "guardrails": [{"guardrail_name": "tools", "litellm_params": {**tools, **params}}],
        **({"virtual_keys": list(keys)} if keys else {}),
    }
    return orjson.dumps(text).decode()


async def served(serve: Serve, text: str) -> Ends:
    layer = Ends(compose(loads(text, env={}), env={}).app, allow_order=True)
    await serve(layer)
    return layer


def guarded(api: str, action: str, events: Sequence[bytes]) -> Any:
    check = ToolPermission(rules=RULES, on_disallowed_action=action)
    return Guardrails(SSEApp(events), checks=[Entry(check=check, name="tools")])


# --- requests


async def test_a_denied_tool_of_a_request_is_refused_as_litellm_refuses_it(llm: FakeLLM, serve: Serve) -> None:
    app = await served(serve, config(llm.url))
    driven = await ask(app, "chat_completions", tools=[function("read_file"), function("shell")])
    assert driven.status == 400
    fields = driven.json["error"]["provider_specific_fields"]
    assert fields["error"] == "Violated guardrail policy"
    assert fields["detection_message"] == DENIED
    assert (fields["guardrail_name"], fields["guardrail_mode"]) == ("tools", "pre_call")
    assert llm.requests == []
    run = app.ends[-1].note(Runs)["tools", "input"]
    assert (run.status, run.category) == ("guardrail_intervened", "tool_permission")


OFFERS: list[tuple[str, dict[str, Any], str]] = [
    ("chat_completions", {"functions": [{"name": "shell"}]}, "shell"),
    ("chat_completions", {"tools": [{"type": "custom", "custom": {"name": "shell"}}]}, "shell"),
    ("chat_completions", {"tools": ["odd"]}, "function"),
    ("chat_completions", {"tool_choice": {"type": "function", "function": {"name": "shell"}}}, "shell"),
    ("chat_completions", {"function_call": {"name": "shell"}}, "shell"),
    (
        "chat_completions",
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [function("shell")]}}},
        "shell",
    ),
    ("messages", {"tools": [{"name": "shell", "input_schema": {"type": "object"}}]}, "shell"),
    ("messages", {"tools": [{"type": "bash_20250124", "name": "bash"}]}, "bash"),
    ("messages", {"mcp_servers": [{"type": "url", "url": "https://x", "name": "jira"}]}, "jira"),
    ("messages", {"tool_choice": {"type": "tool", "name": "shell"}}, "shell"),
    ("responses", {"tools": [{"type": "function", "name": "shell"}]}, "shell"),
    ("responses", {"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "code_interpreter"),
    ("responses", {"tools": [{"type": "mcp", "server_label": "jira", "server_url": "https://x"}]}, "jira"),
    ("responses", {"tool_choice": {"type": "function", "name": "shell"}}, "shell"),
]


@pytest.mark.parametrize(("api", "more", "name"), OFFERS)
async def test_every_way_to_offer_a_tool_is_judged(
    llm: FakeLLM, serve: Serve, api: str, more: dict[str, Any], name: str
) -> None:
    driven = await ask(await served(serve, config(llm.url)), api, **more)
    assert driven.status == 400
    assert llm.requests == []
    if api != "messages":
        assert f"'{name}'" in driven.json["error"]["provider_specific_fields"]["detection_message"]


@pytest.mark.parametrize(
    ("api", "more"),
    [
        ("chat_completions", {"tools": [function("read_file"), function("send_mail")], "tool_choice": "auto"}),
        ("chat_completions", {"web_search_options": {}}),
        (
            "messages",
            {"tools": [{"type": "web_search_20250305", "name": "web_search"}], "tool_choice": {"type": "any"}},
        ),
        ("responses", {"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}),
    ],
)
async def test_allowed_tools_go_on_untouched(llm: FakeLLM, serve: Serve, api: str, more: dict[str, Any]) -> None:
    llm.replies.append(reply(api))
    assert (await ask(await served(serve, config(llm.url)), api, **more)).status == 200
    assert {name: llm.requests[0].json[name] for name in more} == more


async def test_the_history_is_not_judged(llm: FakeLLM, serve: Serve) -> None:
    llm.replies.append(reply("chat_completions", content="ok"))
    past = chat_answer(BAD)["choices"][0]["message"]
    messages = [{"role": "user", "content": "hi"}, past, {"role": "tool", "tool_call_id": "call_0", "content": "x"}]
    assert (await ask(await served(serve, config(llm.url)), "chat_completions", messages=messages)).status == 200


REWRITTEN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "chat_completions",
        {
            "tools": [function("shell"), function("read_file"), function("other")],
            "tool_choice": {"type": "function", "function": {"name": "shell"}},
        },
        {"tools": [function("read_file")], "tool_choice": "none"},
    ),
    ("chat_completions", {"tools": [function("shell")], "tool_choice": "required", "parallel_tool_calls": True}, {}),
    (
        "chat_completions",
        {"functions": [{"name": "shell"}, {"name": "read_a"}], "function_call": {"name": "shell"}},
        {"functions": [{"name": "read_a"}], "function_call": "none"},
    ),
    (
        "messages",
        {
            "tools": [{"name": "read_a", "input_schema": {}}, {"name": "shell", "input_schema": {}}],
            "tool_choice": {"type": "tool", "name": "shell"},
        },
        {"tools": [{"name": "read_a", "input_schema": {}}], "tool_choice": {"type": "none"}},
    ),
    (
        "responses",
        {
            "tools": [{"type": "function", "name": "read_a"}, {"type": "code_interpreter"}],
            "tool_choice": {
                "type": "allowed_tools", "mode": "auto",
                "tools": [{"type": "code_interpreter"}, {"type": "function", "name": "read_a"}],
            },
        },
        {
            "tools": [{"type": "function", "name": "read_a"}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "read_a"}]},
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("api", "given_", "sent"), REWRITTEN)
async def test_denied_tools_are_taken_out_of_the_request(
    llm: FakeLLM, serve: Serve, api: str, given_: dict[str, Any], sent: dict[str, Any]
) -> None:
    llm.replies.append(reply(api, content="ok"))
    app = await served(serve, config(llm.url, on_disallowed_action="rewrite"))
    assert (await ask(app, api, **given_)).status == 200
    names = ("tools", "tool_choice", "functions", "function_call", "parallel_tool_calls")
    assert {name: llm.requests[0].json[name] for name in names if name in llm.requests[0].json} == sent
    assert app.ends[-1].note(Runs)["tools", "input"].masked["tool_permission"] >= 1


# --- answers


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("content", [None, "Let me look."])
async def test_a_denied_call_ends_the_answer(
    llm: FakeLLM, serve: Serve, api: str, streamed: bool, content: str | None
) -> None:
    app = await served(serve, config(llm.url))
    llm.replies.append(reply(api, GOOD, BAD, streamed=streamed, content=content))
    driven = await ask(app, api, streamed=streamed)
    assert SECRET not in driven.body.decode()
    # A stream that has begun ends with the API's error event.
    assert driven.status == 400 or (streamed and driven.status == 200)
    assert b'"error"' in driven.body
    if api != "messages":
        assert DENIED in driven.body.decode()
    assert app.ends[-1].outcome == "blocked"


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("content", [None, "Let me look."])
@pytest.mark.parametrize("calls", [(BAD,), (GOOD, BAD), (BAD, GOOD), (BAD, GOOD, BAD, GOOD), (GOOD,)])
async def test_a_denied_call_is_taken_out_and_the_rest_stays(
    llm: FakeLLM, serve: Serve, api: str, streamed: bool, content: str | None, calls: tuple[Call, ...]
) -> None:
    app = await served(serve, config(llm.url, on_disallowed_action="rewrite"))
    llm.replies.append(reply(api, *calls, streamed=streamed, content=content))
    driven = await ask(app, api, streamed=streamed)
    assert driven.status == 200
    assert SECRET not in driven.body.decode()
    text, called, end = spoken(api, sdk_reads(api, driven.body) if streamed else driven.json)
    good = [(name, orjson.loads(arguments)) for name, arguments in calls if name == GOOD[0]]
    assert called == good
    assert text.count(SAID) == calls.count(BAD)
    assert text.startswith(content or "")
    assert end == (CALLED if good else FINISHED)[api]
    if BAD not in calls and streamed:
        assert driven.body == b"".join(stream(api, *calls, content=content, cuts=(3, 9)))
    run = app.ends[-1].note(Runs)["tools", "output"]
    assert run.masked == ({"tool_permission": calls.count(BAD)} if BAD in calls else {})
    assert run.unscanned == ""


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("action", ["block", "rewrite"])
async def test_the_older_function_call(llm: FakeLLM, serve: Serve, streamed: bool, action: str) -> None:
    app = await served(serve, config(llm.url, on_disallowed_action=action))
    called = {"name": "shell", "arguments": BAD[1]}
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "function_call": called}}
    plain = Reply.json({**ANSWER, "choices": [{**choice, "finish_reason": "function_call"}]})
    pieces = [delta(function_call={"name": "shell", "arguments": ""}, role="assistant")]
    pieces += [delta(function_call={"arguments": piece}) for piece in cut(BAD[1], (4, 15))]
    llm.replies.append(Reply.events(*pieces, delta(finish="function_call"), DONE) if streamed else plain)
    driven = await ask(app, "chat_completions", streamed=streamed)
    assert SECRET not in driven.body.decode()
    assert driven.status == (400 if action == "block" else 200)
    if action == "rewrite":
        data = sdk_reads("chat_completions", driven.body) if streamed else driven.json
        assert spoken("chat_completions", data) == (SAID, [], "stop")


@pytest.mark.parametrize("api", APIS)
async def test_text_flows_while_no_call_has_begun(api: str) -> None:
    """What stands before a call has left before the call is complete."""
    events = stream(api, BAD, content="first words", cuts=(3,))
    async with started(guarded(api, "block", events)) as app:
        driven = await ask(app, api, streamed=True)
    assert driven.status == 200
    assert b"first words" in driven.body
    assert SECRET.encode() not in driven.body
    assert b"tool_permission" in driven.body


@pytest.mark.parametrize("api", APIS)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ('{"to": ["a@example.com", "b@example.com"]}', 200),
        ('{"to": ["a@example.com", "b@evil.com"]}', 400),
        ('{"to": "a@example.com"}', 400),
        ('{"to": []}', 400),
        ("{}", 400),
        ('{"to": ["a@example.com.evil.com"]}', 400),
    ],
)
async def test_arguments_are_judged(
    llm: FakeLLM, serve: Serve, api: str, streamed: bool, arguments: str, status: int
) -> None:
    app = await served(serve, config(llm.url))
    llm.replies.append(reply(api, ("send_mail", arguments), streamed=streamed))
    driven = await ask(app, api, streamed=streamed)
    assert driven.status == status or (streamed and b'"error"' in driven.body)
    assert b"evil" not in driven.body
    assert app.ends[-1].outcome == ("ok" if status == 200 else "blocked")


# --- who may


KEYS = [
    {"key": "sk-ops", "alias": "ops"},
    {"key": "sk-team", "alias": "x", "team": "admins"},
    {"key": "sk-plain", "alias": "plain"},
    {"key": "sk-less", "alias": "ops-less", "team": "admins", "metadata": {"allowed_tools": ["read_*"]}},
    {"key": "sk-not", "alias": "not", "team": "admins", "metadata": {"denied_tools": ["sh*"]}},
]


@pytest.mark.parametrize(
    ("key", "passes"),
    [("sk-ops", True), ("sk-team", True), ("sk-plain", False), ("sk-less", False), ("sk-not", False)],
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_permissions_are_per_key_and_team(
    llm: FakeLLM, serve: Serve, key: str, passes: bool, streamed: bool
) -> None:
    rules = [{"id": "ops", "tool_name": "shell", "decision": "allow", "keys": ["ops"], "teams": ["admins"]}, *RULES]
    app = await served(serve, config(llm.url, KEYS, rules=rules))
    llm.replies.append(reply("chat_completions", BAD, streamed=streamed))
    asked = await ask(app, "chat_completions", streamed=streamed, key=key, tools=[function("shell")])
    assert (asked.status == 200) is passes
    if not passes:
        assert (await ask(app, "chat_completions", key=key, streamed=streamed)).status == 400
    assert [tool for request in llm.requests for tool in request.json.get("tools", ())] == [function("shell")] * passes


@pytest.mark.parametrize(
    ("asked", "status"),
    [(["read_*"], 200), (["read_b"], 400), (["shell", "read_file"], 200), ([], 400), ("read_file", 200), (7, 400)],
)
async def test_a_request_can_narrow_and_never_widen(llm: FakeLLM, serve: Serve, asked: Any, status: int) -> None:
    app = await served(serve, config(llm.url))
    llm.replies += [reply("chat_completions", GOOD), reply("chat_completions", BAD)]
    own = {"guardrail_config": {"allowed_tools": asked}}
    assert (await ask(app, "chat_completions", **own)).status == status
    assert (await ask(app, "chat_completions", **own)).status == 400
    assert all(b"guardrail_config" not in request.body for request in llm.requests)


@pytest.mark.parametrize("listed", [["read_*", "look"], {"*": ["read_*", "look"]}])
async def test_the_go_ports_list(llm: FakeLLM, serve: Serve, listed: Any) -> None:
    app = await served(serve, config(llm.url, rules=[], allowed_tools=listed))
    llm.replies += [reply("chat_completions", GOOD), reply("chat_completions", BAD)]
    assert (await ask(app, "chat_completions")).status == 200
    assert (await ask(app, "chat_completions")).status == 400


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_dry_run_changes_nothing_and_holds_nothing_back(llm: FakeLLM, serve: Serve, streamed: bool) -> None:
    app = await served(serve, config(llm.url, dry_run=True))
    llm.replies.append(reply("chat_completions", BAD, streamed=streamed))
    driven = await ask(app, "chat_completions", streamed=streamed, tools=[function("shell")])
    assert driven.status == 200
    sent = b"".join(stream("chat_completions", BAD, cuts=(3, 9))) if streamed else orjson.dumps(chat_answer(BAD))
    assert driven.body == sent
    runs = app.ends[-1].note(Runs)
    for side in ("input", "output"):
        run = runs["tools", side]  # type: ignore[index]
        assert (run.status, run.dry_run, run.category) == ("guardrail_intervened", True, "tool_permission")


async def test_patterns_that_do_not_take_linear_time_stop_the_start(llm: FakeLLM, serve: Serve) -> None:
    rules = [{"id": "odd", "tool_name": "(?=a)b", "decision": "allow"}]
    with pytest.raises(Exception, match=r"the rule 'odd' has a pattern .* tool_name: \(\?=a\)b"):
        await served(serve, config(llm.url, rules=rules))
