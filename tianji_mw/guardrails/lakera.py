"""Lakera Guard v2: prompt attacks, personal data, moderated content and unknown links, by the policy of a project.

Of the answer's payload only the places are used: its texts are the very data that must not go on.

Source: Lakera API reference, `POST /v2/guard`; LiteLLM's `lakera_v2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Said, Side, Span, Verdict, block, mask
from tianji_mw.guardrails.service import HttpGuardrail

#: Lakera's word for who says something; `user` for everybody else.
_ROLES: Final = {
    "system": "system", "developer": "system", "assistant": "assistant", "tool": "tool", "function": "tool",
}  # fmt: skip


class _Detection(NamedTuple):
    #: Such as `pii/credit_card` or `prompt_attack`.
    kind: str
    #: Which text; None where the answer does not say.
    at: int | None


class Lakera(HttpGuardrail):
    """Blocks what Lakera flags. With `on_flagged: mask`, personal data is masked instead where nothing else was found.

    `monitor` lets everything else pass, and masks personal data too, as in LiteLLM.

    >>> Lakera(api_key="k", project_id="project-1", on_flagged="mask")
    """

    title: ClassVar[str] = "Lakera"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("LAKERA_API_KEY",),
        "api_base": ("LAKERA_API_BASE",),
    }

    #: Regions have their own hosts, such as https://api.eu-west.lakera.ai.
    api_base: str = "https://api.lakera.ai"
    #: Whose policy holds; Lakera's default one when empty.
    project_id: str = ""
    on_flagged: Literal["block", "mask", "monitor"] = "block"
    #: Ask for the places of what was found, and for the detectors that found it.
    payload: bool = True
    breakdown: bool = True
    dev_info: bool = True
    #: Sent along as it is.
    metadata: dict[str, JSON] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _can_mask(self) -> Self:
        if self.on_flagged == "mask" and not (self.payload and self.breakdown):
            raise ValueError("on_flagged: mask needs payload and breakdown, which say what is where; set both to true")
        return self

    def login(self, key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {key}"}

    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        body = {
            "messages": [{"role": _role(one.role, side), "content": one.text} for one in said],
            "payload": self.payload,
            "breakdown": self.breakdown,
            "dev_info": self.dev_info,
            **({"project_id": self.project_id} if self.project_id else {}),
            **({"metadata": self.metadata} if self.metadata else {}),
        }
        answer = await self.post("/v2/guard", body)
        if not isinstance(flagged := answer.get("flagged"), bool):
            raise self.malformed("does not say whether something is flagged")
        if not flagged:
            return [ALLOW] * len(said)
        found = self._detections(answer.get("breakdown"), len(said))
        only_pii = bool(found) and all(one.kind.startswith("pii/") for one in found)
        if only_pii and self.on_flagged != "block" and (masked := self._masked(answer.get("payload"), found, said)):
            return masked
        if self.on_flagged == "monitor":
            return self._each(Verdict(False, _category(found), detail=_detail(found, answer)), found, len(said))
        return self._each(block(_category(found), **_detail(found, answer)), found, len(said))

    def _detections(self, breakdown: JSON, count: int) -> list[_Detection]:
        """What was detected. Detectors that ran and found nothing are listed too."""
        if not isinstance(breakdown, list | None):
            raise self.malformed("does not hold the breakdown as a list")
        found = []
        for one in breakdown or ():
            if not isinstance(one, dict):
                raise self.malformed("holds something else than detectors in its breakdown")
            if one.get("detected") is True:
                found.append(_Detection(str(one.get("detector_type", "")), _index(one.get("message_id"), count)))
        return found

    def _masked(self, payload: JSON, found: Sequence[_Detection], said: Sequence[Said]) -> list[Verdict]:
        """The verdicts that mask, or nothing when it is not known where all of the personal data is."""
        spans: list[list[Span]] = [[] for _ in said]
        for one in payload if isinstance(payload, list) else ():
            at = _index(one.get("message_id"), len(said)) if isinstance(one, dict) else None
            if at is None or not _is_place(one.get("start"), one.get("end"), len(said[at].text)):
                return []
            label = str(one.get("detector_type", "")).rpartition("/")[2].upper() or "PII"
            spans[at].append(Span(one["start"], one["end"], label, f"[MASKED {label}]"))
        if not any(spans) or any(one.at is not None and not spans[one.at] for one in found):
            return []
        return [mask(*sorted(of_text)) if of_text else ALLOW for of_text in spans]

    def _each(self, verdict: Verdict, found: Sequence[_Detection], count: int) -> list[Verdict]:
        """The verdict for the texts that it is about: for all when that is not known."""
        about = {one.at for one in found}
        everywhere = not about or None in about
        return [verdict if everywhere or at in about else ALLOW for at in range(count)]


def _role(role: str, side: Side) -> str:
    return "assistant" if side == "output" else _ROLES.get(role, "user")


def _index(value: JSON, count: int) -> int | None:
    is_one = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
    return value if is_one else None


def _is_place(start: JSON, end: JSON, length: int) -> bool:
    return type(start) is int and type(end) is int and 0 <= start < end <= length


def _category(found: Sequence[_Detection]) -> str:
    return ",".join(dict.fromkeys(one.kind for one in found if one.kind)) or "flagged"


def _detail(found: Sequence[_Detection], answer: Mapping[str, JSON]) -> dict[str, JSON]:
    """What the client may see: LiteLLM's keys without the payload, which quotes what was found."""
    shown: dict[str, JSON] = {
        "flagged": True,
        "breakdown": [{"detector_type": one.kind, "detected": True, "message_id": one.at} for one in found],
    }
    metadata = answer.get("metadata")
    if isinstance(metadata, dict) and isinstance(request_id := metadata.get("request_uuid"), str):
        shown["metadata"] = {"request_uuid": request_id}
    return {"error": "Violated guardrail policy", "lakera_guardrail_response": shown}
