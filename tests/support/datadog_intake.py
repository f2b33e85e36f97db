"""A Datadog intake of a script, as strict as the contract."""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import jsonschema
import orjson

from tests.support.records import START, undelivered
from tianji_mw.records import Record
from tianji_mw.testing import Received, Reply

KEY = "dd-very-secret-key"


TEXT = {"type": "string"}


TAG = re.compile(r"[a-z0-9_\-:./]{1,200}")


ENTRY = {
    "type": "object",
    "additionalProperties": False,
    "required": ["ddsource", "ddtags", "hostname", "service", "status", "message"],
    "properties": {
        "ddsource": TEXT, "ddtags": TEXT, "hostname": TEXT, "service": TEXT, "message": TEXT, "timestamp": TEXT,
        "status": {"enum": ["info", "warning", "error"]},
        "dd.trace_id": {"pattern": "^[0-9a-f]{32}$"},
        "dd.span_id": {"pattern": "^[0-9]{1,20}$"},
    },
}  # fmt: skip


NUMBER = {"type": "number", "minimum": 0}


TOOL_CALL = {
    "additionalProperties": False,
    "properties": {"name": TEXT, "arguments": {"type": "object"}, "tool_id": TEXT, "type": TEXT},
}


TOOL_RESULT = {
    "additionalProperties": False,
    "properties": {"name": TEXT, "result": TEXT, "tool_id": TEXT, "type": TEXT},
}


MESSAGE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["role", "content"],
    "properties": {
        "role": TEXT, "content": TEXT, "reasoning_content": TEXT,
        "tool_calls": {"type": "array", "items": TOOL_CALL},
        "tool_results": {"type": "array", "items": TOOL_RESULT},
    },
}  # fmt: skip


IO = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {"messages": {"type": "array", "items": MESSAGE}, "value": TEXT},
}


META = {
    "type": "object",
    "additionalProperties": False,
    "required": ["kind", "input", "output", "metadata"],
    "properties": {
        "kind": {"enum": ["llm", "embedding", "tool", "task", "workflow", "agent", "retrieval"]},
        "input": IO,
        "output": IO,
        "metadata": {"type": "object"},
        "error": {
            "additionalProperties": False,
            "required": ["message", "type", "stack"],
            "properties": {"message": TEXT, "type": TEXT, "stack": TEXT},
        },
        "tool_definitions": {
            "type": "array",
            "items": {
                "additionalProperties": False,
                "required": ["name"],
                "properties": {"name": TEXT, "description": TEXT, "schema": {"type": "object"}},
            },
        },
    },
}


METRICS = (
    "input_tokens", "output_tokens", "total_tokens", "total_cost", "time_to_first_token", "time_per_output_token",
    "cache_read_input_tokens", "cache_write_input_tokens", "non_cached_input_tokens", "reasoning_output_tokens",
)  # fmt: skip


SPAN = {
    "type": "object",
    "additionalProperties": False,
    "required": [
        "trace_id",
        "span_id",
        "parent_id",
        "name",
        "start_ns",
        "duration",
        "status",
        "tags",
        "meta",
        "metrics",
    ],
    "properties": {
        "trace_id": {"pattern": "^[0-9a-f]{32}$"},
        "span_id": {"pattern": "^[0-9a-f]{16}$"},
        "parent_id": {"pattern": "^([0-9a-f]{16}|undefined)$"},
        "name": {"type": "string", "minLength": 1},
        "start_ns": {"type": "integer", "minimum": 0},
        "duration": {"type": "integer", "minimum": 0},
        "status": {"enum": ["ok", "error"]},
        "session_id": TEXT,
        "tags": {"type": "array", "items": TEXT},
        "meta": META,
        "metrics": {"additionalProperties": False, "properties": dict.fromkeys(METRICS, NUMBER)},
    },
}


