"""One configured guardrail: the check, its name, and what happens when it fails; and the record of each of its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tianji_mw.guardrails.base import Guardrail, Release, Side

#: Which failures of a check let the content pass: none, an unreachable service, or all.
FailOpen = Literal["never", "unreachable", "always"]
Status = Literal["success", "guardrail_intervened", "guardrail_failed_to_respond"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A guardrail of the config. `always`: on every call; otherwise only where a request, key or team names it."""

    check: Guardrail
    name: str
    always: bool = True
    fail_open: FailOpen = "never"
    #: Further attempts after a failure.
    retries: int = 0
    #: Its verdicts are recorded and change nothing.
    dry_run: bool = False
    #: How a stream waits for it; None for what the check itself says.
    release: Release | None = None

    @property
    def waits(self) -> Release:
        """How a stream waits for it."""
        return "audit" if self.dry_run and self.release is None else self.release or self.check.release

    def lets_pass(self, *, unreachable: bool) -> bool:
        """Whether the content goes on although the check has failed."""
        return self.dry_run or self.fail_open == "always" or (unreachable and self.fail_open == "unreachable")


@dataclass(slots=True, kw_only=True)
class Run:
    """What one guardrail did on one side of a call, all its questions together. It holds no text."""

    guardrail: str
    side: Side
    status: Status = "success"
    #: What it found: of a block, or of pieces that were replaced.
    category: str = ""
    dry_run: bool = False
    #: Questions, and those without a verdict. A stream asks about each of its parts.
    asked: int = 0
    failed: int = 0
    #: Time that it took, and characters that it was asked about. On streams a character may count twice.
    duration_ns: int = 0
    characters: int = 0
    masked: dict[str, int] = field(default_factory=dict)


class Runs(dict[tuple[str, Side], Run]):
    """All runs of one call by name and side: `call.note(Runs)`."""

    def of(self, entry: Entry, side: Side) -> Run:
        """The run of this guardrail on this side."""
        run = self.get((entry.name, side))
        if run is None:
            run = self[entry.name, side] = Run(guardrail=entry.name, side=side, dry_run=entry.dry_run)
        return run
