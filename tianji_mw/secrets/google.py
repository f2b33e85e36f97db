"""`gcp-sm://NAME`: Google Secret Manager, through its official client in its REST form, which starts no threads.

google-auth finds the login, exchanges it for a token and renews that; after a 401 it logs in anew and asks again.

Source: Secret Manager REST reference v1 and "Data integrity"; google-auth, "Application Default Credentials".
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

from pydantic import Field, PrivateAttr

from tianji_mw.errors import MissingExtra
from tianji_mw.hush import hush
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

_SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_FULL: Final = re.compile(r"(projects/[^/]+(?:/locations/([^/]+))?)/secrets/([^/]+)(?:/versions/([^/]+))?")
#: Seconds before the second, third and fourth attempt.
_PAUSES: Final = (0.2, 0.6, 1.8)
_MOST_NAMES: Final = 1000
#: Google's words in error answers, such as "PERMISSION_DENIED"; nothing else of them is shown.
_WORD: Final = re.compile(r'"([A-Z]+_[A-Z_]{1,60})"')


class _Opened(NamedTuple):
    client: Any
    credentials: Any
    request: Any
    project: str


class GoogleSecretManager(BlockingStore):
    """Secrets of one project, or of one region of it. A path may also be a whole resource name, such as
    `projects/other/secrets/NAME/versions/3`.

    >>> GoogleSecretManager(project_id="my-project", location="europe-west3")
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "project_id": ("GOOGLE_SECRET_MANAGER_PROJECT_ID", "GOOGLE_CLOUD_PROJECT"),
        # GOOGLE_APPLICATION_CREDENTIALS is not among them: google-auth reads it by itself.
        "credentials_file": ("GCS_PATH_SERVICE_ACCOUNT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "project": "project_id", "google_project_id": "project_id", "service_account_file": "credentials_file",
        "credentials_path": "credentials_file", "service_account_json": "credentials_json", "region": "location",
        "api_endpoint": "endpoint",
    }  # fmt: skip

    login_fields: ClassVar[frozenset[str]] = frozenset({"credentials_file", "credentials_json"})

    name: str = "google"
    #: Empty for the project of the login.
    project_id: str = ""
    #: JSON of a service account, an external account (workload identity federation) or a user; its path, or itself.
    credentials_file: str = ""
    credentials_json: Secret | None = None
    #: Of regional secrets; empty for global ones.
    location: str = ""
    #: Own address of the API, such as a Private Service Connect endpoint.
    endpoint: str = Field(default="", pattern=r"^(https://.+)?$")

    _open: _Opened | None = PrivateAttr(default=None)
    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    def read(self, ref: Reference) -> SecretValue:
        where = f"{self.name}: {ref.path}"

        def question(opened: _Opened, end: float) -> Any:
            name = self._resource(ref, where, opened.project)
            answer = opened.client.access_secret_version(request={"name": name}, retry=None, timeout=_left(end))
            if not answer.name or "payload" not in answer:
                raise SecretMalformed(f"{where}: the answer holds no version of a secret")
            if "data_crc32c" in answer.payload and answer.payload.data_crc32c != _crc32c(answer.payload.data):
                raise SecretMalformed(f"{where}: the secret was damaged on its way (CRC32C differs)")
            return answer

        answer = self._ask(where, question)
        text = text_of(answer.payload.data, where, as_base64=ref.base64)
        return SecretValue(value=Secret(text), version=answer.name.rpartition("/")[2])

    def names(self, prefix: str) -> Sequence[str]:
        return sorted(self._listed(prefix, _MOST_NAMES))

    def ask(self) -> None:
        """List one secret. google-auth renews the login by itself, so it has no end."""
        try:
            self._listed("", 1)
        except NotAllowed:
            pass

    def _listed(self, prefix: str, most: int) -> list[str]:
        where = f"{self.name}: {prefix}*"

        def question(opened: _Opened, end: float) -> list[str]:
            request = {"parent": self._parent(where, opened.project), "page_size": most}
            found: list[str] = []
            for secret in opened.client.list_secrets(request=request, retry=None, timeout=_left(end)):
                name = secret.name.rpartition("/")[2]
                found += [name] if name.startswith(prefix) else []
                if len(found) >= most or time.monotonic() > end:
                    break
            return found

        return self._ask(where, question)

    async def aclose(self) -> None:
        await super().aclose()
        opened, self._open = self._open, None
        if opened is not None:
            opened.client.transport.close()

    def _resource(self, ref: Reference, where: str, project: str) -> str:
        full = _FULL.fullmatch(ref.path)
        parent, location, id_, version = full.groups() if full else ("", self.location, ref.path, "")
        if (location or "") != self.location and not self.endpoint:
            raise StoreMisconfigured(f"{where}: set location to the region in the path; regions have their own hosts")
        version = ref.version or version or "latest"
        if not _ID.fullmatch(id_) or not _ID.fullmatch(version):
            text = "no name that Google allows; write NAME or projects/P/secrets/NAME[/versions/N], of A-Z a-z 0-9 _ -"
            raise SecretNotFound(f"{where}: {text}")
        return f"{parent or self._parent(where, project)}/secrets/{id_}/versions/{version}"

    def _parent(self, where: str, project: str) -> str:
        if not project:
            text = "no project; set project_id or GOOGLE_SECRET_MANAGER_PROJECT_ID, or write projects/P/secrets/NAME"
            raise StoreMisconfigured(f"{where}: {text}")
        return f"projects/{project}/locations/{self.location}" if self.location else f"projects/{project}"

    def _ask(self, where: str, question: Callable[[_Opened, float], T]) -> T:
        """Put the question; again while Google is busy, and once when the answer is damaged."""
        try:
            from google.api_core.exceptions import GoogleAPICallError
            from google.auth.exceptions import GoogleAuthError
            from google.cloud import secretmanager_v1  # noqa: F401
            from google.protobuf.json_format import ParseError
        except ImportError:
            raise MissingExtra("google-cloud-secret-manager", "google") from None
        end = time.monotonic() + self.timeout_s
        for attempt, pause in enumerate((*_PAUSES, self.timeout_s)):
            login, again = _Login(end), attempt == 0
            told: SecretError
            try:
                return question(self._opened(where, login), end)
            except SecretMalformed as error:
                told = error
            except GoogleAPICallError as error:
                told, asked = _of_answer(where, error)
                again, pause = told.passing, max(pause, asked)
            except GoogleAuthError as error:
                # Once more from the start: what we log in with may have been replaced.
                self._open, told = None, _of_login(where, error, login.status)
                again = again and not told.passing
            except (ParseError, ValueError):
                told = SecretMalformed(f"{where}: the answer is not what Google's API promises")
            except (OSError, AttributeError) as error:
                # Errors of requests are OSErrors; the client stumbles with the other over errors that no Google sent.
                again, told = False, StoreUnreachable(f"{where}: Google cannot be asked ({type(error).__name__})")
            if not again or time.monotonic() + pause >= end:
                break
            time.sleep(pause)
        raise told from None

    def _opened(self, where: str, login: _Login) -> _Opened:
        """The client, logged in. One thread logs in for all."""
        if not self._lock.acquire(timeout=_left(login.end)):
            raise StoreUnreachable(f"{where}: Google has not let us log in within {self.timeout_s:g} s")
        try:
            opened = self._open
            if opened is None:
                opened = self._open = self._made(where, login)
            login.plain = opened.request
            if not opened.credentials.valid:
                opened.credentials.refresh(login)
            return opened
        finally:
            self._lock.release()

    def _made(self, where: str, login: _Login) -> _Opened:
        import google.auth
        from google.auth.credentials import with_scopes_if_required
        from google.auth.transport.requests import Request
        from google.cloud.secretmanager_v1 import SecretManagerServiceClient
        from google.cloud.secretmanager_v1.services.secret_manager_service import transports

        # Its client writes whole answers into its DEBUG log.
        hush("google")
        login.plain = Request()
        try:
            if self.credentials_json:
                found, project = google.auth.load_credentials_from_dict(json.loads(self.credentials_json.reveal()))
            elif self.credentials_file:
                found, project = google.auth.load_credentials_from_file(self.credentials_file)
            else:
                found, project = google.auth.default(request=login)
        except (google.auth.exceptions.DefaultCredentialsError, ValueError, AttributeError, OSError) as error:
            what = "credentials_json" if self.credentials_json else self.credentials_file or "no Google login found"
            text = "give the JSON of a service_account, external_account or authorized_user, or attach an account"
            raise SecretDenied(f"{where}: {what} ({type(error).__name__}); {text}") from None
        # Scopes come last: an external account that has them is looked up at cloudresourcemanager.googleapis.com.
        found = with_scopes_if_required(found, _SCOPES)
        host = f"secretmanager.{self.location}.rep.googleapis.com" if self.location else "secretmanager.googleapis.com"
        # Given a transport, the client asks the token endpoint; by itself it would sign its own tokens, for good.
        rest = transports.SecretManagerServiceRestTransport(host=self.endpoint.rstrip("/") or host, credentials=found)
        client = SecretManagerServiceClient(transport=rest)
        return _Opened(client, found, login.plain, self.project_id or project or "")


