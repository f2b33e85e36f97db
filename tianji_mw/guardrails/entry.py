"""One configured guardrail: the check, its name, on which calls it runs, and what happens when it fails."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from tianji_mw.breaker import Breaker
from tianji_mw.call import Call
from tianji_mw.guardrails.base import Guardrail, Release, Said, Side, Subject
from tianji_mw.runs import Run, Runs

#: Which failures of a check let the content pass: none, an unreachable service, or all.
FailOpen = Literal["never", "unreachable", "always"]

_PLACEHOLDER: Final = re.compile(r"\{(default_message|guardrail_name|category)\}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Entry:
    """A guardrail of the config. `always`: on every call; otherwise where a request, key, team or model names it."""

    check: Guardrail
    name: str
    always: bool = True
    #: Teams, and keys by their alias, on whose calls it always runs.
    teams: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    fail_open: FailOpen = "never"
    #: Further attempts after a failure.
    retries: int = 0
    #: Keeps calls away from a check that cannot be reached.
    breaker: Breaker = field(default_factory=Breaker)
    #: Its verdicts are recorded and change nothing.
    dry_run: bool = False
    #: What a client is told of a block, with `{default_message}`, `{guardrail_name}` and `{category}`.
    message: str | None = None
    #: Streams, other answers, or both.
    stream_scope: Literal["both", "streaming", "non_streaming"] = "both"
    #: How a stream waits for it; None for what the check itself says.
    release: Release | None = None
    #: Its modes, where they are not those of the check.
    modes: tuple[str, ...] | None = None
    #: Modes of calls with a tag, instead of its own.
    modes_by_tag: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    #: Texts of these roles in requests are not shown to it.
    skip_roles: frozenset[str] = frozenset()
    #: Of a request it sees the newest text of a user alone.
    newest_only: bool = False

    def __post_init__(self) -> None:
        if self.mode and set(self.mode) == {"logging_only"}:
            object.__setattr__(self, "dry_run", True)

    @property
    def mode(self) -> tuple[str, ...]:
        """Its modes, on this call."""
        return self.check.mode if self.modes is None else self.modes

    def run(self, call: Call, side: Side) -> Run:
        """What is recorded of it on this side of a call."""
        runs = call.note(Runs)
        run = runs.get((self.name, side))
        if run is None:
            kind = type(self.check).__module__.rpartition(".")[2]
            run = Run(guardrail=self.name, side=side, provider=kind, mode=self.mode, dry_run=self.dry_run)
            runs[self.name, side] = run
        return run

    @property
    def waits(self) -> Release:
        """How a stream waits for it."""
        return "audit" if self.dry_run and self.release is None else self.release or self.check.release

    @property
    def moment(self) -> Literal["before", "during", "aside"]:
        """When it judges a request: before it goes on, or beside it, so that the answer or nothing waits for it."""
        if self.dry_run:
            return "aside"
        return "during" if "during_call" in self.mode and "pre_call" not in self.mode else "before"

    def runs_on(self, side: Side, subject: Subject = "texts") -> bool:
        """Whether it judges the texts, or the tools, of this side."""
        return subject in self.check.subjects and self.check.runs_on(side, self.modes)

    def told(self, message: str, category: str) -> str:
        """What a client is told of a block."""
        if self.message is None:
            return message
        known = {"default_message": message, "guardrail_name": self.name, "category": category}
        return _PLACEHOLDER.sub(lambda found: known[found[1]], self.message)

    def with_tags(self, tags: Iterable[str]) -> Entry:
        """The entry as it is on calls with these tags."""
        found = [mode for tag in tags for mode in self.modes_by_tag.get(tag, ())]
        return replace(self, modes=tuple(dict.fromkeys(found))) if found else self

    def lets_pass(self, *, unreachable: bool) -> bool:
        """Whether the content goes on although the check has failed."""
        return self.dry_run or self.fail_open == "always" or (unreachable and self.fail_open == "unreachable")

    def looks_at(self, said: Sequence[Said], side: Side) -> Sequence[int] | None:
        """Which texts it is shown, by their places; None for all of them."""
        if side == "output" or not (self.skip_roles or self.newest_only):
            return None
        places = [at for at, one in enumerate(said) if one.role not in self.skip_roles]
        if self.newest_only:
            places = [at for at in places if said[at].role == "user"][-1:]
        return places
