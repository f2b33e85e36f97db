"""Any HTTP service as a guardrail: LiteLLM's generic guardrail API, or a simple contract of three keys.

The service may block, let pass, or rewrite texts; it answers with as many texts as it was sent. Images are not sent.

Source: LiteLLM, "Generic Guardrail API (beta)"; the simple contract is the one of TianjiLLM's `generic`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Final, Literal

from pydantic import Field

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Said, Side, Span, Verdict, block, mask
from tianji_mw.guardrails.service import HttpGuardrail, at_once
from tianji_mw.redact import Secret

_PATH: Final = "/beta/litellm_basic_guardrail_api"
_ACTIONS: Final = ("NONE", "BLOCKED", "GUARDRAIL_INTERVENED")
#: Members of an answer. One without any of them is of something else, such as a proxy.
_ANSWER: Final = frozenset({"action", "blocked_reason", "texts", "images", "tools", "structured_messages"})
#: Client headers whose values the service may see; of the others it learns that they are there.
_OPEN_HEADERS: Final = frozenset(
    {"host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent"}
)
_OPEN_PREFIXES: Final = ("x-stainless-", "x-litellm-")
#: Characters of a reason that the client is shown.
_MOST_REASON: Final = 1000


class GenericGuardrail(HttpGuardrail):
    """Asks a service of the operator.

    >>> GenericGuardrail(api_base="http://guard:8000", additional_provider_specific_params={"threshold": 0.7})
    """

    title: ClassVar[str] = "The generic guardrail"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("GENERIC_GUARDRAIL_API_KEY",),
        "api_base": ("GENERIC_GUARDRAIL_API_BASE",),
    }
    aliases: ClassVar[Mapping[str, str]] = {"endpoint": "api_base"}
    needs: ClassVar[tuple[str, ...]] = ("api_base",)

    #: `litellm` adds the path of LiteLLM's API to `api_base` unless it is there; `simple` takes `api_base` as it is.
    style: Literal["litellm", "simple"] = "litellm"
    #: Sent along with every question.
    headers: dict[str, str | Secret] = Field(default_factory=dict)
    #: Further client headers whose values the service may see.
    extra_headers: tuple[str, ...] = ()
    additional_provider_specific_params: dict[str, JSON] = Field(default_factory=dict)

    def login(self, key: str) -> Mapping[str, str]:
        return {"x-api-key": key} if key else {}

    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        if self.style == "simple":
            prompt = _last_text(call) if side == "output" else ""
            # The contract knows one text. Were only the last one sent, those before it would pass unseen.
            return await at_once(partial(self._simple, one.text, prompt, side) for one in said)
        path = "" if self.api_base.rstrip("/").endswith(_PATH) else _PATH
        question = self._question(said, side, call)
        answer = await self.post(path, question, self.headers)
        if answer and answer.keys().isdisjoint(_ANSWER):
            raise self.malformed("holds nothing of what the contract names")
        action = answer.get("action") or "NONE"
        if action not in _ACTIONS:
            raise self.malformed("holds an unknown action")
        if action == "BLOCKED":
            return [_blocked(answer.get("blocked_reason"))] * len(said)
        if answer.get("images") or (answer.get("tools") and answer["tools"] != question["tools"]):
            raise self.malformed("rewrites images or tools; only texts can be rewritten")
        texts = self._texts(answer, question)
        return [_rewritten(one.text, text) for one, text in zip(said, texts, strict=True)]

    def _question(self, said: Sequence[Said], side: Side, call: Call) -> dict[str, JSON]:
        """LiteLLM's request. What there is nothing of goes as null, and what it keeps of a key is all that we have."""
        who = call.identity
        asks = side == "input"
        return {
            "input_type": "request" if asks else "response",
            "litellm_call_id": call.id,
            "litellm_trace_id": call.headers.get("x-litellm-trace-id"),
            "litellm_version": None,
            "model": call.model or None,
            "texts": [one.text for one in said],
            "images": None,
            "tools": call.request.get("tools") if asks else None,
            "tool_calls": None,
            "structured_messages": [{"role": one.role, "content": one.text} for one in said] if asks else None,
            "request_data": {
                "user_api_key_hash": who.key_hash if who else None,
                "user_api_key_alias": who.alias or None if who else None,
                "user_api_key_user_id": who.user or None if who else None,
                "user_api_key_user_email": None,
                "user_api_key_team_id": who.team or None if who else None,
                "user_api_key_team_alias": None,
                "user_api_key_end_user_id": None,
                "user_api_key_org_id": None,
            },
            "request_headers": self._shown(call),
            "additional_provider_specific_params": self.additional_provider_specific_params,
        }

    def _shown(self, call: Call) -> dict[str, str]:
        shown = _OPEN_HEADERS | {name.lower() for name in self.extra_headers}
        return {
            name: value if name in shown or name.startswith(_OPEN_PREFIXES) else "[present]"
            for name, value in call.headers.items()
        }

    def _texts(self, answer: Mapping[str, JSON], question: Mapping[str, JSON]) -> list[str]:
        """The texts that are to go on. Messages that were changed go before `texts`, as in LiteLLM."""
        sent, rows = question["structured_messages"], answer.get("structured_messages")
        texts = answer.get("texts") or question["texts"]
        if sent and rows and rows != sent and _are_messages(rows):
            if [row["role"] for row in rows] != [row["role"] for row in sent]:
                raise self.malformed("holds other messages than it was sent")
            texts = [row.get("content") for row in rows]
        if not isinstance(texts, list) or len(texts) != len(question["texts"]):
            raise self.malformed(f"does not hold {len(question['texts'])} texts")
        if not all(isinstance(text, str) for text in texts):
            raise self.malformed("holds something else than texts")
        return texts

    async def _simple(self, text: str, prompt: str, side: Side) -> Verdict:
        asks = side == "input"
        body = {
            "prompt": text if asks else prompt,
            "response": "" if asks else text,
            "metadata": {"hook": "pre_call" if asks else "post_call", **self.additional_provider_specific_params},
        }
        answer = await self.post("", body, self.headers)
        action, changed = answer.get("action"), answer.get("modified_content")
        if action not in ("block", "allow") or not isinstance(changed, str | None):
            raise self.malformed("holds neither 'block' nor 'allow', or a content that is no text")
        return _blocked(answer.get("message")) if action == "block" else _rewritten(text, changed or text)


def _blocked(reason: JSON) -> Verdict:
    told = reason[:_MOST_REASON] if isinstance(reason, str) and reason else "Content violates policy"
    return block("policy", error=told)


def _rewritten(text: str, new: str) -> Verdict:
    return ALLOW if new == text else mask(Span(0, len(text), "REWRITTEN", new))


def _are_messages(rows: JSON) -> bool:
    return isinstance(rows, list) and all(isinstance(row, dict) and isinstance(row.get("role"), str) for row in rows)


def _last_text(call: Call) -> str:
    last = ""
    for part in call.api.texts(call.request):
        last = part.text
    return last
