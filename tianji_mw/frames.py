"""The bytes of an answer as frames: decoded once, lazily, and carried along the ASGI messages.

Bytes stay authoritative at every ASGI boundary. A frame list rides on a message as an annotation, valid while
`annotation.body is message["body"]`: a foreign middleware that replaces the bytes invalidates it, and the next layer
decodes again. This file knows no API: what a frame means is asked of `call.api`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON, NOTHING, Kind, Part, Seen
from tianji_mw.errors import UpstreamMalformed

if TYPE_CHECKING:
    from tianji_mw.call import Call

#: Key of the annotation on `http.response.body` messages. ASGI allows extra keys.
FRAMES_KEY: Final = "tianji_mw.frames"

#: How the body of an answer is cut: events, one JSON document, or chunks nobody reads (audio, files).
Form = Literal["sse", "whole", "opaque"]

#: As nearly every server writes them.
_FORMS: Final[Mapping[bytes, Form]] = {
    b"application/json": "whole",
    b"application/json; charset=utf-8": "whole",
    b"text/event-stream": "sse",
    b"text/event-stream; charset=utf-8": "sse",
}
_UNDECODED: Final = object()
_RECENT: Final = 4


class Annotation(NamedTuple):
    """Frames of a body message; valid only while `body` is the very object in the message."""

    body: bytes
    frames: list[Frame]


class Frame:
    """One event of a stream, or the whole body of a plain answer.

    `raw` are the exact bytes. `data`, `kind` and `text` are decoded at first use, at most once. Decoding is total:
    bytes that are no JSON give `data is None` and kind `other`.
    """

    __slots__ = ("_call", "_data", "_event", "_form", "_seen", "dirty", "raw")

    def __init__(self, raw: bytes, call: Call, form: Form = "sse") -> None:
        self.raw = raw
        self._call = call
        self._form: Form = form
        self._data: JSON = _UNDECODED
        self._event = ""
        self._seen: Seen | None = None
        #: Changed by `edit` since it was read.
        self.dirty = False

    @classmethod
    def made(cls, call: Call, data: JSON, event: str = "", form: Form = "sse") -> Frame:
        """A frame of our own making; its bytes are encoded here and never decoded again."""
        body = orjson.dumps(data)
        frame = cls(sse.encode(body, event) if form == "sse" else body, call, form)
        frame._data, frame._event = data, event
        call.counters.encoded += 1
        return frame

    @property
    def data(self) -> JSON:
        """Decoded JSON; None for comments, `[DONE]` and bytes that are no JSON."""
        if self._data is _UNDECODED:
            self._data = self._decode()
        return self._data

    @property
    def event(self) -> str:
        """The event's name; empty where the API uses none."""
        if self._data is _UNDECODED:
            self._data = self._decode()
        return self._event

    def _decode(self) -> JSON:
        payload: bytes | None = self.raw
        if self._form == "sse":
            self._event, payload = sse.parse(self.raw)
        if not payload or payload == b"[DONE]" or self._form == "opaque":
            return None
        self._call.counters.decoded += 1
        try:
            return orjson.loads(payload)
        except orjson.JSONDecodeError:
            return None

    @property
    def seen(self) -> Seen:
        """Kind and text, computed once by the API."""
        if self._seen is None:
            data, api = self.data, self._call.api
            if data is None:
                self._seen = NOTHING
            else:
                self._seen = api.see(data, self._event) if self._form == "sse" else api.see_whole(data)
        return self._seen

    @property
    def kind(self) -> Kind:
        return self.seen.kind

    @property
    def text(self) -> str:
        return self.seen.text

    @property
    def repeating(self) -> bool:
        """Whether it is an event of an API whose streams repeat text."""
        return self._call.api.repeating and self._form == "sse"

    @property
    def repeats(self) -> Iterator[Part]:
        """Texts in it that stood in earlier events."""
        return self._call.api.repeats(self.data, self.event)

    @property
    def readable(self) -> bool:
        """False when the frame carries content that nobody can read: no JSON, and not an empty event or `[DONE]`."""
        if self.data is not None:
            return True
        if self._form != "sse":
            return not self.raw
        _, payload = sse.parse(self.raw)
        return not payload or payload == b"[DONE]"

    def edit(self, data: JSON) -> None:
        """Replace the content; the bytes are encoded anew, and kind and text follow."""
        self._call.counters.encoded += 1
        event = self.event
        body = orjson.dumps(data)
        self.raw = sse.encode(body, event) if self._form == "sse" else body
        self._data, self._seen, self.dirty = data, None, True

    def __repr__(self) -> str:
        return f"Frame({self._form}, {len(self.raw)} bytes)"


