"""`HttpCallback`: what all destinations share that are reached over HTTP. It is the base of such files, and no plugin.

One client for each destination, opened at the start. A status becomes what the outbox does about it: an attempt later,
halves of the batch, or a key that somebody must change. Errors name the destination and the status, and no key.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import orjson
from pydantic import PrivateAttr

from tianji_mw import http, redact
from tianji_mw.apis.base import JSON
from tianji_mw.callbacks.base import Callback, NotDelivered
from tianji_mw.errors import SetupError, TianjiError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

#: The request itself is wrong: its records are refused, one by one if need be. All others are worth another attempt:
#: 401, 403 and 404 as well, since a key or an address can be mended, and the records wait for it.
REFUSED: Final = frozenset({400, 405, 406, 410, 411, 413, 414, 415, 422, 431})
_SHOWN: Final = 200
_IN_THREAD: Final = 32 << 10
_MAX_PAUSE_S: Final = 3600.0


class HttpCallback(Callback):
    """Base of destinations behind an HTTP API. Subclasses write `write`, with `post`."""

    #: What error messages call it.
    title: ClassVar[str]
    #: Fields that cannot stay empty.
    needs: ClassVar[tuple[str, ...]] = ("api_key", "api_base")

    api_key: Secret | None = None
    #: Address of the service, without a path unless its class says otherwise.
    api_base: str = ""

    _client: Any = PrivateAttr(default=None)
    _wall: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Open the client. Raises SetupError when a setting is missing."""
        for field in self.needs:
            if not getattr(self, field):
                variables = " or ".join(self.env_fields.get(field, ()))
                cure = f"set it in the config, or the variable {variables}" if variables else "set it in the config"
                raise SetupError(f"{self.title}: {field} is missing; {cure}.")
        if self.api_base and not is_address(self.api_base):
            raise SetupError(f"{self.title}: api_base is no address; write it as https://host.")
        connect_s = min(5.0, self.timeout_s)
        headers = {"accept-encoding": "identity"}
        self._client = http.client(timeout_s=self.timeout_s, connect_s=connect_s, headers=headers, max_bytes=4 << 20)
        self._wall = runtime.wall

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def post(
        self,
        url: str,
        body: bytes | JSON,
        headers: Mapping[str, str | Secret] | None = None,
        *,
        content_type: str = "application/json",
        zipped: bool = False,
        method: str = "POST",
    ) -> Any:
        """The answer (an `httpx.Response`) with a status below 300. `url`: whole, or a path after `api_base`.

        `body` that is no bytes is sent as JSON. Raises NotDelivered.
        """
        if self._client is None:
            raise NotDelivered(f"{self.title} was not started")
        whole = url if "://" in url else self.api_base.rstrip("/") + url
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        sent = {"content-type": content_type, **{name: shown(value) for name, value in (headers or {}).items()}}
        if zipped:
            # A few megabytes take long enough for others to notice.
            raw = await asyncio.to_thread(gzip.compress, raw, 5) if len(raw) > _IN_THREAD else gzip.compress(raw, 5)
            sent["content-encoding"] = "gzip"
        try:
            response = await self._client.request(method, whole, content=raw, headers=sent)
        except (http.HTTPError, TianjiError) as error:
            silent = isinstance(error, http.TimeoutException)
            what = f"did not answer within {self.timeout_s:g} s" if silent else f"{type(error).__name__}: {error}"
            raise NotDelivered(f"{self.title} at {redact.url(whole)}: {what}") from None
        if response.status_code >= 300:
            raise self.failure(response)
        return response

    def failure(self, response: Any) -> NotDelivered:
        """What an answer with this status means for the batch."""
        status = response.status_code
        said = redact.text(response.text[:_SHOWN], self.credentials())
        message = f"{self.title} answered {status}" + (f": {said}" if said.strip() else "")
        return NotDelivered(message, retry=status not in REFUSED, retry_after_s=self._pause(response))

    def credentials(self) -> list[Secret]:
        """Every secret among the settings: a server may quote what it was sent."""
        values = [getattr(self, name) for name in type(self).model_fields]
        listed = [item for value in values if isinstance(value, dict) for item in value.values()]
        return [value for value in (*values, *listed) if isinstance(value, Secret)]

    def _pause(self, response: Any) -> float | None:
        """`Retry-After` in seconds: a number, or a date (RFC 9110, section 10.2.3)."""
        asked = response.headers.get("retry-after", "").strip()
        try:
            pause = float(asked) if asked[:1].isdecimal() else parsedate_to_datetime(asked).timestamp() - self._wall()
        except (ValueError, TypeError):
            return None
        return min(max(pause, 0.0), _MAX_PAUSE_S)


def shown(value: str | Secret) -> str:
    """The value as it goes into a header."""
    return value.reveal() if isinstance(value, Secret) else value


def is_address(url: str) -> bool:
    """Whether this is an http or https address with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
