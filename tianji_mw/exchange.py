"""One attempt at one deployment: the request goes out, the answer comes back in the client's API.

When the provider speaks the client's API, bytes pass through: only the model's name is replaced, and the answer goes
back as it came. Otherwise a bridge translates. Until the first frame has left, a failure is a true HTTP error; after
it, the API's terminal error event. Choosing deployments and trying again are the routing layer's work; what goes out is
made in `outgoing.py`, what an error says is read in `providers/classify.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw import outgoing, redact
from tianji_mw.bridges.base import Bridge, Context, Event
from tianji_mw.errors import TianjiError, UpstreamError, UpstreamMalformed, UpstreamTruncated
from tianji_mw.frames import FRAMES_KEY, Annotation, Form, Frame, Reader, form_of
from tianji_mw.plan import Plan
from tianji_mw.providers import classify
from tianji_mw.providers.base import SHOWN
from tianji_mw.taps import FOLLOWED_KEY, send_error, send_error_end, with_headers
from tianji_mw.upstream import UpstreamRequest

if TYPE_CHECKING:
    from starlette.types import Send

    from tianji_mw.apis.base import JSON
    from tianji_mw.call import Call
    from tianji_mw.facts import Attempt
    from tianji_mw.routing.base import Deployment
    from tianji_mw.upstream import RawHeaders, UpstreamResponse

#: Statuses of a key that is not accepted, perhaps because it was replaced a moment ago.
REFUSED_KEY: Final = frozenset({401, 403})
_MAX_ERROR_BODY: Final = 1 << 20
_SSE_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
#: Fields of which a whole answer of each API has at least one.
_ANSWERS: Final[Mapping[str, frozenset[str]]] = {
    "chat_completions": frozenset({"choices"}),
    "completions": frozenset({"choices"}),
    "messages": frozenset({"content"}),
    "responses": frozenset({"output", "status"}),
    "embeddings": frozenset({"data"}),
    "moderations": frozenset({"results"}),
    "rerank": frozenset({"results", "data"}),
    "count_tokens": frozenset({"input_tokens"}),
}
_SHOWN: Final = tuple(name.encode() for name in SHOWN)
_EVENT_ENDS: Final = (b"\n\n", b"\r\n\r\n", b"\r\r")


class Exchange:
    """State of one attempt. `run` answers the client in every case: by the answer, an error, or a cut stream's end."""

    __slots__ = (
        "_ask_usage", "_attempt", "_bridge", "_call", "_context", "_deployment", "_plan", "_rules", "_send", "_started",
        "_stream", "_wire",
    )  # fmt: skip

    def __init__(self, call: Call, plan: Plan, send: Send) -> None:
        if call.request.get("mock_response"):
            from tianji_mw.providers.mock import mocked

            plan = Plan(mocked(plan.deployment, call.request["mock_response"]), call.api)
        self._call, self._plan, self._deployment = call, plan, plan.deployment
        self._attempt: Attempt | None = None
        self._send = send
        self._bridge: Bridge | None = plan.bridge
        self._wire = plan.wire
        self._rules = outgoing.rules_for(plan.rules, call.request)
        self._context: Context | None = None
        #: Some APIs never stream, whatever their requests say.
        self._stream = call.stream and call.api.streams
        self._ask_usage = self._stream and outgoing.asks_for_usage(call)
        self._started: Form | None = None

    def _noted(self) -> Context:
        """What a bridge or an edit of the request needs to know; bytes that pass through need none."""
        if self._context is None:
            call, rules = self._call, self._rules
            self._context = Context(
                call_id=call.id,
                model=call.model,
                created=int(call.runtime.wall()),
                drop_params=rules.drop_unsupported,
                defaults=rules.defaults,
            )
        return self._context

    async def run(self) -> None:
        """The whole attempt; failures become answers. Whoever runs it watches the client."""
        response: UpstreamResponse | None = None
        try:
            response = await self._open()
            await self._relay(response)
        except TianjiError as error:
            await self._fail(error)
        finally:
            if response is not None:
                response.close()

    async def _open(self) -> UpstreamResponse:
        """Send; the answer's head. A status of 400 and above raises the provider's error."""
        call, plan, stream = self._call, self._plan, self._stream
        self._attempt = call.begun(plan.deployment)  # what fails before it is sent is its failure, and no other's
        headers, body = await plan.headers(call, stream=stream), self._body()
        response = await self._ask(headers, body)
        if response.status in REFUSED_KEY and (renewed := await plan.renewed(call, headers, stream=stream)):
            response.close()
            response = await self._ask(renewed, body)
        if not 200 <= response.status < 300:
            await refuse_bad_status(response, plan.deployment)
        return response

    async def _ask(self, headers: RawHeaders, body: bytes) -> UpstreamResponse:
        call, plan, stream = self._call, self._plan, self._stream
        deadlines = outgoing.deadlines_for(call, plan.deployment, stream=stream)
        request = UpstreamRequest("POST", plan.url(call, stream=stream), headers, body, deadlines)
        attempt = self._attempt = call.attempt(plan.deployment, self._attempt)
        response = await plan.transport(call).send(request)
        attempt.answered(response.status, call)
        return response

    def _body(self) -> bytes:
        """The client's own bytes where nothing has to change in them, else encoded anew."""
        call, plan = self._call, self._plan
        model = plan.model(call)
        if not outgoing.edits(call, plan, self._rules, model, ask_usage=self._ask_usage):
            body = outgoing.spliced(call, model, ask_usage=self._ask_usage)
            if body is not None:
                return body
        return outgoing.body_for(call, plan, model, self._noted(), self._rules, ask_usage=self._ask_usage)

    # --- the answer

    async def _relay(self, response: UpstreamResponse) -> None:
        form = form_of(header(response, b"content-type"))
        if form == "sse" and not self._stream:
            raise self._malformed("sent a stream, and a plain answer was asked for")
        if form == "sse":
            await (
                self._relay_events(response) if self._bridge is None else self._relay_bridged(response, self._bridge)
            )
            return
        frame = self._whole(await response.read(self._call.limits.max_answer_bytes), response)
        if self._stream:
            # Asked for a stream, answered whole: the client still gets what it asked for.
            await self._emit(self._as_stream(frame), response, "sse", last=True)
        else:
            await self._emit([frame], response, "whole", last=True)

    def _whole(self, body: bytes, response: UpstreamResponse) -> Frame:
        """The plain answer as a frame of the client's API. Raises UpstreamMalformed or the error inside of a 200."""
        call, bridge = self._call, self._bridge
        frame = Frame(body, call, "whole")
        data = frame.data
        if not isinstance(data, dict):
            raise self._malformed(_what(body, response))
        if classify.is_error(data):
            raise self._error_inside(body, response)
        expected = _ANSWERS.get(self._wire)
        if not data or (expected is not None and expected.isdisjoint(data)):
            raise self._malformed(f"sent an answer that is none of {self._wire}")
        if bridge is not None:
            frame = Frame.made(call, bridge.answer(data, self._noted()), form="whole")
        usage = call.api.usage(frame.data)
        if usage is not None:
            call.usage = call.usage.merged(usage)
        return frame

    def _as_stream(self, frame: Frame) -> list[Frame]:
        call = self._call
        frames = [Frame(raw, call) for raw in call.api.split(frame.data)]
        return frames if outgoing.wants_usage_chunk(call.request) else self._without_usage(frames)

    def _without_usage(self, frames: list[Frame]) -> list[Frame]:
        """Without chunks that hold usage alone; they are noted already."""
        pattern = self._call.api.usage_pattern
        if self._call.api.name not in ("chat_completions", "completions"):
            return frames
        return [frame for frame in frames if not (pattern.search(frame.raw) and frame.kind == "usage")]

    async def _relay_events(self, response: UpstreamResponse) -> None:
        call = self._call
        reader = Reader(call, "sse")
        last: Frame | None = None
        while chunk := await response.chunk():
            aligned = reader.aligned
            frames = reader.feed(chunk, more=True)
            exact = aligned and reader.aligned
            if self._ask_usage and len(kept := self._without_usage(frames)) != len(frames):
                frames, exact = kept, False
            if frames:
                last = frames[-1]
                await self._emit(frames, response, "sse", body=chunk if exact else None)
                if call.closed:
                    return
        rest = _closed(reader.feed(b"", more=False), call)
        if self._ask_usage:
            rest = self._without_usage(rest)
        last = rest[-1] if rest else last
        done = call.api.done
        if done and reader.ended and not reader.failed and last is not None and last.data is not None:
            # Some servers close after the finish reason; clients that wait for the end marker get it.
            rest.append(Frame(done, call))
        await self._finish_stream(reader, rest, response, ended=reader.ended)

    async def _relay_bridged(self, response: UpstreamResponse, bridge: Bridge) -> None:
        call = self._call
        reader = Reader(call, "sse")
        decoder = self._deployment.provider.decoder(self._wire, call.limits.max_event_bytes)
        state = bridge.stream(self._noted())
        size = 0
        while chunk := await response.chunk():
            size += len(chunk)
            if size > call.limits.max_answer_bytes:
                raise self._malformed(f"sent a stream larger than {call.limits.max_answer_bytes} bytes")
            events: list[Event] = []
            for event in decoder.feed(chunk):
                if self._started is None and not events and classify.is_error(event.data):
                    raise self._error_inside(orjson.dumps(event.data), response)
                events.extend(state.feed(event))
            if frames := self._frames(events, reader):
                await self._emit(frames, response, "sse")
            if call.closed or reader.failed:
                break
        if call.closed:
            return
        events = [] if reader.failed else [out for event in decoder.finish() for out in state.feed(event)]
        if state.ended and not reader.failed:
            events.extend(state.finish())
        frames = self._frames(events, reader)
        if state.ended and not reader.failed and call.api.done:
            frames.append(Frame(call.api.done, call))
        await self._finish_stream(reader, frames, response, ended=state.ended or reader.failed)

    def _frames(self, events: Sequence[Event], reader: Reader) -> list[Frame]:
        frames = reader.note([Frame.made(self._call, event.data, event.name) for event in events])
        for frame in frames:
            if frame.kind == "error":
                clean = redact.text(frame.raw.decode("utf-8", "replace"), self._deployment.provider.secrets)
                frame.raw = clean.encode()
        return self._without_usage(frames) if self._ask_usage else frames

    async def _finish_stream(
        self, reader: Reader, rest: list[Frame], response: UpstreamResponse, *, ended: bool
    ) -> None:
        name = self._deployment.provider.name
        if not ended and not reader.ended:
            if rest:
                await self._emit(rest, response, "sse")
            raise UpstreamTruncated(f"The provider '{name}' broke off in the middle of its stream.", provider=name)
        if reader.failed:
            self._call.fail(self._error_inside(orjson.dumps(reader.error), response), self._attempt)
        await self._emit(rest, response, "sse", last=True)

    async def _emit(
        self,
        frames: list[Frame],
        response: UpstreamResponse,
        form: Form,
        *,
        body: bytes | None = None,
        last: bool = False,
    ) -> None:
        """Send frames on; before the first, the head. An error as the very first frame becomes an HTTP error."""
        if self._started is None:
            if form == "sse":
                first = next((frame for frame in frames if frame.data is not None), None)
                if first is not None and first.kind == "error":
                    raise self._error_inside(orjson.dumps(first.data), response)
            self._started = form
            headers = self._head(response, frames, form)
            await self._send({"type": "http.response.start", "status": 200, "headers": headers, FOLLOWED_KEY: True})
        if body is None:
            body = frames[0].raw if len(frames) == 1 else b"".join(frame.raw for frame in frames)
        message = {
            "type": "http.response.body",
            "body": body,
            "more_body": not last,
            FRAMES_KEY: Annotation(body, frames),
        }
        await self._send(message)

    def _head(self, response: UpstreamResponse, frames: list[Frame], form: Form) -> list[tuple[bytes, bytes]]:
        headers = provider_headers(response)
        if self._context is not None and self._context.dropped:
            dropped = ",".join(dict.fromkeys(self._context.dropped))
            headers = with_headers(headers, {"x-tianji-dropped-params": dropped})
        if form == "sse":
            return [*_SSE_HEADERS, *headers]
        length = sum(len(frame.raw) for frame in frames)
        return [(b"content-type", b"application/json"), (b"content-length", b"%d" % length), *headers]

    # --- failures

    def _malformed(self, what: str) -> UpstreamMalformed:
        name = self._deployment.provider.name
        return UpstreamMalformed(f"The provider '{name}' {what}.", provider=name)

    def _error_inside(self, body: bytes, response: UpstreamResponse) -> UpstreamError:
        """The error in a body that came with a success status."""
        return self._deployment.provider.error(classify.status_of(classify.read(body)), _texts(response), body)

    async def _fail(self, error: TianjiError) -> None:
        call = self._call
        if isinstance(error, UpstreamError) and not error.provider:
            error.provider = self._deployment.provider.name
        call.fail(error, self._attempt)
        if call.gone or call.closed:
            return
        if self._started is not None:
            await send_error_end(call, self._send, error, self._started)
        elif self._bridge is None and isinstance(error, UpstreamError) and is_api_error(error.body):
            await send_native_error(self._send, error)
        else:
            await send_error(call, self._send, error)


