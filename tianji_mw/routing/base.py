"""Deployments, and how one is chosen: the table of public model names, and the `Picker` protocol.

A *model group* is a public `model_name`; a *deployment* is one entry of the config's `model_list`. This file resolves
names; it sends nothing and knows no strategy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from tianji_mw.errors import UnknownModel
from tianji_mw.params import ParamRules

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.providers.base import Provider
    from tianji_mw.upstream import Deadlines

#: No public name is longer; matching patterns against anything a client may send would cost too much.
_MAX_NAME: Final = 512


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
    weight: float | None = None
    rpm: float | None = None
    tpm: float | None = None
    #: What happens to the fields of a request.
    rules: ParamRules = field(default_factory=ParamRules)
    #: The same by API name, where it differs.
    rules_of: Mapping[str, ParamRules] = field(default_factory=dict)
    #: Other public names, and what they stand for; needed only where `model` holds `*`.
    aliases: Mapping[str, str] = field(default_factory=dict)

    def upstream_model(self, asked: str) -> str:
        """The name to send: with wildcards, what the public pattern's `*` matched takes the place of ours."""
        if "*" not in self.model:
            return self.model
        asked = self.aliases.get(asked, asked)
        match = pattern(self.model_name).fullmatch(asked)
        parts = list(match.groups() if match else ()) or [asked]
        return re.sub(r"\*", lambda _: parts.pop(0) if parts else "", self.model)


class Picker(Protocol):
    """Chooses one of several deployments."""

    def pick(self, deployments: Sequence[Deployment], call: Call) -> Deployment: ...


class Deployments:
    """An immutable table: which deployments serve a model name.

    >>> table = Deployments([])
    >>> table.serving("gpt-4o")
    Traceback (most recent call last):
    tianji_mw.errors.UnknownModel: The model 'gpt-4o' does not exist.
    """

    __slots__ = ("_alias", "_by_id", "_exact", "_hidden", "_patterns", "all")

    def __init__(
        self, deployments: Sequence[Deployment], aliases: Mapping[str, str] | None = None, hidden: Sequence[str] = ()
    ) -> None:
        self.all = tuple(deployments)
        self._alias = dict(aliases or {})
        self._hidden = frozenset(hidden)
        self._exact: dict[str, tuple[Deployment, ...]] = {}
        wild: dict[str, tuple[Deployment, ...]] = {}
        for deployment in self.all:
            table = wild if "*" in deployment.model_name else self._exact
            table[deployment.model_name] = (*table.get(deployment.model_name, ()), deployment)
        # The most specific pattern wins: the one with the most letters that are not `*`.
        ordered = sorted(wild, key=lambda name: (-len(name.replace("*", "")), name))
        self._patterns = [(pattern(name), wild[name]) for name in ordered]
        # An id says nothing of what a `*` should become.
        self._by_id = {deployment.id: (deployment,) for deployment in self.all if "*" not in deployment.model}

    def serving(self, model: str) -> tuple[Deployment, ...]:
        """The deployments for a public name, an alias, a wildcard or a deployment id. Raises UnknownModel."""
        name = self._alias.get(model, model)
        found = self._exact.get(name)
        if found is not None:
            return found
        if name in self._by_id:
            return self._by_id[name]
        if not model:
            raise UnknownModel("The request names no model.", param="model")
        for compiled, deployments in self._patterns:
            if len(name) <= _MAX_NAME and compiled.fullmatch(name):
                return deployments
        raise UnknownModel(f"The model '{model[:200]}' does not exist.", param="model")

    def names(self) -> list[str]:
        """Public names for `/v1/models`: without hidden aliases and the catch-all pattern."""
        shown = [name for name in (*self._exact, *self._alias) if name not in self._hidden]
        shown += [group[0].model_name for _, group in self._patterns if group[0].model_name != "*"]
        return list(dict.fromkeys(shown))


def pattern(name: str) -> re.Pattern[str]:
    """A model name with `*` as a regular expression; each `*` is a group."""
    return re.compile("(.*)".join(re.escape(part) for part in name.split("*")), re.DOTALL)
