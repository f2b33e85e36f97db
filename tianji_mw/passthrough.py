"""Audio, images, files, batches: bodies stream through to the deployment's provider, unread and un-buffered.

Only what routing needs is looked at: the `model` of a JSON body, or of the first 64 KiB of a form. The answer comes
back in the chunks in which it arrives.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode

import orjson

from tianji_mw import jsonbytes
from tianji_mw.errors import BodyTooLarge, InvalidRequest, TianjiError, UnknownModel
from tianji_mw.exchange import provider_headers, refuse_bad_status
from tianji_mw.upstream import UpstreamRequest
from tianji_mw.watch import Watch

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment, Deployments, Picker
    from tianji_mw.upstream import UpstreamResponse

_PEEK: Final = 64 << 10
_FORM_MODEL: Final = re.compile(rb'name="model"\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n')
_SEGMENTS: Final = re.compile(r"(?:^|/)(?:v1/)?((?:audio|images|files|batches|uploads|vector_stores|fine_tuning)(?:/.*)?)$")
_ANSWER_HEADERS: Final = frozenset(
    {b"content-type", b"content-length", b"content-disposition", b"content-range", b"accept-ranges", b"etag", b"last-modified"}
)
#: Query keys that choose a deployment and are not the provider's.
_OWN_QUERY: Final = frozenset({"custom_llm_provider", "provider"})


class PassThrough:
    """State of one un-buffered exchange."""

    __slots__ = ("_call", "_deployments", "_head", "_more", "_picker", "_query", "_send")

    def __init__(self, call: Call, deployments: Deployments, picker: Picker, send: Send) -> None:
        self._call = call
        self._deployments = deployments
        self._picker = picker
        self._send = send
        self._head = b""
        self._more = False
        self._query: list[tuple[str, str]] = []

    async def run(self, scope: Scope, receive: Receive) -> None:
        call = self._call
        path = _SEGMENTS.search(scope["path"])
        if path is None or any(part in ("", ".", "..") for part in path[1].split("/")):
            raise InvalidRequest("This path cannot be passed on.")
        self._query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = await self._model(receive)
        deployment = call.deployment = call.deployment or self._pick(asked)
        if deployment.provider.bridge("passthrough") is not None:
            raise InvalidRequest(f"The provider '{deployment.provider.name}' does not serve {path[1]}.")
        delta = self._rename(asked, deployment)
        request = await self._request(path[1], deployment, receive, delta)
        transport = deployment.provider.transport() or call.runtime.transport
        call.timings.sent_upstream = call.runtime.clock()
        response = await transport.send(request)
        try:
            call.timings.first_upstream_byte = call.runtime.clock()
            await refuse_bad_status(response, deployment)
            async with Watch(call):
                await self._relay(response)
        finally:
            response.close()

    # --- which deployment

    async def _model(self, receive: Receive) -> str:
        """The model that the body or the query names; reads no more than that takes."""
        call = self._call
        kind = call.headers.get("content-type", "").partition(";")[0].strip().lower()
        await self._peek(receive, call.limits.max_body_bytes if kind == "application/json" else _PEEK, whole=kind == "application/json")
        if kind == "application/json" and self._head:
            try:
                data = jsonbytes.loads(self._head)
            except ValueError as error:
                raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
            model = data.get("model") if isinstance(data, dict) else None
            if isinstance(model, str):
                return model
        elif kind == "multipart/form-data" and (found := _FORM_MODEL.search(self._head)):
            return found[1].decode("utf-8", "replace")
        return dict(self._query).get("model", "")

    async def _peek(self, receive: Receive, limit: int, *, whole: bool) -> None:
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return
            self._head += message.get("body", b"")
            self._more = message.get("more_body", False)
            if whole and len(self._head) > limit:
                raise BodyTooLarge(f"The request body is larger than {limit} bytes.")
            if not self._more or (not whole and (len(self._head) >= limit or _FORM_MODEL.search(self._head))):
                return

    def _pick(self, model: str) -> Deployment:
        """By model; else by `custom_llm_provider`; else the first deployment whose provider takes such paths."""
        if model:
            if self._call.identity is not None and not self._call.identity.allows(model):
                raise UnknownModel(f"The model '{model[:200]}' does not exist.", param="model")
            return self._picker.pick(self._deployments.serving(model), self._call)
        query = dict(self._query)
        wanted = query.get("custom_llm_provider") or query.get("provider") or self._call.headers.get("custom-llm-provider", "")
        for deployment in self._deployments.all:
            identity = self._call.identity
            allowed = identity is None or identity.allows(deployment.model_name)
            provider = deployment.provider
            if allowed and "passthrough" in provider.speaks and wanted in ("", provider.name):
                return deployment
        raise UnknownModel(
            "No deployment serves this path; name a model in the body (in a form before the file), or "
            "'?custom_llm_provider='."
        )

    # --- the request

    def _rename(self, asked: str, deployment: Deployment) -> int:
        """Put the provider's model name into the peeked bytes; by how many bytes the body grew."""
        model = deployment.upstream_model(asked) if asked else ""
        if not asked or model == asked:
            return 0
        before = len(self._head)
        if found := _FORM_MODEL.search(self._head):
            self._head = self._head[: found.start(1)] + model.encode() + self._head[found.end(1) :]
        elif self._head:
            self._head = jsonbytes.replace_value(self._head, "model", orjson.dumps(model)) or self._head
        return len(self._head) - before

    async def _request(self, path: str, deployment: Deployment, receive: Receive, delta: int) -> UpstreamRequest:
        call, provider = self._call, deployment.provider
        headers = [("accept-encoding", "identity"), *provider.static_headers(), *await provider.credentials()]
        for name in ("content-type", "accept", "range"):
            if value := call.headers.get(name):
                headers.append((name, value))
        length = call.headers.get("content-length", "")
        if length.isdecimal():
            headers.append(("content-length", str(int(length) + delta)))
        query = urlencode([pair for pair in self._query if pair[0] not in _OWN_QUERY])
        url = provider.path_url(path)
        if query:
            url = f"{url}{'&' if '?' in url else '?'}{query}"
        body = self._stream(receive) if self._more else self._head
        return UpstreamRequest(call.method, url, headers, body, deployment.deadlines)

    async def _stream(self, receive: Receive) -> AsyncIterator[bytes]:
        yield self._head
        self._head = b""
        while self._more:
            message = await receive()
            if message["type"] != "http.request":
                self._call.gone = True
                raise ConnectionResetError("the client left during its upload")
            self._more = message.get("more_body", False)
            if body := message.get("body", b""):
                yield body

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
            # The head has left: a body that stops short is the only sign a client can get.
            call.fail(error)
            raise ConnectionResetError("the provider broke off") from error
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

