"""Records as a Parquet file: columns for what people ask for, JSON text for nested parts; one schema for all.

Whatever a record does not hold, or holds as something else, is null: no record keeps others from being stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

#: Column: type, and where it is in a record. `json` is the JSON of anything; `time` is in seconds since 1970.
COLUMNS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "response_id": ("text", ("id",)),
    "trace_id": ("text", ("trace_id",)),
    "session_id": ("text", ("session_id",)),
    "call_type": ("text", ("call_type",)),
    "api": ("text", ("tianji", "api")),
    "route": ("text", ("metadata", "user_api_key_request_route")),
    "status": ("text", ("status",)),
    "outcome": ("text", ("tianji", "outcome")),
    "status_code": ("int", ("tianji", "status_code")),
    "error_code": ("text", ("error_information", "error_code")),
    "error_class": ("text", ("error_information", "error_class")),
    "error_message": ("text", ("error_information", "error_message")),
    "start_time": ("time", ("startTime",)),
    "end_time": ("time", ("endTime",)),
    "completion_start_time": ("time", ("completionStartTime",)),
    "response_time": ("float", ("response_time",)),
    "time_to_first_token": ("float", ("tianji", "time_to_first_token")),
    "stream": ("bool", ("stream",)),
    "model": ("text", ("model",)),
    "model_group": ("text", ("model_group",)),
    "model_id": ("text", ("model_id",)),
    "custom_llm_provider": ("text", ("custom_llm_provider",)),
    "api_base": ("text", ("api_base",)),
    "prompt_tokens": ("int", ("prompt_tokens",)),
    "completion_tokens": ("int", ("completion_tokens",)),
    "total_tokens": ("int", ("total_tokens",)),
    "cached_tokens": ("int", ("metadata", "usage_object", "prompt_tokens_details", "cached_tokens")),
    "reasoning_tokens": ("int", ("metadata", "usage_object", "completion_tokens_details", "reasoning_tokens")),
    "response_cost": ("float", ("response_cost",)),
    "saved_cache_cost": ("float", ("saved_cache_cost",)),
    "cache_hit": ("bool", ("cache_hit",)),
    "guardrail_status": ("text", ("status_fields", "guardrail_status")),
    "key_hash": ("text", ("metadata", "user_api_key_hash")),
    "key_alias": ("text", ("metadata", "user_api_key_alias")),
    "user_id": ("text", ("metadata", "user_api_key_user_id")),
    "user_email": ("text", ("metadata", "user_api_key_user_email")),
    "team_id": ("text", ("metadata", "user_api_key_team_id")),
    "team_alias": ("text", ("metadata", "user_api_key_team_alias")),
    "org_id": ("text", ("metadata", "user_api_key_org_id")),
    "end_user": ("text", ("end_user",)),
    "requester_ip_address": ("text", ("requester_ip_address",)),
    "user_agent": ("text", ("user_agent",)),
    "request_tags": ("texts", ("request_tags",)),
    "messages": ("json", ("messages",)),
    "response": ("json", ("response",)),
    "model_parameters": ("json", ("model_parameters",)),
    "metadata": ("json", ("metadata",)),
    "cost_breakdown": ("json", ("cost_breakdown",)),
    "error_information": ("json", ("error_information",)),
    "guardrail_information": ("json", ("guardrail_information",)),
    "hidden_params": ("json", ("hidden_params",)),
    "tianji": ("json", ("tianji",)),
}
_MOST_INT: Final = (1 << 63) - 1
#: Years 1 to 9999, in seconds: what the engines' timestamps hold.
_TIMES: Final = (-62_135_596_800, 253_402_300_799)


def table(records: Sequence[tuple[str, Mapping[str, Any]]], codec: str) -> bytes:
    """A file of these records, each an id and its data. Blocking; needs pyarrow. Same input, same bytes."""
    import pyarrow as pa
    from pyarrow import parquet

    made = schema()
    columns: list[Any] = [pa.array([identity for identity, _ in records], pa.string())]
    for name, (kind, path) in COLUMNS.items():
        cells = [cell(kind, at(data, path)) for _, data in records]
        columns.append(pa.array(cells, made.field(name).type))
    sink = pa.BufferOutputStream()
    whole = pa.Table.from_arrays(columns, schema=made)
    parquet.write_table(whole, sink, compression=codec, version="2.6", coerce_timestamps="us")
    raw: bytes = sink.getvalue().to_pybytes()
    return raw


def schema() -> Any:
    """The schema, of pyarrow. `litellm_call_id` is the id of the record; all other columns may be null."""
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "json": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
        "texts": pa.list_(pa.string()),
    }
    fields = [pa.field(name, types[kind]) for name, (kind, _) in COLUMNS.items()]
    return pa.schema([pa.field("litellm_call_id", pa.string(), nullable=False), *fields])


def at(data: Any, path: Sequence[str]) -> Any:
    """What is at this path of objects; None where there is nothing."""
    for name in path:
        if not isinstance(data, Mapping):
            return None
        data = data.get(name)
    return data


def cell(kind: str, value: Any) -> Any:
    """The value as a cell of such a column; None when it is no such thing."""
    if value is None:
        return None
    if kind == "json":
        return orjson.dumps(value).decode()
    if kind == "texts":
        return [one for one in value if isinstance(one, str)] if isinstance(value, list) else None
    if kind == "text":
        return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    if kind == "bool":
        return value if isinstance(value, bool) else None
    return _number(kind, value)


def _number(kind: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if kind == "float":
        return float(value)
    if kind == "time":
        return round(value * 1_000_000) if _TIMES[0] <= value <= _TIMES[1] else None
    whole = int(value)
    return whole if whole == value and -_MOST_INT <= whole <= _MOST_INT else None
