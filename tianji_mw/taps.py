"""What the driver does to the messages of an answer: `Tap` runs a layer's hooks, `Witness` watches the whole call.

A response ends early by a state change here, never by an exception thrown through the inner app: the app could catch
it and flush what was refused. `http.response.start` is held until the first bytes are released, so that an early
failure has a true HTTP status.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from starlette.datastructures import MutableHeaders

from tianji_mw.errors import TianjiError, UpstreamTruncated
from tianji_mw.frames import FRAMES_KEY, Annotation, Form, Frame, Reader, form_of

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.driver import LLMMiddleware

RawHeaderList = list[tuple[bytes, bytes]]

_JSON: Final = (b"content-type", b"application/json")


class Closed(OSError):
    """Raised into an app that goes on sending after its answer was ended. Starlette takes it for a disconnect."""


class Head:
    """Status and headers of an answer; what `on_start` sees and may change."""

    __slots__ = ("_message", "form")

    def __init__(self, message: Message) -> None:
        self._message = message
        message["headers"] = list(message.get("headers", ()))
        self.form: Form = form_of(_header(message["headers"], b"content-type"))

    @property
    def status(self) -> int:
        status: int = self._message["status"]
        return status

    @property
    def headers(self) -> MutableHeaders:
        """The headers, changeable in place."""
        return MutableHeaders(raw=self._message["headers"])


class Batch:
    """Frames that arrived together. `last` is true once, with the end of the answer."""

    __slots__ = ("form", "frames", "last")

    def __init__(self, frames: Sequence[Frame], last: bool, form: Form) -> None:
        self.frames = frames
        self.last = last
        self.form: Form = form


class Tap:
    """The `send` channel of one layer that has `on_start` or `on_frames`."""

    __slots__ = ("_call", "_decoding", "_done", "_head", "_layer", "_reader", "_released", "_send", "closed")

    def __init__(self, layer: LLMMiddleware, call: Call, send: Send) -> None:
        self._layer = layer
        self._call = call
        self._send = send
        self._head: tuple[Head, Message] | None = None
        self._reader: Reader | None = None
        self._decoding = False
        self._released = False
        self._done = False
        #: This layer ended the answer early.
        self.closed = False

    async def __call__(self, message: Message) -> None:
        if self.closed:
            raise Closed("the answer was ended by a middleware")
        kind = message["type"]
        try:
            if kind == "http.response.start":
                await self._on_head(message)
            elif kind == "http.response.body":
                await self._on_body(message)
            else:
                await self._send(message)
        except TianjiError as error:
            await self._close(error)

    async def _on_head(self, message: Message) -> None:
        head = Head(message)
        self._head = (head, message)
        self._reader = Reader(self._call, head.form)
        await self._layer.on_start(self._call, head)
        if self._call.closed:
            await self._close(None)

    async def _on_body(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        frames, covers = self._frames(message, body, last)
        form = self._head[0].form if self._head else "opaque"
        out: Sequence[Frame] = ()
        if frames or last:
            out = await self._layer.on_frames(self._call, Batch(frames, last, form))
        if self._call.closed:
            await self._close(None)
            return
        # Nobody edited, nothing held back: the very same bytes object goes on.
        untouched = covers and out is frames and not any(frame.dirty for frame in frames)
        joined = body if untouched else b"".join(frame.raw for frame in out)
        if joined or last:
            await self._release(len(joined) if last and form == "whole" else None)
            self._done = last
            await self._send(
                {
                    "type": "http.response.body",
                    "body": joined,
                    "more_body": not last,
                    FRAMES_KEY: Annotation(joined, list(out)),
                }
            )

    def _frames(self, message: Message, body: bytes, last: bool) -> tuple[Sequence[Frame], bool]:
        """The frames of a message, and whether they are exactly its bytes."""
        annotation: Annotation | None = message.get(FRAMES_KEY)
        if annotation is not None and annotation.body is body and not self._decoding:
            return annotation.frames, True
        # From the first foreign message on, this layer cuts the stream itself: cutting needs every byte.
        self._decoding = True
        assert self._reader is not None
        return self._reader.feed(body, not last), False

    async def _release(self, length: int | None) -> None:
        if self._released:
            return
        self._released = True
        if self._head is not None:
            message = self._head[1]
            if length is not None:
                message["headers"] = with_length(message["headers"], length)
            await self._send(message)

    async def _close(self, error: TianjiError | None) -> None:
        """End the answer here: an HTTP error before the first byte, the API's terminal error event after it."""
        if error is not None:
            self._call.close(error)
        self.closed = True
        reason = self._call.error
        if self._done or not isinstance(reason, TianjiError):
            return
        self._done = True
        if self._released:
            await send_error_end(self._call, self._send, reason, self._head[0].form if self._head else "opaque")
        else:
            await send_error(self._call, self._send, reason)

    async def finish(self) -> None:
        """The inner app has returned; release a head that was held for a body that never came."""
        if not self._done and not self.closed and self._head is not None:
            await self._release(None)


