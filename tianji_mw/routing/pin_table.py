"""Which deployment a key belongs to, in this process's memory, over what all processes share.

A copy of a shared pin is believed for a minute; a pin that is in use is told and heard anew before that, in the
background.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from tianji_mw.routing.shared_pins import SharedPins

#: Keys that are remembered; the one that was not used for the longest time is forgotten first.
MOST: Final = 10_000
_COPY_S: Final = 60.0


class Pin(NamedTuple):
    """Where a key belongs. Times are nanoseconds of the runtime's clock."""

    id: str
    until: int
    #: From then on, a use prolongs it.
    renew: int


class PinTable:
    """Pins of one kind, which live for `ttl_s` after they were used last."""

    __slots__ = ("_copy_ns", "_pins", "_runtime", "_shared", "ttl_s")

    def __init__(self, ttl_s: float, runtime: Runtime, shared: SharedPins | None) -> None:
        self.ttl_s = ttl_s
        self._runtime, self._shared = runtime, shared
        self._copy_ns = int((min(ttl_s, _COPY_S) if shared is not None else ttl_s) * 1e9)
        self._pins: OrderedDict[str, Pin] = OrderedDict()

    def find(self, key: str) -> str | None:
        """The id of its deployment, if memory knows it."""
        pin = self._pins.get(key)
        if pin is None:
            return None
        if pin.until > self._runtime.clock():
            self._pins.move_to_end(key)
            return pin.id
        del self._pins[key]
        return None

    def copy(self, key: str, deployment_id: str) -> None:
        """What Redis says of it."""
        now = self._runtime.clock()
        self._put(key, Pin(deployment_id, now + self._copy_ns, now + self._copy_ns // 2))

    def keep(self, key: str, deployment_id: str, *, move: bool) -> None:
        """The deployment has served the key; one that belongs elsewhere stays there without `move`."""
        pin, now = self._pins.get(key), self._runtime.clock()
        if pin is not None and pin.until > now:
            if pin.id == deployment_id and pin.renew > now:
                return
            if pin.id != deployment_id and not move:
                return
            move = pin.id != deployment_id
        self.copy(key, deployment_id)
        if self._shared is not None:
            self._shared.put(key, deployment_id, self.ttl_s, move=move, heard=lambda found: self._hear(key, found))

    def __len__(self) -> int:
        return len(self._pins)

    def _hear(self, key: str, found: str) -> None:
        pin = self._pins.get(key)
        if pin is None or pin.id != found:
            self.copy(key, found)

    def _put(self, key: str, pin: Pin) -> None:
        pins = self._pins
        pins[key] = pin
        pins.move_to_end(key)
        if len(pins) > MOST:
            pins.popitem(last=False)
