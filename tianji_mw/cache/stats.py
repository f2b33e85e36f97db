"""What a cache has done, per model and key: for people and their bills. One process's, since its start."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.facts import CacheUse

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Pairs of model and key that are told apart; further ones are counted together.
_MOST: Final = 10_000
_OTHERS: Final = ("(others)", "(others)")


@dataclass(slots=True)
class Tally:
    """Counts of one model and key. `bytes` were answered from the cache; costs are in US dollars."""

    hits: int = 0
    semantic_hits: int = 0
    stale: int = 0
    shared: int = 0
    partial: int = 0
    misses: int = 0
    bypassed: int = 0
    bytes: int = 0
    saved_tokens: int = 0
    saved_cost: float = 0.0

    def add(self, other: Tally) -> None:
        for name in Tally.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Stats:
    """The tallies of one cache."""

    __slots__ = ("_tallies",)

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def note(self, call: Call, use: CacheUse) -> None:
        """Count a call that has ended."""
        who = call.identity
        name = (call.model, (who.alias or who.key_hash[:12]) if who is not None else "")
        tally = self._tallies.get(name)
        if tally is None:
            if len(self._tallies) >= _MOST:
                name = _OTHERS
            tally = self._tallies.setdefault(name, Tally())
        if use.answered:
            tally.hits += 1
            tally.stale += use.status == "stale"
            tally.semantic_hits += use.kind == "semantic"
            tally.shared += use.shared
            tally.bytes += call.bytes_out
        elif use.status == "partial":
            tally.partial += 1
        elif use.status == "bypass":
            tally.bypassed += 1
        else:
            tally.misses += 1
        tally.saved_tokens += use.saved_tokens
        tally.saved_cost += use.saved_cost

    def report(self) -> dict[str, Any]:
        """Totals, and the same by model and by key."""
        by_model = self._grouped((model, tally) for (model, _), tally in self._tallies.items())
        by_key = self._grouped((key, tally) for (_, key), tally in self._tallies.items())
        return {"total": _told(_sum(self._tallies.values())), "by_model": by_model, "by_key": by_key}

    def _grouped(self, pairs: Iterable[tuple[str, Tally]]) -> dict[str, Any]:
        groups: dict[str, list[Tally]] = {}
        for name, tally in pairs:
            groups.setdefault(name or "(none)", []).append(tally)
        return {name: _told(_sum(tallies)) for name, tallies in sorted(groups.items())}


def _sum(tallies: Iterable[Tally]) -> Tally:
    total = Tally()
    for tally in tallies:
        total.add(tally)
    return total


def _told(tally: Tally) -> dict[str, Any]:
    asked = tally.hits + tally.partial + tally.misses
    counts = {name: getattr(tally, name) for name in Tally.__slots__}
    return {**counts, "hit_rate": round(tally.hits / asked, 4) if asked else None}
