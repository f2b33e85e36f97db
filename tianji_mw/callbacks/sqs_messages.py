"""A record as a message of SQS: its text within the limit, perhaps encrypted, and who goes with whom. Pure.

Sources: API reference of SQS, "SendMessageBatch"; developer guide "Message quotas".
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from tianji_mw.callbacks.objects.cut import without_files
from tianji_mw.records import Record

MOST_ENTRIES: Final = 10
_MOST_GROUP: Final = 128
#: What gives way to its size, one after the other, when a message is too large.
_LONG: Final = ("response", "messages", "model_parameters", "metadata")
_NONCE: Final = 12
_TAG: Final = 16


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a request."""

    record: Record
    body: str
    #: Of a FIFO queue: messages of one group arrive in their order.
    group: str

    @property
    def size(self) -> int:
        return len(self.body.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How messages are made."""

    max_bytes: int
    no_files: bool = False
    fifo: bool = False
    #: AES-256: 32 bytes; none sends plain JSON.
    key: bytes = b""
    aad: bytes = b""


def message_of(record: Record, rules: Rules) -> Message | None:
    """The message; None where even its facts are too large. Raises ValueError for a record that is no object."""
    data: Mapping[str, Any] = record.data
    if not isinstance(data, Mapping):
        raise ValueError("no JSON object")
    if rules.no_files:
        data = without_files(data)
    for cut in range(len(_LONG) + 1):
        body = _body(_shortened(data, _LONG[:cut]), rules)
        if len(body) <= rules.max_bytes:
            return Message(record, body, _group(data) if rules.fifo else "")
    return None


def _shortened(data: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any]:
    held = {name: len(orjson.dumps(data[name])) for name in names if name in data}
    return {**data, **{name: {"truncated": True, "bytes": size} for name, size in held.items()}} if held else data


def _body(data: Mapping[str, Any], rules: Rules) -> str:
    """ASCII: text beyond it is escaped, as SQS takes only characters that XML has."""
    raw = orjson.dumps(dict(data))
    text = raw.decode() if raw.isascii() else _ascii(raw.decode())
    return _encrypted(text.encode(), rules).decode() if rules.key else text


def _ascii(text: str) -> str:
    """JSON with every character beyond ASCII as an escape."""
    return "".join(char if char < "\x7f" else _escape(char) for char in text)


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x10000:
        return f"\\u{code:04x}"
    code -= 0x10000
    return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"


def _encrypted(text: bytes, rules: Rules) -> bytes:
    """LiteLLM's envelope around AES-256-GCM."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(_NONCE)
    sealed = AESGCM(rules.key).encrypt(nonce, text, rules.aad or None)
    parts = {"nonce": nonce, "ciphertext": sealed[:-_TAG], "tag": sealed[-_TAG:]}
    payload = {name: base64.b64encode(part).decode() for name, part in parts.items()}
    return orjson.dumps({"__encrypted__": True, "payload": payload})


def _group(data: Mapping[str, Any]) -> str:
    """The team, else the key; characters that SQS does not take become `_`."""
    metadata = data.get("metadata")
    found = metadata if isinstance(metadata, Mapping) else {}
    name = found.get("user_api_key_team_id") or found.get("user_api_key_hash") or "none"
    text = "".join(char if "!" <= char <= "~" else "_" for char in str(name))
    return text if len(text) <= _MOST_GROUP else hashlib.sha256(text.encode()).hexdigest()


def entry_of(message: Message, number: int) -> dict[str, str]:
    """The entry of a request; `number` is its id there."""
    entry = {"Id": str(number), "MessageBody": message.body}
    if message.group:
        return {**entry, "MessageGroupId": message.group, "MessageDeduplicationId": message.record.id[:128]}
    return entry


def packed(messages: Sequence[Message], max_bytes: int) -> list[list[Message]]:
    """As few requests as the limits allow, in order: ten messages, and `max_bytes` together."""
    found: list[list[Message]] = []
    size = 0
    for message in messages:
        own = message.size
        if not found or len(found[-1]) == MOST_ENTRIES or size + own > max_bytes:
            found.append([])
            size = 0
        found[-1].append(message)
        size += own
    return found
