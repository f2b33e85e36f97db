"""One attempt at one deployment: the request goes out, the answer comes back in the client's API.

When the provider speaks the client's API, bytes pass through: only the model's name is replaced, and the answer goes
back as it came. Otherwise a bridge translates. Until the first frame has left, a failure is a true HTTP error; after
it, the API's terminal error event. Choosing deployments and trying again are the routing layer's work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import orjson

from tianji_mw import jsonbytes
from tianji_mw.bridges.base import Bridge, Context, Event
from tianji_mw.errors import TianjiError, UpstreamError, UpstreamMalformed, UpstreamTruncated
from tianji_mw.frames import FRAMES_KEY, Annotation, Form, Frame, Reader, form_of
from tianji_mw.providers.base import read_error
from tianji_mw.taps import send_error, send_error_end
from tianji_mw.upstream import UpstreamRequest
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import Send

    from tianji_mw.apis.base import JSON
    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment
    from tianji_mw.upstream import RawHeaders, UpstreamResponse

_MAX_ERROR_BODY: Final = 1 << 20
_ASK_USAGE: Final = b'{"include_usage":true}'
#: APIs whose streams tell usage only when asked.
_USAGE_ON_REQUEST: Final = frozenset({"chat_completions", "completions"})
_SSE_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Exchange:
    """State of one attempt. `run` answers the client in every case: with the answer, an error, or a cut stream's end."""

    __slots__ = ("_bridge", "_call", "_context", "_deployment", "_send", "_started", "_strip_usage", "_wire")

    def __init__(self, call: Call, deployment: Deployment, send: Send) -> None:
        provider = deployment.provider
        self._call = call
        self._deployment = deployment
        self._send = send
        self._bridge: Bridge | None = provider.bridge(call.api.name)
        self._wire = provider.wire(call.api.name)
        self._context = Context(
            call_id=call.id,
            model=call.model,
            created=int(call.runtime.wall()),
            drop_params=deployment.rules.drop_unsupported or call.request.get("drop_params") is True,
            defaults=deployment.rules.defaults,
        )
        self._started: Form | None = None
        self._strip_usage = False

    async def run(self) -> None:
        """The whole attempt. Raises ClientGone when the client leaves; other failures become answers."""
        call = self._call
        response: UpstreamResponse | None = None
        async with Watch(call):
            try:
                response = await self._open(self._body())
                await self._relay(response)
            except TianjiError as error:
                await self._fail(error)
            finally:
                if response is not None:
                    response.close()

    # --- the request

    def _body(self) -> bytes:
        """The bytes for the provider: the client's own wherever that is possible."""
        call, deployment, context = self._call, self._deployment, self._context
        provider, request, wire = deployment.provider, call.request, self._wire
        model = deployment.upstream_model(call.model)
        self._strip_usage = self._asks_for_usage(request)
        if self._bridge is None and not self._must_edit(request):
            body: bytes | None = call.body
            if body is not None and model != call.model:
                body = jsonbytes.replace_value(body, "model", orjson.dumps(model))
            if body is not None and self._strip_usage:
                body = jsonbytes.append_field(body, "stream_options", _ASK_USAGE)
            if body is not None:
                return body
        edited = deployment.rules.apply(request)
        if self._bridge is not None:
            edited = self._bridged(edited, self._bridge)
        elif self._strip_usage:
            edited["stream_options"] = {**(edited.get("stream_options") or {}), "include_usage": True}
        edited["model"] = model
        if provider.prepares(edited, wire):
            provider.prepare(edited, wire, context)
        call.counters.encoded += 1
        return orjson.dumps(edited)

    def _bridged(self, request: dict[str, JSON], bridge: Bridge) -> dict[str, JSON]:
        """The request in the provider's API; fields that the config allows are carried across as they are."""
        self._context.notes["want_usage"] = self._call.want_usage
        carried = {key: request.pop(key) for key in self._deployment.rules.allowed if key in request}
        return {**carried, **bridge.request(request, self._context)}

    def _must_edit(self, request: Mapping[str, JSON]) -> bool:
        deployment = self._deployment
        return (
            deployment.rules.changes(request)
            or (self._strip_usage and "stream_options" in request)
            or deployment.provider.prepares(request, self._wire)
        )

    def _asks_for_usage(self, request: Mapping[str, JSON]) -> bool:
        """Whether we ask the provider for usage that the client did not ask for, and so take out again."""
        call = self._call
        if not (call.want_usage and call.stream and call.api.name in _USAGE_ON_REQUEST):
            return False
        options = request.get("stream_options")
        return not (isinstance(options, dict) and options.get("include_usage") is True)

    async def _open(self, body: bytes) -> UpstreamResponse:
        """Send; the answer's head. A status of 400 and above raises the provider's error."""
        call, deployment = self._call, self._deployment
        provider = deployment.provider
        deadlines = (deployment.stream_deadlines if call.stream else None) or deployment.deadlines
        headers: RawHeaders = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream" if call.stream else "application/json"),
            ("accept-encoding", "identity"),
            *provider.static_headers(),
            *((name, value) for name in provider.forwards if (value := call.headers.get(name))),
            *await provider.credentials(),
        ]
        url = provider.url(self._wire, deployment.upstream_model(call.model), stream=call.stream)
        transport = provider.transport() or call.runtime.transport
        call.timings.sent_upstream = call.runtime.clock()
        response = await transport.send(UpstreamRequest("POST", url, headers, body, deadlines))
        call.timings.first_upstream_byte = call.runtime.clock()
        await refuse_bad_status(response, deployment)
        return response

    # --- the answer

    async def _relay(self, response: UpstreamResponse) -> None:
        call = self._call
        kind = next((v for k, v in response.headers if k == b"content-type"), b"")
        form = form_of(kind)
        if form == "sse" and call.stream:
            await (self._relay_events(response) if self._bridge is None else self._relay_bridged(response, self._bridge))
            return
        body = await response.read(call.limits.max_answer_bytes)
        frame = self._whole(body)
        if call.stream:
            # Asked for a stream, answered whole: the client still gets what it asked for.
            events = call.api.split(frame.data)
            await self._emit([Frame(raw, call) for raw in events], response, "sse", last=True)
        else:
            await self._emit([frame], response, "whole", last=True)

    def _whole(self, body: bytes) -> Frame:
        """The plain answer as a frame of the client's API. Raises UpstreamMalformed or the error inside of a 200."""
        call = self._call
        reader = Reader(call, "whole")
        name = self._deployment.provider.name
        if self._bridge is None:
            [frame] = reader.feed(body, more=False)
            data = frame.data
        else:
            data = _json(body)
        if data is None:
            raise UpstreamMalformed(f"The provider '{name}' sent an answer that is not JSON.", provider=name)
        if isinstance(data, dict) and data.get("error") and "choices" not in data and data.get("status") is None:
            raise self._error_inside(body)
        if self._bridge is not None:
            frame = Frame.made(call, self._bridge.answer(data, self._context), form="whole")
            reader.note([frame])
        return frame

    async def _relay_events(self, response: UpstreamResponse) -> None:
        call = self._call
        reader = Reader(call, "sse")
        while chunk := await response.chunk():
            aligned = reader.aligned
            frames = reader.feed(chunk, more=True)
            exact = aligned and reader.aligned
            if self._strip_usage and any(frame.kind == "usage" for frame in frames):
                frames, exact = [frame for frame in frames if frame.kind != "usage"], False
            if frames:
                await self._emit(frames, response, "sse", body=chunk if exact else None)
                if call.closed:
                    return
        await self._finish_stream(reader, reader.feed(b"", more=False), response, ended=reader.ended)

    async def _relay_bridged(self, response: UpstreamResponse, bridge: Bridge) -> None:
        call = self._call
        reader = Reader(call, "sse")
        decoder = self._deployment.provider.decoder(self._wire)
        state = bridge.stream(self._context)
        while chunk := await response.chunk():
            events = [out for event in decoder.feed(chunk) for out in state.feed(event)]
            if frames := self._frames(events, reader):
                await self._emit(frames, response, "sse")
                if call.closed or reader.failed:
                    break
        if call.closed:
            return
        events = [out for event in decoder.finish() for out in state.feed(event)]
        if state.ended:
            events.extend(state.finish())
        frames = self._frames(events, reader)
        if state.ended and not reader.failed and call.api.done:
            frames.append(Frame(call.api.done, call))
        await self._finish_stream(reader, frames, response, ended=state.ended or reader.failed)

    def _frames(self, events: Sequence[Event], reader: Reader) -> list[Frame]:
        return reader.note([Frame.made(self._call, event.data, event.name) for event in events])

    async def _finish_stream(self, reader: Reader, rest: list[Frame], response: UpstreamResponse, *, ended: bool) -> None:
        name = self._deployment.provider.name
        if not ended and not reader.ended:
            if rest:
                await self._emit(rest, response, "sse")
            raise UpstreamTruncated(f"The provider '{name}' broke off in the middle of its stream.", provider=name)
        if reader.failed:
            self._call.fail(UpstreamError(f"The provider '{name}' ended its stream with an error.", provider=name))
        await self._emit(rest, response, "sse", last=True)

    async def _emit(
        self, frames: list[Frame], response: UpstreamResponse, form: Form, *, body: bytes | None = None, last: bool = False
    ) -> None:
        """Send frames on; before the first, the head. An error as the very first frame becomes an HTTP error."""
        if self._started is None:
            first = next((frame for frame in frames if frame.data is not None), None)
            if first is not None and first.kind == "error" and form == "sse":
                raise self._error_inside(orjson.dumps(first.data))
            self._started = form
            await self._send({"type": "http.response.start", "status": 200, "headers": self._head(response, frames, form)})
        if body is None:
            body = frames[0].raw if len(frames) == 1 else b"".join(frame.raw for frame in frames)
        message = {"type": "http.response.body", "body": body, "more_body": not last, FRAMES_KEY: Annotation(body, frames)}
        await self._send(message)

    def _head(self, response: UpstreamResponse, frames: list[Frame], form: Form) -> list[tuple[bytes, bytes]]:
        headers = provider_headers(response)
        if self._context.dropped:
            headers.append((b"x-tianji-dropped-params", ",".join(self._context.dropped).encode()))
        if form == "sse":
            return [*_SSE_HEADERS, *headers]
        length = sum(len(frame.raw) for frame in frames)
        return [(b"content-type", b"application/json"), (b"content-length", b"%d" % length), *headers]

    # --- failures

    def _error_inside(self, body: bytes) -> UpstreamError:
        """The error in a body that came with a success status."""
        error = self._deployment.provider.error(502, {}, body)
        code = read_error(body)[1] or ""
        if code.isdecimal() and 400 <= int(code) <= 599:
            error.status = int(code)
        return error

    async def _fail(self, error: TianjiError) -> None:
        call = self._call
        if isinstance(error, UpstreamError) and not error.provider:
            error.provider = self._deployment.provider.name
        call.fail(error)
        if call.gone or call.closed:
            return
        if self._started is not None:
            await send_error_end(call, self._send, error, self._started)
        elif self._bridge is None and isinstance(error, UpstreamError) and _is_api_error(error.body):
            await self._send_native_error(error)
        else:
            await send_error(call, self._send, error)

    async def _send_native_error(self, error: UpstreamError) -> None:
        """The provider speaks the client's API: its error goes back as it is."""
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(error.body))]
        headers += [(k.encode("latin-1"), v.encode("latin-1")) for k, v in error.headers.items()]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": error.body, "more_body": False})


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
        raise UpstreamMalformed(f"The provider '{provider.name}' answered {status}; redirects are not followed.")
    headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in response.headers}
    raise provider.error(status, headers, body)


def provider_headers(response: UpstreamResponse) -> list[tuple[bytes, bytes]]:
    """What a client may see of the provider's headers: limits and ids, under `llm_provider-`."""
    return [(b"llm_provider-" + k, v) for k, v in response.headers if k.startswith(_SHOWN)]


_SHOWN: Final = (b"x-ratelimit-", b"anthropic-ratelimit-", b"x-request-id", b"request-id", b"openai-processing-ms")


def _json(body: bytes) -> JSON:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _is_api_error(body: bytes) -> bool:
    data = _json(body) if body else None
    return isinstance(data, dict) and isinstance(data.get("error"), dict)
