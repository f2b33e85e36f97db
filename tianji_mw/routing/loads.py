"""How many calls the other processes run at each deployment, and which processes there are.

What was not heard of for three seconds is over: a process that crashed leaves no load behind, and a count whose end
was lost neither. While nothing at all can be heard, the processes stay on the list, for they share limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Final

from tianji_mw.routing.base import Deployment
from tianji_mw.runtime import Runtime

_LASTS_NS: Final = 3_000_000_000
#: More processes than any router has are a fault of somebody.
_MOST: Final = 1_000


class Loads:
    """`told` hears of each sum that has changed."""

    def __init__(self, runtime: Runtime, told: Callable[[Deployment, int], None]) -> None:
        self._runtime, self._told = runtime, told
        #: When each process was heard last.
        self._heard: dict[str, int] = {}
        #: What each runs: how many, and when that was heard.
        self._runs: dict[str, dict[Deployment, tuple[int, int]]] = {}
        self._sums: dict[Deployment, int] = {}

    @property
    def processes(self) -> int:
        """How many others there are."""
        return len(self._heard)

    def hear(self, sender: str, load: Mapping[Deployment, int]) -> None:
        """A process lives, and runs so many calls at these; at others what it said before."""
        now = self._runtime.clock()
        if sender not in self._heard and len(self._heard) >= _MOST:
            self._runtime.count("routing_messages", "too many processes")
            return
        self._heard[sender] = now
        if not load:
            return
        runs = self._runs.setdefault(sender, {})
        changed: set[Deployment] = set()
        for deployment, count in load.items():
            before = runs[deployment][0] if deployment in runs else 0
            if count:
                runs[deployment] = (count, now)
            else:
                runs.pop(deployment, None)
            if count != before:
                self._add(deployment, count - before)
                changed.add(deployment)
        self._tell(changed)

    def leave(self, sender: str) -> None:
        """A process has ended."""
        self._heard.pop(sender, None)
        self._drop(sender, self._runs.get(sender, {}).keys())

    def joined(self) -> None:
        """From now on everybody can be heard: who was on the list has time to speak."""
        now = self._runtime.clock()
        self._heard = dict.fromkeys(self._heard, now)

    def sweep(self, *, hears: bool) -> None:
        """Forget what was not heard of for too long."""
        oldest = self._runtime.clock() - _LASTS_NS
        if hears:
            for sender in [sender for sender, heard in self._heard.items() if heard < oldest]:
                del self._heard[sender]
        for sender, runs in [*self._runs.items()]:
            self._drop(sender, [deployment for deployment, (_, heard) in runs.items() if heard < oldest])

    def _drop(self, sender: str, deployments: Collection[Deployment]) -> None:
        runs = self._runs.get(sender)
        if runs is None:
            return
        gone = set(deployments)
        for deployment in gone:
            self._add(deployment, -runs.pop(deployment)[0])
        if not runs:
            del self._runs[sender]
        self._tell(gone)

    def _add(self, deployment: Deployment, count: int) -> None:
        total = self._sums.get(deployment, 0) + count
        if total:
            self._sums[deployment] = total
        else:
            del self._sums[deployment]

    def _tell(self, changed: set[Deployment]) -> None:
        for deployment in changed:
            self._told(deployment, self._sums.get(deployment, 0))
