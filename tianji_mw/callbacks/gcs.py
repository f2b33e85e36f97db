"""Stores records in Google Cloud Storage, over its JSON API. LiteLLM's `gcs_bucket`.

Sources: Cloud Storage JSON API, "Objects: insert" and "HTTP status and error codes". Names of objects: `gcs_names`.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import Field, PrivateAttr, model_validator

from tianji_mw import http
from tianji_mw.callbacks.gcs_names import Renamed, gcs_name
from tianji_mw.callbacks.objects.base import ObjectCallback, PutFailed, Stored
from tianji_mw.callbacks.objects.keys import Layout
from tianji_mw.callbacks.service import REFUSED, is_address
from tianji_mw.errors import SetupError, TianjiError
from tianji_mw.logins.google import GoogleLogin, GoogleToken, LoginFailed, with_scheme
from tianji_mw.runtime import Runtime

_GOOGLE: Final = "https://storage.googleapis.com"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"
_REASON: Final = re.compile(r'"reason"\s*:\s*"([A-Za-z]{1,60})"')
_FALSE: Final = frozenset({"false", "0", "no", "off", "f", "n"})
_MOST_PAUSE_S: Final = 3600.0


class Gcs(GoogleLogin, ObjectCallback):
    """Objects in one bucket.

    >>> Gcs(bucket="logs/llm", credentials_file="/etc/gcp/writer.json")
    """

    title: ClassVar[str] = "Google Cloud Storage"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bucket": ("GCS_BUCKET_NAME",),
        "credentials_file": ("GCS_PATH_SERVICE_ACCOUNT",),
        "batch_size": ("GCS_BATCH_SIZE",),
        "flush_interval_s": ("GCS_FLUSH_INTERVAL",),
        "use_batched_logging": ("GCS_USE_BATCHED_LOGGING",),
        "endpoint_url": ("STORAGE_EMULATOR_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "gcs_bucket_name": "bucket",
        "bucket_name": "bucket",
        "gcs_path_service_account": "credentials_file",
        "path_service_account": "credentials_file",
        "gcs_batch_size": "batch_size",
        "gcs_flush_interval": "flush_interval_s",
        "gcs_use_batched_logging": "use_batched_logging",
    }

    batch_size: int = Field(default=2048, ge=1, le=100_000)
    flush_interval_s: float = Field(default=20.0, ge=0.01, le=3600)
    layout: Layout = "batch_files"
    #: Its name; folders after a '/' come before `prefix`.
    bucket: str = Field(min_length=1, max_length=2048)
    #: Another address than Google's. Over plain http without credentials nobody logs in (emulators).
    endpoint_url: str = ""
    #: LiteLLM's switch: false is `layout: records`.
    use_batched_logging: bool = True

    _client: Any = PrivateAttr(default=None)
    _login: GoogleToken | None = PrivateAttr(default=None)

    @model_validator(mode="before")
    @classmethod
    def _understood(cls, fields: Any) -> Any:
        """Folders of the bucket become the prefix, and LiteLLM's switch the layout."""
        if not isinstance(fields, dict):
            return fields
        fields = dict(fields)
        for name in ("bucket", "gcs_bucket_name", "bucket_name"):
            if isinstance(fields.get(name), str) and "/" in fields[name]:
                fields[name], _, folders = fields[name].removeprefix("gs://").partition("/")
                fields["prefix"] = f"{folders}/{fields.get('prefix', '')}".strip("/")
        asked = fields.get("use_batched_logging", fields.get("gcs_use_batched_logging"))
        if asked is not None and str(asked).strip().lower() in _FALSE:
            fields.setdefault("layout", "records")
        return fields

    async def start(self, runtime: Runtime) -> None:
        """Open the client, and read the credentials. Raises SetupError; the bucket is not asked yet."""
        await super().start(runtime)
        if not is_address(self._address):
            raise SetupError("Google Cloud Storage: endpoint_url is no address; write it as https://host.")
        if self._builder is not None:
            self._builder = Renamed(self._builder, gcs_name(self.layout))
        timeout_s = self.upload_timeout_s
        self._login = await self.logged_in(self.title, self._address, scope=_SCOPE, timeout_s=timeout_s)
        headers = {"accept-encoding": "identity"}
        self._client = http.client(
            timeout_s=timeout_s, connect_s=min(5.0, timeout_s), headers=headers, max_bytes=1 << 20
        )

    async def aclose(self) -> None:
        client, login, self._client, self._login = self._client, self._login, None, None
        if login is not None:
            login.close()
        if client is not None:
            await client.aclose()

    @property
    def _address(self) -> str:
        return with_scheme(self.endpoint_url).rstrip("/") or _GOOGLE

    async def put(self, item: Stored) -> None:
        if self._client is None:
            raise PutFailed("it was not started", "halt")
        try:
            token = await self._login.token() if self._login else ""
            response = await self._sent(item, token)
            if response.status_code == 401 and self._login:
                response = await self._sent(item, await self._login.token(refused=token))
        except LoginFailed as error:
            raise PutFailed(error.message, "halt") from None
        if response.status_code >= 300:
            raise refusal(response.status_code, response.text, response.headers)
        self._checked(item, response)

    async def _sent(self, item: Stored, token: str) -> Any:
        bucket, name = quote(self.bucket, safe=""), quote(item.key, safe="")
        url = f"{self._address}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
        headers = {"content-type": item.content_type, **({"authorization": f"Bearer {token}"} if token else {})}
        try:
            return await self._client.post(url, content=item.body, headers=headers)
        except (http.HTTPError, TianjiError) as error:
            name = type(error).__name__
            raise PutFailed(f"no answer ({name})", "halt" if name.startswith("Connect") else "retry") from None

    @staticmethod
    def _checked(item: Stored, response: Any) -> None:
        """Google tells the hash of what it has stored."""
        try:
            told = response.json().get("md5Hash")
        except (ValueError, AttributeError):
            raise PutFailed("the answer is not what Google's API promises") from None
        if told and told != base64.b64encode(hashlib.md5(item.body, usedforsecurity=False).digest()).decode():
            raise PutFailed("the object was damaged on its way (MD5 differs)")


def refusal(status: int, body: str, headers: Mapping[str, str]) -> PutFailed:
    """What an error answer means; of its text only Google's word for the reason is shown."""
    reason = _REASON.search(body)
    told = f"{status}, {reason[1]}" if reason else str(status)
    asked = headers.get("retry-after", "").strip()
    pause = min(float(asked), _MOST_PAUSE_S) if asked.isascii() and asked.isdigit() else None
    if status == 413:
        return PutFailed(told, "too_large")
    if status in (401, 404):  # nobody of ours comes in, or there is no bucket
        return PutFailed(told, "halt", retry_after_s=pause)
    if status in (429, 503):
        return PutFailed(told, "busy", retry_after_s=pause)
    # 403 is not halted: a condition of IAM may deny one folder only.
    return PutFailed(told, "refused" if status in REFUSED else "retry", retry_after_s=pause)
