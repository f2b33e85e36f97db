"""The batch API of Langfuse's servers before version 4: a trace and a generation for each record. Pure.

The same record makes the same events with the same ids: the server drops an envelope that it knows, and a body
replaces the one with its id. Source: Langfuse's API reference, `POST /api/public/ingestion`.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, Final

import orjson

from tianji_mw.callbacks._groups import Limits
from tianji_mw.callbacks.otlp.langfuse_attributes import Observation, iso, observation_of
from tianji_mw.callbacks.otlp.limits import json_text
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: 3.5 MB of a request, less what stands around the events.
LIMITS: Final = Limits(1000, 3_490_000)
_SPACE: Final = uuid.UUID("6f1d9a0e-5a3c-5d52-9d2b-0c6a41f0b7aa")
#: Bytes of an input or output that is cut, because the record is too large whole.
_SHORT: Final = 256 << 10


def events_of(record: Record, *, environment: str, release: str) -> list[bytes]:
    """Two events; with content that is cut where they would not fit in a request."""
    seen = observation_of(record)
    whole = [_dumped(event) for event in _events(record, seen, environment, release, None)]
    if sum(map(len, whole)) < LIMITS.size:
        return whole
    return [_dumped(event) for event in _events(record, seen, environment, release, _SHORT)]


def event_ids(record: Record) -> tuple[str, str]:
    """The ids of the two envelopes."""
    return (str(uuid.uuid5(_SPACE, f"{record.id}:trace")), str(uuid.uuid5(_SPACE, f"{record.id}:generation")))


def _events(
    record: Record, seen: Observation, environment: str, release: str, limit: int | None
) -> list[dict[str, Any]]:
    of_trace, of_generation = event_ids(record)
    when = iso(seen.end)
    bodies = (_trace(seen, environment, release, limit), _generation(seen, environment, limit))
    kinds = ("trace-create", "generation-create")
    return [
        {"id": name, "timestamp": when, "type": kind, "body": {k: v for k, v in body.items() if v is not None}}
        for name, kind, body in zip((of_trace, of_generation), kinds, bodies, strict=True)
    ]


def _trace(seen: Observation, environment: str, release: str, limit: int | None) -> Mapping[str, Any]:
    body = {
        "id": seen.trace_id,
        "timestamp": iso(seen.start),
        "name": seen.trace.get("name"),
        "userId": seen.user_id,
        "sessionId": seen.session_id,
        "tags": seen.tags or None,
        "metadata": seen.trace.get("metadata"),
        "release": seen.trace.get("release") or release or None,
        "version": seen.version,
        "environment": environment or None,
    }
    # A trace that exists keeps its own input and output.
    return {**body, "input": _cut(seen.input, limit), "output": _cut(seen.output, limit)} if seen.root else body


def _generation(seen: Observation, environment: str, limit: int | None) -> Mapping[str, Any]:
    return {
        "id": seen.span_id,
        "traceId": seen.trace_id,
        "parentObservationId": seen.parent_id,
        "name": seen.name,
        "startTime": iso(seen.start),
        "endTime": iso(seen.end),
        "completionStartTime": None if seen.first_token is None else iso(seen.first_token),
        "model": seen.model,
        # The API takes texts, numbers, booleans and lists of texts.
        "modelParameters": {k: v if isinstance(v, (str, bool, int, float)) else json_text(v)
                            for k, v in seen.parameters.items()} or None,
        "input": _cut(seen.input, limit),
        "output": _cut(seen.output, limit),
        "usageDetails": seen.usage or None,
        "costDetails": seen.cost or None,
        "level": seen.level,
        "statusMessage": seen.status_message,
        "metadata": seen.metadata or None,
        "version": seen.version,
        "environment": environment or None,
        "promptName": seen.prompt_name,
        "promptVersion": seen.prompt_version,
    }  # fmt: skip


def _cut(value: Any, limit: int | None) -> Any:
    return value if limit is None or value is None else json_text(value, limit)


def _dumped(event: Mapping[str, Any]) -> bytes:
    return orjson.dumps(event, default=str, option=orjson.OPT_NON_STR_KEYS)


def failures(answer: bytes) -> dict[str, int]:
    """Of a 207 answer: the events that were not taken, by id, with their statuses. Raises ValueError."""
    found = orjson.loads(answer)
    if not isinstance(found, dict) or not isinstance(found.get("errors"), list):
        raise ValueError("no list of errors")
    told = (content.mapping(error) for error in found["errors"])
    return {str(error.get("id")): content.count(error.get("status")) for error in told}
