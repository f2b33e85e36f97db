"""`azure-kv://NAME`: Azure Key Vault, through its official client; azure-identity logs in and renews the token.

Key Vault names have no underscore, so OPENAI_API_KEY is looked up as OPENAI-API-KEY.

Source: Key Vault REST reference 7.4, "Get Secret"; azure-identity, "Credential classes".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple, TypeVar

from pydantic import Field, PrivateAttr

from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    BlockingStore,
    NotAllowed,
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    SecretValue,
    StoreMisconfigured,
    StoreUnreachable,
    text_of,
)

if TYPE_CHECKING:
    from tianji_mw.secrets.reference import Reference

T = TypeVar("T")

_NAME: Final = re.compile(r"[0-9A-Za-z-]{1,127}")
_DASHES: Final = str.maketrans("_.", "--")
#: Seconds before the second, third and fourth attempt.
_PAUSES: Final = (0.2, 0.6, 1.8)
_MOST_NAMES: Final = 1000
#: Codes in Key Vault's answers, and Entra's numbers of reasons; nothing else of either is shown.
_CODE: Final = re.compile(r'"code"\s*:\s*"([A-Za-z]{1,60})"')
_REASON: Final = re.compile(r"AADSTS\d+")


class _Opened(NamedTuple):
    client: Any
    credential: Any


class AzureKeyVault(BlockingStore):
    """Secrets of one vault.

    >>> AzureKeyVault(vault_url="https://my-vault.vault.azure.net", credential="managed")
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "vault_url": ("AZURE_KEY_VAULT_URI",),
        "tenant_id": ("AZURE_TENANT_ID",),
        "client_id": ("AZURE_CLIENT_ID",),
        "client_secret": ("AZURE_CLIENT_SECRET",),
        "certificate_path": ("AZURE_CERTIFICATE_PATH", "AZURE_CLIENT_CERTIFICATE_PATH"),
        "certificate_password": ("AZURE_CERTIFICATE_PASSWORD", "AZURE_CLIENT_CERTIFICATE_PASSWORD"),
        "token_file": ("AZURE_FEDERATED_TOKEN_FILE",),
        "authority_host": ("AZURE_AUTHORITY_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "url": "vault_url", "vault_uri": "vault_url", "azure_key_vault_uri": "vault_url",
        "azure_tenant_id": "tenant_id", "azure_client_id": "client_id", "azure_client_secret": "client_secret",
        "authority": "authority_host", "azure_federated_token_file": "token_file", "federated_token_file": "token_file",
    }  # fmt: skip

    login_fields: ClassVar[frozenset[str]] = frozenset(
        {"client_secret", "certificate_path", "certificate_password", "token_file"}
    )

    name: str = "azure"
    vault_url: str = Field(default="", pattern=r"^(https://.+)?$")
    tenant_id: str = ""
    #: Of the application, or of the managed identity.
    client_id: str = ""
    client_secret: Secret | None = None
    #: PEM or PKCS#12 with its private key.
    certificate_path: str = ""
    certificate_password: Secret | None = None
    #: Workload identity: the platform's token, which it renews.
    token_file: str = ""
    authority_host: str = ""
    #: "default" takes what is set: client secret, certificate, token file, else DefaultAzureCredential.
    credential: Literal["default", "client_secret", "certificate", "workload", "managed"] = "default"
    #: Look names that Key Vault cannot have up with dashes for `_` and `.`; `A_B` and `A.B` are the same then.
    map_names: bool = True
    #: Name in the config -> name in the vault.
    name_map: dict[str, str] = Field(default_factory=dict)
    api_version: str = "7.4"
    #: Off for vaults behind a name of their own.
    verify_challenge_resource: bool = True
    #: Path of the CAs to trust; empty for the usual ones.
    ca_bundle: str = ""

    _open: _Opened | None = PrivateAttr(default=None)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    #: `status` of this thread's last login.
    _seen: threading.local = PrivateAttr(default_factory=threading.local)

    def read(self, ref: Reference) -> SecretValue:
        where = f"{self.name}: {ref.path}"
        name = self._name(where, ref.path)

        def question(client: Any, limits: dict[str, float]) -> tuple[str, str, float | None]:
            found = client.get_secret(name, ref.version, **limits)
            if not isinstance(found.value, str):
                raise SecretMalformed(f"{where}: the answer holds no value")
            expires = found.properties.expires_on
            return found.value, found.properties.version or "", expires.timestamp() if expires else None

        value, version, expires = self._ask(where, question)
        return SecretValue(value=Secret(text_of(value, where, as_base64=ref.base64)), version=version, expires=expires)

    def names(self, prefix: str) -> Sequence[str]:
        return sorted(self._listed(prefix, _MOST_NAMES))

    def ask(self) -> None:
        """List one secret. azure-identity renews the login by itself, so it has no end."""
        try:
            self._listed("", 1)
        except NotAllowed:
            pass

    def _listed(self, prefix: str, most: int) -> list[str]:
        end = time.monotonic() + self.timeout_s

        def question(client: Any, limits: dict[str, float]) -> list[str]:
            found: list[str] = []
            # Key Vault gives 25 at a time at most.
            for properties in client.list_properties_of_secrets(max_page_size=min(most, 25), **limits):
                found += [properties.name] if properties.name.startswith(prefix) else []
                if len(found) >= most or time.monotonic() > end:
                    break
            return found

        return self._ask(f"{self.name}: {prefix}*", question)

    async def aclose(self) -> None:
        await super().aclose()
        opened, self._open = self._open, None
        if opened is not None:
            opened.client.close()
            opened.credential.close()

    def _name(self, where: str, path: str) -> str:
        name = self.name_map.get(path, path)
        if self.map_names and not _NAME.fullmatch(name):
            name = name.translate(_DASHES)
        if not _NAME.fullmatch(name):
            cure = "write it in name_map" if self.map_names else "set map_names, or write it in name_map"
            raise SecretNotFound(f"{where}: no name that Key Vault can have (0-9 A-Z a-z -, at most 127); {cure}")
        return name

    def _ask(self, where: str, question: Callable[[Any, dict[str, float]], T]) -> T:
        """Put the question; again while Azure is busy, and once when the answer is malformed."""
        try:
            import azure.identity
            import azure.keyvault.secrets  # noqa: F401
            from azure.core.exceptions import AzureError, HttpResponseError
        except ImportError:
            raise MissingExtra("azure-keyvault-secrets", "azure") from None
        end = time.monotonic() + self.timeout_s
        for attempt, pause in enumerate((*_PAUSES, self.timeout_s)):
            again = attempt == 0
            told: SecretError
            self._seen.status = 0
            left = max(0.05, end - time.monotonic())
            try:
                return question(self._client(where), {"connection_timeout": left, "read_timeout": left})
            except SecretMalformed as error:
                told = error
            except HttpResponseError as error:
                told, asked = _of_answer(where, error, self._seen.status)
                refused = error.status_code in (None, 401)
                if refused:
                    # Once more from the start: the token may be revoked, or what we log in with has been replaced.
                    self._open = None
                again = told.passing or (again and (refused or told.reason == "malformed"))
                pause = max(pause, asked)
            except AzureError as error:
                again, told = False, StoreUnreachable(f"{where}: Azure cannot be asked ({type(error).__name__})")
            except OSError as error:
                text = f"the token file cannot be read ({type(error).__name__}); check token_file"
                again, told = False, SecretDenied(f"{where}: {text}")
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                told = SecretMalformed(f"{where}: the answer is not what Key Vault's API promises")
                if "verify_challenge_resource" in str(error):
                    # Whoever asks for a token that is good for another domain gets none.
                    text = "wants a token for another domain; check vault_url, or set verify_challenge_resource: false"
                    again, told = False, StoreMisconfigured(f"{where}: the vault {text}")
            if not again or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        raise told from None

    def _client(self, where: str) -> Any:
        with self._lock:
            if self._open is None:
                self._open = self._made(where)
            return self._open.client

    def _made(self, where: str) -> _Opened:
        from azure.keyvault.secrets import SecretClient

        if not self.vault_url:
            raise StoreMisconfigured(f"{where}: no vault; set vault_url or AZURE_KEY_VAULT_URI")
        # Attempts are counted here, not in the SDK: it sleeps as long as a Retry-After says.
        limits = {"connection_timeout": self.timeout_s, "read_timeout": self.timeout_s}
        more: dict[str, Any] = {**limits, "retry_total": 0, "connection_verify": self.ca_bundle or True}
        try:
            credential = self._login(where, dict(more))
            more |= {"verify_challenge_resource": self.verify_challenge_resource, "api_version": self.api_version}
            return _Opened(SecretClient(self.vault_url, credential, **more), credential)
        except (ValueError, OSError, NotImplementedError) as error:
            text = "the settings cannot be used; check the certificate, tenant_id, authority_host and api_version"
            raise StoreMisconfigured(f"{where}: {text} ({type(error).__name__})") from None

    def _login(self, where: str, more: dict[str, Any]) -> Any:
        import azure.identity as sdk

        secret = self.client_secret.reveal() if self.client_secret else ""
        password = self.certificate_password.reveal() if self.certificate_password else None
        tenant, client = self.tenant_id, self.client_id
        way: str = self.credential
        if way == "default":
            ways = {"client_secret": tenant and client and secret, "certificate": self.certificate_path}
            way = next((name for name, set_ in {**ways, "workload": self.token_file}.items() if set_), way)
        more["raw_response_hook"] = lambda answer: setattr(self._seen, "status", answer.http_response.status_code)
        if way in ("default", "managed"):
            # A metadata server that is not up yet is asked again by the SDK.
            del more["retry_total"]
        if way == "managed":
            return sdk.ManagedIdentityCredential(client_id=client or None, **more)
        if self.authority_host:
            # Otherwise the public cloud would be asked what it knows of this one.
            more |= {"authority": self.authority_host, "disable_instance_discovery": True}
        if way == "default":
            return sdk.DefaultAzureCredential(managed_identity_client_id=client or None, **more)
        proof = {"client_secret": "client_secret", "certificate": "certificate_path", "workload": "token_file"}[way]
        if missing := [name for name in ("tenant_id", "client_id", proof) if not getattr(self, name)]:
            raise StoreMisconfigured(f"{where}: the login by {way} needs {' and '.join(missing)}")
        if way == "client_secret":
            return sdk.ClientSecretCredential(tenant, client, secret, **more)
        if way == "certificate":
            return sdk.CertificateCredential(tenant, client, self.certificate_path, password=password, **more)
        more["token_file_path"] = self.token_file
        return sdk.WorkloadIdentityCredential(tenant_id=tenant, client_id=client, **more)


