"""What the tests of the Presidio guardrail share: an app of a YAML file in front of a model, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
import yaml

from tests.support.stack import ANSWER, CHAT, STREAM, Ends, Serve
from tianji_mw.compose import compose
from tianji_mw.config import loads
from tianji_mw.testing import FakeLLM, Reply

MAIL = "ada@example.com"
CARD = "4111 1111 1111 1111"
SETTINGS: dict[str, Any] = {
    "pii_entities_config": {"EMAIL_ADDRESS": "MASK", "CREDIT_CARD": "BLOCK", "PHONE_NUMBER": "MASK"},
    "presidio_score_thresholds": {"ALL": 0.35},
}
App = Callable[..., Any]


async def served(serve: Serve, llm: FakeLLM, env: dict[str, str] | None = None, **options: Any) -> Any:
    params = {"guardrail": "presidio", "mode": ["pre_call", "post_call"], "default_on": True, **SETTINGS, **options}
    model = {"model": "openai/x", "api_base": f"{llm.url}/v1", "api_key": "k"}
    text = yaml.safe_dump({
        "model_list": [{"model_name": "gpt-4o", "litellm_params": model}],
        "guardrails": [{"guardrail_name": "pii", "litellm_params": params}],
    })  # fmt: skip
    layer = Ends(compose(loads(text, env=env or {}), env=env or {}).app, allow_order=True)
    await serve(layer)
    return layer


def ask(text: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    return {**(STREAM if stream else CHAT), "messages": [{"role": "user", "content": text}], **more}


def answer(**message: Any) -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return Reply.json({**ANSWER, "choices": [choice]})


def events_of(body: bytes) -> list[Any]:
    return [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]


def sent(llm: FakeLLM, at: int = -1) -> str:
    found: str = llm.requests[at].json["messages"][0]["content"]
    return found


def responses_of(text: str, *parts: str) -> tuple[dict[str, Any], list[bytes]]:
    """An answer of the Responses API, plain and as a stream whose last events repeat the text."""
    content = {"type": "output_text", "annotations": [], "text": text}
    item = {"type": "message", "id": "m1", "role": "assistant", "status": "completed", "content": [content]}
    whole = {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "model": "m",
             "output": [item], "usage": None}  # fmt: skip
    place = {"item_id": "m1", "output_index": 0, "content_index": 0}
    events = [
        {"type": "response.created", "response": {**whole, "status": "in_progress", "output": []}},
        *({"type": "response.output_text.delta", **place, "delta": part} for part in parts),
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.content_part.done", **place, "part": content},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": whole},
    ]
    return whole, [b"event: %b\ndata: %b\n\n" % (str(e["type"]).encode(), orjson.dumps(e)) for e in events]
