"""Containers of Azure Blob Storage over azure-storage-blob: the settings of a login, and `opened`, which makes one.

Source: azure-identity, "Credential classes".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pydantic import BaseModel

from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.hush import hush
from tianji_mw.redact import Secret

_CONNECT_S: Final = 5.0
_LOGIN_S: Final = 10.0
#: Bytes above which the SDK sends an object in blocks.
_ONE_PUT: Final = 64 << 20


class AzureLogin(BaseModel):
    """The fields of a login; a plugin has it as its first base: `class AzureBlob(AzureLogin, ObjectCallback)`."""

    #: For `env_fields` of a plugin.
    login_env: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "account": ("AZURE_STORAGE_ACCOUNT_NAME",),
        "account_key": ("AZURE_STORAGE_ACCOUNT_KEY",),
        "tenant_id": ("AZURE_STORAGE_TENANT_ID",),
        "client_id": ("AZURE_STORAGE_CLIENT_ID",),
        "client_secret": ("AZURE_STORAGE_CLIENT_SECRET",),
        "endpoint_suffix": ("AZURE_STORAGE_ENDPOINT_SUFFIX",),
        "connection_string": ("AZURE_STORAGE_CONNECTION_STRING",),
        "sas_token": ("AZURE_STORAGE_SAS_TOKEN",),
        "authority_host": ("AZURE_AUTHORITY_HOST",),
    }

    account: str = ""
    endpoint_suffix: str = "core.windows.net"
    #: Whole address of the blob service in place of `https://<account>.blob.<endpoint_suffix>`.
    endpoint_url: str = ""
    #: Who we are, first match: connection string, SAS, account key, service principal, azure-identity's own chain.
    connection_string: Secret | None = None
    sas_token: Secret | None = None
    account_key: Secret | None = None
    tenant_id: str = ""
    client_id: str = ""
    client_secret: Secret | None = None
    authority_host: str = ""

    @property
    def address(self) -> str:
        """Of the blob service, where no connection string has it."""
        return self.endpoint_url.rstrip("/") or f"https://{self.account or 'account'}.blob.{self.endpoint_suffix}"


def opened(login: AzureLogin, container: str, *, title: str, timeout_s: float) -> tuple[Any, Any]:
    """A ContainerClient that makes one attempt, and its credential, if it has one that must be closed too.

    Blocking; nobody is asked yet. Use it in threads whose names begin with `tianji-`: the SDK's DEBUG log is off there.
    `title`: what errors call the plugin. Raises MissingExtra without the SDK, and SetupError for settings that cannot
    be used.
    """
    try:
        from azure.storage.blob import BlobServiceClient
    except ImportError:
        raise MissingExtra("azure-storage-blob", "azure") from None
    limits: dict[str, Any] = {
        "retry_total": 0,
        "connection_timeout": min(_CONNECT_S, timeout_s),
        "read_timeout": timeout_s,
        "max_single_put_size": _ONE_PUT,
    }
    hush("azure")
    credential = None
    try:
        if login.connection_string:
            service = BlobServiceClient.from_connection_string(login.connection_string.reveal(), **limits)
        else:
            credential = _credential(login, title)
            service = BlobServiceClient(login.address, credential, **limits)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        text = "the settings cannot be used; check account, connection_string, account_key and tenant_id"
        raise SetupError(f"{title}: {text} ({type(error).__name__}).") from None
    return service.get_container_client(container), credential


async def renewed(login: AzureLogin) -> bool:
    """After Azure has refused who we are: whether a secret manager has another key by now. Open another client then."""
    secrets = (login.connection_string, login.sas_token, login.account_key, login.client_secret)
    return any([await secret.renew() for secret in secrets if secret is not None])


def _credential(login: AzureLogin, title: str) -> Any:
    from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential

    if login.sas_token:
        return AzureSasCredential(login.sas_token.reveal().lstrip("?"))
    if login.account_key:
        return AzureNamedKeyCredential(login.account, login.account_key.reveal())
    try:
        import azure.identity as sdk
    except ImportError:
        raise MissingExtra("azure-identity", "azure") from None
    more: dict[str, Any] = {"connection_timeout": _LOGIN_S, "read_timeout": _LOGIN_S}
    if login.authority_host:
        # Otherwise the public cloud would be asked what it knows of this one.
        more |= {"authority": login.authority_host, "disable_instance_discovery": True}
    if login.client_secret:
        if not login.tenant_id or not login.client_id:
            raise SetupError(f"{title}: client_secret needs tenant_id and client_id.")
        secret = login.client_secret.reveal()
        return sdk.ClientSecretCredential(login.tenant_id, login.client_id, secret, retry_total=0, **more)
    return sdk.DefaultAzureCredential(managed_identity_client_id=login.client_id or None, **more)
