"""Entries in Azure Blob Storage, over azure-storage-blob. LiteLLM's `azure-blob`.

Source: Blob service REST API, "Put Blob", "Get Blob", "List Blobs" and "Blob service error codes".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from tianji_mw.cache._objects import BEYOND, BlockingObjects, Threads, must
from tianji_mw.cache.base import StoreFailed
from tianji_mw.logins.azure import AzureLogin, opened, renewed
from tianji_mw.runtime import Runtime


class AzureBlob(AzureLogin, BlockingObjects):
    """Blobs in one container.

    >>> AzureBlob(azure_account_url="https://answers.blob.core.windows.net", azure_blob_container="cache").container
    'cache'
    """

    title: ClassVar[str] = "Azure Blob Storage"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AzureLogin.login_env,
        "container": ("AZURE_STORAGE_FILE_SYSTEM",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "azure_account_url": "endpoint_url",
        "azure_blob_container": "container",
        "azure_blob_path": "path",
        "azure_storage_account_name": "account",
        "azure_storage_account_key": "account_key",
        "azure_storage_connection_string": "connection_string",
        "azure_storage_tenant_id": "tenant_id",
        "azure_storage_client_id": "client_id",
        "azure_storage_client_secret": "client_secret",
    }

    container: str = Field(min_length=1, max_length=63)

    _client: Any = PrivateAttr(default=None)
    _credential: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Make the client; nobody is asked yet. Raises MissingExtra, SetupError."""
        await super().start(runtime)
        if not self.connection_string:
            must(self.account or self.endpoint_url, "azure_account_url", self.title)
        self._threads = Threads("azure")
        await self._threads.run(self._open)

    def _open(self) -> None:
        self._client, self._credential = opened(self, self.container, title=self.title, timeout_s=self.timeout_s)

    async def aclose(self) -> None:
        threads, used = self._threads, (self._client, self._credential)
        self._threads = self._client = self._credential = None
        if threads is not None:
            threads.close()
        for one in used:
            if hasattr(one, "close"):
                one.close()

    async def _renew(self) -> None:
        if self._threads is not None and await renewed(self):
            await self._threads.run(self._open)  # the next request uses it

    # --- in a thread

    def _tried(self, work: Callable[..., Any], *arguments: Any) -> Any:
        from azure.core.exceptions import AzureError

        try:
            return work(*arguments)
        except AzureError as error:
            raise self._refusal(error) from None
        except (OSError, TypeError, ValueError) as error:  # a key that is no base64, a token file that is gone
            raise StoreFailed(f"the Azure login cannot be used ({type(error).__name__})", kind="refused") from None

    def _refusal(self, error: Any) -> StoreFailed:
        """Texts of Azure are not shown: they may quote what was signed."""
        where, status = f"Azure container '{self.container}'", getattr(error, "status_code", None)
        name, code = type(error).__name__, str(getattr(error, "error_code", None) or "")
        if code == "ContainerNotFound":
            return StoreFailed(f"{where} does not exist; set cache_params.azure_blob_container", kind="refused")
        if status in (401, 403) or "Authentication" in name:
            told = code or status or name
            return StoreFailed(f"{where} refused who we are ({told}); check the key and its rights", kind="refused")
        if status is None:
            kind = "timeout" if "Timeout" in name else "unreachable"
            return StoreFailed(f"{where}: no answer ({name})", kind=kind)
        return StoreFailed(f"{where} answered with {status} {code}".rstrip(), kind="busy" if status == 503 else "error")

    def _read(self, name: str) -> bytes | None:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            blob = self._client.get_blob_client(name)
            body: bytes = blob.download_blob(offset=0, length=self.max_item_bytes + BEYOND).readall()
        except ResourceNotFoundError as error:
            if getattr(error, "error_code", None) == "ContainerNotFound":
                raise
            return None
        return body

    def _write(self, name: str, body: bytes, ends: float) -> None:
        from azure.storage.blob import ContentSettings

        life = f"private, immutable, max-age={max(1, int(ends - self._wall()))}"
        settings = ContentSettings(content_type="application/octet-stream", cache_control=life)
        self._client.get_blob_client(name).upload_blob(body, overwrite=True, content_settings=settings)

    def _remove(self, name: str) -> bool:
        from azure.core.exceptions import ResourceNotFoundError

        try:
            self._client.get_blob_client(name).delete_blob()
        except ResourceNotFoundError:
            return False
        return True

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        for page in self._client.list_blob_names(name_starts_with=prefix).by_page():
            yield list(page)
