"""A record as Langfuse's observation: its attributes in OTLP, and the same facts for the older batch API. Pure.

Observation-first: who, which session and which tags stand on the observation itself, as its SDK 5 sends them.
Source: Langfuse's OpenTelemetry documentation, its SDK 5, and the metadata that LiteLLM's `langfuse` callback honours.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tianji_mw.callbacks.otlp.limits import json_text
from tianji_mw.callbacks.otlp.spans import Value, model_of, name_of, ours_of, parent_of, span_id_of, trace_id_of
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.record.redaction import MARKER
from tianji_mw.records import Record

#: Of a user's and a session's id; Langfuse drops longer ones.
_ID: Final = 200
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_SPAN: Final = re.compile(r"[0-9a-f]{16}")
_TYPES: Final[Mapping[str, str]] = {"embeddings": "embedding", "rerank": "retriever", "moderations": "guardrail"}
#: Metadata of a request that tell Langfuse something, and are no metadata of the observation.
_KEYS: Final = frozenset(
    {
        "trace_id", "existing_trace_id", "trace_name", "trace_user_id", "session_id", "trace_metadata",
        "trace_version", "trace_release", "update_trace_keys", "generation_name", "generation_id",
        "parent_observation_id", "version", "tags", "prompt", "mask_input", "mask_output", "debug_langfuse",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What Langfuse is told of a call. Ids are hexadecimal, as in OTLP; None is what is not known."""

    trace_id: str
    span_id: str
    parent_id: str | None
    #: Whether the call is the first thing of its trace that the gateway knows of.
    root: bool
    kind: str
    name: str
    input: Any = None
    output: Any = None
    model: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)
    #: Seconds since 1970.
    start: float = 0.0
    end: float = 0.0
    first_token: float | None = None
    level: str = "DEFAULT"
    status_message: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    prompt_name: str | None = None
    prompt_version: int | None = None
    version: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    tags: list[str] = field(default_factory=list)
    #: `name`, `metadata`, `release` of the trace; of one that exists only what the request wants changed.
    trace: Mapping[str, Any] = field(default_factory=dict)


def observation_of(record: Record) -> Observation:
    """The record as an observation."""
    data, asked = record.data, wishes_of(record)
    start, end = content.times(record)
    first = content.time_to_first_token(record)
    failed = content.failure(record)
    given = content.word(asked.get("existing_trace_id")) or content.word(asked.get("trace_id"))
    parent = content.word(asked.get("parent_observation_id"))
    above = parent_of(data)
    shown = None if given or above is None else above.hex()
    prompt, version = _prompt(record, asked)
    return Observation(
        trace_id=_hex(given, _TRACE, 32) if given else trace_id_of(data).hex(),
        span_id=_hex(chosen, _SPAN, 16) if (chosen := content.word(asked.get("generation_id"))) else span_hex(record),
        parent_id=_hex(parent, _SPAN, 16) if parent else shown,
        root=not parent and not content.word(asked.get("existing_trace_id")),
        kind=_TYPES.get(str(ours_of(data).get("api")), "generation"),
        name=content.word(asked.get("generation_name")) or name_of(data),
        input=_masked(data.get("messages"), asked.get("mask_input")),
        output=_masked(_output(record), asked.get("mask_output")),
        model=model_of(data) or None,
        parameters={k: v for k, v in content.model_parameters(record).items() if v is not None},
        usage=usage_details(record),
        cost=_cost(record),
        start=start,
        end=end,
        first_token=None if first is None else start + first,
        level="ERROR" if failed else "DEFAULT",
        status_message=failed.message if failed else None,
        metadata=_metadata(record, asked),
        prompt_name=prompt,
        prompt_version=version,
        version=_plain(asked.get("version")) or _plain(asked.get("trace_version")),
        user_id=_id(asked.get("trace_user_id"))
        or _id(data.get("end_user"))
        or _id(content.mapping(data.get("metadata")).get("user_api_key_user_id")),
        session_id=_id(asked.get("session_id")) or _id(content.session_id(record)),
        tags=_tags(record, asked),
        trace=_trace(record, asked, given),
    )


def attributes_of(seen: Observation, *, environment: str = "", release: str = "") -> dict[str, Value]:
    """The attributes of the observation's span. JSON stands in texts."""
    found: dict[str, Value] = {
        "langfuse.observation.type": seen.kind,
        "langfuse.observation.input": _json(seen.input),
        "langfuse.observation.output": _json(seen.output),
        "langfuse.observation.model.name": seen.model,
        "langfuse.observation.model.parameters": _json(seen.parameters or None),
        "langfuse.observation.usage_details": _json(seen.usage or None),
        "langfuse.observation.cost_details": _json(seen.cost or None),
        "langfuse.observation.completion_start_time": None
        if seen.first_token is None
        else json_text(iso(seen.first_token)),
        "langfuse.observation.level": seen.level,
        "langfuse.observation.status_message": seen.status_message,
        "langfuse.observation.prompt.name": seen.prompt_name,
        "langfuse.observation.prompt.version": seen.prompt_version,
        "langfuse.internal.is_app_root": True if seen.root else None,
        "langfuse.version": seen.version,
        **{f"langfuse.observation.metadata.{key}": json_text(value) for key, value in seen.metadata.items()},
        **trace_attributes(seen, environment=environment, release=release),
    }
    return {name: value for name, value in found.items() if value is not None}


