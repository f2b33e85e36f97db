"""The version of a policy: a digest of what runs on a call, and how it is set. Answers are kept apart by it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import orjson
from pydantic import BaseModel

from tianji_mw.guardrails.entry import Entry
from tianji_mw.redact import Secret


def version_of(entries: Sequence[Entry]) -> str:
    """Equal in every process for the same guardrails with the same settings; no secret is in it."""
    told = [_told(entry) for entry in entries]
    return hashlib.sha256(orjson.dumps(told, default=str)).hexdigest()[:16]


def _told(entry: Entry) -> list[Any]:
    kind = type(entry.check)
    return [
        f"{kind.__module__}.{kind.__qualname__}", entry.name, list(entry.mode), entry.fail_open, entry.dry_run,
        entry.release, _plain(entry.skip_roles), entry.newest_only, _plain(entry.check),
    ]  # fmt: skip


def _plain(value: Any) -> Any:
    """The value as JSON whose order is that of the settings, whatever the order of a set is in this process."""
    if isinstance(value, Secret):
        return None  # it opens a service, and is no part of what that service decides
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in sorted(type(value).model_fields)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, AbstractSet):
        return sorted(str(_plain(item)) for item in value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