SPANS = {
    "type": "object",
    "additionalProperties": False,
    "required": ["data"],
    "properties": {
        "data": {
            "additionalProperties": False,
            "required": ["type", "attributes"],
            "properties": {
                "type": {"const": "span"},
                "attributes": {
                    "additionalProperties": False,
                    "required": ["ml_app", "spans"],
                    "properties": {
                        "ml_app": {"type": "string", "minLength": 1},
                        "session_id": TEXT,
                        "tags": {"type": "array", "items": TEXT},
                        "spans": {"type": "array", "minItems": 1, "items": SPAN},
                    },
                },
            },
        },
    },
}


class Intake:
    """Both intakes. `at_most`: entries of a request above which it answers 413."""

    def __init__(self) -> None:
        self.answers: list[Reply] = []
        self.logs: list[dict[str, Any]] = []
        self.attributes: list[dict[str, Any]] = []
        self.spans: dict[str, dict[str, Any]] = {}
        self.sizes: list[int] = []
        self.at_most = 1000
        self.paths: tuple[str, ...] = ("/api/v2/logs", "/api/intake/llm-obs/v1/trace/spans")
        #: An agent has its own key, and wants none.
        self.agent = False

    def __call__(self, request: Received) -> Reply:
        key = request.headers.get("dd-api-key")
        if key != (None if self.agent else KEY):
            return Reply.json({"errors": [f"Forbidden {key}"]}, status=403)
        assert (request.method, request.headers["content-type"]) == ("POST", "application/json")
        if request.path not in self.paths:
            return Reply(status=404)
        return (self._logs if request.path == "/api/v2/logs" else self._spans)(request)

    def _logs(self, request: Received) -> Reply:
        assert request.headers["content-encoding"] == "gzip"
        plain = gzip.decompress(request.body)
        entries = orjson.loads(plain)
        assert len(plain) <= 5_000_000
        assert 0 < len(entries) <= 1000
        self.sizes.append(len(entries))
        for entry in entries:
            jsonschema.validate(entry, ENTRY)
            assert len(orjson.dumps(entry)) <= 1_000_000
            assert isinstance(orjson.loads(entry["message"]), dict)
            assert datetime.fromisoformat(entry["timestamp"]).tzinfo is not None
            assert all(TAG.fullmatch(one) for one in entry["ddtags"].split(","))
        if self.answers:
            return self.answers.pop(0)
        if len(entries) > self.at_most:
            return Reply.json({"errors": ["Payload too large"]}, status=413)
        self.logs += entries
        return Reply.json({}, status=202)

    def _spans(self, request: Received) -> Reply:
        assert len(request.body) <= 5_000_000
        jsonschema.validate(request.json, SPANS)
        attributes = request.json["data"]["attributes"]
        spans = attributes.pop("spans")
        self.sizes.append(len(spans))
        for span in spans:
            assert ("error" in span["meta"]) == (span["status"] == "error")
            assert span["start_ns"] > (time.time() - 24 * 3600) * 1e9
            assert all(TAG.fullmatch(one) for one in span["tags"])
            is_llm = span["meta"]["kind"] == "llm"
            assert ("messages" in span["meta"]["input"]) == is_llm
        if self.answers:
            return self.answers.pop(0)
        self.attributes.append(attributes)
        self.spans |= {span["span_id"]: span for span in spans}
        return Reply(status=202)


Start = Callable[..., Any]


problem = partial(undelivered, hidden=KEY)


def now(record: Record, ago: float = 0.0) -> Record:
    """The same record, as if it were of just now."""
    begun = time.time() - ago
    shift = begun - START
    ours = dict(record.data["tianji"] or {})
    moved = [
        {**one, "startTime": one["startTime"] + shift, "endTime": one["endTime"] + shift}
        for one in ours.get("attempts", ())
    ]
    times = {"startTime": begun, "endTime": begun + 0.82}
    return Record.of(record.id, {**record.data, **times, "tianji": {**ours, "attempts": moved}})
