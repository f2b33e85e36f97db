"""Affinity of the Responses API: what continues an answer goes to the deployment that gave it."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.support.calls import a_call
from tests.support.stack import Serve, deployment
from tianji_mw.call import Call
from tianji_mw.facts import Attempt
from tianji_mw.frames import FRAMES_KEY, Annotation, Frame, Reader
from tianji_mw.gateway import Gateway
from tianji_mw.identity.base import Identity
from tianji_mw.routing.affinity import Pins
from tianji_mw.routing.answer import Answer
from tianji_mw.routing.base import Candidates
from tianji_mw.routing.held import Held
from tianji_mw.routing.middleware import Routing
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.shuffle import Shuffle
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Received, Reply, drive

ANN = Identity(key_hash="a" * 64)
D1, D2, D3 = (deployment("http://127.0.0.1", id=f"d{n}") for n in (1, 2, 3))
ALL = Candidates((D1, D2, D3))


async def pinned(pins: Pins, call: Call) -> str | None:
    found = await pins.of(call, "m", ALL)
    return found.id if found is not None else None


def responses_call(**fields: Any) -> Call:
    return a_call("responses", identity=ANN, request={"model": "m", "input": "hi", **fields})


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_continued_where_it_was_given(stream: bool) -> None:
    kept = Pins(RoutingRules(affinity=frozenset({"responses_api_deployment_check", "session_affinity"})), Runtime())
    call = responses_call(litellm_session_id="s")
    await kept.of(call, "m", ALL)
    await answered(call, stream=stream)
    assert call.note(Answer).id == "resp_1"
    kept.keep(call, "m", D2)
    other = responses_call(litellm_session_id="t")
    kept.keep(other, "m", D3)
    # What it continues goes before its session.
    assert await pinned(kept, responses_call(previous_response_id="resp_1", litellm_session_id="t")) == "d2"
    assert await pinned(kept, responses_call(previous_response_id="resp_9", litellm_session_id="t")) == "d3"
    assert await pinned(kept, responses_call(previous_response_id=["resp_1"])) is None


async def answered(call: Call, *, stream: bool) -> list[Any]:
    """Let an answer pass as the gateway sends it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    held = Held(call, Attempt(D2, 0), send, lambda attempt, head: True)
    kind = b"text/event-stream" if stream else b"application/json"
    await held({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    response = {"id": "resp_1", "object": "response", "status": "completed", "output": []}
    if not stream:
        await held(annotated(call, [orjson.dumps(response)], "whole", more=False))
        return sent
    opened = {"type": "response.created", "sequence_number": 0, "response": {**response, "status": "in_progress"}}
    text = {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "i", "delta": "Hi"}
    await held(annotated(call, [b"event: ping\n\n", event(opened)], "sse"))
    assert not sent
    await held(annotated(call, [event(text)], "sse"))
    return sent


def event(data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (data["type"].encode(), orjson.dumps(data))


def annotated(call: Call, parts: list[bytes], form: Any, *, more: bool = True) -> dict[str, Any]:
    body = b"".join(parts)
    frames = Reader(call, form).feed(body, more)
    return {"type": "http.response.body", "body": body, "more_body": more, FRAMES_KEY: Annotation(body, frames)}


async def test_nobody_decodes_an_answer_that_is_not_asked_for() -> None:
    call = responses_call()
    await answered(call, stream=False)
    assert call.counters.decoded == 0
    assert Answer not in call.notes


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"id":7}', b'{"response":3,"id":"x"}', b"no json"])
async def test_answers_that_show_no_id(body: bytes) -> None:
    call = responses_call()
    call.note(Answer).wants_id = True
    held = Held(call, Attempt(D2, 0), _nowhere, lambda attempt, head: True)
    await held({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    frame = Frame(body, call, "whole")
    message = {"type": "http.response.body", "body": body, "more_body": False}
    await held({**message, FRAMES_KEY: Annotation(body, [frame])})
    assert call.note(Answer).id == ""


async def _nowhere(message: Any) -> None:
    pass


# --- the whole way


@pytest.mark.parametrize("stream", [False, True])
async def test_through_the_gateway(serve: Serve, stream: bool) -> None:
    async with FakeLLM(lambda request: given("a", request)) as one, FakeLLM(lambda request: given("b", request)) as two:
        table = Deployments([deployment(one.url, id="a"), deployment(two.url, id="b")])
        rules = RoutingRules(affinity=frozenset({"responses_api_deployment_check"}))
        app = await serve(Routing(Gateway(table), deployments=table, rules=rules, picker=Shuffle()))
        asked = {"model": "gpt-4o", "input": "hi", "stream": stream}
        opened = [(await drive(app, asked, path="/v1/responses")).body for _ in range(20)]
        givers = {b"resp_a" if b"resp_a" in body else b"resp_b" for body in opened}
        assert givers == {b"resp_a", b"resp_b"}
        for giver in (b"resp_a", b"resp_b"):
            more = {**asked, "previous_response_id": giver.decode()}
            for _ in range(10):
                driven = await drive(app, more, path="/v1/responses")
                assert driven.status == 200
                assert giver in driven.body


def given(name: str, request: Received) -> Reply:
    """An answer of this upstream; it does not know the answers of the other one."""
    if request.json.get("previous_response_id") not in (None, f"resp_{name}"):
        return Reply.json({"error": {"message": "Previous response not found."}}, status=400)
    text = {"type": "output_text", "text": "Hi", "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [text]}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    whole = {"id": f"resp_{name}", "object": "response", "created_at": 1, "status": "completed", "model": "m",
             "output": [message], "usage": usage}  # fmt: skip
    if not request.json.get("stream"):
        return Reply.json(whole)
    delta = {
        "type": "response.output_text.delta",
        "item_id": "msg_1",
        "output_index": 0,
        "content_index": 0,
        "delta": "Hi",
    }
    begun = {**whole, "status": "in_progress", "output": []}
    return Reply.events(
        event({"type": "response.created", "sequence_number": 0, "response": begun}),
        event({**delta, "sequence_number": 1}),
        event({"type": "response.completed", "sequence_number": 2, "response": whole}),
    )


# --- encrypted reasoning


@pytest.mark.parametrize(
    "given_", ["text", None, 7, [], [None], [{"encrypted_content": 7}], [{"encrypted_content": ""}], [[{}]]], ids=repr
)
async def test_odd_inputs_are_pinned_nowhere(given_: Any) -> None:
    pins = Pins(RoutingRules(affinity=frozenset({"encrypted_content_affinity"})), Runtime())
    assert await pinned(pins, responses_call(input=given_)) is None


async def test_seals_are_the_callers_own_and_no_more_are_kept_than_needed() -> None:
    pins = Pins(RoutingRules(affinity=frozenset({"encrypted_content_affinity"})), Runtime())
    call = responses_call()
    assert await pinned(pins, call) is None
    answer = call.note(Answer)
    items = [{"type": "reasoning", "encrypted_content": f"seal-{number}"} for number in range(50)]
    message = annotated(call, [orjson.dumps({"id": "r", "output": items})], "whole", more=False)
    answer.read([message])
    assert answer.seals == [f"seal-{number}" for number in range(34, 50)]
    pins.keep(call, "m", D2)
    assert await pinned(pins, responses_call(input=items)) == "d2"
    other = a_call("responses", identity=Identity(key_hash="b" * 64), request={"model": "m", "input": items})
    assert await pinned(pins, other) is None
