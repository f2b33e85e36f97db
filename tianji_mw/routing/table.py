"""Which deployments serve a model name: exact names, aliases, ids, patterns with `*`. An immutable table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from tianji_mw.errors import UnknownModel
from tianji_mw.routing.base import Candidates, Deployment, pattern

#: No public name is longer; matching patterns against anything a client may send would cost too much.
_MAX_NAME: Final = 512


class Deployments:
    """An immutable table: which deployments serve a model name.

    >>> table = Deployments([])
    >>> table.serving("gpt-4o")
    Traceback (most recent call last):
    tianji_mw.errors.UnknownModel: The model 'gpt-4o' does not exist.
    """

    __slots__ = ("_alias", "_by_id", "_exact", "_hidden", "_of_team", "_patterns", "_shared", "all")

    def __init__(
        self, deployments: Sequence[Deployment], aliases: Mapping[str, str] | None = None, hidden: Sequence[str] = ()
    ) -> None:
        self.all = tuple(deployments)
        self._alias = dict(aliases or {})
        self._hidden = frozenset(hidden)
        exact: dict[str, list[Deployment]] = {}
        wild: dict[str, list[Deployment]] = {}
        for deployment in self.all:
            table = wild if "*" in deployment.model_name else exact
            table.setdefault(deployment.model_name, []).append(deployment)
        self._shared = Counter(deployment.model_name for deployment in self.all)
        self._exact = {name: Candidates(group) for name, group in exact.items()}
        # The most specific pattern wins: the one with the most letters that are not `*`.
        ordered = sorted(wild, key=lambda name: (-len(name.replace("*", "")), name))
        self._patterns = [(pattern(name), Candidates(wild[name])) for name in ordered]
        named: dict[tuple[str, str], list[Deployment]] = {}
        for deployment in self.all:
            if deployment.team and deployment.team_model_name:
                named.setdefault((deployment.team, deployment.team_model_name), []).append(deployment)
        self._of_team = {name: Candidates(group) for name, group in named.items()}
        # An id says nothing of what a `*` should become.
        self._by_id = {d.id: Candidates((d,)) for d in self.all if "*" not in d.model}

    def serving(self, model: str, team: str = "") -> Candidates:
        """The deployments for a public name, an alias, a wildcard or a deployment id. Raises UnknownModel.

        `team`: the caller's; a name that its own deployments have goes before the others.
        """
        if team and self._of_team and (own := self._of_team.get((team, model))) is not None:
            return own
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

    @property
    def plain(self) -> Mapping[str, Candidates]:
        """Groups by the names that mean the same to every caller: no aliases, ids or patterns."""
        return {} if self._of_team else self._exact

    def alone(self, deployment: Deployment) -> bool:
        """Whether no other deployment has its public name, or the one that its team has for it."""
        own = self._of_team.get((deployment.team, deployment.team_model_name), ())
        return self._shared[deployment.model_name] == 1 and len(own) < 2

    def label(self, model: str) -> str:
        """The `model_name` that serves it, for counts: names behind a `*` are the clients', and without end."""
        try:
            return self.serving(model)[0].model_name
        except UnknownModel:
            return ""

    def group(self, model: str) -> str:
        """The name that `model` stands for: what an alias means, else itself."""
        return self._alias.get(model, model)

    def names(self, team: str | None = None) -> list[str]:
        """Public names for `/v1/models`: without hidden aliases, the catch-all pattern, and what is other teams' alone.

        `team`: the caller's, whose own names are among them; None: everybody's.
        """
        shown = [name for name in (*self._exact, *self._alias) if name not in self._hidden]
        shown += [group[0].model_name for _, group in self._patterns if group[0].model_name != "*"]
        if team is not None:
            others = {n for n, g in self._exact.items() if all(d.team and d.team != team for d in g)}
            shown = [name for name in shown if self._alias.get(name, name) not in others]
        shown += [name for owner, name in self._of_team if owner == team]
        return list(dict.fromkeys(shown))
