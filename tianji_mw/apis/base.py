"""What a client API is: where it lives, how its requests and answers are read, and how errors look in it.

An `Api` is stateless and shared by all calls. It reads the client's wire format only; what a provider speaks is the
provider's business, and `bridges/` translate between the two. Adding an API is one file with one subclass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.tools import Tools
from tianji_mw.errors import InvalidRequest, TianjiError

#: Decoded JSON. The one place where `Any` is right: its shape is the other side's decision.
JSON = Any

#: How an answer ended: as the model meant it; at the request's limit of tokens; or in a way that makes it no answer.
Ending = Literal["complete", "limit", "unfinished"]

Kind = Literal["text", "tool", "thinking", "usage", "stop", "error", "other"]


class Part(NamedTuple):
    """One piece of text in a request: where it stands (`path` from the root), who says it, and the text."""

    path: tuple[str | int, ...]
    role: str
    text: str


class Seen(NamedTuple):
    """What one frame holds: its kind and the text it adds to the answer (visible, reasoning or tool arguments)."""

    kind: Kind
    text: str = ""


NOTHING = Seen("other")


@dataclass(slots=True)
class Usage:
    """Tokens of one call. `source` says who counted: `provider`, `estimated`, or `none` (not known).

    `input_tokens` includes cached ones and `output_tokens` includes reasoning ones, as OpenAI counts.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    source: Literal["provider", "estimated", "none"] = "none"

    def merged(self, later: Usage) -> Usage:
        """Both counts as one: what the later one knows (its non-zero fields) wins.

        A stream may spread its usage: Anthropic counts the input in the first event and the output in the last.
        """
        if self.source == "none":
            return later
        return Usage(
            later.input_tokens or self.input_tokens,
            later.output_tokens or self.output_tokens,
            later.cached_tokens or self.cached_tokens,
            later.cache_write_tokens or self.cache_write_tokens,
            later.reasoning_tokens or self.reasoning_tokens,
            self.source if later.source == "none" else later.source,
        )


class Api:
    """One client API. Subclasses set the facts and override what differs from OpenAI's conventions."""

    name: ClassVar[str]
    #: Route paths without any prefix, first the usual one. `{id}` matches one segment.
    paths: ClassVar[tuple[str, ...]]
    methods: ClassVar[frozenset[str]] = frozenset({"POST"})
    #: False: the body streams through unread (audio, files); there is then no `call.request`.
    buffered: ClassVar[bool] = True
    #: Whether its answers may be streams; set where `split` is written.
    streams: ClassVar[bool] = False
    #: Request fields of which at least one must be present.
    required: ClassVar[tuple[str, ...]] = ()
    _required: ClassVar[frozenset[str]] = frozenset()
    #: What the bytes of a frame with usage must match: a cheap test before JSON is decoded.
    usage_pattern: ClassVar[re.Pattern[bytes]] = re.compile(rb'"usage"\s*:\s*\{')

    #: Whether events of its streams repeat text of earlier ones; `repeats` then finds it.
    repeating: ClassVar[bool] = False
    #: How it writes tools and calls of them.
    tools: ClassVar[Tools] = Tools()
    #: Bytes that close a proper stream, after the last event; empty where an event does it.
    done: ClassVar[bytes] = b""

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.streams = cls.split is not Api.split
        cls._required = frozenset(cls.required)

    # --- requests

    def validate(self, request: Mapping[str, JSON]) -> None:
        """Refuse a request that is not of this API's shape. Raises InvalidRequest naming the field."""
        model = request.get("model")
        if model is not None and not isinstance(model, str):
            raise InvalidRequest("'model' must be a string.", param="model")
        stream = request.get("stream")
        if stream is not None and not isinstance(stream, bool):
            raise InvalidRequest("'stream' must be true or false.", param="stream")
        if self.required and self._required.isdisjoint(request):
            names = " or ".join(f"'{field}'" for field in self.required)
            raise InvalidRequest(
                f"The request has no {names}.", param=self.required[0], code="missing_required_parameter"
            )

    def texts(self, request: Mapping[str, JSON]) -> Iterator[Part]:
        """Every text a person or tool wrote in the request, with its place, for guardrails."""
        yield from ()

    def unreadable(self, request: Mapping[str, JSON]) -> str:
        """The field that holds content which no guard of text can read (token ids); empty where there is none."""
        return ""

    # --- answers

    def see(self, data: JSON, event: str) -> Seen:
        """What a frame of a stream holds. Total: any JSON gives a Seen."""
        return NOTHING

    def see_whole(self, data: JSON) -> Seen:
        """The same for a plain answer: the joined text of everything the model produced."""
        return NOTHING

    def usage(self, data: JSON) -> Usage | None:
        """Usage in a frame or plain answer; None where it says nothing."""
        return None

    def ending(self, answer: JSON) -> Ending:
        """How a whole answer (of a stream: the assembled one) ended. What was filtered or refused is unfinished."""
        return "unfinished" if not isinstance(answer, dict) or not answer or answer.get("error") else "complete"

    def repeats(self, data: JSON, event: str) -> Iterator[Part]:
        """Texts in an event that stood in earlier ones, and of which `see` therefore says nothing."""
        return iter(())

    def is_end(self, raw: bytes, data: JSON, event: str) -> bool:
        """Whether this frame tells the client that the stream is complete, well or with an error."""
        return raw.startswith(b"data: [DONE]")

    def split(self, answer: JSON) -> Sequence[bytes]:
        """A plain answer as the events of a stream. Raises NotImplementedError where the API cannot stream."""
        raise NotImplementedError(f"{self.name} does not stream")

    # --- errors

    def error(self, error: TianjiError, request_id: str) -> bytes:
        """The error body in this API's shape (OpenAI: docs "Error codes")."""
        return orjson.dumps(openai_error(error))

    def error_event(self, error: TianjiError, request_id: str) -> bytes:
        """The event that ends a stream with an error."""
        return sse.encode(self.error(error, request_id))


def openai_error(error: TianjiError) -> dict[str, JSON]:
    """OpenAI's error object; `code` is a string or null, the HTTP status stands in the status line alone."""
    body: dict[str, JSON] = {
        "message": error.message, "type": error.kind, "param": error.param, "code": error.code,
    }  # fmt: skip
    if error.fields:
        body["provider_specific_fields"] = {"error": error.message, **error.fields}
    return {"error": body}


def content_parts(content: JSON, path: tuple[str | int, ...], role: str) -> Iterator[Part]:
    """Texts of a `content` field: a string, or a list of typed parts."""
    if isinstance(content, str):
        yield Part(path, role, content)
    elif isinstance(content, list):
        for i, part in enumerate(content):
            if isinstance(part, str):
                yield Part((*path, i), role, part)
            elif isinstance(part, dict):
                # Anthropic's tool results stand in a user's message, and no user wrote them.
                said = "tool" if part.get("type") == "tool_result" else role
                for field in ("text", "content", "input_text", "refusal"):
                    value = part.get(field)
                    if isinstance(value, str):
                        yield Part((*path, i, field), said, value)
                    elif isinstance(value, list):
                        yield from content_parts(value, (*path, i, field), said)
