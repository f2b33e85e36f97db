"""Which guardrails run on a call: always, or named by the request, its key, its team or its model.

A request can ask for more than the config says, never for less: opting out is read from the key's metadata alone, which
clients do not write.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.errors import GuardrailUnavailable, InvalidRequest
from tianji_mw.guardrails.entry import Entry
from tianji_mw.tags import tags_of


class Choice:
    """Chooses among the entries of one layer. `by_model`: names of guardrails by model name, which may hold `*`."""

    __slots__ = ("_always", "_by_caller", "_by_model", "_by_stream", "_by_tag", "_names", "entries")

    def __init__(self, entries: Sequence[Entry], by_model: Mapping[str, Sequence[str]]) -> None:
        self.entries = list(entries)
        self._names = {entry.name for entry in entries}
        self._always = [entry for entry in entries if entry.always]
        self._by_caller = any(entry.teams or entry.keys for entry in entries)
        self._by_stream = any(entry.stream_scope != "both" for entry in entries)
        self._by_tag = any(entry.modes_by_tag for entry in entries)
        self._by_model = dict(by_model)

    def __call__(self, call: Call) -> list[Entry]:
        """The entries that run, in the order of the config. Raises InvalidRequest for a name that does not exist."""
        asked = _wanted(call.request)
        if asked and (unknown := asked - self._names):
            text = f"There is no guardrail '{min(unknown)[:100]}'."
            raise InvalidRequest(text, param="guardrails", code="unknown_guardrail")
        for model, names in self._by_model.items():
            if fnmatchcase(call.model, model):
                asked = asked.union(names)
        always = self._always
        if call.identity is not None:
            asked = asked.union(self._of_caller(call))
            always = _without(always, call.identity.metadata)
        chosen = always
        if asked:
            chosen = [entry for entry in self.entries if entry in always or entry.name in asked]
        if self._by_tag:
            tags = tags_of(call)
            chosen = [entry.with_tags(tags) for entry in chosen]
        if self._by_stream:
            scope = "streaming" if call.stream else "non_streaming"
            chosen = [entry for entry in chosen if entry.stream_scope in ("both", scope)]
        return chosen

    def _of_caller(self, call: Call) -> Iterable[str]:
        who = call.identity
        assert who is not None
        names = _named(who.metadata.get("guardrails"))
        if unknown := set(names) - self._names:
            # The operator's error: to serve the call without the check that was asked for would hide it.
            raise GuardrailUnavailable(f"The key asks for the guardrail '{min(unknown)[:100]}', which does not exist.")
        if self._by_caller:
            names += [
                entry.name
                for entry in self.entries
                if who.team in entry.teams or (who.alias and who.alias in entry.keys)
            ]
        return names


def _without(always: list[Entry], metadata: Mapping[str, Any]) -> list[Entry]:
    """Less what the key has been freed of."""
    if not metadata:
        return always
    if metadata.get("disable_global_guardrails") is True:
        return []
    freed = _named(metadata.get("opted_out_global_guardrails"))
    return [entry for entry in always if entry.name not in freed] if freed else always


def _wanted(request: Mapping[str, JSON]) -> set[str]:
    """Names in the body: `guardrails`, or LiteLLM's older `metadata.guardrails: {name: true}`."""
    asked = set(_named(request.get("guardrails")))
    metadata = request.get("metadata")
    older = metadata.get("guardrails") if isinstance(metadata, dict) else None
    if isinstance(older, dict):
        asked.update(name for name, wanted in older.items() if wanted is True)
    elif older is not None:
        asked.update(_named(older))
    return asked


def _named(value: JSON) -> list[str]:
    """Names in a `guardrails` list: texts, or mappings by name."""
    if not isinstance(value, list | tuple):
        return []
    return [name for item in value for name in (item if isinstance(item, dict) else [item]) if isinstance(name, str)]
