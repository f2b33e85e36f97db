"""HashiCorp Vault and OpenBao over hvac, KV version 2 and 1: `vault://llm/openai#api_key?version=3`.

Login, first match: AppRole, Kubernetes, TLS certificate, token. Tokens are renewed before they end; a login follows
where that does not help. hvac's adapter is used without its client, which would take tokens from `~/.vault-token`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import quote

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw import redact
from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.base import (
    BlockingStore,
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretValue,
    StoreMisconfigured,
    StoreUnreachable,
)
from tianji_mw.secrets.vault_answers import Login, body_of, given, login_of, refusal

if TYPE_CHECKING:
    from tianji_mw.secrets.reference import Reference

_MOST_NAMES: Final = 1000
_MOST_FOLDERS: Final = 200
_CONNECT_S: Final = 5.0
#: 429 and 473 are standbys, which answer reads as well.
_WELL: Final = frozenset({200, 429, 473})


class HashicorpVault(BlockingStore):
    """One KV mount of one server, as one identity."""

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "address": ("HCP_VAULT_ADDR", "VAULT_ADDR"),
        "token": ("HCP_VAULT_TOKEN", "VAULT_TOKEN"),
        "approle_role_id": ("HCP_VAULT_APPROLE_ROLE_ID",),
        "approle_secret_id": ("HCP_VAULT_APPROLE_SECRET_ID",),
        "approle_mount": ("HCP_VAULT_APPROLE_MOUNT_PATH",),
        "client_cert": ("HCP_VAULT_CLIENT_CERT",),
        "client_key": ("HCP_VAULT_CLIENT_KEY",),
        "cert_role": ("HCP_VAULT_CERT_ROLE",),
        "namespace": ("HCP_VAULT_SECRET_NAMESPACE", "HCP_VAULT_NAMESPACE", "VAULT_NAMESPACE"),
        "login_namespace": ("HCP_VAULT_LOGIN_NAMESPACE", "HCP_VAULT_NAMESPACE"),
        "mount": ("HCP_VAULT_MOUNT_NAME",),
        "path_prefix": ("HCP_VAULT_PATH_PREFIX",),
        "ca_bundle": ("HCP_VAULT_CACERT", "VAULT_CACERT"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "approle_mount_path": "approle_mount",
        "data": "field_name",
        "mount_name": "mount",
        "secret_namespace": "namespace",
        "url": "address",
        "vault_addr": "address",
        "vault_token": "token",
        "vault_url": "address",
    }

    login_fields: ClassVar[frozenset[str]] = frozenset(
        {"token", "approle_role_id", "approle_secret_id", "kubernetes_role", "client_cert", "client_key", "cert_role"}
    )

    name: str = "vault"
    address: str = "http://127.0.0.1:8200"
    token: Secret | None = None
    approle_role_id: str | None = None
    approle_secret_id: Secret | None = None
    approle_mount: str = Field(default="approle", min_length=1)
    kubernetes_role: str | None = None
    #: Read again for every login.
    kubernetes_jwt_file: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
    kubernetes_mount: str = Field(default="kubernetes", min_length=1)
    client_cert: Path | None = None
    client_key: Path | None = None
    cert_role: str | None = None
    cert_mount: str = Field(default="cert", min_length=1)
    namespace: str | None = None
    #: Where the login is; the namespace of the secrets without it.
    login_namespace: str | None = None
    mount: str = Field(default="secret", min_length=1)
    #: Before every path.
    path_prefix: str = ""
    kv_version: Literal[1, 2] = 2
    ca_bundle: Path | None = None
    #: The field that a bare `os.environ/NAME` means, instead of `key`.
    field_name: str | None = None

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _opening: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _adapter: Any = PrivateAttr(default=None)
    _login: Login | None = PrivateAttr(default=None)

    def path_of(self, name: str) -> Reference:
        from tianji_mw.secrets.reference import Reference

        return Reference(store=self.name, path=name, field=self.field_name or "")

    def read(self, ref: Reference) -> SecretValue:
        where = f"{self.name}: {ref.path}"
        if ref.version and not (self.kv_version == 2 and ref.version.isascii() and ref.version.isdigit()):
            text = "a version is a number" if self.kv_version == 2 else "version 1 of the KV engine keeps no versions"
            raise SecretMalformed(f"{where}: {text}")
        params = {"version": ref.version} if ref.version else {}
        answer = self._asked(where, self._url("data", ref.path), params)
        if answer.status_code != 200:
            raise refusal(where, answer)
        data, version = body_of(where, answer).get("data"), ""
        if self.kv_version == 2 and isinstance(data, dict):
            metadata, data = data.get("metadata"), data.get("data")
            version = str(metadata.get("version", "")) if isinstance(metadata, dict) else ""
        if not isinstance(data, dict):
            raise SecretMalformed(f"{where}: the answer of the server holds no secret; check kv_version")
        return SecretValue(value=Secret(orjson.dumps(data).decode()), version=version, mapping=True)

    def names(self, prefix: str) -> Sequence[str]:
        where = f"{self.name}: {prefix or 'list'}"
        folder = prefix.rpartition("/")[0]
        waiting, found = [f"{folder}/" if folder else ""], list[str]()
        for _ in range(_MOST_FOLDERS):
            if not waiting or len(found) >= _MOST_NAMES:
                break
            folder = waiting.pop(0)
            answer = self._asked(where, self._url("metadata", folder), {"list": "true"})
            if answer.status_code == 404:
                continue
            if answer.status_code != 200:
                raise refusal(where, answer)
            data = body_of(where, answer).get("data")
            keys = data.get("keys") if isinstance(data, dict) else None
            paths = [f"{folder}{key}" for key in (keys or ()) if isinstance(key, str)]
            waiting += [p for p in paths if p.endswith("/") and p.startswith(prefix)]
            found += [p for p in paths if not p.endswith("/") and p.startswith(prefix)]
        return sorted(found)[:_MOST_NAMES]

    def ask(self) -> float | None:
        """The server's own health, which needs no token; then our token's."""
        where = f"{self.name}: {redact.url(self.address)}"
        answer = self._send(where, "GET", "/v1/sys/health")
        if answer.status_code not in _WELL:
            raise refusal(where, answer)
        login = self._logged_in(where)
        answer = self._look_up(where, login)
        if answer.status_code == 200:
            return login_of(login.token, body_of(where, answer).get("data"), "ttl").left()
        if answer.status_code != 403:
            raise refusal(where, answer)
        # Its policies may keep a good token from looking at itself; this question is open to every good token.
        if self._auth(where, "/v1/sys/internal/ui/mounts", login, None).status_code != 403:
            return login.left()
        if self._method(where) == "token":
            raise SecretDenied(f"{where}: the token is not valid, or no longer")
        return self._logged_in(where, refused=login).left()

    async def aclose(self) -> None:
        await super().aclose()
        adapter, self._adapter = self._adapter, None
        if adapter is not None:
            adapter.close()

    # --- questions

    def _asked(self, where: str, url: str, params: Mapping[str, str]) -> Any:
        """The answer to a question about secrets; a token that is refused is replaced once."""
        login = self._logged_in(where)
        answer = self._send(where, "GET", url, login=login, namespace=self.namespace, params=params)
        if answer.status_code == 403 and self._method(where) != "token":
            login = self._logged_in(where, refused=login)
            answer = self._send(where, "GET", url, login=login, namespace=self.namespace, params=params)
        return answer

    def _url(self, kind: str, path: str) -> str:
        folder = "/" if path.endswith("/") else ""
        parts = (self.mount, kind if self.kv_version == 2 else "", self.path_prefix, path)
        return "/v1/" + "/".join(quote(part.strip("/"), safe="/") for part in parts if part.strip("/")) + folder

    def _send(
        self,
        where: str,
        method: str,
        url: str,
        *,
        login: Login | None = None,
        namespace: str | None = None,
        **more: Any,
    ) -> Any:
        headers = {"X-Vault-Token": login.token.reveal()} if login else {}
        if namespace and namespace.strip("/"):
            headers["X-Vault-Namespace"] = namespace.strip("/")
        try:
            return self._opened(where).request(method, url, headers=headers, **more)
        except ValueError as error:  # before OSError: an address that requests cannot read is both
            text = f"the address, a header or a path is not valid ({type(error).__name__})"
            raise StoreMisconfigured(f"{where}: {text}") from None
        except OSError as error:  # the root of all that requests raises
            kind = type(error).__name__
            text = f"the server cannot be reached ({kind}){'; check ca_bundle' if kind == 'SSLError' else ''}"
            raise StoreUnreachable(f"{where}: {text}") from None

    def _opened(self, where: str) -> Any:
        """The adapter with its one session; tokens and namespaces differ from question to question."""
        try:
            from hvac.adapters import RawAdapter
        except ModuleNotFoundError:
            raise MissingExtra("hvac", "vault") from None
        with self._opening:
            if self._adapter is None:
                for path in (self.ca_bundle, self.client_cert, self.client_key):
                    if path is not None and not path.exists():
                        raise StoreMisconfigured(f"{where}: there is no file {path}")
                pair = (str(self.client_cert), str(self.client_key)) if self.client_cert and self.client_key else None
                self._adapter = RawAdapter(
                    base_uri=self.address,
                    cert=pair,
                    verify=str(self.ca_bundle) if self.ca_bundle else True,
                    timeout=(min(_CONNECT_S, self.timeout_s), self.timeout_s),
                    ignore_exceptions=True,
                )
            return self._adapter

    # --- login

    def _method(self, where: str) -> Literal["approle", "kubernetes", "cert", "token"]:
        if self.approle_role_id and self.approle_secret_id:
            return "approle"
        if self.kubernetes_role:
            return "kubernetes"
        if self.client_cert and self.client_key:
            return "cert"
        if self.token:
            return "token"
        text = (
            "no login; set token, approle_role_id and approle_secret_id, kubernetes_role, or client_cert and client_key"
        )
        raise StoreMisconfigured(f"{where}: {text}")

    def _logged_in(self, where: str, refused: Login | None = None) -> Login:
        """A token that should hold. Readers at the same time share one login."""
        with self._lock:
            login = self._login
            if login is None or login is refused or login.left() == 0.0:
                login = self._log_in(where)
            elif login.ttl is not None and login.renewable and (login.left() or 0.0) < login.ttl / 3:
                login = self._renewed(where, login)
            self._login = login
            return login

    def _log_in(self, where: str) -> Login:
        method = self._method(where)
        if method == "token":
            return self._own_token(where)
        if method == "approle":
            mount = self.approle_mount
            secret_id = self.approle_secret_id.reveal() if self.approle_secret_id else ""
            body = {"role_id": self.approle_role_id, "secret_id": secret_id}
        elif method == "kubernetes":
            mount, body = self.kubernetes_mount, {"role": self.kubernetes_role, "jwt": self._jwt(where)}
        else:
            mount, body = self.cert_mount, {"name": self.cert_role} if self.cert_role else {}
        answer = self._auth(where, f"/v1/auth/{quote(mount.strip('/'), safe='/')}/login", None, body)
        if answer.status_code in (400, 401, 403, 404):
            raise SecretDenied(f"{where}: the {method} login is refused (status {answer.status_code})")
        if answer.status_code != 200:
            raise refusal(where, answer)
        return given(where, answer)

    def _own_token(self, where: str) -> Login:
        token = self.token or Secret("")
        login = Login(token=token, ttl=None)
        answer = self._look_up(where, login)
        if answer.status_code == 200:
            return login_of(token, body_of(where, answer).get("data"), "ttl")
        if answer.status_code in (400, 403, 404):
            return login  # a good token may be kept from looking at itself; reading shows whether this one is good
        raise refusal(where, answer)

    def _jwt(self, where: str) -> str:
        try:
            return self.kubernetes_jwt_file.read_text("ascii").strip()
        except (OSError, ValueError) as error:
            text = f"the token file of the Kubernetes login cannot be read ({type(error).__name__})"
            raise StoreMisconfigured(f"{where}: {text}") from None

    def _renewed(self, where: str, login: Login) -> Login:
        """The login with more time; a new one where the server gives less than asked, as it does near the end."""
        asked = int(login.ttl or 0)
        try:
            answer = self._auth(where, "/v1/auth/token/renew-self", login, {"increment": f"{asked}s"})
            if answer.status_code in (200, 400, 403):
                renewed = given(where, answer) if answer.status_code == 200 else replace(login, renewable=False)
                if renewed.renewable and (renewed.ttl or 0) >= asked:
                    return renewed
                if self._method(where) != "token":
                    return self._log_in(where)
                # A token of the config is kept to its end, and renewed for as long as that gains time.
                gains = (renewed.left() or 0.0) > (login.left() or 0.0) + 1
                return replace(renewed, renewable=renewed.renewable and gains)
            raise refusal(where, answer)
        except SecretError as error:
            if error.passing and login.left():
                return login
            raise

    def _look_up(self, where: str, login: Login) -> Any:
        return self._auth(where, "/v1/auth/token/lookup-self", login, None)

    def _auth(self, where: str, url: str, login: Login | None, body: Mapping[str, Any] | None) -> Any:
        namespace = self.namespace if self.login_namespace is None else self.login_namespace
        more = {} if body is None else {"json": body}
        return self._send(where, "GET" if body is None else "POST", url, login=login, namespace=namespace, **more)
