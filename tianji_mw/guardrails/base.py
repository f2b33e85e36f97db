"""What a guardrail is: a check of text, and its verdict. Eight lines make one.

>>> class NoCodename(Guardrail):
...     async def check(self, text, call):
...         return block("codename") if "bluebird" in text.lower() else ALLOW
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tianji_mw.call import Call
from tianji_mw.runtime import Runtime

Side = Literal["input", "output"]


class Verdict(NamedTuple):
    """What a check decided. `category` names what was found, never the text itself."""

    blocked: bool
    category: str = ""


ALLOW: Final = Verdict(False)


def block(category: str) -> Verdict:
    """The verdict that ends the call."""
    return Verdict(True, category)


class Guardrail(BaseModel):
    """Base of the guardrails; a subclass's fields are its configuration, and construction has no side effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Which texts it is asked about.
    sides: ClassVar[frozenset[Side]] = frozenset({"input", "output"})
    #: Length in characters of the longest thing it can recognise: that much of a stream is held back.
    window: ClassVar[int] = 64

    #: LiteLLM's modes: `pre_call` and `during_call` check the request, `post_call` the answer.
    mode: tuple[str, ...] = ("pre_call", "post_call")
    #: Seconds that one check may take; one that takes longer has failed.
    timeout_s: float = Field(default=10.0, gt=0, le=600)

    def runs_on(self, side: Side) -> bool:
        """Whether it is configured for, and able to judge, this side."""
        modes = ("pre_call", "during_call") if side == "input" else ("post_call",)
        return side in self.sides and any(mode in self.mode for mode in modes)

    async def start(self, runtime: Runtime) -> None:
        """Open what the check needs; raise SetupError to stop the start."""

    async def aclose(self) -> None:
        """Close it again."""

    async def check(self, text: str, call: Call) -> Verdict:
        """Judge one text of the request, or the answer so far (its last part, on streams)."""
        raise NotImplementedError
