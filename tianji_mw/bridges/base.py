"""A bridge serves one API over another: requests one way, answers and streams the other way. Pure, no I/O.

`A over B` means that the client speaks A and the upstream speaks B. Bridges compose: responses over chat, chat over
messages. A bridge never mutates what it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tianji_mw.apis.base import JSON
from tianji_mw.errors import TianjiError


class Event(NamedTuple):
    """One stream event: its JSON, and its name where the API names events (`""` where it does not)."""

    data: JSON
    name: str = ""


@dataclass(slots=True, kw_only=True)
class Context:
    """What a bridge may need to know besides the JSON; one per attempt, so a bridge itself keeps no state.

    `notes` carries facts from the request to the answer (shortened tool names, an emulated JSON schema).
    """

    call_id: str
    #: The model name the client asked for.
    model: str
    #: Unix seconds, for answers that need a creation time.
    created: int
    #: Remove what the upstream's API cannot express instead of refusing it.
    drop_params: bool = False
    #: Defaults and capabilities of the deployment, e.g. `max_tokens`.
    defaults: Mapping[str, JSON] = field(default_factory=dict)
    #: Names of parameters that were left out, for the `x-tianji-dropped-params` header.
    dropped: list[str] = field(default_factory=list)
    notes: dict[str, JSON] = field(default_factory=dict)


class StreamBridge(Protocol):
    """State machine of one stream: B's events in, A's events out."""

    def feed(self, event: Event) -> Iterable[Event]:
        """A's events for one of B's. Total: an event it does not know gives nothing, never an exception."""
        ...

    def finish(self) -> Iterable[Event]:
        """What A still needs once B has ended properly (closing events, held-back usage)."""
        ...

    @property
    def ended(self) -> bool:
        """Whether B's stream came to its proper end (a stop reason or end marker was seen)."""
        ...


class Bridge(Protocol):
    """Serves one API over another."""

    def request(self, body: Mapping[str, JSON], context: Context) -> dict[str, JSON]:
        """A's request as B's. Raises UnsupportedParams or InvalidRequest with the name of the field."""
        ...

    def answer(self, body: JSON, context: Context) -> JSON:
        """B's whole answer as A's. Raises UpstreamMalformed when it is not B's shape."""
        ...

    def stream(self, context: Context) -> StreamBridge: ...


def unsupported(name: str, context: Context, error: TianjiError) -> None:
    """A parameter the upstream cannot express: leave it out when that is allowed, refuse otherwise."""
    if not context.drop_params:
        raise error
    context.dropped.append(name)