def form_of(content_type: bytes) -> Form:
    """How to cut a body of this content type."""
    known = _FORMS.get(content_type)
    if known is not None:
        return known
    kind = content_type.partition(b";")[0].strip().lower()
    if kind == b"text/event-stream":
        return "sse"
    return "whole" if kind == b"application/json" or kind.endswith(b"+json") else "opaque"


class Reader:
    """Incremental decoder of one answer: body bytes in, frames out, usage noted on the call.

    Raises UpstreamMalformed when an event or a plain body is over its limit.
    """

    __slots__ = ("_call", "_form", "_max_body", "_parts", "_recent", "_size", "_splitter")

    def __init__(self, call: Call, form: Form) -> None:
        self._call = call
        self._form: Form = form
        self._splitter = sse.Splitter(call.limits.max_event_bytes) if form == "sse" else None
        self._parts: list[bytes] = []
        self._size = 0
        self._max_body = call.limits.max_answer_bytes
        self._recent: deque[Frame] = deque(maxlen=_RECENT)

    def feed(self, body: bytes, more: bool) -> list[Frame]:
        """Frames completed by these bytes; the rest comes with the last call (`more` false)."""
        if self._splitter is not None:
            return self._feed_events(self._splitter, body, more)
        if self._form == "opaque":
            return [Frame(body, self._call, "opaque")] if body else []
        self._size += len(body)
        if self._size > self._max_body:
            raise UpstreamMalformed(f"the answer is larger than {self._max_body} bytes")
        if body:
            self._parts.append(body)
        if more:
            return []
        frame = Frame(b"".join(self._parts) if len(self._parts) != 1 else self._parts[0], self._call, "whole")
        self._parts = []
        return self.note([frame])

    def _feed_events(self, splitter: sse.Splitter, body: bytes, more: bool) -> list[Frame]:
        self._size += len(body)
        if self._size > self._max_body:
            raise UpstreamMalformed(f"the stream is larger than {self._max_body} bytes")
        raws = splitter.feed(body) if body else []
        if not more and (rest := splitter.finish()):
            raws.append(rest)
        call = self._call
        return self.note([Frame(raw, call) for raw in raws])

    def note(self, frames: list[Frame]) -> list[Frame]:
        """Take usage from the frames, and remember the last ones; the same list back."""
        call = self._call
        pattern = call.api.usage_pattern
        for frame in frames:
            if pattern.search(frame.raw) and (usage := call.api.usage(frame.data)) is not None:
                call.usage = call.usage.merged(usage)
        self._recent.extend(frames)
        return frames

    @property
    def aligned(self) -> bool:
        """Whether no half event waits for its rest: the frames so far are exactly the bytes so far."""
        return self._splitter is None or not self._splitter.tail

    @property
    def failed(self) -> bool:
        """Whether the stream ended with an error event."""
        return any(frame.kind == "error" for frame in self._recent)

    @property
    def error(self) -> JSON:
        """What that event says."""
        return next((frame.data for frame in self._recent if frame.kind == "error"), None)

    @property
    def ended(self) -> bool:
        """Whether the client was told that the answer is complete. Always true for forms other than streams."""
        if self._form != "sse":
            return True
        return any(self._call.api.is_end(f.raw, f.data, f.event) for f in reversed(self._recent))
