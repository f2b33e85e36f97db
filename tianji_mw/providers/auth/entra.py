"""Tokens from Microsoft Entra ID: client secret, or a federated token file (workload identity in a pod).

It fetches; `token.py` keeps and renews. Managed identities without a token file are not served here.

Source: Microsoft identity platform, "OAuth 2.0 client credentials flow"; Azure workload identity, "environment".
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode

import orjson

from tianji_mw.errors import TianjiError, UpstreamError
from tianji_mw.providers.auth.token import Issued
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.apis.base import JSON
    from tianji_mw.upstream import Transport

DEFAULT_SCOPE: Final = "https://cognitiveservices.azure.com/.default"
DEFAULT_AUTHORITY: Final = "https://login.microsoftonline.com"
_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_MAX_ANSWER: Final = 256 << 10
#: Entra's own number of the reason; the rest of its text names tenants and applications.
_REASON: Final = re.compile(r"AADSTS\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class EntraLogin:
    """Who logs in, and for what. `fetch` is made for a `TokenSource`."""

    provider: str
    tenant_id: str
    client_id: str
    client_secret: Secret | None = None
    token_file: str = ""
    scope: str = DEFAULT_SCOPE
    authority: str = DEFAULT_AUTHORITY

    @property
    def kind(self) -> str:
        """What the login consists of, for error texts."""
        return "client secret" if self.client_secret else "federated token file"

    async def fetch(self) -> Issued:
        """A new token. Raises UpstreamError: 401 when the login is refused, 502 when Entra ID cannot be asked."""
        form = {"grant_type": "client_credentials", "client_id": self.client_id, "scope": self.scope}
        if self.client_secret:
            form["client_secret"] = self.client_secret.reveal()
        else:
            form |= {"client_assertion_type": _JWT_BEARER, "client_assertion": await self._assertion()}
        status, answer = await self._post(urlencode(form).encode())
        token, life = answer.get("access_token"), answer.get("expires_in")
        if status == 200 and isinstance(token, str) and token:
            return Issued(Secret(token), _seconds(life))
        reason = _why(answer)
        if 400 <= status < 500 and status not in (408, 429):
            text = (
                f"Entra ID refused the {self.kind} of the provider '{self.provider}' ({reason or f'status {status}'})."
            )
            raise UpstreamError(text, provider=self.provider, status=401, code="invalid_credentials")
        text = f"Entra ID gave no token for the {self.kind} of the provider '{self.provider}' (status {status})."
        raise UpstreamError(text, provider=self.provider, code="token_unavailable")

    async def _post(self, body: bytes) -> tuple[int, dict[str, JSON]]:
        from tianji_mw.upstream import Deadlines, UpstreamRequest

        url = f"{self.authority.rstrip('/')}/{quote(self.tenant_id, safe='')}/oauth2/v2.0/token"
        headers = [("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")]
        deadlines = Deadlines(connect_s=5.0, first_byte_s=10.0, between_bytes_s=10.0, total_s=15.0)
        transport, own = _transport()
        try:
            response = await transport.send(UpstreamRequest("POST", url, headers, body, deadlines))
            try:
                raw = await response.read(_MAX_ANSWER)
            finally:
                response.close()
        except TianjiError as error:
            text = f"Entra ID cannot be asked for a token for the provider '{self.provider}': {error.message}"
            raise UpstreamError(text, provider=self.provider, code="token_unavailable") from None
        finally:
            if own:
                await transport.aclose()
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError:
            data = None
        return response.status, data if isinstance(data, dict) else {}

    async def _assertion(self) -> str:
        # Read anew each time: the platform rotates the file.
        try:
            found = (await asyncio.to_thread(Path(self.token_file).read_text, "ascii")).strip()
        except (OSError, ValueError) as error:
            found, reason = "", type(error).__name__
        else:
            reason = "it is empty"
        if not found:
            text = f"The federated token file of the provider '{self.provider}' cannot be used: {reason}."
            raise UpstreamError(text, provider=self.provider, status=401, code="invalid_credentials")
        return found


def _transport() -> tuple[Transport, bool]:
    """The process's client, so that its TLS settings and proxies hold; outside of a call a new one, to be closed."""
    from tianji_mw.call import current_call
    from tianji_mw.upstream.choose import transport_of

    call = current_call()
    return (call.runtime.transport, False) if call is not None else (transport_of(), True)


def _why(answer: dict[str, JSON]) -> str:
    """Entra's code and number; never its text."""
    code, text = answer.get("error"), answer.get("error_description")
    number = _REASON.search(text) if isinstance(text, str) else None
    named = code if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,40}", code) else ""
    return ", ".join(part for part in (named, number[0] if number else "") if part)


def _seconds(value: JSON) -> float:
    """`expires_in`, which some issuers send as text; five minutes when it says nothing."""
    try:
        return max(1.0, float(value))
    except (TypeError, ValueError):
        return 300.0
