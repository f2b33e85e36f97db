"""Names of objects in a bucket: LiteLLM's, and folders `dt=.../hour=...` that query engines read. Pure.

Every name follows from the records alone: a record that comes again overwrites its object, and makes no second one.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import quote

from tianji_mw.records import Record

Layout = Literal["records", "batches", "batch_files"]
Partition = Literal["day", "hour"]

#: Bytes of UTF-8: of a key (S3, GCS and Azure agree on it), and of what stands after its last '/'.
MOST_KEY: Final = 1024
MOST_NAME: Final = 255
_HEAD: Final = 64
_DIGEST: Final = 16
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
#: Neither in a folder nor in a name: they split paths, or break XML listings and terminals.
_BAD: Final = re.compile(r"[/\\:\x00-\x1f\x7f\ud800-\udfff\ufffe\uffff]")
_NO_HEADER: Final = re.compile(r"[^ !#-\[\]-~]|[/:]")
#: What Hive writes for a partition whose value is null.
_NULL: Final = "__HIVE_DEFAULT_PARTITION__"


def started(record: Record) -> datetime:
    """When the call began, in UTC. A record that does not say: when its id was made (UUIDv7), else 1970."""
    told = record.data.get("startTime")
    if isinstance(told, int | float) and (found := moment(told)) is not None:
        return found
    try:
        made = uuid.UUID(record.id)
    except ValueError:
        return _EPOCH
    return moment((made.int >> 80) / 1000) or _EPOCH if made.version == 7 else _EPOCH


def ended(record: Record) -> float:
    """When the call ended, in seconds since 1970; when it began, for a record that does not say."""
    told = record.data.get("endTime")
    return float(told) if isinstance(told, int | float) else started(record).timestamp()


def moment(seconds: float) -> datetime | None:
    """A time of records, in seconds since 1970; None when it is none."""
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return None


def object_id(record: Record) -> str:
    """The id in a record's name: of the provider's answer, as in LiteLLM, else our own."""
    return text_of(record.data.get("id")) or record.id


def who(record: Record) -> tuple[str, str]:
    """Aliases of the team and the key; empty where there is none."""
    metadata = record.data.get("metadata")
    if not isinstance(metadata, dict):
        return "", ""
    return text_of(metadata.get("user_api_key_team_alias")), text_of(metadata.get("user_api_key_alias"))


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


class Names:
    """The names of one bucket's objects."""

    def __init__(self, prefix: str, partition: Partition, *, team: bool, key: bool) -> None:
        self._prefix = "".join(f"{part}/" for part in prefix.split("/") if part)
        self._hours = partition == "hour"
        self._team, self._key = team, key

    def of_record(self, record: Record, ending: str) -> str:
        """LiteLLM's: `[prefix/][team/][key/]YYYY-MM-DD/[HH/]time-HH-MM-SS-ffffff_<id>.json`."""
        at = started(record)
        return fitted(self.folder(record), f"time-{at:%H-%M-%S-%f}_{safe(object_id(record))}", ending)

    def folder(self, record: Record) -> str:
        """LiteLLM's folder of a record, with the '/' after it."""
        at, (team, key) = started(record), who(record)
        owners = (team if self._team else "", key if self._key else "")
        return (
            self._prefix
            + "".join(f"{_segment(owner)}/" for owner in owners if owner)
            + f"{at.date()}/"
            + (f"{at:%H}/" if self._hours else "")
        )

    def partition(self, record: Record) -> str:
        """Hive's folder of a record: `[prefix/][team=.../][key=.../]dt=YYYY-MM-DD/[hour=HH/]`."""
        at, (team, key) = started(record), who(record)
        return (
            self._prefix
            + (f"team={_value(team)}/" if self._team else "")
            + (f"key={_value(key)}/" if self._key else "")
            + f"dt={at.date()}/"
            + (f"hour={at:%H}/" if self._hours else "")
        )


def of_batch(folder: str, records: Sequence[Record], ending: str, *, head: str = "") -> str:
    """A file of these records: the time of the first of them, and a digest of all their ids, in any order."""
    first = min(map(started, records))
    return fitted(folder, f"{head}{first:%H-%M-%S}_{digest(record.id for record in records)}", ending)


def digest(ids: Iterable[str]) -> str:
    """32 hex digits."""
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def fitted(folder: str, name: str, ending: str) -> str:
    """The key, within the limits. A name too long keeps its head and gets the SHA-256 of the whole.

    The folder is cut, with a digest of its own, only where even that name does not fit behind it.
    """
    full = name + ending
    if len(full.encode()) <= MOST_NAME and len((folder + full).encode()) <= MOST_KEY:
        return folder + full
    short = f"{_cut(name, _HEAD)}_{hashlib.sha256(full.encode()).hexdigest()}{ending}"
    room = MOST_KEY - len(short.encode())
    if len(folder.encode()) > room:
        mark = hashlib.sha256(folder.encode()).hexdigest()[:_DIGEST]
        folder = f"{_cut(folder, room - _DIGEST - 2).rstrip('/')}/{mark}/"
    return folder + short


def safe(text: str) -> str:
    """The text as a part of a name."""
    return _BAD.sub("_", text)


def shown_name(record: Record) -> str:
    """The name of a download, LiteLLM's `time-<ISO>_<id>.json`, in characters that a header may hold."""
    name = f"time-{started(record):%Y-%m-%dT%H-%M-%S-%f}_{object_id(record)}"
    return _NO_HEADER.sub("_", name)[: MOST_NAME - len(".json")] + ".json"


def _segment(text: str) -> str:
    """The text as one folder; names that paths give a meaning lose it, so that no alias leads into another folder."""
    text = _brief(safe(text))
    return text if text.strip(".") else "_" * len(text)


def _value(text: str) -> str:
    """The text as the value of a partition, escaped as Hive does; empty is null."""
    return quote(_brief(safe(text)), safe=" -_.~@+") if text else _NULL


def _brief(text: str) -> str:
    """The text, or head and digest of a long one: two aliases never become one folder."""
    if len(text.encode()) <= _HEAD:
        return text
    return f"{_cut(text, _HEAD)}_{hashlib.sha256(text.encode()).hexdigest()[:_DIGEST]}"


def _cut(text: str, most: int) -> str:
    """At most so many bytes of UTF-8, and no half a character."""
    return text.encode()[: max(most, 0)].decode("utf-8", "ignore")
