"""The `send` of one attempt: holds its answer back until the first content, so that until then another one can follow.

A head and the events that only open a stream say that an upstream took the request, not that it serves it. From the
first content on, everything passes through at once. An answer of 400 and above is held to its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

from tianji_mw.frames import FRAMES_KEY, Annotation, form_of
from tianji_mw.routing.answer import Answer
from tianji_mw.taps import header

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt

#: Of the answer with an error; a longer one passes through as it comes.
_MOST: Final = 1 << 20
#: Frames that are part of what was asked for; others open the stream, or end it.
_CONTENT: Final = frozenset({"text", "tool", "thinking", "stop"})
#: So many events of another kind are content that is no text, such as audio.
_MOST_EVENTS: Final = 8


class Held:
    """The channel. `committed` is called with the head, which it may still add headers to; False: somebody else won."""

    __slots__ = (
        "_answer", "_attempt", "_call", "_committed", "_events", "_messages", "_send", "_size", "committed", "lost",
        "status",
    )  # fmt: skip

    def __init__(self, call: Call, attempt: Attempt, send: Send, committed: Callable[[Attempt, Message], bool]) -> None:
        self._call = call
        self._attempt = attempt
        self._send = send
        self._committed = committed
        self._answer = cast("Answer | None", call.notes.get(Answer))
        self._messages: list[Message] = []
        self._size = self._events = 0
        #: The answer is on its way to the client.
        self.committed = False
        #: Another attempt answers the client.
        self.lost = False
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if self.committed:
            if self._answer is not None and self._answer.wants_seals:
                self._answer.read((message,))
            await self._send(message)
            return
        if self.lost:
            return  # its end is on its way; an exception here would look like a fault of the app's own
        self._messages.append(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif message["type"] != "http.response.body" or self._content(message):
            await self.release()

    def _content(self, message: Message) -> bool:
        """Whether this part of the body is what the client waits for."""
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        self._size += len(body)
        if self.status >= 400 or (last and self._attempt.error is not None):
            return self._size > _MOST
        if last:
            return True
        if form_of(header(self._messages[0].get("headers", ()), b"content-type")) != "sse":
            return bool(body)
        note: Annotation | None = message.get(FRAMES_KEY)
        if note is None or note.body is not body:
            return bool(body)  # an app of somebody else: its first bytes are its answer
        for frame in note.frames:
            if frame.kind in _CONTENT:
                return True
            self._events += frame.data is not None and frame.kind != "error"
        return self._events > _MOST_EVENTS or self._size > _MOST

    async def release(self) -> None:
        """Let everything go that was held, and from now on everything at once."""
        messages, self._messages = self._messages, []
        if not messages:
            return
        if not self._committed(self._attempt, messages[0]):
            self.lost = True
            return
        self.committed = True
        if self._answer is not None:
            self._answer.read(messages)
        for message in messages:
            await self._send(message)

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer that is held."""
        if not self._messages:
            return {}
        pairs = self._messages[0].get("headers", ())
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}

    @property
    def body(self) -> bytes:
        """Of the answer that is held."""
        return b"".join(message.get("body", b"") for message in self._messages[1:])

    @property
    def answered(self) -> bool:
        """Whether there is an answer with an error status, whole, that could be let go."""
        return self.status >= 400 and not self.committed and len(self._messages) > 1
