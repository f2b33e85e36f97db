"""What a guardrail is: a check of text, and its verdict. Eight lines make one.

>>> class NoCodename(Guardrail):
...     async def check(self, text, call):
...         return block("codename") if "bluebird" in text.lower() else ALLOW
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from tianji_mw.apis.base import JSON
from tianji_mw.apis.tools import Tool
from tianji_mw.call import Call
from tianji_mw.runtime import Runtime

Side = Literal["input", "output"]
#: What is judged of a side: what was said, or the tools that are offered and called.
Subject = Literal["texts", "tools"]
#: How a stream waits for a check: not at all, for the last characters, for whole sentences, or until its end.
Release = Literal["audit", "window", "sentence", "whole"]


class Span(NamedTuple):
    """A piece of a text, in characters, that must not go on as it is; `label` says what it is, such as `EMAIL`."""

    start: int
    end: int
    label: str
    #: What stands in its place; without one, the label in brackets.
    replacement: str | None = None


class Verdict(NamedTuple):
    """What a check decided about one text. Nothing in it holds the text itself or a part of it."""

    blocked: bool
    #: What was found.
    category: str = ""
    #: What has to be replaced; ignored when the text is blocked.
    spans: tuple[Span, ...] = ()
    #: More about the reason, shown to the client and in the record.
    detail: Mapping[str, JSON] = {}


ALLOW: Final = Verdict(False)


def block(category: str, **detail: JSON) -> Verdict:
    """The verdict that ends the call."""
    return Verdict(True, category, detail=detail)


def mask(*spans: Span) -> Verdict:
    """The verdict that lets a text pass with these pieces replaced."""
    return Verdict(False, ",".join(dict.fromkeys(span.label for span in spans)), spans)


class Said(NamedTuple):
    """One text of a request or an answer, and who said it: system, developer, user, assistant, tool."""

    text: str
    role: str = "user"
    #: Of a stream, characters at its beginning that were judged before, with more before them, and are its context.
    seen: int = 0


class GuardrailFailed(Exception):
    """A check could not decide. `message` names the reason, and never a text.

    `unreachable`: nobody answered, or a gateway answered for it (502, 503, 504); the config may let such calls pass.
    """

    def __init__(self, message: str, *, unreachable: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.unreachable = unreachable
        self.retry_after_s = retry_after_s


class Guardrail(BaseModel):
    """Base of the guardrails; a subclass's fields are its configuration, and construction has no side effect."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: Which texts it is asked about.
    sides: ClassVar[frozenset[Side]] = frozenset({"input", "output"})
    #: What it is asked about on them.
    subjects: ClassVar[frozenset[Subject]] = frozenset({"texts"})
    #: Length in characters of the longest thing it can recognise: that much of a stream is held back.
    window: ClassVar[int] = 64

    #: How streams wait for it: `window` asks it about each part as it comes and holds the last characters back, `whole`
    #: asks it once, at the end, before anything leaves; `sentence` asks it about each sentence, which waits for it;
    #: `audit` asks it and lets everything leave meanwhile.
    release: ClassVar[Release] = "window"
    #: Environment variables that fill a field which the config leaves out, in this order.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Other names of our fields, such as LiteLLM's; the class itself takes them.
    aliases: ClassVar[Mapping[str, str]] = {}

    #: LiteLLM's modes: `pre_call` and `during_call` check the request, `post_call` the answer, `logging_only` both.
    mode: tuple[str, ...] = ("pre_call", "post_call")
    #: Seconds that one check may take; one that takes longer has failed.
    timeout_s: float = Field(default=10.0, gt=0, le=600)

    def runs_on(self, side: Side, mode: tuple[str, ...] | None = None) -> bool:
        """Whether it is configured for, and able to judge, this side; `mode` in place of its own."""
        modes = ("pre_call", "during_call", "logging_only") if side == "input" else ("post_call", "logging_only")
        given = self.mode if mode is None else mode
        return side in self.sides and any(one in given for one in modes)

    async def start(self, runtime: Runtime) -> None:
        """Open what the check needs; raise SetupError to stop the start."""

    async def aclose(self) -> None:
        """Close it again."""

    async def check(self, text: str, call: Call) -> Verdict:
        """Judge one text of the request, or the answer so far (its last part, on streams)."""
        raise NotImplementedError

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        """One verdict for each text, in their order. For checks that look at all of them together, or who said them.

        Raises GuardrailFailed when it cannot decide; any other exception counts as such.
        """
        return [await self.check(one.text, call) for one in said]

    async def judge_tools(self, tools: Sequence[Tool], side: Side, call: Call) -> Sequence[Verdict]:
        """One verdict for each tool that a request offers (input) or an answer calls (output), in their order.

        `block` ends the call. `mask` with one span takes the tool away, and the model says its replacement instead.
        """
        raise NotImplementedError
