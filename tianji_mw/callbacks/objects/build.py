"""Makes the objects of a batch: one for each record, or files of many records, compressed where that is wanted. Pure.

The ending of a name says what the bytes are (`.json`, `.jsonl.gz`, `.parquet`, ...), and no `Content-Encoding` does:
clients that unpack by themselves, and query engines that go by the name, would both unpack.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

from tianji_mw.callbacks.objects import keys
from tianji_mw.callbacks.objects.cut import prompts_only, without_files
from tianji_mw.records import Record

Format = Literal["jsonl", "parquet"]
Compression = Literal["auto", "none", "gzip", "zstd"]

_ENDINGS: Final = {"none": "", "gzip": ".gz", "zstd": ".zst"}
_TYPES: Final = {"gzip": "application/gzip", "zstd": "application/zstd"}
_LEVEL_GZIP: Final = 6
_LEVEL_ZSTD: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One object as it shall be stored."""

    key: str
    body: bytes
    content_type: str
    #: What a browser calls the download: ASCII without quotes.
    file_name: str
    #: The records in it, with those of the same id that were left out.
    records: tuple[Record, ...]


class Builder:
    """Objects of records, by the settings of one destination."""

    def __init__(
        self,
        *,
        prefix: str,
        layout: keys.Layout,
        partition: keys.Partition,
        file_format: Format,
        compression: Compression,
        team: bool,
        key: bool,
        no_files: bool,
        no_answers: bool,
    ) -> None:
        self._names = keys.Names(prefix, partition, team=team, key=key)
        self._layout = layout
        self._parquet = file_format == "parquet"
        self._no_files, self._no_answers = no_files, no_answers
        self._packing = compression if compression != "auto" else "zstd" if self._parquet else "none"

    def objects(self, batch: Sequence[Record]) -> list[Stored]:
        """The objects of these records, each in one of them; the same ones for the same records. Blocking."""
        if self._layout == "records":
            return [self._of_record(key, records) for key, records in self._by_name(batch).items()]
        folder = self._names.partition if self._layout == "batches" else self._names.folder
        return [self._of_group(where, records) for where, records in _grouped(batch, folder).items()]

    def _by_name(self, batch: Sequence[Record]) -> dict[str, list[Record]]:
        """The keys of records, with those that are the same record. Two records of one name: the later gets its id."""
        ending = ".json" + _ENDINGS[self._packing]
        named: dict[str, list[Record]] = {}
        for record in batch:
            key = self._names.of_record(record, ending)
            if key in named and named[key][0].id != record.id:
                folder, _, name = key.rpartition("/")
                stem = name.removesuffix(ending)
                key = keys.fitted(f"{folder}/" if folder else "", f"{stem}_{keys.safe(record.id)}", ending)
            named.setdefault(key, []).append(record)
        return named

    def _of_record(self, key: str, records: list[Record]) -> Stored:
        record = records[0]
        return Stored(
            key=key,
            body=_packed(self._raw(record), self._packing),
            content_type=_TYPES.get(self._packing, "application/json"),
            file_name=keys.shown_name(record) + _ENDINGS[self._packing],
            records=tuple(records),
        )

    def _of_group(self, folder: str, records: list[Record]) -> Stored:
        single = list({record.id: record for record in records}.values())
        if self._parquet:
            ending, body = ".parquet", self._table(single)
            content_type = "application/vnd.apache.parquet"
        else:
            ending = ".jsonl" + _ENDINGS[self._packing]
            body = _packed(b"".join(_line(self._raw(record)) for record in single), self._packing)
            content_type = _TYPES.get(self._packing, "application/x-ndjson")
        head = "batch_" if self._layout == "batch_files" else ""
        key = keys.of_batch(folder, single, ending, head=head)
        name = key.rpartition("/")[2]
        return Stored(key=key, body=body, content_type=content_type, file_name=name, records=tuple(records))

    def _raw(self, record: Record) -> bytes:
        if not self._no_files and not self._no_answers:
            return record.raw
        return orjson.dumps(self._data(record))

    def _data(self, record: Record) -> Any:
        data: Any = record.data
        if self._no_files:
            data = without_files(data)
        return prompts_only(data) if self._no_answers else data

    def _table(self, records: list[Record]) -> bytes:
        from tianji_mw.callbacks.objects.parquet import table

        return table([(record.id, self._data(record)) for record in records], self._packing)


def readable(record: Record) -> bool:
    """Whether it is a JSON object, so that it can be named."""
    try:
        return isinstance(record.data, dict)
    except ValueError:
        return False


def _grouped(batch: Sequence[Record], folder: Callable[[Record], str]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in batch:
        groups.setdefault(folder(record), []).append(record)
    return groups


def _line(raw: bytes) -> bytes:
    """One line of JSON; what somebody wrote over several lines becomes one."""
    return (orjson.dumps(orjson.loads(raw)) if b"\n" in raw else raw) + b"\n"


def _packed(body: bytes, packing: str) -> bytes:
    """Compressed, without a time in it: the same records are the same bytes."""
    if packing == "gzip":
        return gzip.compress(body, _LEVEL_GZIP, mtime=0)
    if packing == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=_LEVEL_ZSTD).compress(body)
    return body