async def send_native_error(send: Send, error: UpstreamError) -> None:
    """The provider speaks the client's API: its error goes back as it is."""
    length = b"%d" % len(error.body)
    headers = with_headers([(b"content-type", b"application/json"), (b"content-length", length)], error.headers)
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": error.body, "more_body": False})


async def refuse_bad_status(response: UpstreamResponse, deployment: Deployment) -> None:
    """Raise the provider's error for an answer that is no success; the exchange is closed then."""
    status = response.status
    if 200 <= status < 300:
        return
    provider = deployment.provider
    try:
        body = await response.read(_MAX_ERROR_BODY)
    except TianjiError:
        body = b""
    response.close()
    if status < 400:
        raise UpstreamMalformed(
            f"The provider '{provider.name}' answered {status}; redirects are not followed.", provider=provider.name
        )
    raise provider.error(status, _texts(response), body)


def provider_headers(response: UpstreamResponse) -> list[tuple[bytes, bytes]]:
    """What a client may see of the provider's headers."""
    return [(b"llm_provider-" + name, value) for name, value in response.headers if name.startswith(_SHOWN)]


def is_api_error(body: bytes) -> bool:
    """Whether this is an error body that clients of the API can read."""
    data = _json(body) if body else None
    return isinstance(data, dict) and isinstance(data.get("error"), dict)


def header(response: UpstreamResponse, name: bytes) -> bytes:
    return next((value for key, value in response.headers if key == name), b"")


def _texts(response: UpstreamResponse) -> dict[str, str]:
    return {k.decode("latin-1"): v.decode("latin-1") for k, v in response.headers}


def _json(body: bytes) -> JSON:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _what(body: bytes, response: UpstreamResponse) -> str:
    """What came in the place of an answer, without a word of it."""
    encoding = header(response, b"content-encoding").decode("latin-1")
    if not body:
        return "sent an empty answer"
    if encoding not in ("", "identity"):
        return "sent a compressed answer, which was not asked for"
    return "sent an answer that is no JSON object"


def _closed(frames: list[Frame], call: Call) -> list[Frame]:
    """What came after the last complete event: closed where it is one, left out where it is half of one."""
    out = []
    for frame in frames:
        if frame.raw.endswith(_EVENT_ENDS):
            out.append(frame)
        elif frame.raw.strip() and frame.readable:
            out.append(Frame(frame.raw.rstrip(b"\r\n") + b"\n\n", call))
    return out
