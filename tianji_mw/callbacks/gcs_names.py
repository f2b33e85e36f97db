"""Other last parts of the names of objects, for stores whose LiteLLM names differ from those of S3. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from tianji_mw.callbacks.objects import keys
from tianji_mw.callbacks.objects.build import Builder, Stored
from tianji_mw.records import Record

#: The stem and ending of an object's name; the folders before it stay. `None`: it keeps its name.
Rename = Callable[[Stored], tuple[str, str] | None]

_UNFIT: Final = re.compile(r"[^A-Za-z0-9._-]")
_MOST_ID: Final = 128


class Renamed(Builder):
    """The objects of another builder under other names."""

    def __init__(self, inner: Builder, rename: Rename) -> None:
        self._inner = inner
        self._rename = rename

    def objects(self, batch: Sequence[Record]) -> list[Stored]:
        """Two objects of one name: the later gets the id of its record."""
        named: dict[str, Stored] = {}
        for item in self._inner.objects(batch):
            if (parts := self._rename(item)) is None:
                named[item.key] = item
                continue
            folder, slash, _ = item.key.rpartition("/")
            key = keys.fitted(folder + slash, *parts)
            if key in named:
                key = keys.fitted(folder + slash, f"{parts[0]}_{keys.safe(item.records[0].id)}", parts[1])
            named[key] = replace(item, key=key)
        return list(named.values())


def batch_stem(records: Sequence[Record]) -> str:
    """`<ms>-<8 hex>` of a file: when its first call began, and a digest of its ids. A second attempt has the same."""
    first = int(min(map(keys.started, records)).timestamp() * 1000)
    return f"{first}-{keys.digest({record.id for record in records})[:8]}"


def packing(item: Stored) -> str:
    """`.gz`, `.zst` or nothing."""
    return next((ending for ending in (".gz", ".zst") if item.key.endswith(ending)), "")


def gcs_name(layout: keys.Layout) -> Rename:
    """LiteLLM's names in a bucket of Google, made of the records alone."""

    def rename(item: Stored) -> tuple[str, str] | None:
        if layout == "batches":
            return None
        if layout == "batch_files":
            return f"batch-{batch_stem(item.records)}", f".ndjson{packing(item)}"
        return _single(item.records[0]), packing(item)

    return rename


def _single(record: Record) -> str:
    """`<response id>`, `failure-<hex>`, or `custom-<call id>-<gcs_log_id>`."""
    metadata = record.data.get("metadata")
    asked = metadata.get("requester_metadata") if isinstance(metadata, dict) else None
    if isinstance(asked, dict) and (wanted := keys.text_of(asked.get("gcs_log_id"))):
        return f"custom-{record.id}-{_UNFIT.sub('_', wanted)[:_MOST_ID]}"
    if record.data.get("status") == "failure":
        return f"failure-{record.id.replace('-', '')}"
    name = keys.safe(keys.object_id(record))
    # A call that the cache answered has the id of the call before it, whose object it must not overwrite.
    name = f"{name}_{record.id}" if record.data.get("cache_hit") else name
    return name if name.strip(".") else record.id
