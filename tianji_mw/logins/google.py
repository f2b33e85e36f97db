"""A token of Google, over google-auth: a service account, workload identity, or what the machine has.

It is fetched and renewed in a thread of its own, before it ends (google-auth: 3 min 45 s).

Source: google-auth, "Application Default Credentials".
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from pydantic import BaseModel

from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.hush import THREADS, hush
from tianji_mw.redact import Secret


class LoginFailed(Exception):
    """There is no token now. `message` is for the operator, without a key."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class GoogleLogin(BaseModel):
    """The fields of a login; a plugin has it as its first base: `class Gcs(GoogleLogin, ObjectCallback)`."""

    #: JSON of a service account, an external account (workload identity federation) or a user; its path, or itself.
    #: Without one the machine's own login is used.
    credentials_file: str = ""
    credentials_json: Secret | None = None

    async def logged_in(self, title: str, address: str, *, scope: str, timeout_s: float) -> GoogleToken | None:
        """The token for requests to this address; None over plain http without credentials, as for emulators.

        Raises MissingExtra, SetupError.
        """
        if not (self.credentials_file or self.credentials_json or address.startswith("https:")):
            return None
        file, content = self.credentials_file, self.credentials_json
        token = GoogleToken(title, scope=scope, file=file, content=content, timeout_s=min(timeout_s, 10.0))
        await token.start()
        return token


class GoogleToken:
    """The login of one plugin. `title`: what messages call it."""

    def __init__(self, title: str, *, scope: str, file: str, content: Secret | None, timeout_s: float) -> None:
        self._title, self._scope, self._timeout_s = title, scope, timeout_s
        self._file, self._content = file, content
        self._found: Any = None
        #: One thread: whoever needs a token while it is renewed waits, and does not log in too.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{THREADS}-google")

    async def start(self) -> None:
        """Read the file, if one is set; what the machine has is asked for later. Raises SetupError."""
        try:
            import google.auth.transport.requests  # noqa: F401
        except ImportError:
            raise MissingExtra("google-auth", "google") from None
        hush("google")
        if self._file or self._content:
            try:
                self._found = await asyncio.get_running_loop().run_in_executor(self._pool, self._loaded)
            except LoginFailed as error:
                raise SetupError(f"{self._title}: {error.message}.") from None

    async def token(self, *, refused: str = "") -> str:
        """A token that is good for some minutes, and another one than `refused`. Raises LoginFailed."""
        found = self._found
        if found is not None and found.valid and found.token != refused:
            return str(found.token)
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._renewed, refused))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _renewed(self, refused: str) -> str:
        """Blocking. Texts of google-auth go nowhere: they may quote what was sent."""
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import Request

        try:
            if self._found is None:
                self._found = self._loaded()
            if not self._found.valid or self._found.token == refused:
                self._found.refresh(partial(Request(), timeout=self._timeout_s))
            return str(self._found.token)
        except (GoogleAuthError, OSError, ValueError, AttributeError) as error:
            # The next one begins with the file: it may have been replaced.
            self._found = None
            raise LoginFailed(f"Google gave no token ({type(error).__name__}); check the credentials") from None

    def _loaded(self) -> Any:
        import google.auth
        from google.auth.credentials import with_scopes_if_required
        from google.auth.transport.requests import Request

        try:
            if self._content:
                found, _ = google.auth.load_credentials_from_dict(json.loads(self._content.reveal()))
            elif self._file:
                found, _ = google.auth.load_credentials_from_file(self._file)
            else:
                found, _ = google.auth.default(request=partial(Request(), timeout=self._timeout_s))
        except (google.auth.exceptions.GoogleAuthError, ValueError, AttributeError, OSError) as error:
            what = "credentials_json" if self._content else self._file or "no Google login found"
            text = "give the JSON of a service_account, external_account or authorized_user, or attach an account"
            raise LoginFailed(f"{what} ({type(error).__name__}); {text}") from None
        # Scopes come last: an external account that has them is looked up at cloudresourcemanager.googleapis.com.
        return with_scopes_if_required(found, (self._scope,))


def with_scheme(address: str) -> str:
    """Emulators are written as host:port in their variables."""
    return address if "://" in address or not address else f"http://{address}"
