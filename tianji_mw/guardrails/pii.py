"""`pii`: personal data that has a form is masked, or ends the call. No service is asked.

Names of the entities are Presidio's, so a config for Presidio fits; what each of them takes is in `entities.py`. Names
and postal addresses of people have no form: those take a model.
"""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, field_validator

from tianji_mw.call import Call
from tianji_mw.guardrails.base import ALLOW, Guardrail, Verdict, block, mask
from tianji_mw.guardrails.entities import KINDS, find

Action = Literal["mask", "block"]
_USUAL: Final[dict[str, Action]] = {kind: "mask" for kind in KINDS if kind != "URL"}


class Pii(Guardrail):
    """Masks or blocks personal data, by kind.

    >>> Pii(entities={"EMAIL_ADDRESS": "mask", "CREDIT_CARD": "block"})
    """

    #: The longest mail address that RFC 3696 allows. Only URLs, which have to be asked for, may be longer.
    window: ClassVar[int] = 320

    #: What happens to each entity; those that are not here pass. Without a choice all are masked, except URLs.
    entities: dict[str, Action] = Field(default_factory=lambda: dict(_USUAL))

    @field_validator("entities", mode="before")
    @classmethod
    def _in_small(cls, given: Any) -> Any:
        """LiteLLM writes MASK and BLOCK."""
        if not isinstance(given, dict):
            return given
        return {key: value.lower() if isinstance(value, str) else value for key, value in given.items()}

    @field_validator("entities")
    @classmethod
    def _known(cls, given: dict[str, Action]) -> dict[str, Action]:
        for kind in given:
            if kind not in KINDS:
                near = difflib.get_close_matches(kind, KINDS, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"no entity {kind!r}{hint}; known are {', '.join(KINDS)}")
        return given

    async def check(self, text: str, call: Call) -> Verdict:
        spans = find(text, frozenset(self.entities))
        blocked = list(dict.fromkeys(span.label for span in spans if self.entities[span.label] == "block"))
        if blocked:
            return block(blocked[0], entities=[*blocked])
        return mask(*spans) if spans else ALLOW
