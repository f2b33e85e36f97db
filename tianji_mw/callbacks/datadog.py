"""Datadog logs: every call as a log entry whose message is the whole record, to Datadog's intake or an agent.

Source: Datadog's API reference, "Send logs" (`POST /api/v2/logs`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

import orjson
from pydantic import Field

from tianji_mw.callbacks._groups import Delivery, Item, Limits, built, groups, joined
from tianji_mw.callbacks.base import Record
from tianji_mw.callbacks.datadog_shared import DatadogCallback, tags_of
from tianji_mw.callbacks.record import content

#: Entries and uncompressed bytes of a request, without the brackets.
_LIMITS: Final = Limits(1000, 5_000_000 - 2)
#: Bytes of an entry; Datadog cuts longer ones, and then their JSON cannot be read.
_ENTRY: Final = 1_000_000
#: Fields that hold what was said, and others that may be long.
_LONG: Final = (
    "messages",
    "response",
    "guardrail_information",
    "model_parameters",
    "metadata",
    "model_map_information",
)
_TRACE: Final = re.compile(r"[0-9a-f]{32}")
_SPAN: Final = re.compile(r"[0-9a-f]{16}")


class Datadog(DatadogCallback):
    """Sends calls to Datadog's logs.

    >>> Datadog(api_key="...", site="us5.datadoghq.com")
    """

    title: ClassVar[str] = "Datadog"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **DatadogCallback.env_fields,
        "agent_port": ("LITELLM_DD_AGENT_PORT",),
    }

    batch_size: int = Field(default=1000, ge=1, le=100_000)

    async def write(self, batch: Sequence[Record]) -> None:
        items, refused = await built(batch, lambda record: [self._entry(record)], _LIMITS)
        delivery = Delivery(self.title, refused)
        await delivery.send(groups(items, _LIMITS), self._send)
        delivery.done()

    async def _send(self, group: list[Item]) -> None:
        url = self.base("http-intake.logs") + "/api/v2/logs"
        await self.post(url, b"[%b]" % joined(group), self.login(), zipped=True)

    def _entry(self, record: Record) -> bytes:
        failed = content.failure(record) is not None
        entry: dict[str, Any] = {
            "ddsource": self.source,
            "ddtags": ",".join([*self.own_tags(), *tags_of(record)]),
            "hostname": self.hostname,
            "service": self.service,
            "status": "error" if failed else "info",
            # A record that waited is older than its arrival; this name is one of those that Datadog takes as the date.
            "timestamp": datetime.fromtimestamp(content.times(record)[1], UTC).isoformat(),
            "message": record.raw.decode(),
            **_trace(record),
        }
        whole = orjson.dumps(entry)
        return whole if len(whole) <= _ENTRY else _cut(record, entry)


def _trace(record: Record) -> dict[str, str]:
    """The ids that join a log to its trace: 128 bits in hexadecimal, and 64 in decimal digits."""
    ours = content.ours(record)
    trace = content.as_text(ours.get("trace_id") or record.data.get("trace_id"))
    span = content.as_text(ours.get("span_id"))
    if not _TRACE.fullmatch(trace) or not _SPAN.fullmatch(span):
        return {}
    return {"dd.trace_id": trace, "dd.span_id": str(int(span, 16))}


def _cut(record: Record, entry: dict[str, Any]) -> bytes:
    """The entry with what is long left out of its record, one field after the other, until it fits."""
    data = dict(record.data)
    for field in _LONG:
        if data.get(field) is None:
            continue
        data[field] = {"truncated": True, "bytes": len(orjson.dumps(data[field]))}
        whole = orjson.dumps({**entry, "message": orjson.dumps(data).decode()})
        if len(whole) <= _ENTRY:
            return whole
    raise ValueError("a record is too large even without its content")
