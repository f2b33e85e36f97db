"""A record that tells of no call: for trying out destinations. Its content says so."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import orjson

from tianji_mw.alerts import Alert
from tianji_mw.callbacks.record.payload import RecordRules, record_of
from tianji_mw.records import Record, RecordKind

if TYPE_CHECKING:
    from tianji_mw.runtime import Runtime

_SAYS = "A test record of tianji: no call was made."


def sample_record(runtime: Runtime, kind: RecordKind) -> Record:
    """A record of a new id, of the shape that real ones have."""
    record_id, now = runtime.new_id(), runtime.wall()
    if kind == "alert":
        alert = Alert(kind="test", message=_SAYS, level="low", key=record_id)
        return Record.of(record_id, alert.as_dict(now), "alert")
    request = {"model": "test", "messages": [{"role": "user", "content": _SAYS}]}
    message = {"role": "assistant", "content": _SAYS}
    answer = {
        "id": f"test-{record_id}",
        "object": "chat.completion",
        "created": int(now),
        "model": "test",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    parts = [orjson.dumps(_facts(record_id, now)), orjson.dumps(request)]
    framed = b"".join(struct.pack("<I", len(part)) + part for part in parts)
    return record_of(record_id, framed + orjson.dumps(answer), RecordRules())


def _facts(record_id: str, now: float) -> dict[str, Any]:
    second = 1_000_000_000
    return {
        "id": record_id,
        "api": "chat_completions",
        "method": "POST",
        "path": "/v1/chat/completions",
        "client": "127.0.0.1",
        "outcome": "ok",
        "status": 200,
        "complete": True,
        "bytes_out": 0,
        "zero": now - 1,
        "received": 0,
        "sent": 0,
        "first": second,
        "end": second,
        "usage": (1, 1, 0, 0, 0, "none"),
        "headers": {"user-agent": "tianji-doctor"},
        "attempts": [("test", "test", "tianji", "", 0, 200, None)],
        "form": "whole",
        "times": [(second, 1)],
        "content": True,
    }
