"""The last good values on disk, encrypted: a pod that restarts while its store is down can start. Off by default.

Fernet (AES-128-CBC and HMAC-SHA256) with a key derived by scrypt from a passphrase that lies elsewhere; the file is
readable by its owner only, and replaced in one step.
"""

from __future__ import annotations

import base64
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import SecretValue

if TYPE_CHECKING:
    from tianji_mw.secrets.live import Entry

log = logging.getLogger("tianji_mw.secrets")

_SALT_BYTES: Final = 16
_MAX_BYTES: Final = 16 << 20


class LastGood:
    """The file. What cannot be read, or was encrypted with another passphrase, is as if it were not there."""

    def __init__(self, path: Path, passphrase: Secret) -> None:
        self._path = path
        self._passphrase = passphrase
        self._known: dict[str, dict[str, Any]] | None = None
        self._salt = b""
        self._fernet: Any = None

    def note(self, entry: Entry) -> None:
        """Keep what the store just gave."""
        assert entry.value is not None
        known, value = self._load(), entry.value
        written = {
            "value": value.value.reveal(),
            "version": value.version,
            "expires": value.expires,
            "mapping": value.mapping,
            "fetched": entry.fetched,
        }
        before = known.get(_key(entry))
        known[_key(entry)] = written
        # The age alone is not worth a write each time.
        if before is None or {**before, "fetched": 0} != {**written, "fetched": 0} or _aged(before, written):
            self._save(known)

    def restore(self, entry: Entry, max_stale_s: float) -> None:
        """Give the entry the value of an earlier run, unless it is too old."""
        found = self._load().get(_key(entry))
        now = time.time()
        if found is None or now - found["fetched"] > entry.ttl_s + max_stale_s:
            return
        if found["expires"] is not None and found["expires"] <= now:
            return
        error = entry.error
        entry.take(
            SecretValue(
                value=Secret(found["value"]),
                version=found["version"],
                expires=found["expires"],
                mapping=found["mapping"],
            )
        )
        entry.fetched, entry.error = found["fetched"], entry.error or error
        log.warning("%s: the store cannot be asked; a value from an earlier run is used", entry.where)

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._known is None:
            self._known = {}
            try:
                raw = self._path.read_bytes()
            except FileNotFoundError:
                raw = b""
            except OSError as error:
                log.error("the file of last good secrets cannot be read: %s", error.strerror)
                raw = b""
            self._salt = raw[:_SALT_BYTES] or os.urandom(_SALT_BYTES)
            self._fernet = _cipher(self._passphrase, self._salt)
            if raw:
                self._known = self._opened(raw[_SALT_BYTES:])
        return self._known

    def _opened(self, token: bytes) -> dict[str, dict[str, Any]]:
        from cryptography.fernet import InvalidToken

        try:
            found = orjson.loads(self._fernet.decrypt(token))
        except (InvalidToken, orjson.JSONDecodeError):
            log.error("the file of last good secrets is damaged or has another passphrase; it is written anew")
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self, known: dict[str, dict[str, Any]]) -> None:
        token = self._salt + self._fernet.encrypt(orjson.dumps(known))
        if len(token) > _MAX_BYTES:
            log.error("the file of last good secrets would be larger than %d bytes; it is not written", _MAX_BYTES)
            return
        # Its own name for each process: several workers write the same file.
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(token)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self._path)
        except OSError as error:
            log.error("the file of last good secrets cannot be written: %s", error.strerror)


def _key(entry: Entry) -> str:
    ref = entry.ref
    return orjson.dumps([entry.store.name, ref.path, ref.version, ref.base64]).decode()


def _aged(before: dict[str, Any], now: dict[str, Any]) -> bool:
    return bool(now["fetched"] - before["fetched"] > 3600)


def _cipher(passphrase: Secret, salt: bytes) -> Any:
    try:
        from cryptography.fernet import Fernet
        from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
    except ImportError:
        raise MissingExtra("cryptography", "secret-cache") from None
    key = Scrypt(salt=salt, length=32, n=2**14, r=8, p=1).derive(passphrase.reveal().encode())
    return Fernet(base64.urlsafe_b64encode(key))
