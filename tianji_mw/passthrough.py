"""Audio, images, files, batches: bodies stream through to the deployment's provider, unread and un-buffered.

Only what routing needs is looked at: the `model` of a JSON body, or of a form, which is held back until it has named
it. The answer comes back in the chunks in which it arrives.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

import orjson

from tianji_mw import jsonbytes, outgoing
from tianji_mw.call import ClientGone
from tianji_mw.errors import (
    BodyTooLarge,
    InvalidRequest,
    ReceiveTimeout,
    RequestError,
    TianjiError,
    UnknownModel,
    UnsupportedEncoding,
    UpstreamError,
)
from tianji_mw.exchange import REFUSED_KEY, is_api_error, provider_headers, refuse_bad_status, send_native_error
from tianji_mw.passthrough_form import Form
from tianji_mw.routing.selector import open_to
from tianji_mw.routing.shuffle import shuffled
from tianji_mw.upstream import UpstreamRequest
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tianji_mw.apis.base import JSON
    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment
    from tianji_mw.routing.table import Deployments
    from tianji_mw.upstream import Transport, UpstreamResponse

_PEEK: Final = 64 << 10
_SEGMENTS: Final = re.compile(r"/(?:v1/)?((?:audio|images|files|batches|uploads|vector_stores|fine_tuning)(?:/.*)?)")
#: Paths that are served by a model; without its name nobody could say whether the caller may use it.
_OF_A_MODEL: Final = frozenset({"audio", "images"})
_ANSWER_HEADERS: Final = frozenset(
    {
        b"content-type", b"content-length", b"content-encoding", b"content-disposition", b"content-range",
        b"accept-ranges", b"etag", b"last-modified",
    }
)  # fmt: skip
_SENT_HEADERS: Final = ("content-type", "accept", "range")
#: Query keys that choose a deployment and are not the provider's.
_OWN_QUERY: Final = frozenset({"custom_llm_provider", "provider", "model"})


class PassThrough:
    """State of one un-buffered exchange."""

    __slots__ = (
        "_call", "_deployments", "_fault", "_form", "_head", "_more", "_own", "_query", "_send", "_uploaded",
    )  # fmt: skip

    def __init__(self, call: Call, deployments: Deployments, send: Send) -> None:
        self._call = call
        self._deployments = deployments
        self._send = send
        #: Headers of the request before the provider's own.
        self._own: list[tuple[str, str]] = []
        self._head = b""
        self._more = True
        self._form: Form | None = None
        self._query: dict[str, str] = {}
        #: What was wrong with the body after its upload had begun.
        self._fault: RequestError | None = None
        self._uploaded = asyncio.Event()

    async def run(self, scope: Scope, receive: Receive) -> None:
        call = self._call
        path = _path(scope)
        pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self._query = dict(pairs)
        needs_model = call.method == "POST" and path.partition("/")[0] in _OF_A_MODEL
        asked = await self._model(receive, needs_model=needs_model)
        if not asked and needs_model:
            text = "The request names no model; in a form with a very large file, 'model' must come before the file."
            raise InvalidRequest(text, param="model", code="missing_required_parameter")
        deployment = call.deployment = call.deployment or await self._choose(asked)
        if "passthrough" not in deployment.provider.speaks:
            name = deployment.provider.name
            raise InvalidRequest(f"The provider '{name}' does not serve this path.", code="unsupported_endpoint")
        model = deployment.upstream_model(asked) if asked else ""
        delta = self._rename(asked, model)
        url = deployment.provider.path_url(path, model)
        if query := urlencode([pair for pair in pairs if pair[0] not in _OWN_QUERY]):
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        request = await self._request(url, deployment, receive, delta)
        await self._exchange(request, deployment)

    async def _exchange(self, request: UpstreamRequest, deployment: Deployment) -> None:
        call = self._call
        response: UpstreamResponse | None = None
        try:
            attempt = call.attempt(deployment, call.begun(deployment))
            transport = deployment.provider.transport() or call.runtime.transport
            response = await self._open(transport, request)
            if response.status in REFUSED_KEY and (again := await self._renewed(request, deployment)):
                response.close()
                response = await self._open(transport, again)
            attempt.answered(response.status, call)
            await refuse_bad_status(response, deployment)
            async with Watch(call):
                await self._relay(response)
        except UpstreamError as error:
            if call.gone:
                raise ClientGone from None
            if self._fault is not None:
                raise self._fault from None
            error.provider = error.provider or deployment.provider.name
            if not is_api_error(error.body):
                raise
            call.fail(error)
            await send_native_error(self._send, error)
        finally:
            if response is not None:
                response.close()

    async def _renewed(self, request: UpstreamRequest, deployment: Deployment) -> UpstreamRequest | None:
        """The request with another credential than the refused one; None when there is none, or an upload is gone."""
        whole = isinstance(request.body, bytes)
        headers = await outgoing.headers_for(self._call, deployment, self._own)
        if (headers == request.headers or not whole) and await outgoing.renew(deployment.provider):
            headers = await outgoing.headers_for(self._call, deployment, self._own)
        if headers == request.headers or not whole:
            return None
        self._call.runtime.count("credential_retries", deployment.provider.name)
        return replace(request, headers=headers)

    # --- which deployment

    async def _model(self, receive: Receive, *, needs_model: bool) -> str:
        """The model that the body or the query names; reads no more than that takes."""
        call = self._call
        if call.headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedEncoding("Compressed request bodies are not accepted.")
        content_type = call.headers.get("content-type", "")
        kind = content_type.partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            self._form = Form(content_type)
        try:
            async with asyncio.timeout(call.limits.receive_timeout_s):
                whole = kind == "application/json"
                # Some clients send the file first. A model that must be known is waited for, within the body's limit.
                patient = whole or (needs_model and "model" not in self._query)
                await self._peek(receive, whole=whole, limit=call.limits.max_body_bytes if patient else _PEEK)
        except TimeoutError:
            seconds = call.limits.receive_timeout_s
            raise ReceiveTimeout(f"The request body did not arrive within {seconds:g} s.") from None
        found = ""
        if kind == "application/json" and self._head:
            found = _model_of(self._json())
        elif self._form is not None and self._form.span is not None:
            found = self._head[slice(*self._form.span)].decode("utf-8", "replace")
        return found or self._query.get("model", "")

    def _json(self) -> JSON:
        try:
            return jsonbytes.loads(self._head)
        except ValueError as error:
            raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None

    async def _peek(self, receive: Receive, *, whole: bool, limit: int) -> None:
        """The start of the body: all of it for JSON, of a form as much as it takes to find the model."""
        parts: list[bytes] = []
        size = 0
        while self._more:
            body = await self._next(receive)
            parts.append(body)
            size += len(body)
            if whole and size > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            if self._form is not None and self._form.span is not None:
                break
            if not whole and (self._form is None or size >= limit):
                break
        self._head = b"".join(parts)

    async def _next(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] != "http.request":
            self._call.gone = True
            raise ClientGone
        self._more = message.get("more_body", False)
        body = bytes(message.get("body", b""))
        if self._form is not None:
            self._form.feed(body)
        return body

    async def _choose(self, model: str) -> Deployment:
        """By model; else by `custom_llm_provider`; else the first deployment whose provider takes such paths."""
        identity = self._call.identity
        if model:
            if identity is not None and not identity.allows(model):
                raise UnknownModel(f"The model '{model[:200]}' does not exist.", param="model")
            if self._call.chooser is not None:
                return await self._call.chooser.choose(self._call, model)
            return shuffled(self._deployments.serving(model), self._call)
        query = self._query
        wanted = (
            query.get("custom_llm_provider")
            or query.get("provider")
            or self._call.headers.get("custom-llm-provider", "")
        )
        for deployment in self._deployments.all:
            allowed = open_to(deployment, self._call) and (identity is None or identity.allows(deployment.model_name))
            provider = deployment.provider
            if allowed and "passthrough" in provider.speaks and wanted in ("", provider.name):
                return deployment
        raise UnknownModel("No deployment serves this path; name a model, or '?custom_llm_provider='.")

    # --- the request

    def _rename(self, asked: str, model: str) -> int:
        """Put the provider's model name into the peeked bytes; by how many bytes the body grew."""
        if model == asked or not self._head:
            return 0
        before = len(self._head)
        if self._form is not None:
            if self._form.span is not None:
                start, end = self._form.span
                self._head = self._head[:start] + model.encode() + self._head[end:]
        elif _model_of(data := self._json()) == asked:
            renamed = jsonbytes.replace_value(self._head, "model", orjson.dumps(model))
            self._head = renamed if renamed is not None else orjson.dumps({**data, "model": model})
        return len(self._head) - before

    async def _request(self, url: str, deployment: Deployment, receive: Receive, delta: int) -> UpstreamRequest:
        call = self._call
        own = [("accept-encoding", "identity")]
        own += [(name, value) for name in _SENT_HEADERS if (value := call.headers.get(name))]
        length = call.headers.get("content-length", "")
        if length.isdecimal() and len(length) <= 18:
            own.append(("content-length", str(int(length) + delta)))
        self._own = own
        headers = await outgoing.headers_for(call, deployment, own)
        body = self._stream(receive) if self._more else self._head
        return UpstreamRequest(call.method, url, headers, body, deployment.deadlines)

    async def _stream(self, receive: Receive) -> AsyncIterator[bytes]:
        """The rest of the body as it arrives. A fault in it breaks the upload off."""
        if self._form is not None:
            self._form.no_more_models()
        yield self._head
        self._head = b""
        while self._more:
            try:
                async with asyncio.timeout(self._call.limits.receive_timeout_s):
                    body = await self._next(receive)
            except RequestError as error:
                self._fault = error
                raise ConnectionAbortedError(error.message) from None
            except ClientGone:
                raise ConnectionAbortedError("the client left during its upload") from None
            except TimeoutError:
                self._fault = ReceiveTimeout("The request body stopped arriving.")
                raise ConnectionAbortedError(self._fault.message) from None
            if body:
                yield body
        self._uploaded.set()

    async def _open(self, transport: Transport, request: UpstreamRequest) -> UpstreamResponse:
        """The answer's head. The client's leaving is noticed by the upload itself, and watched for after it."""
        if not self._more:
            async with Watch(self._call):
                return await transport.send(request)
        sending = asyncio.ensure_future(transport.send(request))
        uploaded = asyncio.ensure_future(self._uploaded.wait())
        try:
            await asyncio.wait((sending, uploaded), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                return sending.result()
            async with Watch(self._call):
                return await sending
        finally:
            uploaded.cancel()
            if not sending.done():
                sending.cancel()

    # --- the answer

    async def _relay(self, response: UpstreamResponse) -> None:
        call = self._call
        headers = [(k, v) for k, v in response.headers if k in _ANSWER_HEADERS]
        headers += provider_headers(response)
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        try:
            while chunk := await response.chunk():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        except TianjiError as error:
            # The head has left. No end follows: the driver breaks the connection, the only sign a client can get.
            call.fail(error)
            return
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _path(scope: Scope) -> str:
    """The provider's path, each segment encoded again: a decoded `?` or `/` in an id must not change the address."""
    path, root = scope["path"], scope.get("root_path", "")
    found = _SEGMENTS.fullmatch(path.removeprefix(root) if root else path)
    parts = found[1].rstrip("/").split("/") if found else []
    # Some servers decode more than once; nobody's id is a step upwards.
    if not parts or any(unquote(unquote(part)) in ("", ".", "..") for part in parts):
        raise InvalidRequest("This path cannot be passed on.")
    return "/".join(quote(part, safe="") for part in parts)


def _model_of(data: JSON) -> str:
    model = data.get("model") if isinstance(data, dict) else None
    return model if isinstance(model, str) else ""
