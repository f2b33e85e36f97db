"""Entries in Google Cloud Storage, over its JSON API. LiteLLM's `gcs`.

Source: Cloud Storage JSON API, "Objects: get, insert, delete, list" and "HTTP status and error codes".
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import Field, PrivateAttr

from tianji_mw import http
from tianji_mw.cache._objects import BEYOND, ObjectStore, must
from tianji_mw.cache.base import StoreFailed
from tianji_mw.errors import TianjiError
from tianji_mw.logins.google import GoogleLogin, GoogleToken, LoginFailed, with_scheme
from tianji_mw.runtime import Runtime

_GOOGLE: Final = "https://storage.googleapis.com"
_SCOPE: Final = "https://www.googleapis.com/auth/devstorage.read_write"


class Gcs(GoogleLogin, ObjectStore):
    """Objects in one bucket.

    >>> Gcs(gcs_bucket_name="answers", gcs_path="cache").bucket
    'answers'
    """

    title: ClassVar[str] = "Google Cloud Storage"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "bucket": ("GCS_BUCKET_NAME",),
        "credentials_file": ("GCS_PATH_SERVICE_ACCOUNT",),
        "endpoint_url": ("STORAGE_EMULATOR_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "gcs_bucket_name": "bucket",
        "gcs_path": "path",
        "gcs_path_service_account": "credentials_file",
    }

    bucket: str = Field(min_length=1, max_length=222)
    #: Another address than Google's. Over plain http without credentials nobody logs in (emulators).
    endpoint_url: str = ""

    _client: Any = PrivateAttr(default=None)
    _login: GoogleToken | None = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Open the client, and read the credentials; the bucket is not asked yet. Raises SetupError."""
        await super().start(runtime)
        must(self.bucket, "gcs_bucket_name", self.title)
        self._login = await self.logged_in(self.title, self._address, scope=_SCOPE, timeout_s=self.timeout_s)
        self._client = http.client(
            timeout_s=self.timeout_s,
            connect_s=min(5.0, self.timeout_s),
            headers={"accept-encoding": "identity"},
            max_bytes=self.max_item_bytes + BEYOND,
        )

    async def aclose(self) -> None:
        client, login, self._client, self._login = self._client, self._login, None, None
        if login is not None:
            login.close()
        if client is not None:
            await client.aclose()

    async def read(self, name: str) -> bytes | None:
        answer = await self._asked("GET", f"{self._object(name)}?alt=media")
        if answer.status_code == 404:
            self._there(answer)
            return None
        body: bytes = answer.content
        return body

    async def write(self, name: str, body: bytes, ends: float) -> None:
        bucket = quote(self.bucket, safe="")
        url = f"{self._address}/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        answer = await self._asked("POST", url, body)
        if answer.status_code == 404:
            raise self._refusal(404)

    async def remove(self, name: str) -> bool:
        answer = await self._asked("DELETE", self._object(name))
        return bool(answer.status_code != 404)

    async def names(self, prefix: str) -> AsyncIterator[str]:
        bucket, token = quote(self.bucket, safe=""), ""
        while True:
            asked = f"prefix={quote(prefix, safe='')}&fields=items(name),nextPageToken"
            url = f"{self._address}/storage/v1/b/{bucket}/o?{asked}"
            answer = await self._asked("GET", url + (f"&pageToken={quote(token, safe='')}" if token else ""))
            if answer.status_code == 404:
                raise self._refusal(404)
            found = answer.json()
            for item in found.get("items", ()):
                yield item["name"]
            token = found.get("nextPageToken", "")
            if not token:
                return

    # --- requests

    @property
    def _address(self) -> str:
        return with_scheme(self.endpoint_url).rstrip("/") or _GOOGLE

    def _object(self, name: str) -> str:
        return f"{self._address}/storage/v1/b/{quote(self.bucket, safe='')}/o/{quote(name, safe='')}"

    async def _asked(self, method: str, url: str, body: bytes | None = None) -> Any:
        """The answer; a 404 is one, everything else that is no success raises StoreFailed."""
        if self._client is None:
            raise StoreFailed("Google Cloud Storage: the store was not started")
        try:
            token = await self._login.token() if self._login else ""
            answer = await self._sent(method, url, body, token)
            if answer.status_code == 401 and self._login:
                answer = await self._sent(method, url, body, await self._login.token(refused=token))
        except LoginFailed as error:
            raise StoreFailed(f"Google Cloud Storage: {error.message}", kind="refused") from None
        if answer.status_code >= 300 and answer.status_code != 404:
            raise self._refusal(answer.status_code)
        return answer

    async def _sent(self, method: str, url: str, body: bytes | None, token: str) -> Any:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        if body is not None:
            headers["content-type"] = "application/octet-stream"
        try:
            return await self._client.request(method, url, content=body, headers=headers)
        except (http.HTTPError, TianjiError) as error:
            name = type(error).__name__
            kind = "timeout" if "Timeout" in name else "unreachable"
            raise StoreFailed(f"Google Cloud Storage: no answer ({name})", kind=kind) from None

    def _there(self, answer: Any) -> None:
        """Raise StoreFailed where it is the bucket that does not exist, and not the object."""
        if b"bucket does not exist" in answer.content:
            raise self._refusal(404)

    def _refusal(self, status: int) -> StoreFailed:
        where = f"GCS bucket '{self.bucket}'"
        if status == 404:
            return StoreFailed(f"{where} does not exist; set cache_params.gcs_bucket_name", kind="refused")
        if status in (401, 403):
            return StoreFailed(f"{where} refused who we are ({status}); check the account's rights", kind="refused")
        return StoreFailed(f"{where} answered with {status}", kind="busy" if status in (429, 503) else "error")
