"""What a server may offer beside ASGI's `receive`: a body that has arrived, and word of a client that left.

Asking through `receive` costs a deadline for the body and a task that waits for the disconnect. A server whose
`receive` is a method of a `Channel` answers both at once; with any other server, or with a foreign middleware around
`receive`, the suite asks as ASGI has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Receive


class Channel:
    """Base of such a server's request object."""

    __slots__ = ()

    def take_body(self) -> bytes | None:
        """The whole body, once, when all of it has arrived; then `receive` has nothing more to give. None otherwise."""
        raise NotImplementedError

    def on_gone(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` once when the client leaves, at once if it has left; None: nobody wants to know any more."""
        raise NotImplementedError


def channel_of(receive: Receive | None) -> Channel | None:
    """The channel behind this very `receive`; None when there is none, or something stands between."""
    owner = getattr(receive, "__self__", None)
    return owner if isinstance(owner, Channel) else None
