"""What a provider is: which client APIs it speaks as they are, how the others are bridged, where it lives, who we are.

A provider is a pydantic model: its fields are its configuration. Construction has no side effect. It builds requests
and reads errors; it sends nothing itself (the gateway does, through a Transport).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import orjson
from pydantic import BaseModel, ConfigDict

from tianji_mw import redact
from tianji_mw.apis import sse
from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Bridge, Context, Event
from tianji_mw.errors import InvalidRequest, UpstreamError, UpstreamMalformed
from tianji_mw.providers import classify
from tianji_mw.redact import SECRET_HEADERS, Secret

if TYPE_CHECKING:
    from tianji_mw.upstream import RawHeaders, Transport


#: What clients may see of a provider's headers, under `llm_provider-`: limits and ids.
SHOWN: Final = (
    "x-ratelimit-", "anthropic-ratelimit-", "x-request-id", "request-id", "openai-processing-ms", "apim-request-id",
)  # fmt: skip
_RETRY: Final = frozenset({"retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-should-retry"})


class Decoder(Protocol):
    """Cuts an upstream's streamed bytes into events; the default reads server-sent events."""

    def feed(self, data: bytes) -> Iterable[Event]: ...

    def finish(self) -> Iterable[Event]: ...


class Provider(BaseModel):
    """Base of the providers. Subclasses name what they speak, and override what differs from OpenAI's conventions."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, hide_input_in_errors=True)

    #: Default address of the API, without a trailing slash.
    default_base: ClassVar[str] = ""
    #: Environment variables that are asked for the key and the address when the config has none, in this order.
    key_env: ClassVar[tuple[str, ...]] = ()
    base_env: ClassVar[tuple[str, ...]] = ()
    #: Further fields that the environment may give, by name.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Fields that log in without a key, and their variables; asked for only where there is no key.
    login_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Whether its models continue a turn of the assistant that the request ends in.
    prefills: ClassVar[bool] = False
    #: Client headers that are passed on, lower case. Everything else stays here.
    forwards: ClassVar[frozenset[str]] = frozenset()

    name: str = ""
    api_key: Secret | None = None
    api_base: str = ""
    extra_headers: dict[str, str | Secret] = {}

    # --- what it speaks

    @property
    def speaks(self) -> frozenset[str]:
        """Names of the client APIs whose bodies go through as they are."""
        raise NotImplementedError

    def bridge(self, api: str) -> Bridge | None:
        """How an API that it does not speak is served; None when it speaks it. Raises InvalidRequest when it cannot."""
        if api in self.speaks:
            return None
        if "chat_completions" in self.speaks and (over := bridge_over_chat(api)) is not None:
            return over
        raise InvalidRequest(f"The provider '{self.name}' does not serve {api}.", code="unsupported_endpoint")

    def wire(self, api: str) -> str:
        """The API that goes over the wire when the client speaks `api`."""
        return api if api in self.speaks else "chat_completions"

    # --- where and who

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        """Full address for one request; `wire` is one of `speaks`."""
        return f"{self.base}/{OPENAI_PATHS[wire]}"

    @property
    def base(self) -> str:
        return (self.api_base or self.default_base).rstrip("/")

    def path_url(self, path: str, model: str) -> str:
        """Address of a pass-through path such as `audio/speech`; `model` is empty where the request names none."""
        return f"{self.base}/{path}"

    async def credentials(self) -> RawHeaders:
        """The headers that say who we are; asked for at send time, so that a rotated key is used at once."""
        return [("authorization", f"Bearer {self.api_key.reveal()}")] if self.api_key else []

    def lacks(self) -> str:
        """What has to be set before a call can succeed, as the end of a sentence; empty when nothing is missing.

        Asked only when `credentials` gave nothing. A server at an address of the operator's own may need no key.
        """
        if self.api_base or not self.key_env or self._headers_say_who():
            return ""
        return f"set {self.key_env[0]}, or 'api_key'"

    def _headers_say_who(self) -> bool:
        return any(isinstance(v, Secret) or k.lower() in SECRET_HEADERS for k, v in self.extra_headers.items())

    def static_headers(self) -> RawHeaders:
        """Headers that the provider's API asks for in every request, besides credentials and content type."""
        return ()

    def headers(self, own: RawHeaders, client: Mapping[str, str], credentials: RawHeaders) -> dict[str, str]:
        """All headers of one request: ours, the client's that are passed on, who we are, and last the operator's."""
        out = {**dict(own), **dict(self.static_headers())}
        for name in self.forwards:
            if value := client.get(name):
                out[name] = value
        out.update(credentials)
        for name, given in self.extra_headers.items():
            name, text = name.lower(), given.reveal() if isinstance(given, Secret) else given
            if name in self.forwards and name in out and name.endswith("-beta"):
                # Lists of features: the client's and the operator's both hold.
                text = ",".join(dict.fromkeys(part.strip() for part in f"{out[name]},{text}".split(",")))
            out[name] = text
        return out

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Values that must not appear in what the provider's errors echo."""
        found = [v for v in self.extra_headers.values() if isinstance(v, Secret)]
        return (*found, self.api_key) if self.api_key else tuple(found)

    # --- requests and answers

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        """Change the request in place to what this provider takes. Runs only when `prepares` says so."""

    def prepares(self, request: Mapping[str, JSON], wire: str, model: str) -> bool:
        """Whether `prepare` would change anything; False keeps the client's bytes.

        `model` is the provider's name of it; the request may still hold the public one.
        """
        return False

    def decoder(self, wire: str, max_event_bytes: int = sse.MAX_EVENT_BYTES) -> Decoder:
        """Reads a streamed answer; one event is bounded by the call's limit."""
        return SSEDecoder(max_event_bytes)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """The error of an answer with status >= 400, its text freed of our keys."""
        found = classify.read(body)
        message = found.message or f"The provider '{self.name}' answered with status {status}."
        return UpstreamError(
            redact.text(message, self.secrets),
            provider=self.name,
            status=status,
            code=classify.code_of(found, status),
            param=found.param,
            headers={
                **{k: v for k, v in headers.items() if k in _RETRY},
                **{f"llm_provider-{k}": v for k, v in headers.items() if k.startswith(SHOWN)},
            },
            body=redact.text(body.decode("utf-8", "replace"), self.secrets).encode() if body else b"",
        )

    # --- in process

    def transport(self) -> Transport | None:
        """Its own way of sending, for providers that are no HTTP server; None for the shared one."""
        return None


