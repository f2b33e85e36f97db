"""The routing core without a server: a clock that stands, calls that nobody sends, a router with its own counters."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from tests.support.calls import a_call
from tests.support.pickers import deployments
from tianji_mw.call import Call
from tianji_mw.counters.local import LocalHolds, LocalWindows
from tianji_mw.errors import UpstreamError
from tianji_mw.identity.base import Identity
from tianji_mw.routing.base import Candidates, Deployment, Picker
from tianji_mw.routing.failure import Failure
from tianji_mw.routing.router import Router
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.shuffle import Shuffle
from tianji_mw.routing.table import Deployments
from tianji_mw.runtime import Runtime

S = 1_000_000_000
#: A failure that counts, and may be tried anywhere.
FAILED = Failure(
    kind="InternalServer", status=500, error=UpstreamError("no", status=500), again=True, elsewhere=False,
    falls_back=True, counts=True, unreachable=False, wait_s=None,
)  # fmt: skip


class Clock:
    """Stands until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1_000 * S

    def __call__(self) -> int:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * S)


def runtime_of(clock: Clock, seed: int = 1) -> Runtime:
    return Runtime(clock=clock, wall=lambda: clock.now / S, rng=random.Random(seed))


def a_group(*fields: dict[str, Any], name: str = "m") -> Candidates:
    """Deployments of one public name, with ids `d0`, `d1`, ..."""
    return deployments(*[{"model_name": name, **one} for one in fields])


def call_of(
    runtime: Runtime,
    model: str = "m",
    *,
    api: str = "chat_completions",
    headers: Sequence[tuple[bytes, bytes]] = (),
    identity: Identity | None = None,
    **request: Any,
) -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **request}
    call = a_call(api, headers=headers, identity=identity, request=body)
    call.runtime = runtime
    call.timings.received = call.timings.sent_upstream = runtime.clock()
    return call


def router_of(
    runtime: Runtime,
    group: Sequence[Deployment],
    *,
    picker: Picker | None = None,
    aliases: dict[str, str] | None = None,
    **rules: Any,
) -> Router:
    picker = picker or Shuffle()
    picker.open(runtime)
    table = Deployments(group, aliases)
    return Router(table, picker, RoutingRules(**rules), runtime, LocalWindows(runtime), LocalHolds(runtime))