def _of_answer(where: str, error: Any, login: int) -> tuple[SecretError, float]:
    """What an error means, and the seconds that the answer asks to wait. Its text may quote what was sent."""
    from azure.core.exceptions import AzureError, DecodeError

    status, response = error.status_code or 0, error.response
    body, headers = (response.text(), response.headers) if response is not None else ("", {})
    codes = list(dict.fromkeys(_CODE.findall(body) + _REASON.findall(str(error.message))))
    shown, asked = ", ".join([str(status or type(error).__name__), *codes]), str(headers.get("Retry-After", ""))
    told: SecretError
    # azure-identity wraps what kept it from asking, and forgets the status of most answers.
    silent = isinstance(error.__cause__, AzureError) and not 400 <= login < 500
    if silent or any(code in (408, 429) or code >= 500 for code in (status, login)):
        told = StoreUnreachable(f"{where}: Azure is busy or down ({shown})")
    elif isinstance(error, DecodeError):
        told = SecretMalformed(f"{where}: the answer is not the JSON that Key Vault's API promises")
    elif "SecretDisabled" in codes:
        told = SecretNotFound(f"{where}: the version is disabled; enable it or choose another one")
    elif status in (400, 404):
        told = SecretNotFound(f"{where}: no such secret or version ({shown}); check name, vault and api_version")
    elif "ForbiddenByFirewall" in codes:
        told = SecretDenied(f"{where}: ForbiddenByFirewall; allow our network in the vault's firewall")
    elif status == 403:
        told = NotAllowed(f"{where}: Key Vault refused ({shown}); grant the login the role Key Vault Secrets User")
    else:
        told = SecretDenied(f"{where}: Azure refused the login ({shown}); check tenant_id, client_id and credential")
    return told, float(asked) if asked.isdecimal() else 0.0
