"""What the driver does to the messages of an answer: `Tap` runs a layer's hooks on them.

A response ends early by a state change here, never by an exception thrown through the inner app: the app could catch
it and flush what was refused. `http.response.start` is held until the first bytes are released, so that an early
failure has a true HTTP status.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.datastructures import MutableHeaders

from tianji_mw.errors import TianjiError, UpstreamTruncated
from tianji_mw.frames import FRAMES_KEY, Annotation, Form, Frame, Reader, form_of

if TYPE_CHECKING:
    from starlette.types import Message, Send

    from tianji_mw.call import Call
    from tianji_mw.driver import LLMMiddleware

log = logging.getLogger("tianji_mw.taps")

#: Key on `http.response.start`: bytes of the body follow at once, so a server may wait for them with its first write.
#: ASGI allows extra keys.
FOLLOWED_KEY: Final = "tianji_mw.followed"

RawHeaderList = list[tuple[bytes, bytes]]
T = TypeVar("T")

_JSON: Final = (b"content-type", b"application/json")
#: Answers that have no body, whatever their headers say (RFC 9110, sections 15.3.5 and 15.4.5).
_BODILESS: Final = frozenset({204, 304})
_FILE_SENDS: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})
#: What could end a header line early.
_LINE_ENDS: Final = str.maketrans("", "", "\r\n\0")


class Closed(OSError):
    """Raised into an app that goes on sending after its answer was ended. Starlette takes it for a disconnect."""


class Head:
    """Status and headers of an answer; what `on_start` sees and may change."""

    __slots__ = ("form", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        message["headers"] = list(message.get("headers", ()))
        self.form: Form = form_of(header(message["headers"], b"content-type"))

    @property
    def status(self) -> int:
        status: int = self.message["status"]
        return status

    @property
    def headers(self) -> MutableHeaders:
        """The headers, changeable in place."""
        return MutableHeaders(raw=self.message["headers"])


class Batch:
    """Frames that arrived together. `last` is true once, with the end of the answer; `status` is its HTTP status."""

    __slots__ = ("form", "frames", "last", "status")

    def __init__(self, frames: Sequence[Frame], last: bool, form: Form, status: int = 200) -> None:
        self.frames = frames
        self.last = last
        self.form: Form = form
        self.status = status


class Tap:
    """The `send` channel of one layer that has `on_start` or `on_frames`."""

    __slots__ = ("_call", "_decoding", "_done", "_head", "_layer", "_reader", "_released", "_send", "closed")

    def __init__(self, layer: LLMMiddleware, call: Call, send: Send) -> None:
        self._layer = layer
        self._call = call
        self._send = send
        self._head: Head | None = None
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
        head = self._head = Head(message)
        await self._ask(self._layer.on_start(self._call, head))
        if self._call.closed and self._call.ended_by is None:
            await self._close(None)

    async def _on_body(self, message: Message) -> None:
        body: bytes = message.get("body", b"")
        last = not message.get("more_body", False)
        if not self._layer.reads_frames:
            await self._release(None)
            self._done = last
            await self._send(message)
            return
        head = self._head
        assert head is not None, "the app sent a body before its head"
        frames, covers = self._frames(message, body, last, head.form)
        out: Sequence[Frame] = ()
        if frames or last:
            out = await self._ask(self._layer.on_frames(self._call, Batch(frames, last, head.form, head.status)))
        if self._call.closed and self._call.ended_by is None:
            await self._close(None)
            return
        joined = _joined(body, frames, out, covers)
        if joined or last:
            await self._release(len(joined) if last else None)
            self._done = last
            note = Annotation(joined, out if isinstance(out, list) else list(out))
            await self._send({"type": "http.response.body", "body": joined, "more_body": not last, FRAMES_KEY: note})

    async def _ask(self, hook: Awaitable[T]) -> T:
        """What a hook says. One that fails decides against the answer: the app must not be able to go on past it."""
        try:
            return await hook
        except TianjiError:
            raise
        except Exception as error:
            call, name = self._call, type(self._layer).__name__
            call.runtime.count("hook_failures", name)
            log.exception("call %s: %s failed on the answer, which ends here", call.id, name)
            raise TianjiError("The server failed while it handled this answer.") from error
        except BaseException:
            # Interrupted in the middle of its judgement: nothing may follow what it had not judged.
            self.closed = True
            raise

    def _frames(self, message: Message, body: bytes, last: bool, form: Form) -> tuple[Sequence[Frame], bool]:
        """The frames of a message, and whether they are exactly its bytes."""
        annotation: Annotation | None = message.get(FRAMES_KEY)
        if annotation is not None and annotation.body is body and not self._decoding:
            return annotation.frames, True
        # From the first foreign message on, this layer cuts the stream itself: cutting needs every byte.
        self._decoding = True
        reader = self._reader
        if reader is None:
            reader = self._reader = Reader(self._call, form)
        aligned = reader.aligned
        frames = reader.feed(body, not last)
        return frames, form == "sse" and aligned and reader.aligned

    async def _release(self, length: int | None) -> None:
        """Let the head go; `length` is that of the body where all of it is known."""
        if self._released:
            return
        self._released = True
        head = self._head
        if head is None:
            return
        known = length is not None or head.form == "sse"
        if known and self._layer.reads_frames and not bodiless(self._call, head.status):
            head.message["headers"] = _refit(head.message["headers"], length)
        await self._send(head.message)

    async def _close(self, error: TianjiError | None) -> None:
        """End the answer here: an HTTP error before the first byte, the API's terminal error event after it."""
        call = self._call
        self.closed = True
        if error is not None:
            call.close(error)
        if call.ended_by is None:
            call.ended_by = self
        reason = call.error
        if self._done or not isinstance(reason, TianjiError):
            return
        self._done = True
        if self._released:
            await send_error_end(call, self._send, reason, self._head.form if self._head else "opaque")
        else:
            await send_error(call, self._send, reason)

    async def finish(self) -> None:
        """The inner app has returned. Where nothing has left yet, an answer without its end is a true HTTP error."""
        if self._done or self.closed or self._released or self._head is None or self._call.gone:
            return
        if bodiless(self._call, self._head.status):
            await self._release(None)
        else:
            await self._close(UpstreamTruncated("The answer broke off before its end."))