OPENAI_PATHS: Mapping[str, str] = {
    "chat_completions": "chat/completions",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "responses",
    "moderations": "moderations",
    "rerank": "rerank",
    "messages": "messages",
    "count_tokens": "messages/count_tokens",
}


def bridge_over_chat(api: str) -> Bridge | None:
    """How a client API is served by an upstream that speaks chat completions."""
    if api == "messages":
        from tianji_mw.bridges.messages_over_chat import MessagesOverChat

        return MessagesOverChat()
    if api == "responses":
        from tianji_mw.bridges.responses_over_chat import ResponsesOverChat

        return ResponsesOverChat()
    if api == "completions":
        from tianji_mw.bridges.completions_over_chat import CompletionsOverChat

        return CompletionsOverChat()
    return None


class SSEDecoder:
    """Events of a server-sent stream. `[DONE]` and comments give none; data that is no JSON: UpstreamMalformed."""

    __slots__ = ("_splitter",)

    def __init__(self, max_event_bytes: int = sse.MAX_EVENT_BYTES) -> None:
        self._splitter = sse.Splitter(max_event_bytes)

    def feed(self, data: bytes) -> Iterator[Event]:
        for raw in self._splitter.feed(data):
            yield from _event(raw)

    def finish(self) -> Iterator[Event]:
        rest = self._splitter.finish()
        if rest.strip():
            # Half an event: the stream was cut inside of it.
            try:
                yield from _event(rest)
            except UpstreamMalformed:
                return


def _event(raw: bytes) -> Iterator[Event]:
    name, payload = sse.parse(raw)
    if payload and payload != b"[DONE]":
        try:
            yield Event(orjson.loads(payload), name)
        except orjson.JSONDecodeError:
            raise UpstreamMalformed("The provider sent a stream event that is not JSON.") from None
