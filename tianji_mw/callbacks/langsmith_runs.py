"""The runs that a record becomes in LangSmith: one for the call, and one for each of several attempts. Pure.

Ids are made of the record's own, so that sending it again gives the same runs.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record

#: `YYYYMMDDTHHMMSSffffffZ` and an id.
_STEP: Final = re.compile(r"(\d{8}T\d{12}Z)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})")
_RUN_TYPES: Final[Mapping[str, str]] = {"embeddings": "embedding", "rerank": "retriever", "moderations": "tool"}
#: Of a request's metadata: these name things, and are no metadata themselves.
_NAMES: Final = frozenset(
    {"run_id", "id", "trace_id", "parent_run_id", "dotted_order", "run_name", "project_name", "langsmith_project"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """What the config says of names."""

    project: str
    run_name: str


class _Place(NamedTuple):
    """Where a run stands in its trace."""

    id: str
    trace_id: str
    parent_id: str | None
    dotted_order: str


def runs_of(record: Record, naming: Naming, *, brief: bool = False) -> list[dict[str, Any]]:
    """The runs of a call, the parent first. `brief`: without what was said and without attempts, for huge records."""
    attempts = content.attempts(record)
    several = len(attempts) > 1 and not brief
    asked = content.requester_metadata(record)
    start, end = content.times(record)
    place = _place(record, asked, start)
    failure = content.failure(record)
    project = content.word(asked.get("project_name")) or content.word(asked.get("langsmith_project")) or naming.project
    root = {
        **_head(place, content.word(asked.get("run_name")) or naming.run_name, project, start, end),
        "run_type": "chain" if several else _run_type(record),
        "inputs": _inputs(record, brief=brief),
        "outputs": _outputs(record, billed=not several, brief=brief),
        "tags": content.tags(record),
        "extra": {"metadata": _metadata(record, of_call=True, llm=not several)},
        "error": None if failure is None else f"{failure.kind}: {failure.message}",
    }
    if not several:
        return [root]
    return [root, *(_attempt(record, attempts, at, place, project) for at in range(len(attempts)))]


def _attempt(
    record: Record, attempts: Sequence[Mapping[str, Any]], at: int, parent: _Place, project: str
) -> dict[str, Any]:
    """One request upstream. The last one gave the answer, if any did, and was billed."""
    attempt = attempts[at]
    start, end = content.attempt_times(record, attempt)
    run_id = _uuid7(start, f"{record.id} attempt {at + 1}")
    failed, billed = _attempt_error(record, attempt), at + 1 == len(attempts)
    metadata = _metadata(record, of_call=False, llm=True)
    metadata |= {"ls_model_name": attempt.get("model"), "ls_provider": attempt.get("custom_llm_provider")}
    metadata |= {name: attempt.get(name) for name in ("model_id", "api_base", "status_code")}
    place = _Place(run_id, parent.trace_id, parent.id, f"{parent.dotted_order}.{_stamp(start)}{run_id}")
    return {
        **_head(place, f"attempt {at + 1}", project, start, end),
        "run_type": _run_type(record),
        "inputs": _inputs(record) if billed else {},
        "outputs": _outputs(record, billed=True) if billed and failed is None else {},
        "tags": [],
        "extra": {"metadata": {**metadata, "attempt": at + 1}},
        "error": failed,
    }


def _attempt_error(record: Record, attempt: Mapping[str, Any]) -> str | None:
    if error := content.word(attempt.get("error")):
        return error
    status = content.count(attempt.get("status_code"))
    return f"status {status}" if status >= 400 else None


def _head(place: _Place, name: str, project: str, start: float, end: float) -> dict[str, Any]:
    head = {
        "id": place.id,
        "trace_id": place.trace_id,
        "dotted_order": place.dotted_order,
        "name": name,
        "start_time": _moment(start).isoformat(),
        "end_time": _moment(end).isoformat(),
        "session_name": project,
    }
    return head if place.parent_id is None else {**head, "parent_run_id": place.parent_id}


def _run_type(record: Record) -> str:
    return _RUN_TYPES.get(content.as_text(content.ours(record).get("api")), "llm")


# --- where it stands


def _place(record: Record, asked: Mapping[str, JSON], start: float) -> _Place:
    """A root, unless the request names its parent. What it names wrongly is left out: a wrong id rejects a batch."""
    run_id = _uuid(asked.get("run_id")) or _uuid(asked.get("id")) or _uuid(record.id) or _uuid7(start, record.id)
    own = f"{_stamp(start)}{run_id}"
    parent = _uuid(asked.get("parent_run_id"))
    steps = _steps(asked.get("dotted_order"))
    if steps and steps[-1] == run_id:
        order = content.as_text(asked["dotted_order"])
        return _Place(run_id, steps[0], steps[-2] if len(steps) > 1 else None, order)
    if steps and parent in (None, steps[-1]) and run_id not in steps:
        return _Place(run_id, steps[0], steps[-1], f"{asked['dotted_order']}.{own}")
    if parent is None or parent == run_id:
        return _Place(run_id, run_id, None, own)
    # The parent's time is not known: its own id tells it where that is a UUIDv7.
    root = _uuid(asked.get("trace_id")) or parent
    above = [root] if root == parent else [root, parent]
    order = ".".join(f"{_stamp(min(_time_of(one, start), start))}{one}" for one in above)
    return _Place(run_id, root, parent, f"{order}.{own}")


def _steps(order: JSON) -> list[str]:
    """The ids in a `dotted_order`, the root's first; none where it is not one."""
    if not isinstance(order, str) or len(order) > 10_000:
        return []
    found = [_STEP.fullmatch(step) for step in order.split(".")]
    ids = [step[2] for step in found if step is not None]
    return ids if len(ids) == len(found) == len(set(ids)) else []


