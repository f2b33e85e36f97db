"""Deployments, and the `Picker` that chooses one of several: the protocol of routing strategies.

A *model group* is a public `model_name`; a *deployment* is one entry of the config's `model_list`. Which deployments
serve a name stands in `table.py`, which of them may be used now in `selector.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tianji_mw.params import ParamRules
from tianji_mw.plugins import PluginSettings

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt
    from tianji_mw.providers.base import Provider
    from tianji_mw.runtime import Runtime
    from tianji_mw.upstream import Deadlines


@dataclass(slots=True, frozen=True, kw_only=True, eq=False)
class Deployment:
    """One place where a model runs. Compared by identity; `id` is stable over restarts."""

    id: str
    #: The public name, perhaps with `*`.
    model_name: str
    #: The provider's own name for the model, perhaps with `*` (then it takes what the public `*` matched).
    model: str
    provider: Provider
    deadlines: Deadlines
    #: Deadlines of streams, where the config gives others.
    stream_deadlines: Deadlines | None = None
    #: What happens to the fields of a request.
    rules: ParamRules = field(default_factory=ParamRules)
    #: The same by API name, where it differs.
    rules_of: Mapping[str, ParamRules] = field(default_factory=dict)
    #: Other public names, and what they stand for; needed only where `model` holds `*`.
    aliases: Mapping[str, str] = field(default_factory=dict)

    # --- routing

    weight: float | None = None
    #: Requests and tokens a minute, and requests at the same time.
    rpm: float | None = None
    tpm: float | None = None
    max_parallel: int | None = None
    #: Those with the lowest number are used first.
    order: int | None = None
    tags: frozenset[str] = frozenset()
    #: Patterns for `User-Agent: ...`; a match counts like a tag.
    tag_regex: tuple[str, ...] = ()
    #: Only calls of this team may use it; empty: everybody.
    team: str = ""
    #: The name by which that team asks for it, besides `model_name`.
    team_model_name: str = ""
    region: str = ""
    #: US dollars per token; None: not known.
    input_cost: float | None = None
    output_cost: float | None = None
    #: Tokens of a prompt that fit in; None: not known.
    max_input_tokens: int | None = None
    num_retries: int | None = None
    #: Seconds out of use after it failed; 0: it is never taken out.
    cooldown_s: float | None = None
    allowed_fails: int | None = None
    #: The same by kind of error (`failure.Kind`).
    allowed_fails_policy: Mapping[str, int] = field(default_factory=dict)
    #: US dollars that may be spent on it in `budget_s` seconds.
    max_budget: float | None = None
    budget_s: float | None = None
    #: Model groups that get a copy of its calls, whose answers nobody waits for.
    mirrors: tuple[str, ...] = ()
    #: Whether its model continues a turn of the assistant that the request ends in.
    prefills: bool = False
    #: What it is, as `model_info.mode` says: chat, embedding, ...
    mode: str = ""
    #: Whether background health checks leave it out; the model and the seconds that they use.
    unchecked: bool = False
    health_model: str = ""
    health_timeout_s: float | None = None

    def upstream_model(self, asked: str) -> str:
        """The name to send: with wildcards, what the public pattern's `*` matched takes the place of ours."""
        if "*" not in self.model:
            return self.model
        asked = self.aliases.get(asked, asked)
        match = pattern(self.model_name).fullmatch(asked)
        parts = list(match.groups() if match else ()) or [asked]
        return re.sub(r"\*", lambda _: parts.pop(0) if parts else "", self.model)


class Candidates(tuple[Deployment, ...]):
    """The deployments to choose from, at least one; the same object again while nothing has changed.

    >>> Candidates([]).memo
    {}
    """

    #: What pickers have computed of exactly these deployments, each under a key of its own.
    memo: dict[object, Any]

    def __new__(cls, deployments: Iterable[Deployment]) -> Candidates:
        made = super().__new__(cls, deployments)
        made.memo = {}
        return made


class Picker(PluginSettings):
    """A routing strategy: one file in `tianji_mw/routing/`, whose fields are `routing_strategy_args`.

    It only chooses; who may be chosen is decided before (cooldowns, limits, tags), and what fails is tried again after.
    Of a deployment that is alone in its group it hears nothing.
    Its state belongs to one event loop and needs no lock.
    """

    #: LiteLLM's and other names of it in `routing_strategy`.
    names: ClassVar[tuple[str, ...]] = ()
    #: Whether `rpm` and `tpm` of deployments are limits with it; without, they are weights unless the config asks.
    limits: ClassVar[bool] = False

    def pick(self, deployments: Candidates, call: Call) -> Deployment:
        """One of them. Called for every attempt; waits for nothing."""
        raise NotImplementedError

    def of(self, model_name: str) -> Picker:
        """What chooses among the deployments of this public name: itself, unless it stands for several."""
        return self

    def open(self, runtime: Runtime) -> None:
        """Before the first call: clock and randomness are the runtime's."""

    def sent(self, attempt: Attempt, call: Call) -> None:
        """An attempt begins at `attempt.deployment`."""

    def observe(self, attempt: Attempt, call: Call) -> None:
        """It has ended: `attempt` says when, and how. Exactly once for each `sent`."""

    def elsewhere(self, deployment: Deployment, inflight: int) -> None:
        """So many calls run there that other processes have sent; told when it changes."""

    def report(self, deployment: Deployment) -> Mapping[str, Any]:
        """What it knows of the deployment, for people: names with their unit, and figures."""
        return {}


def pattern(name: str) -> re.Pattern[str]:
    """A model name with `*` as a regular expression; each `*` is a group."""
    return re.compile("(.*)".join(re.escape(part) for part in name.split("*")), re.DOTALL)
