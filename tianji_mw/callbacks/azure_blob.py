"""Stores records in Azure Blob Storage and Data Lake (gen2), over azure-storage-blob. LiteLLM's `azure_storage`.

One Put Blob for each object, in accounts with and without a hierarchical namespace.
Source: Blob service REST API, "Put Blob" and "Blob service error codes".
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.azure_blob_answers import LoginRefused, refusal
from tianji_mw.callbacks.gcs_names import Rename, Renamed, batch_stem, packing
from tianji_mw.callbacks.objects.base import ObjectCallback, PutFailed, Stored
from tianji_mw.callbacks.objects.keys import Layout, object_id, safe
from tianji_mw.callbacks.service import is_address
from tianji_mw.errors import SetupError
from tianji_mw.hush import THREADS
from tianji_mw.logins.azure import AzureLogin, opened, renewed
from tianji_mw.runtime import Runtime


class AzureBlob(AzureLogin, ObjectCallback):
    """Blobs in one container.

    >>> AzureBlob(account="logs", container="llm", account_key=Secret("..."))
    """

    title: ClassVar[str] = "Azure Blob Storage"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AzureLogin.login_env,
        "container": ("AZURE_STORAGE_FILE_SYSTEM",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "azure_storage_account_name": "account",
        "account_name": "account",
        "azure_storage_file_system": "container",
        "file_system": "container",
        "azure_storage_account_key": "account_key",
        "azure_storage_tenant_id": "tenant_id",
        "azure_storage_client_id": "client_id",
        "azure_storage_client_secret": "client_secret",
        "azure_storage_endpoint_suffix": "endpoint_suffix",
    }

    layout: Layout = "records"
    #: Its name; LiteLLM calls it file system.
    container: str = Field(min_length=1, max_length=63)

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    _credential: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Make the client. Raises SetupError when it cannot be made; the container is not asked yet."""
        await super().start(runtime)
        if not self.connection_string and not self.account:
            raise SetupError("Azure Blob Storage: account is missing; set it, or AZURE_STORAGE_ACCOUNT_NAME.")
        if not is_address(self.address):
            raise SetupError("Azure Blob Storage: endpoint_url is no address; write it as https://host.")
        if self._builder is not None:
            self._builder = Renamed(self._builder, blob_name(self.layout))
        most = max(self.concurrent_uploads, self.max_adaptive_uploads if self.adaptive_uploads else 1)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=f"{THREADS}-azure-blob")
        try:
            self._client = await asyncio.get_running_loop().run_in_executor(self._pool, self._opened)
        except SetupError:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        pool, client, credential = self._pool, self._client, self._credential
        self._pool = self._client = self._credential = None
        if pool is not None:  # not waited for: a thread in an upload that nobody reads ends by its timeout
            pool.shutdown(wait=False, cancel_futures=True)
        for used in (client, credential):
            if hasattr(used, "close"):
                used.close()

    def _opened(self) -> Any:
        client, self._credential = opened(self, self.container, title=self.title, timeout_s=self.upload_timeout_s)
        return client

    async def put(self, item: Stored) -> None:
        pool = self._pool
        if pool is None:
            raise PutFailed("it was not started", "halt")
        loop, client = asyncio.get_running_loop(), self._client
        try:
            await loop.run_in_executor(pool, partial(self._put, client, item))
        except LoginRefused:
            # The next attempt uses the other key.
            if await renewed(self) and client is self._client:
                self._client = await loop.run_in_executor(pool, self._opened)
            raise

    def _put(self, client: Any, item: Stored) -> None:
        """One upload, blocking. Texts of Azure go nowhere: they may quote what was signed."""
        from azure.core.exceptions import AzureError
        from azure.storage.blob import ContentSettings

        try:
            client.get_blob_client(item.key).upload_blob(
                item.body,
                overwrite=True,
                validate_content=True,
                content_settings=ContentSettings(
                    content_type=item.content_type, content_disposition=f'inline; filename="{item.file_name}"'
                ),
            )
        except AzureError as error:
            raise refusal(error) from None
        except (ValueError, TypeError, OSError) as error:  # a key that is no base64, a token file that is gone
            raise LoginRefused(f"the login cannot be used ({type(error).__name__})", "halt") from None


def blob_name(layout: Layout) -> Rename:
    """LiteLLM's names, and those of the Go port for files of many records."""

    def rename(item: Stored) -> tuple[str, str] | None:
        if layout == "batches":
            return None
        if layout == "batch_files":
            return batch_stem(item.records), f".jsonl{packing(item)}"
        record = item.records[0]
        name = object_id(record)
        name = safe(name.replace("=", "") if name.startswith("resp_") else name)
        # A call that the cache answered has the id of the call before it, whose object it must not overwrite.
        name = f"{name}_{record.id}" if record.data.get("cache_hit") else name
        return (name if name.strip(".") else record.id), f".json{packing(item)}"

    return rename
