"""An answer given again, in the form that is asked for now: byte for byte where it is the form it was kept in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from tianji_mw.apis import sse
from tianji_mw.apis.assemble import assemble
from tianji_mw.apis.base import JSON, Api, Usage
from tianji_mw.cache.entry import Entry
from tianji_mw.taps import FOLLOWED_KEY

if TYPE_CHECKING:
    from starlette.types import Send

#: APIs whose streams tell the usage in an event of its own, and only when asked.
_USAGE_ON_REQUEST: Final = frozenset({"chat_completions", "completions"})
_STREAM_HEADERS: Final = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
_EVENTS: Final = b"text/event-stream; charset=utf-8"


def tells_usage(request: Mapping[str, JSON]) -> bool:
    """Whether a stream is asked to tell its usage."""
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def fits(entry: Entry, api: Api, request: Mapping[str, JSON], *, stream: bool) -> bool:
    """Whether the answer can be given in the form asked for: a stream that was not counted makes no whole answer."""
    if entry.form != "sse" or entry.usage.source != "none":
        return True
    if not stream:
        return False
    return api.name not in _USAGE_ON_REQUEST or not tells_usage(request) or _counted(entry.body)


def rendered(entry: Entry, api: Api, request: Mapping[str, JSON], *, stream: bool) -> Entry:
    """The entry with its bytes in the form asked for; itself where they are."""
    if not stream:
        return entry if entry.form == "whole" else replace(entry, **_whole(entry, api))
    if entry.form == "whole":
        events = b"".join(api.split(orjson.loads(entry.body)))
        entry = replace(entry, body=events, form="sse", content_type=_EVENTS)
    if api.name in _USAGE_ON_REQUEST:
        wanted, there = tells_usage(request), _counted(entry.body)
        if wanted and not there:
            return replace(entry, body=_with_usage(entry, api))
        if there and not wanted:
            return replace(entry, body=b"".join(raw for raw in _events(entry.body) if not _is_usage(raw)))
    return entry


async def give(entry: Entry, send: Send) -> None:
    """Send it: one head, one body."""
    headers = [(b"content-type", entry.content_type)]
    if entry.form == "sse":
        headers += _STREAM_HEADERS
    else:
        headers.append((b"content-length", b"%d" % len(entry.body)))
    await send({"type": "http.response.start", "status": 200, "headers": headers, FOLLOWED_KEY: True})
    await send({"type": "http.response.body", "body": entry.body, "more_body": False})


def _whole(entry: Entry, api: Api) -> dict[str, Any]:
    answer = assemble(api.name, entry.body) or {}
    if api.name in _USAGE_ON_REQUEST and "usage" not in answer:
        answer["usage"] = _usage(entry.usage)
    return {"body": orjson.dumps(answer), "form": "whole", "content_type": b"application/json"}


def _usage(used: Usage) -> dict[str, JSON]:
    return {
        "prompt_tokens": used.input_tokens,
        "completion_tokens": used.output_tokens,
        "total_tokens": used.input_tokens + used.output_tokens,
        "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
    }


def _events(body: bytes) -> list[bytes]:
    splitter = sse.Splitter(len(body) + 4)
    found = splitter.feed(body)
    return [*found, rest] if (rest := splitter.finish()) else found


def _counted(body: bytes) -> bool:
    """Whether the stream tells its usage: near its end."""
    return any(_is_usage(raw) for raw in _events(body)[-4:])


def _is_usage(raw: bytes) -> bool:
    if b'"usage"' not in raw:
        return False
    data = _read(raw)
    return isinstance(data, dict) and isinstance(data.get("usage"), dict) and not data.get("choices")


def _read(raw: bytes) -> JSON:
    _, payload = sse.parse(raw)
    try:
        return orjson.loads(payload) if payload else None
    except orjson.JSONDecodeError:
        return None


def _with_usage(entry: Entry, api: Api) -> bytes:
    """The stream with an event of its usage before the end marker."""
    events = _events(entry.body)
    chunks = (_read(raw) for raw in events)
    first = next((data for data in chunks if isinstance(data, dict)), {})
    told = {key: first[key] for key in ("id", "object", "created", "model") if key in first}
    event = sse.encode(orjson.dumps({**told, "choices": [], "usage": _usage(entry.usage)}))
    if events and events[-1].startswith(api.done.rstrip()):
        return b"".join((*events[:-1], event, events[-1]))
    return b"".join((*events, event))
