"""Who calls: the `Identity` that other concerns consume, and the `Identifier` protocol that finds it.

There is no anonymous identity as a value: a call without one has `identity is None`, and nothing takes None for a
permission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from starlette.datastructures import Headers


@dataclass(slots=True, frozen=True, kw_only=True)
class Identity:
    """A caller whose key was checked. `key_hash` is the SHA-256 of the key, in hex; the key itself is kept nowhere."""

    key_hash: str
    alias: str = ""
    team: str = ""
    user: str = ""
    #: Model names the key may use, with `*`; empty means all.
    models: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    #: The master key: every model, and the admin endpoints.
    admin: bool = False

    def allows(self, model: str) -> bool:
        """Whether this caller may use the model of this name."""
        return self.admin or not self.models or any(_matches(name, model) for name in self.models)


def _matches(pattern: str, model: str) -> bool:
    """`pattern` with `*` for any run of characters; `all-proxy-models` is LiteLLM's word for everything."""
    if pattern in ("*", "all-proxy-models", model):
        return True
    head, star, tail = pattern.partition("*")
    return (
        bool(star)
        and "*" not in tail
        and len(model) >= len(head) + len(tail)
        and model.startswith(head)
        and model.endswith(tail)
    )


class Identifier(Protocol):
    """Finds the identity behind a request's headers."""

    async def identify(self, headers: Headers) -> Identity | None:
        """The caller, or None when the credentials are missing, unknown or expired. Raises only when it cannot tell."""
        ...