class _Login:
    """google-auth's way to the network: within the time that is left, remembering the last status."""

    def __init__(self, end: float) -> None:
        self.end, self.status = end, 0
        self.plain: Any = None

    def __call__(self, *args: Any, timeout: float | None = None, **more: Any) -> Any:
        response = self.plain(*args, timeout=min(timeout or _left(self.end), _left(self.end)), **more)
        self.status = response.status
        return response


def _left(end: float) -> float:
    return max(0.05, end - time.monotonic())


def _of_login(where: str, error: Any, status: int) -> SecretError:
    """What google-auth's error means; its text may quote what was sent."""
    shown = f"({type(error).__name__}, status {status or 'none'})"
    silent = "TransportError" in (type(error).__name__, type(error.__cause__).__name__)
    if error.retryable or status == 429 or status >= 500 or silent:
        return StoreUnreachable(f"{where}: Google cannot be asked for a token {shown}")
    return SecretDenied(f"{where}: Google refused the login {shown}; check the credentials")


def _of_answer(where: str, error: Any) -> tuple[SecretError, float]:
    """What an error answer means, and the seconds that it asks to wait."""
    code = int(error.code or 0)
    body, headers = (error.response.text, error.response.headers) if error.response is not None else ("", {})
    words = list(dict.fromkeys(_WORD.findall(body)))
    shown, asked = ", ".join([str(code), *words]), str(headers.get("retry-after", ""))
    told: SecretError
    if code == 412 or "FAILED_PRECONDITION" in words:
        told = SecretNotFound(f"{where}: the version is disabled or destroyed; enable it or choose another one")
    elif code in (400, 404):
        told = SecretNotFound(f"{where}: no such secret or version ({shown}); check its name and the project")
    elif code in (408, 429) or code >= 500:
        told = StoreUnreachable(f"{where}: Google is busy or down ({shown})")
    else:
        role = "Secret Manager Viewer, to list" if where.endswith("*") else "Secret Manager Secret Accessor"
        kind = NotAllowed if code == 403 else SecretDenied
        told = kind(f"{where}: Google refused ({shown}); grant the login the role {role}")
    return told, float(asked) if asked.isdecimal() else 0.0


def _crc32c(data: bytes) -> int:
    """The checksum of Castagnoli. Payloads have 64 KiB at most, so this need not be fast."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
