"""The `Call`: everything the middlewares share about one LLM request, from the first byte in to the last byte out.

One object per request, under its own key of the ASGI scope and behind `current_call()`. It reads and parses the body
once; it does no network I/O of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar, cast

import orjson

from tianji_mw import jsonbytes
from tianji_mw.apis.base import JSON, Api, Usage
from tianji_mw.channel import Channel, channel_of
from tianji_mw.errors import BodyTooLarge, InvalidRequest, ReceiveTimeout, TianjiError, UnsupportedEncoding
from tianji_mw.facts import Attempt, CacheUse, ClientGone, Counters, Limits, Outcome, Timings, outcome_of
from tianji_mw.headers import RequestHeaders
from tianji_mw.kept import Kept

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Scope

    from tianji_mw.driver import LLMMiddleware
    from tianji_mw.identity.base import Identity
    from tianji_mw.offers import Chooser, NamedSecrets
    from tianji_mw.redact import Secret
    from tianji_mw.routing.base import Deployment
    from tianji_mw.runtime import Runtime

#: Where the Call lives in the ASGI scope.
CALL_KEY: Final = "tianji_mw.call"

_current: ContextVar[Call | None] = ContextVar("tianji_mw_call", default=None)
_MODEL_IN_PATH: Final = re.compile(r"/(?:deployments|engines)/([^/]+)/")
_DISCONNECT: Final[Mapping[str, str]] = {"type": "http.disconnect"}

T = TypeVar("T")

__all__ = [
    "CALL_KEY", "Call", "ClientGone", "Limits", "Outcome", "Timings", "current_call", "open_call",
]  # fmt: skip


def current_call() -> Call | None:
    """The Call being served in this context, for code that has no scope at hand; None outside of one."""
    return _current.get()


@dataclass(slots=True, eq=False)
class Call:
    """One LLM request. Middlewares read it, change the request through `edit()`, and keep private notes on it."""

    api: Api
    id: str
    method: str
    path: str
    headers: RequestHeaders
    limits: Limits
    runtime: Runtime
    #: The event loop that serves it, set by the layer that opened the call.
    loop: asyncio.AbstractEventLoop | None = None
    #: That layer, and the scope that it was given.
    origin: tuple[LLMMiddleware, Scope] | None = None
    identity: Identity | None = None
    #: What serves it; set by routing.
    deployment: Deployment | None = None
    #: Finds that, for apps that learn the model themselves; see `Chooser`.
    chooser: Chooser | None = None
    #: The model group that serves it, where that is not the one that was asked for.
    group: str = ""
    #: When it must be over, all attempts together: nanoseconds of the clock; 0: no limit.
    due: int = 0
    #: What the `Secrets` layer offers by name; see `secret()`.
    named: NamedSecrets | None = None
    #: Address of the client; empty where the server does not tell it.
    client: str = ""
    #: What was sent upstream for it, in this order.
    attempts: list[Attempt] = field(default_factory=list)
    #: Asked before each attempt for headers to send along, lower case; nothing goes before the provider's own.
    upstream_headers: list[Callable[[Deployment], Mapping[str, str]]] = field(default_factory=list)
    #: What layers did to the call that its answer depends on, by who did it: a cache keeps such answers apart.
    vary: dict[str, str] = field(default_factory=dict)
    #: What a cache did for it.
    cache: CacheUse | None = None
    #: Others that wait for this call's answer too: it goes on when its own client leaves.
    followers: int = 0
    #: Called when the client has left and nobody else waits any more. Set while somebody watches the client.
    on_abandoned: Callable[[], None] | None = None
    usage: Usage = field(default_factory=Usage)
    want_usage: bool = False
    timings: Timings = field(default_factory=Timings)
    counters: Counters = field(default_factory=Counters)
    notes: dict[type, object] = field(default_factory=dict)
    #: What left, where a layer asked for it.
    kept: Kept | None = None
    #: HTTP status sent to the client; 0 before.
    status: int = 0
    bytes_out: int = 0
    #: The response left completely.
    complete: bool = False
    #: The client went away before the answer was complete.
    gone: bool = False
    #: A layer ended the answer early; nothing from inside reaches the client any more.
    closed: bool = False
    #: The channel that gave a closed call its ending; the layers outside of it let that ending pass.
    ended_by: object = None
    #: Layers that this call has reached and whose `on_end` is due, outermost first.
    enders: list[LLMMiddleware] = field(default_factory=list)
    #: Why the call failed or was refused; None when it went well.
    error: BaseException | None = None
    outcome: Outcome | None = None
    #: Headers that middlewares add to the response, lower case.
    response_headers: dict[str, str] = field(default_factory=dict)
    _request: dict[str, JSON] | None = None
    _body: bytes = b""
    _dirty: bool = False
    _edited: bool = False
    _replayed: bool = False
    _receive: Receive | None = None
    _on_close: asyncio.Event | None = None

    # --- the request

    @property
    def loaded(self) -> bool:
        """Whether the body has been read and parsed."""
        return self._request is not None

    @property
    def request(self) -> Mapping[str, JSON]:
        """The parsed request; read only, change it through `edit()`. Empty before `load()` and for unread bodies."""
        return self._request if self._request is not None else {}

    @property
    def model(self) -> str:
        """The model the client asked for; empty where it named none."""
        model = self.request.get("model")
        return model if isinstance(model, str) else ""

    @property
    def stream(self) -> bool:
        """Whether the client asked for a stream."""
        return self.request.get("stream") is True

    @property
    def dirty(self) -> bool:
        """Whether somebody changed the request since its bytes were last rendered."""
        return self._dirty

    def edit(self) -> dict[str, JSON]:
        """The request for changing; marks the bytes as stale, so that they are rendered once before they are sent."""
        if self._request is None:
            raise RuntimeError("the request is edited before it was loaded; await call.load() first")
        self._dirty = self._edited = True
        return self._request

    @property
    def edited(self) -> bool:
        """Whether somebody ever changed the request; its length is then not the one in the client's headers."""
        return self._edited

    @property
    def body(self) -> bytes:
        """The request's bytes: as they came, or rendered once after an edit."""
        if self._dirty:
            self._body = orjson.dumps(self._request)
            self._dirty = False
            self.counters.encoded += 1
        return self._body

    def listen(self, receive: Receive) -> None:
        """Take the body from this channel when it is asked for; for a layer that does not load it at once."""
        if self._request is None and receive is not self._receive and receive != self.receive:
            self._receive = receive

    async def load(self, receive: Receive | None = None) -> None:
        """Read and parse the body, once.

        `receive` is the channel of the layer that asks; when a foreign middleware has wrapped it since the last
        load, the body is taken from there, and parsed again only if it changed.

        Raises BodyTooLarge, UnsupportedEncoding, ReceiveTimeout, InvalidRequest.
        """
        if receive is None or (receive is not self._receive and receive == self.receive):
            if self._request is not None:
                return
            receive = self._receive
        elif self._request is None:
            self._receive = receive
        if not self.api.buffered:
            return
        if receive is None:
            raise RuntimeError("the call has no receive channel")
        if self._request is not None:
            self.rewind()
        body = await self._read(receive)
        self._replayed = False
        if self._request is None or body != self.body:
            self._body, self._dirty = body, False
            self._request = self._parse(body)

    def _parse(self, body: bytes) -> dict[str, JSON]:
        if self.method in ("GET", "HEAD", "DELETE") and not body:
            return {}
        self.counters.parsed += 1
        try:
            request = jsonbytes.loads(body)
        except ValueError as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
        if not isinstance(request, dict):
            raise InvalidRequest("The request body must be a JSON object.", code="invalid_json")
        if "model" not in request and (found := _MODEL_IN_PATH.search(self.path)):
            request["model"] = found[1]
            self._dirty = self._edited = True
        self.api.validate(request)
        return cast("dict[str, JSON]", request)

    async def _read(self, receive: Receive) -> bytes:
        if (encoding := self.headers.get("content-encoding", "identity")) != "identity":
            raise UnsupportedEncoding(f"Request bodies in '{encoding}' are not accepted; send plain JSON.")
        limit = self.limits.max_body_bytes
        length = self.headers.get("content-length", "")
        # More digits than any limit has are not worth converting.
        if length.isdecimal() and (len(length) > 18 or int(length) > limit):
            raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
        channel = channel_of(receive)
        body = None if channel is None else channel.take_body()
        if body is not None:
            if len(body) > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            return body
        try:
            with self.runtime.alarms.within(self.limits.receive_timeout_s):
                return await self._read_parts(receive, limit)
        except TimeoutError:
            seconds = self.limits.receive_timeout_s
            raise ReceiveTimeout(f"The request body did not arrive within {seconds:g} s.") from None

    async def _read_parts(self, receive: Receive, limit: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            if not message.get("more_body", False):
                return b"".join((*parts, part)) if parts else bytes(part)
            parts.append(part)

    def rewind(self) -> None:
        """Let `receive` give the body again, for another attempt at the inner app."""
        self._replayed = False

    async def receive(self) -> Message:
        """The ASGI receive channel for the inner app: the body once, then whatever the server has to say."""
        if self._request is not None and not self._replayed:
            self._replayed = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        if self.closed or self._receive is None:
            return dict(_DISCONNECT)
        message = await self._receive_or_closed(self._receive)
        if message["type"] == "http.disconnect" and not self.complete:
            self.gone = not self.closed
        return message

    @property
    def channel(self) -> Channel | None:
        """What the server offers beside `receive`, where nothing stands between it and this call."""
        return channel_of(self._receive)

    async def disconnected(self) -> None:
        """Return when the client has gone away; for a terminal app that has read the body through the Call."""
        receive = self._receive
        while receive is not None:
            message = await receive()
            if message["type"] == "http.disconnect":
                if not self.complete:
                    self.gone = True
                return

    async def _receive_or_closed(self, receive: Receive) -> Message:
        # An app that waits for a disconnect must also hear that a layer closed the call.
        if self._on_close is None:
            self._on_close = asyncio.Event()
        heard = asyncio.ensure_future(receive())
        closed = asyncio.ensure_future(self._on_close.wait())
        try:
            await asyncio.wait((heard, closed), return_when=asyncio.FIRST_COMPLETED)
            return heard.result() if heard.done() else dict(_DISCONNECT)
        finally:
            heard.cancel()
            closed.cancel()

    # --- the answer

    def keep(self, most: int) -> None:
        """Keep references to the first `most` bytes of what leaves, in `kept`, for after the call."""
        if self.kept is None or self.kept.most < most:
            self.kept = Kept(most)

    def close(self, error: TianjiError) -> None:
        """End the answer early: a state change that the driver acts on after the current hook returns."""
        if not self.closed:
            self.closed = True
            self.error = error
            outcome = outcome_of(error)
            # Refused after the request was let in: that is a block.
            self.outcome = "blocked" if outcome == "refused" else outcome
            if self._on_close is not None:
                self._on_close.set()

    def fail(self, error: BaseException, attempt: Attempt | None = None) -> None:
        """Note why the call failed, and its attempt; the first reason stays. A complete answer cannot fail any more."""
        if self.complete:
            return
        if self.error is None:
            self.error = error
        if attempt is None and self.attempts:
            attempt = self.attempts[-1]
        if attempt is not None and attempt.error is None and not attempt.ended:
            attempt.error = error

    def attempt(self, deployment: Deployment, begun: Attempt | None = None) -> Attempt:
        """The request of an attempt is about to be sent; `begun`: the attempt, where routing has begun it."""
        now = self.timings.sent_upstream = self.runtime.clock()
        if begun is None:
            self.attempts.append(begun := Attempt(deployment, now))
        begun.sent, begun.group = now, self.group
        return begun

    def begun(self, deployment: Deployment) -> Attempt | None:
        """The attempt at this deployment that routing has begun."""
        for attempt in reversed(self.attempts):
            if not attempt.sent and not attempt.ended and attempt.deployment.id == deployment.id:
                return attempt
        return None

    async def secret(self, name: str) -> Secret:
        """The secret of this name in the `Secrets` layer's `names`. Raises KeyError, SecretError, RuntimeError."""
        if self.named is None:
            raise RuntimeError("call.secret() needs the Secrets layer outside of this code")
        return await self.named.get(name)

    def note(self, kind: type[T]) -> T:
        """The private storage of type `kind` on this call, made at first use."""
        found = self.notes.get(kind)
        if found is None:
            found = self.notes[kind] = kind()
        return cast(T, found)

    def settle(self) -> Outcome:
        """The outcome, decided once: at the first `on_end`, when the response has left or failed."""
        if self.outcome is None:
            if self.gone:
                self.outcome = "client_gone"
            elif self.error is not None:
                self.outcome = outcome_of(self.error)
            elif not self.complete:
                self.outcome = "truncated"
            elif self.status >= 400:
                self.outcome = "error"
            else:
                self.outcome = "cached" if self.cache is not None and self.cache.answered else "ok"
        return self.outcome

    def __repr__(self) -> str:
        return f"Call({self.id}, {self.api.name}, {self.outcome or 'running'})"


def open_call(api: Api, scope: Scope, receive: Receive, *, runtime: Runtime, limits: Limits) -> Call:
    """A new Call for this scope. The caller puts it under `CALL_KEY` of the scope it passes on."""
    call = Call(
        api=api,
        id=runtime.new_id(),
        method=scope["method"],
        path=scope["path"],
        headers=RequestHeaders(scope["headers"]),
        limits=limits,
        runtime=runtime,
    )
    call._receive = receive
    if client := scope.get("client"):
        call.client = client[0]
    call.timings.received = runtime.clock()
    return call
