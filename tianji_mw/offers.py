"""What layers offer to the code inside of them, on the `Call`: protocols, so that nobody needs to know who does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tianji_mw.call import Call
    from tianji_mw.redact import Secret
    from tianji_mw.routing.base import Deployment


class NamedSecrets(Protocol):
    """Secrets by the names that the operator gave them."""

    async def get(self, name: str) -> Secret: ...


class Chooser(Protocol):
    """Chooses a deployment for a call whose body passes through unread."""

    async def choose(self, call: Call, model: str) -> Deployment: ...
