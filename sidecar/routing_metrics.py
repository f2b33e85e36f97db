"""The router's lines of the metrics page: of this process, as all that stands beside the Prometheus callback's page.

The router has counted groups behind a pattern under the pattern: their names are the clients' own, and without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from tianji_mw.driver import inner_layers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.routing.router import Router

_STATES: Final = {"closed": 0, "half_open": 1, "open": 2}
_ESCAPED: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
#: A group that nothing serves.
_OTHER: Final = "other"


def routing_lines(app: ASGIApp) -> Iterator[str]:
    """None where the stack has no router, or it has not started."""
    from tianji_mw.routing.middleware import Routing

    for layer in inner_layers(app):
        if isinstance(layer, Routing) and layer.state is not None:
            yield from _deployments(layer.router)
            yield from _counts(layer.router)
            return


def _deployments(router: Router) -> Iterator[str]:
    labels = {
        one: f'{{deployment="{one.id.translate(_ESCAPED)}",model="{one.model_name.translate(_ESCAPED)}"}}'
        for one in router.table.all
    }
    yield "# TYPE tianji_deployment_state gauge"
    for one, label in labels.items():
        yield f"tianji_deployment_state{label} {_STATES[router.cooldowns.state(one)]}"
    yield "# TYPE tianji_deployment_inflight gauge"
    for one, label in labels.items():
        yield f"tianji_deployment_inflight{label} {router.parallel.inflight.get(one, 0)}"
    yield "# TYPE tianji_deployment_picked_total counter"
    for one, label in labels.items():
        yield f"tianji_deployment_picked_total{label} {router.counts.picked.get(one, 0)}"


def _counts(router: Router) -> Iterator[str]:
    yield "# TYPE tianji_routing_retries_total counter"
    for (group, kind), count in sorted(router.counts.retries.items()):
        yield f'tianji_routing_retries_total{{group="{_label(group)}",kind="{kind}"}} {count}'
    yield "# TYPE tianji_routing_fallbacks_total counter"
    for (begun, target, kind), count in sorted(router.counts.fallbacks.items()):
        yield f'tianji_routing_fallbacks_total{{from="{_label(begun)}",to="{_label(target)}",kind="{kind}"}} {count}'
    yield "# TYPE tianji_routing_waiting gauge"
    for name in dict.fromkeys(one.model_name for one in router.table.all):
        if waiting := router.parallel.waiting(name):
            yield f'tianji_routing_waiting{{group="{_label(name)}"}} {waiting}'


def _label(group: str) -> str:
    return group.translate(_ESCAPED) or _OTHER