def _uuid(value: JSON) -> str | None:
    if not isinstance(value, str) or len(value) > 50:
        return None
    try:
        return str(uuid.UUID(value))
    except ValueError:
        return None


def _time_of(run_id: str, default: float) -> float:
    found = uuid.UUID(run_id)
    return (found.int >> 80) / 1000 if found.version == 7 else default


def _uuid7(at: float, text: str) -> str:
    """A UUIDv7 of this time whose other bits are a digest of the text."""
    bits = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:10])
    value = (int(at * 1000) << 80) | bits
    value = value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62
    return str(uuid.UUID(int=value))


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)


def _stamp(at: float) -> str:
    return _moment(at).strftime("%Y%m%dT%H%M%S%fZ")


# --- what it says


def _inputs(record: Record, *, brief: bool = False) -> dict[str, Any]:
    if brief:
        return {"messages": [], "left_out": f"{len(record.raw)} bytes are too much for one run"}
    inputs: dict[str, Any] = {"messages": content.input_messages(record)}
    if tools := content.model_parameters(record).get("tools"):
        inputs["tools"] = tools
    return inputs


def _outputs(record: Record, *, billed: bool, brief: bool = False) -> dict[str, Any]:
    outputs: dict[str, Any] = {} if brief else {"messages": content.output_messages(record)}
    if billed:
        outputs["usage_metadata"] = _usage(record)
    return outputs


def _usage(record: Record) -> dict[str, Any]:
    used = content.usage(record)
    read = {"cache_read": used.cache_read, "cache_creation": used.cache_write, "audio": used.audio_input}
    wrote = {"reasoning": used.reasoning, "audio": used.audio_output}
    return {
        "input_tokens": used.input,
        "output_tokens": used.output,
        "total_tokens": used.total,
        "total_cost": content.cost(record),
        "input_token_details": {name: tokens for name, tokens in read.items() if tokens},
        "output_token_details": {name: tokens for name, tokens in wrote.items() if tokens},
    }


def _metadata(record: Record, *, of_call: bool, llm: bool) -> dict[str, Any]:
    """`ls_*` make LangSmith's columns, `session_id` its threads."""
    params = content.model_parameters(record)
    # What we know ourselves goes before what a client says.
    out = {**(content.said_of_call(record, _NAMES) if of_call else {}), **content.facts(record)}
    if llm:
        kind = "chat" if _run_type(record) == "llm" else _run_type(record)
        out |= {
            "ls_provider": record.data.get("custom_llm_provider"),
            "ls_model_name": record.data.get("model"),
            "ls_model_type": kind,
            "ls_temperature": params.get("temperature"),
            "ls_max_tokens": params.get("max_tokens") or params.get("max_completion_tokens"),
            "ls_invocation_params": {key: value for key, value in params.items() if key != "tools"},
        }
    if (session := content.session_id(record)) is not None:
        out["session_id"] = session
    if (first := content.time_to_first_token(record)) is not None:
        out["time_to_first_token"] = first
    return {key: value for key, value in out.items() if value is not None}
