"""`Routing`: chooses a deployment for each call, and tries again where one fails, until the first content has left.

In front of the gateway it decides where a call goes. Around an app of yours it sets `call.deployment`, and your handler
uses it: `current_call().deployment`. An app is asked again only where it says that this is safe: by its answer's
`x-should-retry: true` (the header of OpenAI's and Anthropic's SDKs), or for all its answers with `retry_app=True`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Unpack

from tianji_mw.call import Call
from tianji_mw.driver import Inner, LayerOptions, LLMMiddleware, inner_layers
from tianji_mw.errors import UnknownModel
from tianji_mw.routing import fallbacks
from tianji_mw.routing.adaptive import Adaptive
from tianji_mw.routing.base import Deployment, Picker
from tianji_mw.routing.failover import Failover
from tianji_mw.routing.held import Held
from tianji_mw.routing.mirror import Mirrors
from tianji_mw.routing.router import Router, Trip
from tianji_mw.routing.rules import RoutingRules
from tianji_mw.routing.selector import open_to, team_of
from tianji_mw.routing.state import State
from tianji_mw.routing.table import Deployments
from tianji_mw.routing.wishes import Wishes, asked_priority, asked_retries, speaks
from tianji_mw.runtime import Runtime
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Send

    from tianji_mw.redis.settings import RedisSettings

#: Nothing of a model, or bodies that pass through unread; the gateway asks for a deployment when it knows the model.
_NOT_ROUTED = frozenset({"models", "passthrough"})
#: The phase of the terminal app.
_TERMINAL = 1000


class Routing(LLMMiddleware):
    """Load balancing and failover over deployments.

    >>> app.add_middleware(Routing, deployments=Deployments([...]), picker=LeastBusy())        # doctest: +SKIP

    `redis`: where several processes share limits, budgets and cooldowns.
    """

    phase: ClassVar[int] = 800
    order_reason: ClassVar[str] = "each attempt would pass the layers inside of it again, and hits be routed"

    def __init__(
        self,
        app: ASGIApp,
        deployments: Deployments,
        *,
        picker: Picker | None = None,
        rules: RoutingRules | None = None,
        redis: RedisSettings | None = None,
        retry_app: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        self.deployments = deployments
        self.picker = picker or Adaptive()
        self.rules = rules or RoutingRules()
        self._redis, self._retry_app = redis, retry_app
        self.state: State | None = None
        self._mirrors = Mirrors(self) if any(d.mirrors for d in deployments.all) else None
        #: Whether the gateway is inside, and not an app of somebody else behind a layer of ours.
        self._ours = self._inner_shares and any(layer.phase >= _TERMINAL for layer in inner_layers(app))

    @property
    def router(self) -> Router:
        """What is known of the deployments; there is one from the start on."""
        if self.state is None:
            raise RuntimeError("Routing has not started")
        return self.state.router

    async def start(self, runtime: Runtime) -> None:
        self.state = await State.open(self.deployments, self.picker, self.rules, runtime, self._redis)

    async def aclose(self) -> None:
        if self._mirrors is not None:
            await self._mirrors.aclose()
        state, self.state = self.state, None
        if state is not None:
            await state.aclose()

    # --- a call

    async def on_request(self, call: Call) -> None:
        rules = self.rules
        if call.api.name in _NOT_ROUTED:
            call.chooser = self
            return
        if rules.total_timeout_s is not None:
            call.due = call.timings.received + int(rules.total_timeout_s * 1e9)
        assert self.state is not None
        if self.state.router.counts_tokens:
            call.want_usage = True
        if speaks(call):  # what is wrong in it is refused before anything is tried
            asked_retries(call)
            asked_priority(call)
            fallbacks.check(call)
            call.note(Wishes)

    async def around(self, call: Call, inner: Inner, send: Send) -> None:
        if call.api.name in _NOT_ROUTED:
            await self._unread(call, inner, send)
            return
        if not call.model and not self._ours:
            await inner(send)  # an app may have a model of its own
            return
        if self._mirrors is not None:
            self._mirror(call)
        failover = Failover(self.router, call, inner, send, self._again, free=self._ours)
        if not self._ours:
            await failover.run()  # the app listens to the client itself
            return
        async with Watch(call):
            await failover.run()

    def _mirror(self, call: Call) -> None:
        """Send copies of the call to the groups that the deployments of its group name."""
        assert self._mirrors is not None
        try:
            mirrored = self.deployments.serving(call.model, team_of(call))
        except UnknownModel:
            return  # which is said where it is looked up for the call itself
        groups = {group for one in mirrored if open_to(one, call) for group in one.mirrors}
        self._mirrors.send(call, tuple(sorted(groups)))

    def _again(self, held: Held) -> bool:
        """Whether the app may be asked again; the gateway says itself what is safe."""
        if self._ours or self._retry_app:
            return True
        return held.headers.get("x-should-retry", "").lower() == "true"

    # --- bodies that pass through unread

    async def choose(self, call: Call, model: str) -> Deployment:
        """For the gateway: one attempt, which nothing can follow."""
        trip = await self.router.depart(call, model)
        call.note(Unread).trip = trip
        return trip.attempt.deployment

    async def _unread(self, call: Call, inner: Inner, send: Send) -> None:
        try:
            await inner(send)
        finally:
            trip = call.note(Unread).trip
            if trip is not None:
                self.router.arrive_unread(trip, call)


class Unread:
    """The attempt of a call whose body passes through."""

    __slots__ = ("trip",)

    def __init__(self) -> None:
        self.trip: Trip | None = None