def _joined(body: bytes, frames: Sequence[Frame], out: Sequence[Frame], covers: bool) -> bytes:
    """The bytes of `out`: where nobody edited and nothing is held back, the very object that came."""
    dirty = False
    for frame in out:
        if frame.dirty:
            frame.dirty, dirty = False, True
    if covers and out is frames and not dirty:
        return body
    joined = b"".join([frame.raw for frame in out])
    return body if joined == body else joined


async def send_error(call: Call, send: Send, error: TianjiError) -> None:
    """A whole HTTP answer with the error in the shape of the client's API."""
    body = call.api.error(error, call.id)
    headers = with_headers([_JSON, (b"content-length", b"%d" % len(body))], error.headers)
    await send({"type": "http.response.start", "status": error.status, "headers": headers, FOLLOWED_KEY: True})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error_end(call: Call, send: Send, error: TianjiError, form: Form) -> None:
    """The end of an answer that has begun: the API's error event on a stream. A plain body is left to stop short."""
    if form == "sse":
        body = call.api.error_event(error, call.id)
        await send({"type": "http.response.body", "body": body, "more_body": False})


def bodiless(call: Call, status: int) -> bool:
    """Whether the answer has no body by the rules of HTTP; its `content-length` then speaks of something else."""
    return call.method == "HEAD" or status in _BODILESS


def with_length(headers: RawHeaderList, length: int) -> RawHeaderList:
    """The headers with one `content-length`."""
    kept = [(k, v) for k, v in headers if k.lower() not in (b"content-length", b"transfer-encoding")]
    return [*kept, (b"content-length", b"%d" % length)]


def _refit(headers: RawHeaderList, length: int | None) -> RawHeaderList:
    """The headers with a `content-length` that is right: `length`, or none where the length is not known yet."""
    found = [i for i, (name, _) in enumerate(headers) if name.lower() == b"content-length"]
    if not found or (length is not None and len(found) == 1 and headers[found[0]][1] == b"%d" % length):
        return headers
    if length is None:
        return [pair for i, pair in enumerate(headers) if i not in found]
    return with_length(headers, length)


def with_headers(headers: RawHeaderList, more: Mapping[str, str]) -> RawHeaderList:
    """The headers with `more` in place of those of the same name; no value can end its line."""
    added = {k.lower().encode("latin-1"): v.translate(_LINE_ENDS).encode("latin-1", "replace") for k, v in more.items()}
    return [pair for pair in headers if pair[0].lower() not in added] + list(added.items())


def without_accept_encoding(headers: RawHeaderList) -> RawHeaderList:
    """The headers without `accept-encoding`: nothing inside may compress what the layers must read."""
    return [pair for pair in headers if pair[0].lower() != b"accept-encoding"]


def without_file_sends(extensions: Mapping[str, Any] | None) -> dict[str, Any]:
    """The server's extensions without those by which an app sends a file past every `send` channel."""
    return {name: value for name, value in (extensions or {}).items() if name not in _FILE_SENDS}


def header(headers: RawHeaderList, name: bytes) -> bytes:
    for key, value in headers:
        if key.lower() == name:
            return bytes(value)
    return b""
