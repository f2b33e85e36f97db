"""What guardrails did on one call: the record that proves what was checked. It holds no text.

Guardrails write it and callbacks read it; the two do not know each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

#: `not_run`: the call ended before its first verdict.
Status = Literal["not_run", "success", "guardrail_intervened", "guardrail_failed_to_respond"]


@dataclass(slots=True, kw_only=True)
class Run:
    """What one guardrail did on one side of a call, all its questions together."""

    guardrail: str
    side: Literal["input", "output"]
    #: What checks, such as `content_filter`.
    provider: str = ""
    #: LiteLLM's modes that it runs in, such as `pre_call`.
    mode: tuple[str, ...] = ()
    status: Status = "not_run"
    #: What it found: of a block, or of pieces that were replaced.
    category: str = ""
    dry_run: bool = False
    #: Questions, and those without a verdict. A stream asks about each of its parts.
    asked: int = 0
    failed: int = 0
    #: Time that it took, and characters that it was asked about. On streams a character may count twice.
    duration_ns: int = 0
    #: When it was asked first, in nanoseconds of the runtime's clock.
    began: int = 0
    characters: int = 0
    #: Characters of this side that it has given a verdict about, each counted once.
    scanned: int = 0
    #: Characters that went on, to the model or to the client, counted as they were before any replacement.
    delivered: int = 0
    #: Whether the config leaves texts out of what it is shown.
    partial: bool = False
    masked: dict[str, int] = field(default_factory=dict)

    @property
    def unscanned(self) -> str:
        """Why characters went on that it has not judged; empty when there are none."""
        if self.delivered <= self.scanned:
            return ""
        if self.failed:
            return "it failed, and may"
        return "the config leaves texts out" if self.partial else "nothing waited for its verdict"


class Runs(dict[tuple[str, Literal["input", "output"]], Run]):
    """All runs of one call by name and side: `call.note(Runs)`."""
