"""Routing strategies without a gateway: a world with a clock of its own, whose calls need no body and no server."""

from __future__ import annotations

import random
from collections import Counter
from types import SimpleNamespace
from typing import Any

from tianji_mw import plugins
from tianji_mw.errors import UpstreamError, UpstreamTimeout
from tianji_mw.facts import Attempt
from tianji_mw.providers.mock import Mock
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.upstream import Deadlines

S = 1_000_000_000
#: Files with a strategy.
STRATEGIES = ("shuffle", "least_busy", "usage", "latency", "cost", "adaptive")


def strategy(name: str, **fields: Any) -> Picker:
    """A new picker of this file."""
    return plugins.find("routing", name, Picker)(**fields)


def deployments(*fields: dict[str, Any]) -> Candidates:
    """A group with one deployment for each."""
    usual = {"model_name": "m", "provider": Mock(), "deadlines": Deadlines()}
    return Candidates(Deployment(**{**usual, "id": f"d{i}", "model": f"m{i}", **more}) for i, more in enumerate(fields))


def plain(count: int) -> Candidates:
    """So many that differ in nothing."""
    return deployments(*[{}] * count)


class Asked:
    """What pickers ask of a call."""

    def __init__(self, runtime: Any, *, stream: bool, request: dict[str, Any]) -> None:
        self.runtime, self.stream, self.request = runtime, stream, request
        self.api, self.model = SimpleNamespace(streams=True), "m"
        self.notes: dict[type, Any] = {}

    def note(self, kind: type) -> Any:
        return self.notes.setdefault(kind, kind())


class World:
    """One picker, and calls that it sends somewhere."""

    def __init__(self, picker: Picker, seed: int = 1) -> None:
        self.picker, self.now = picker, 1000 * S
        runtime: Any = SimpleNamespace(clock=lambda: self.now, rng=random.Random(seed))
        picker.open(runtime)
        self.runtime = runtime

    def call(self, *, stream: bool = False, **request: Any) -> Any:
        return Asked(self.runtime, stream=stream, request={"messages": "x" * 400, **request})

    def wait(self, seconds: float) -> None:
        self.now += int(seconds * S)

    def pick(self, group: Candidates, **asked: Any) -> Deployment:
        return self.picker.pick(group, self.call(**asked))

    def picks(self, group: Candidates, rounds: int = 1000, **asked: Any) -> Counter[str]:
        """How often each is chosen when nothing is sent."""
        return Counter(self.pick(group, **asked).id for _ in range(rounds))

    def send(self, to: Deployment, **asked: Any) -> tuple[Attempt, Any]:
        attempt, call = Attempt(to, self.now), self.call(**asked)
        self.picker.sent(attempt, call)
        return attempt, call

    def end(
        self,
        sent: tuple[Attempt, Any],
        *,
        tokens: int = 100,
        error: BaseException | None = None,
        abandoned: bool = False,
    ) -> None:
        """It ends now; an answer has so many tokens, of which a stream's first came when `first` says."""
        attempt, call = sent
        attempt.ended, attempt.error, attempt.abandoned = self.now, error, abandoned
        if error is None and not abandoned:
            attempt.status, attempt.input_tokens, attempt.output_tokens = 200, 100, tokens
        elif isinstance(error, UpstreamError) and not isinstance(error, UpstreamTimeout):
            attempt.status = error.status
        self.picker.observe(attempt, call)

    def serve(self, to: Deployment, seconds: float, *, tokens: int = 100, first: float | None = None) -> None:
        """A whole call that takes so long; a stream where its first token is given."""
        sent = self.send(to, stream=first is not None)
        begun = self.now
        self.wait(seconds)
        if first is not None:
            sent[0].first = begun + int(first * S)
        self.end(sent, tokens=tokens)

    def fail(self, to: Deployment, error: BaseException | None = None, *, seconds: float = 0.05) -> None:
        sent = self.send(to)
        self.wait(seconds)
        self.end(sent, error=error or failed())

    def report(self, of: Deployment) -> dict[str, Any]:
        return dict(self.picker.report(of))


def failed(status: int = 503) -> UpstreamError:
    return UpstreamError("It failed.", status=status)


def late() -> UpstreamTimeout:
    return UpstreamTimeout("It took too long.")