def trace_attributes(seen: Observation, *, environment: str = "", release: str = "") -> dict[str, Value]:
    """The attributes that every span of the trace repeats."""
    metadata = content.mapping(seen.trace.get("metadata"))
    found: dict[str, Value] = {
        "langfuse.trace.name": seen.trace.get("name"),
        "user.id": seen.user_id,
        "session.id": seen.session_id,
        "langfuse.trace.tags": seen.tags or None,
        "langfuse.environment": environment or None,
        "langfuse.release": seen.trace.get("release") or release or None,
        **{f"langfuse.trace.metadata.{key}": json_text(value) for key, value in metadata.items()},
    }
    return {name: value for name, value in found.items() if value is not None}


def wishes_of(record: Record) -> dict[str, Any]:
    """What the request's metadata and its headers `langfuse_*` say to Langfuse; a header wins."""
    asked = {key: value for key, value in content.requester_metadata(record).items() if key in _KEYS}
    for name, value in content.custom_headers(record).items():
        key = name.replace("-", "_").removeprefix("langfuse_")
        if name[:9] in ("langfuse_", "langfuse-") and key in _KEYS:
            asked[key] = value
    return asked


def usage_details(record: Record) -> dict[str, int]:
    """Tokens by category. Langfuse adds the categories up: `input` is without what the provider's cache had."""
    used = content.usage(record)
    if not used.input and not used.output:
        return {}
    found = {"input": max(used.input - used.cache_read - used.cache_write, 0), "output": used.output}
    if used.cache_read:
        found["cache_read_input_tokens"] = used.cache_read
    if used.cache_write:
        found["cache_creation_input_tokens"] = used.cache_write
    return {**found, "total": used.total}


def span_hex(record: Record) -> str:
    """The id of the call's own span."""
    return span_id_of(record).hex()


def iso(seconds: float) -> str:
    """The time as Langfuse writes it."""
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return "1970-01-01T00:00:00.000Z"


# --- parts


def _hex(given: str | None, form: re.Pattern[str], digits: int) -> str:
    """An id as it is where it is one of OTLP's; of any other the beginning of its SHA-256."""
    given = given or ""
    plain = given.lower().replace("-", "")
    if form.fullmatch(plain) and plain.strip("0"):
        return plain
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:digits]


def _cost(record: Record) -> dict[str, float]:
    parts = content.mapping(record.data.get("cost_breakdown"))
    found = {
        "input": content.number(parts.get("input_cost")),
        "output": content.number(parts.get("output_cost")),
        "total": content.number(record.data.get("response_cost")),
    }
    return {name: float(value) for name, value in found.items() if value is not None}


def _output(record: Record) -> Any:
    """The answer's message, or its messages; embeddings as a short text."""
    answer = record.data.get("response")
    if not isinstance(answer, dict):
        return answer
    said = content.output_messages(record)
    return said[0] if len(said) == 1 else said


def _masked(value: Any, mask: Any) -> Any:
    hidden = mask is True or (isinstance(mask, str) and mask.strip().lower() in ("true", "1"))
    return MARKER if hidden and value is not None else value


def _prompt(record: Record, asked: Mapping[str, Any]) -> tuple[str | None, int | None]:
    managed = content.mapping(content.mapping(record.data.get("metadata")).get("prompt_management_metadata"))
    named = content.mapping(asked.get("prompt"))
    name = content.word(named.get("name")) or content.word(managed.get("prompt_id"))
    version = content.number(named.get("version", managed.get("prompt_version")))
    return name, int(version) if name and version is not None else None


def _metadata(record: Record, asked: Mapping[str, Any]) -> dict[str, Any]:
    given = content.requester_metadata(record)
    found = {str(key): value for key, value in given.items() if key not in _KEYS and value is not None}
    found |= content.facts(record)
    for key in ("trace_id", "existing_trace_id", "generation_id", "parent_observation_id"):
        if (original := content.word(asked.get(key))) is not None:
            found[f"requested_{key}"] = original
    return found


def _trace(record: Record, asked: Mapping[str, Any], given: str | None) -> dict[str, Any]:
    metadata = dict(content.mapping(asked.get("trace_metadata")))
    if asked.get("debug_langfuse") in (True, "true", "True"):
        metadata["metadata_passed_to_litellm"] = dict(content.requester_metadata(record))
    found = {
        "name": content.word(asked.get("trace_name")),
        "metadata": metadata or None,
        "release": _plain(asked.get("trace_release")),
    }
    if content.word(asked.get("existing_trace_id")):
        wanted = asked.get("update_trace_keys")
        named = wanted.split(",") if isinstance(wanted, str) else wanted if isinstance(wanted, list) else ()
        kept = {str(name).strip().removeprefix("trace_") for name in named}
        found = {name: value for name, value in found.items() if name in kept}
    elif found["name"] is None and (given or parent_of(record.data) is None):
        found["name"] = name_of(record.data)
    return {name: value for name, value in found.items() if value is not None}


def _tags(record: Record, asked: Mapping[str, Any]) -> list[str]:
    more = asked.get("tags")
    named = more.split(",") if isinstance(more, str) else more if isinstance(more, list) else ()
    told = [tag.strip() for tag in named if isinstance(tag, str) and tag.strip()]
    return list(dict.fromkeys([*content.tags(record), *told]))


def _plain(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != "" else None


def _id(value: Any) -> str | None:
    found = _plain(value)
    return found[:_ID] if found else None


def _json(value: Any) -> str | None:
    return None if value is None else json_text(value)
