"""One upstream call for all who ask the same at the same time: the first one's answer goes to all of them.

A follower of a stream sees it from its first byte on, as it comes. When the leader's client leaves, the call goes on
for those who wait; when the last of them leaves too, it ends. Who follows is not slowed by the others, nor slows them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from tianji_mw.call import Call
from tianji_mw.errors import TianjiError, UpstreamTruncated
from tianji_mw.frames import Form, form_of
from tianji_mw.taps import header, send_error, send_error_end
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.cache.entry import Entry

#: `whole`: the answer has come to its end; `lost`: it never will.
State = Literal["running", "whole", "lost"]


class Flight:
    """An answer on its way: what the leader is sent goes through `take`."""

    __slots__ = (
        "_deaf", "_hold", "_most", "_send", "_waiting", "bodies", "content_type", "entry", "form", "held", "leader",
        "over", "size", "state", "status",
    )  # fmt: skip

    def __init__(self, leader: Call, send: Send, most: int, *, hold_errors: bool = False) -> None:
        self.leader = leader
        self._send = send
        self._most = most
        #: Errors do not leave: there is something better to answer with.
        self._hold = hold_errors
        self.held = False
        self._deaf = False
        self._waiting: list[asyncio.Future[None]] = []
        self.status = 0
        self.form: Form = "opaque"
        self.content_type = b""
        self.bodies: list[bytes] = []
        self.size = 0
        self.state: State = "running"
        #: The leader is done with it, and `entry` is there if there is one.
        self.over = False
        self.entry: Entry | None = None

    # --- the leader's side

    async def take(self, message: Message) -> None:
        """Note a message of the answer, and send it to the leader's client as long as there is one."""
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self.content_type = header(message.get("headers", ()), b"content-type")
            self.form = form_of(self.content_type)
            self.held = self._hold and (self.status >= 500 or self.status == 429)
        elif kind == "http.response.body":
            self._add(message.get("body", b""))
        last = kind == "http.response.body" and not message.get("more_body", False)
        if not self._deaf and not self.held:
            try:
                await self._send(message)
            except OSError:
                if not self.leader.followers:
                    raise
                self._deaf = True
        if last:
            self.state = "whole"
        self._wake()

    def _add(self, body: bytes) -> None:
        self.size += len(body)
        if self.joinable or self.leader.followers:
            self.bodies.append(body)
        else:
            self.bodies.clear()

    @property
    def joinable(self) -> bool:
        """Whether all of it so far is still here, so that another one may follow."""
        return self.size <= self._most

    def end(self) -> None:
        """The leader is done with it."""
        self.over = True
        if self.state == "running":
            self.state = "lost"
        self._wake()

    @property
    def body(self) -> bytes:
        return self.bodies[0] if len(self.bodies) == 1 else b"".join(self.bodies)

    @property
    def good(self) -> bool:
        """Whether it is a whole answer that nobody objected to."""
        leader = self.leader
        return self.state == "whole" and self.status == 200 and leader.error is None and not leader.closed

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- the followers' side

    async def follow(self, call: Call, send: Send, *, live: bool) -> bool:
        """Give this call the answer. False: it takes it from `entry`, or has to ask for itself where there is none.

        `live`: it wants a stream, and gets it as it comes, if one comes.
        """
        leader = self.leader
        leader.followers += 1
        try:
            async with Watch(call):
                while not self.over and not self.status:
                    await self._change()
                if live and self.form == "sse" and self.status == 200:
                    return await self._relay(call, send)
                while not self.over:
                    await self._change()
            if self.entry is None and self.state == "whole" and not self.good and not leader.closed:
                await self._fail(call, send)
                return True
            return False
        finally:
            leader.followers -= 1
            if not leader.followers and leader.gone and leader.on_abandoned is not None:
                leader.on_abandoned()

    async def _change(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    async def _relay(self, call: Call, send: Send) -> bool:
        headers = [(b"content-type", self.content_type), (b"cache-control", b"no-cache")]
        at, started = 0, False
        while True:
            fresh, over = self.bodies[at:], self.state != "running"
            at += len(fresh)
            body = b"".join(fresh)
            if not started and (body or over):
                if over and not self.bodies and self.state == "lost":
                    return False
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": headers})
            if self.state == "lost":
                error = UpstreamTruncated("The answer broke off before its end.")
                call.fail(error)
                await send_error_end(call, send, error, "sse")
                return True
            if over and self.leader.error is not None:
                call.fail(self.leader.error)
            if body or over:
                await send({"type": "http.response.body", "body": body, "more_body": not over})
            if over:
                return True
            if at == len(self.bodies) and self.state == "running":
                await self._change()

    async def _fail(self, call: Call, send: Send) -> None:
        """The leader's failure is this call's too."""
        error = self.leader.error
        if isinstance(error, TianjiError) and self.status == 200:
            call.fail(error)
            await send_error(call, send, error)
            return
        if error is not None:
            call.fail(error)
        length = (b"content-length", b"%d" % len(self.body))
        headers = [(b"content-type", self.content_type), length]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})