class Witness:
    """The `send` channel of the outermost layer: notes what really left, and never lets a stream end in silence."""

    __slots__ = ("_call", "_form", "_send", "_started")

    def __init__(self, call: Call, send: Send) -> None:
        self._call = call
        self._send = send
        self._form: Form = "opaque"
        self._started = False

    async def __call__(self, message: Message) -> None:
        call = self._call
        kind = message["type"]
        if kind == "http.response.start":
            self._started = True
            call.status = message["status"]
            headers: RawHeaderList = list(message.get("headers", ()))
            self._form = form_of(_header(headers, b"content-type"))
            headers.append((b"x-request-id", call.id.encode()))
            headers.extend((k.encode("latin-1"), v.encode("latin-1")) for k, v in call.response_headers.items())
            message = {**message, "headers": headers}
        elif kind == "http.response.body":
            body = message.get("body", b"")
            if body and not call.bytes_out:
                call.timings.first_client_byte = call.runtime.clock()
            call.bytes_out += len(body)
            if not message.get("more_body", False):
                call.complete = not call.gone
                call.timings.end = call.runtime.clock()
        try:
            await self._send(message)
        except OSError:
            call.gone = True
            call.complete = False
            raise

    async def fail(self) -> None:
        """An exception leaves the call: a stream that has begun gets its terminal error event first."""
        await self._end_stream(TianjiError("The server failed while it produced this answer."))

    async def finish(self) -> None:
        """The inner app has returned."""
        if self._started and not self._call.complete and not self._call.gone:
            await self._end_stream(UpstreamTruncated("The answer broke off before its end."))
        if not self._call.timings.end:
            self._call.timings.end = self._call.runtime.clock()

    async def _end_stream(self, error: TianjiError) -> None:
        call = self._call
        if not self._started or call.complete or call.gone:
            return
        call.fail(error)
        try:
            await send_error_end(call, self, error, self._form)
        except OSError:
            call.gone = True


async def send_error(call: Call, send: Send, error: TianjiError) -> None:
    """A whole HTTP answer with the error in the shape of the client's API."""
    body = call.api.error(error, call.id)
    headers: RawHeaderList = [_JSON, (b"content-length", b"%d" % len(body))]
    headers += [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error_end(call: Call, send: Send, error: TianjiError, form: Form) -> None:
    """The end of an answer that has begun: the API's error event on a stream, else a body that stops short."""
    body = call.api.error_event(error, call.id) if form == "sse" else b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


def with_length(headers: RawHeaderList, length: int) -> RawHeaderList:
    """The headers with one `content-length`."""
    kept = [(k, v) for k, v in headers if k.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", b"%d" % length)]


def without_accept_encoding(headers: RawHeaderList) -> RawHeaderList:
    """The headers without `accept-encoding`: nothing inside may compress what the layers must read."""
    return [pair for pair in headers if pair[0].lower() != b"accept-encoding"]


def _header(headers: RawHeaderList, name: bytes) -> bytes:
    for key, value in headers:
        if key.lower() == name:
            return bytes(value)
    return b""

