"""Guardrails of tools: streams that are hard to read, failures, releases, and the checks of texts beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import orjson
import pytest

from tests.support.apps import SSEApp, json_app
from tests.support.stack import ANSWER, CHAT, DONE, STREAM, Ends, delta
from tests.support.tool_answers import rule
from tianji_mw.apis import by_name
from tianji_mw.apis.tools import Tool
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Side, Subject, Verdict, block
from tianji_mw.guardrails.entry import Entry
from tianji_mw.guardrails.middleware import Guardrails
from tianji_mw.guardrails.tool_permission import ToolPermission
from tianji_mw.runs import Runs
from tianji_mw.testing import Driven, drive, started


def guarded(events: Sequence[bytes], *checks: Any) -> Guardrails:
    return Guardrails(SSEApp(events), checks=checks)


async def streamed(events: Sequence[bytes], *, action: str = "block", **request: Any) -> Driven:
    rules = [rule("deny", tool_name="shell", **request.pop("rule", {}))]
    check = ToolPermission(rules=rules, default_action="allow", on_disallowed_action=action)
    path = request.pop("path", "/v1/chat/completions")
    async with started(guarded(events, Entry(check=check, name="tools", release=request.pop("release", None)))) as app:
        return await drive(app, {**STREAM, **request}, path=path)


def called(name: str, arguments: str, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


END = [delta(finish="tool_calls"), DONE]


@pytest.mark.parametrize(
    "parts",
    [
        [[called("read", "{}", index=0, id="a")], [called("shell", '{"secret": 1}', index=0, id="b")]],
        [[called("read", "{}", id="a")], [called("shell", '{"secret": 1}', id="b")]],
        [[called("read", "{}", id="a"), called("shell", '{"secret": 1}', id="b")]],
        [[called("she", "", index=0, id="a")], [called("ll", '{"secret": 1}', index=0)]],
        [[called("shell", '{"sec', index=0, id="a")], [called("shell", 'ret": 1}', index=0, id="a")]],
        [[called("shell", '{"sec', index=1, id="a")], [called("read", "{}", index=0, id="b")],
         [{"index": 1, "function": {"arguments": 'ret": 1}'}}]],
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", [END, [DONE]])
async def test_chat_calls_of_servers_with_other_habits(parts: list[list[dict[str, Any]]], end: list[bytes]) -> None:
    events = [delta(tool_calls=calls) for calls in parts]
    driven = await streamed([*events, *end])
    assert b"secret" not in driven.body
    assert driven.status == 400
    rewritten = await streamed([*events, *end], action="rewrite")
    assert b"secret" not in rewritten.body
    assert b"sec" not in rewritten.body
    assert rewritten.body.count(b"Permission denied") == 1


async def test_choices_are_judged_and_rewritten_each_for_itself() -> None:
    def piece(choice: int, name: str, **more: Any) -> bytes:
        one = {"index": choice, "delta": {"tool_calls": [called(name, "{}", index=0, id=name)]}, "finish_reason": None}
        return b"data: %b\n\n" % orjson.dumps({"id": "c", "choices": [{**one, **more}]})

    ends = [piece(at, "x", delta={}, finish_reason="tool_calls") for at in (0, 1)]
    driven = await streamed([piece(0, "shell"), piece(1, "read"), *ends, DONE], action="rewrite", n=2)
    events = [orjson.loads(line[6:]) for line in driven.body.split(b"\n") if line.startswith(b"data: {")]
    ended = {e["choices"][0]["index"]: e["choices"][0]["finish_reason"] for e in events}
    assert ended == {0: "stop", 1: "tool_calls"}
    assert [e["choices"][0]["index"] for e in events if e["choices"][0]["delta"].get("tool_calls")] == [1]


def named(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))


async def test_results_of_a_call_that_the_provider_ran_go_with_it() -> None:
    usage = {"input_tokens": 1, "output_tokens": 1}
    use = {"type": "mcp_tool_use", "id": "m1", "name": "shell", "server_name": "s", "input": {}}
    result = {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": False,
              "content": [{"type": "text", "text": "secret"}]}  # fmt: skip
    text = {"type": "text", "text": "Done."}
    head = {"id": "m", "type": "message", "role": "assistant", "model": "c", "stop_sequence": None, "usage": usage}
    answer = {**head, "content": [use, result, text], "stop_reason": "end_turn"}
    request = {"path": "/v1/messages", "action": "rewrite"}
    driven = await streamed(by_name("messages").split(answer), **request)
    assert b"secret" not in driven.body
    assert b"Done." in driven.body
    assert driven.body.count(b"Permission denied") == 2
    check = ToolPermission(rules=[rule("deny", tool_name="shell")], on_disallowed_action="rewrite")
    async with started(Guardrails(json_app(answer), checks=[check])) as app:
        plain = await drive(app, CHAT, path="/v1/messages")
    assert [block["type"] for block in plain.json["content"]] == ["text", "text", "text"]
    assert plain.json["content"][2] == text
    assert b"secret" not in plain.body


def response_events(*arguments: str) -> list[bytes]:
    """A call whose events say its arguments each in another way: pieces, whole, in the item, and in the response."""
    piece, whole, in_item, in_response = arguments
    item = {"id": "f", "type": "function_call", "call_id": "c", "name": "shell", "arguments": ""}
    at = {"output_index": 0, "item_id": "f"}
    return [
        named("response.output_item.added", output_index=0, item=item),
        named("response.function_call_arguments.delta", **at, delta=piece),
        named("response.function_call_arguments.done", **at, arguments=whole),
        named("response.output_item.done", output_index=0, item={**item, "arguments": in_item}),
        named("response.completed", response={"output": [{**item, "arguments": in_response}]}),
    ]


@pytest.mark.parametrize("at", range(4))
async def test_every_repetition_of_a_call_is_judged(at: int) -> None:
    arguments = ['{"a": "good"}'] * 4
    rules = {"allowed_param_patterns": {"a": "secret"}}
    request = {"path": "/v1/responses", "input": "x", "rule": rules}
    assert (await streamed(response_events(*arguments), **request)).status == 200
    arguments[at] = '{"a": "secret"}'
    driven = await streamed(response_events(*arguments), **request)
    assert b"secret" not in driven.body
    assert b"content_policy_violation" in driven.body
    rewritten = await streamed(response_events(*arguments), action="rewrite", **request)
    assert b"secret" not in rewritten.body


@pytest.mark.parametrize("kind", ["code_interpreter_call", "local_shell_call", "something_new_call"])
async def test_tools_of_the_provider_are_judged_by_type(kind: str) -> None:
    item = {"id": "x", "type": kind, "action": {"command": ["secret"]}, "code": "secret"}
    answer = {"id": "r", "object": "response", "status": "completed", "output": [item]}
    check = ToolPermission(rules=[rule("deny", tool_type=kind.removesuffix("_call"))], on_disallowed_action="rewrite")
    events = by_name("responses").split(answer)
    for app in (json_app(answer), SSEApp(events)):
        async with started(Guardrails(app, checks=[check])) as layer:
            driven = await drive(layer, {"model": "m", "input": "x"}, path="/v1/responses")
        assert b"secret" not in driven.body
        assert b"Permission denied" in driven.body


ODD: list[Any] = [None, 1, "x", [], [1], {}, {"index": []}, {"function": 1}, {"type": 7, "function": {"name": 1}}]


@pytest.mark.parametrize("api", ["chat_completions", "messages", "responses"])
@pytest.mark.parametrize("odd", ODD)
def test_reading_is_total(api: str, odd: Any) -> None:
    tools = by_name(api).tools
    names = ("tools", "functions", "tool_choice", "function_call", "mcp_servers", "web_search_options")
    for wrapped in (odd, [odd]):
        offered = list(tools.offers(dict.fromkeys(names, wrapped)))
        tools.withdraw(dict.fromkeys(names, wrapped), [tool.place for tool in offered])
        message = {"tool_calls": wrapped, "function_call": wrapped}
        events = [
            odd, {"choices": wrapped}, {"choices": [{"delta": message, "index": odd}]}, {"output": wrapped},
            {"choices": [{"delta": odd, "message": odd}]}, {"choices": [{"message": message}]}, {"content": wrapped},
            {"type": "content_block_start", "index": odd, "content_block": odd},
            {"type": "content_block_start", "index": odd, "content_block": {"type": "tool_use", "input": odd}},
            {"type": "content_block_delta", "index": odd, "delta": {"type": "input_json_delta", "partial_json": odd}},
            {"type": "message_start", "message": {"content": wrapped}}, {"type": odd},
            {"type": "response.output_item.added", "output_index": odd, "item": odd},
            {"type": "response.output_item.done", "output_index": odd, "item": {"type": "x_call", "arguments": odd}},
            {"type": "response.completed", "response": {"output": wrapped}},
            {"type": "response.completed", "response": 1},
        ]  # fmt: skip
        stream = tools.call_stream()
        read = [(event, stream.read(event, "")) for event in events]
        stream.refused = {tool.place: "no" for tool in stream.due()}
        for event, places in read:
            stream.rewrite(event, "", places)
        for event in events:
            refused = {tool.place: "no" for tool in tools.calls(event)}
            if refused:
                tools.refuse(event, refused)


# --- guardrails of tools in general


class Odd(Guardrail):
    """A check of tools that does not behave."""

    subjects: ClassVar[frozenset[Subject]] = frozenset({"tools"})
    timeout_s: float = 0.05
    how: str = "raises"

    async def judge_tools(self, tools: Sequence[Tool], side: Side, call: Call) -> Sequence[Verdict]:
        if self.how == "unreachable":
            raise GuardrailFailed("no connection", unreachable=True)
        if self.how == "few":
            return []
        raise ValueError(tools)


PLAIN = {
    **ANSWER,
    "choices": [
        {"index": 0, "message": {"tool_calls": [called("shell", "{}", id="a")]}, "finish_reason": "tool_calls"}
    ],
}


@pytest.mark.parametrize("how", ["raises", "few", "unreachable"])
@pytest.mark.parametrize("policy", ["never", "unreachable", "always"])
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_are_those_of_any_guardrail(how: str, policy: Any, stream: bool) -> None:
    inner = SSEApp([delta(tool_calls=[called("shell", "{}", index=0, id="a")]), *END]) if stream else json_app(PLAIN)
    entry = Entry(check=Odd(how=how), name="odd", fail_open=policy, retries=1)
    ends = Ends(Guardrails(inner, checks=[entry]), allow_order=True)
    async with started(ends) as app:
        driven = await drive(app, STREAM if stream else CHAT)
    passes = policy == "always" or (policy == "unreachable" and how == "unreachable")
    assert driven.status == (200 if passes else 503)
    assert (b"shell" in driven.body) is passes
    run = ends.ends[-1].note(Runs)["odd", "output"]
    assert (run.status, run.failed) == ("guardrail_failed_to_respond", 1)
    assert ends.ends[-1].runtime.counts["guardrail_retries", "odd"] == 1


class Texts(Guardrail):
    """A check of texts; it is never asked about tools."""

    async def check(self, text: str, call: Call) -> Verdict:
        return block("word") if "bluebird" in text else ALLOW


@pytest.mark.parametrize("stream", [False, True])
async def test_checks_of_texts_read_what_the_checks_of_tools_let_through(stream: bool) -> None:
    calls = [called("read", '{"q": "bluebird"}', index=0, id="a"), called("shell", "{}", index=1, id="b")]
    message = {"message": {"tool_calls": calls}, "index": 0, "finish_reason": "tool_calls"}
    inner = SSEApp([delta(tool_calls=calls), *END]) if stream else json_app({**ANSWER, "choices": [message]})
    tools = ToolPermission(rules=[rule(tool_name="read")], on_disallowed_action="rewrite")
    async with started(Guardrails(inner, checks=[tools, Texts()])) as app:
        driven = await drive(app, STREAM if stream else CHAT)
    assert driven.status == 400
    assert driven.json["error"]["provider_specific_fields"]["category"] == "word"


@pytest.mark.parametrize(
    ("release", "status"), [("whole", 400), ("window", 200), ("audit", 200)],
)  # fmt: skip
async def test_release_says_what_waits(release: Any, status: int) -> None:
    events = [delta("Hello."), delta(tool_calls=[called("shell", "{}", index=0, id="a")]), *END]
    driven = await streamed(events, release=release)
    assert driven.status == status
    assert (b"Hello." in driven.body) is (release != "whole")
    assert (b'"shell"' in driven.body) is (release == "audit")
    assert b"content_policy_violation" in driven.body
    assert not driven.body.endswith(DONE)


async def test_a_call_that_left_unwatched_cannot_be_taken_out() -> None:
    """With `audit` nothing waits for the verdict, so what should be rewritten ends the stream."""
    events = [delta(tool_calls=[called("shell", "{}", index=0, id="a")]), *END]
    driven = await streamed(events, release="audit", action="rewrite")
    assert b"content_policy_violation" in driven.body
    assert not driven.body.endswith(DONE)
