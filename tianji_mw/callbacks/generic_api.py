"""Any HTTP endpoint that takes JSON: batches as an array or as lines, or a request for each record.

Source: LiteLLM's Generic API callback. `log_format: tianji` is the flat event of the Go port's webhook.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal

import orjson
from pydantic import Field, field_validator

from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.service import HttpCallback, is_address
from tianji_mw.callbacks.webhook import signature
from tianji_mw.errors import SetupError
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e\t]*")
_LINES: Final = "application/x-ndjson"
#: The year 9999, where datetime ends.
_FAR: Final = 253_000_000_000


class GenericApi(HttpCallback):
    """Posts records to one address.

    >>> GenericApi(endpoint="https://sink.corp/ingest", headers={"authorization": "Bearer x"}, log_format="ndjson")
    """

    title: ClassVar[str] = "The generic API"
    needs: ClassVar[tuple[str, ...]] = ()
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "endpoint": ("GENERIC_LOGGER_ENDPOINT",),
        "more_headers": ("GENERIC_LOGGER_HEADERS",),
    }
    aliases: ClassVar[Mapping[str, str]] = {"url": "endpoint", "generic_logger_headers": "more_headers"}
    no_effect: ClassVar[Mapping[str, str]] = {"generic_api_use_v1": "the payload is the current one"}

    endpoint: str = Field(default="", repr=False)
    #: Header -> value, or LiteLLM's text `Name=value,Other=value`.
    headers: dict[str, Secret] = Field(default_factory=dict)
    #: Those that stand elsewhere in the config, or in the environment; `headers` go before them.
    more_headers: dict[str, Secret] = Field(default_factory=dict)
    #: `json_array` and `ndjson`: a request for each batch. `single`, `tianji`: one for each record, some at once.
    log_format: Literal["json_array", "ndjson", "single", "tianji"] = "json_array"
    gzip: bool = False
    #: Signs each request: `X-Tianji-Signature: sha256=HMAC(secret, timestamp.body)` beside `X-Tianji-Timestamp`.
    secret: Secret | None = None
    requests_at_once: int = Field(default=8, ge=1, le=256)

    @field_validator("headers", "more_headers", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [pair.partition("=") for pair in value.split(",") if pair.strip()]
        if not all(name.strip() and equals for name, equals, _ in pairs):
            raise ValueError("write headers as a mapping, or as text such as Name=value,Other=value")
        return {name.strip(): text.strip() for name, _, text in pairs}

    @field_validator("headers", "more_headers")
    @classmethod
    def _fit(cls, value: dict[str, Secret]) -> dict[str, Secret]:
        for name, secret in value.items():
            if not _NAME.fullmatch(name) or (secret.ready and not _VALUE.fullmatch(secret.reveal())):
                raise ValueError(f"the header {name[:60]!r} holds characters that no header may have")
        return value

    async def start(self, runtime: Runtime) -> None:
        if not is_address(self.endpoint):
            found = "is no address; write it as https://host/path" if self.endpoint else "is missing"
            raise SetupError(f"The generic API: endpoint {found}; set it, or the variable GENERIC_LOGGER_ENDPOINT.")
        await super().start(runtime)

    async def write(self, batch: Sequence[Record]) -> None:
        if self.log_format == "json_array":
            await self._send(b"[" + b",".join(record.raw for record in batch) + b"]")
        elif self.log_format == "ndjson":
            await self._send(b"".join(record.raw + b"\n" for record in batch), _LINES)
        else:
            await self._send_each(batch)

    async def _send(self, body: bytes, content_type: str = "application/json") -> None:
        sent: dict[str, str | Secret] = {}
        if self.gzip:
            body, sent["content-encoding"] = await asyncio.to_thread(gzip.compress, body, 5), "gzip"
        if self.secret is not None and self._wall is not None:
            now = str(int(self._wall()))
            sent |= {"x-tianji-timestamp": now, "x-tianji-signature": signature(self.secret, now, body)}
        given = {name.lower(): value for name, value in {**self.more_headers, **self.headers}.items()}
        await self.post(self.endpoint, body, {**sent, **given}, content_type=content_type)

    async def _send_each(self, batch: Sequence[Record]) -> None:
        gate = asyncio.Semaphore(self.requests_at_once)

        async def one(record: Record) -> NotDelivered | None:
            async with gate:
                try:
                    await self._send(orjson.dumps(flat(record.data)) if self.log_format == "tianji" else record.raw)
                except NotDelivered as problem:
                    return problem
                except (AttributeError, TypeError, ValueError):
                    return NotDelivered(f"{self.title}: a record is no JSON object", retry=False)
            return None

        problems = await asyncio.gather(*(one(record) for record in batch))
        found = [(record, problem) for record, problem in zip(batch, problems, strict=True) if problem is not None]
        if found:
            pauses = [problem.retry_after_s for _, problem in found if problem.retry_after_s is not None]
            raise NotDelivered(
                found[0][1].message,
                failed=[record for record, problem in found if problem.retry],
                refused=[record for record, problem in found if not problem.retry],
                retry_after_s=max(pauses, default=None),
            )


def flat(data: Mapping[str, Any]) -> dict[str, Any]:
    """The Go port's event: facts in one level, and no content."""
    found = data.get("metadata")
    metadata: Mapping[str, Any] = found if isinstance(found, dict) else {}
    start, end = _seconds(data.get("startTime")), _seconds(data.get("endTime"))
    return {
        "id": data.get("litellm_call_id"),
        "event": "llm.success" if data.get("status") == "success" else "llm.failure",
        "model": data.get("model"),
        "provider": data.get("custom_llm_provider"),
        "prompt_tokens": data.get("prompt_tokens"),
        "completion_tokens": data.get("completion_tokens"),
        "total_tokens": data.get("total_tokens"),
        "cost": data.get("response_cost"),
        "latency_seconds": None if start is None or end is None else end - start,
        "user_id": metadata.get("user_api_key_user_id"),
        "team_id": metadata.get("user_api_key_team_id"),
        "request_tags": data.get("request_tags"),
        "cache_hit": bool(data.get("cache_hit")),
        "error": data.get("error_str"),
        "timestamp": None if end is None else datetime.fromtimestamp(end, UTC).isoformat(),
    }


def _seconds(value: Any) -> float | None:
    """A time in seconds since 1970, as far as calendars go."""
    return float(value) if isinstance(value, int | float) and 0 <= value < _FAR else None
