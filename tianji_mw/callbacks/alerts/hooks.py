"""`HookCallback`: what destinations share that take alerts at a webhook address. It is their base, and no plugin.

Such an address is a credential: who knows it can write into the channel. So errors name its host and nothing else, and
of answers only the short words that services use as error codes.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw import http
from tianji_mw.callbacks.alerts.delivery import AlertCallback, Group
from tianji_mw.callbacks.alerts.text import facts
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.service import REFUSED, is_address
from tianji_mw.errors import SetupError, TianjiError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

#: An error code of a service, such as `channel_not_found`; too plain for a key.
_CODE: Final = re.compile(rb"[a-z]{2,16}(_[a-z]{1,16}){0,5}")
_MAX_PAUSE_S: Final = 3600.0


class HookCallback(AlertCallback):
    """Base of destinations behind webhook addresses. Subclasses write `targets` and `deliver`, with `post`."""

    #: Seconds that one request may take; a write makes several.
    request_timeout_s: float = Field(default=10.0, gt=0, le=600)

    _client: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Open the client. Raises SetupError for an address that is none."""
        for address in self.addresses():
            if not is_address(address.reveal()):
                raise SetupError(f"{self.title}: a webhook address is none; write it as https://host/path.")
        await super().start(runtime)
        connect_s = min(5.0, self.request_timeout_s)
        headers = {"accept-encoding": "identity", "content-type": "application/json"}
        self._client = http.client(
            timeout_s=self.request_timeout_s, connect_s=connect_s, headers=headers, max_bytes=1 << 20
        )

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @abstractmethod
    def addresses(self) -> Iterator[Secret]:
        """All addresses of the configuration."""

    def facts(self, group: Group) -> list[tuple[str, str]]:
        """The fields to show below the message. Those of a budget event are in it."""
        return [] if group.first.event else facts(group.first.fields)

    async def post(self, url: str, body: object, headers: Mapping[str, str] | None = None) -> Any:
        """The answer (an `httpx.Response`) with a status below 300. `body` that is no bytes is sent as JSON."""
        if self._client is None:
            raise NotDelivered(f"{self.title} was not started")
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        try:
            response = await self._client.post(url, content=raw, headers=dict(headers or {}))
        except http.TimeoutException:
            seconds = f"{self.request_timeout_s:g} s"
            raise NotDelivered(f"{self.title} at {_host(url)} did not answer within {seconds}") from None
        except (http.HTTPError, TianjiError) as error:
            # Its text may hold the address.
            raise NotDelivered(f"{self.title} at {_host(url)}: {type(error).__name__}") from None
        if response.status_code >= 300:
            status = response.status_code
            said = f": {response.text}" if _CODE.fullmatch(response.content) else ""
            message = f"{self.title} at {_host(url)} answered {status}{said}"
            raise NotDelivered(message, retry=status not in REFUSED, retry_after_s=self._pause(response))
        return response

    def _pause(self, response: Any) -> float | None:
        """`Retry-After` in seconds: a number, or a date (RFC 9110, section 10.2.3)."""
        asked = response.headers.get("retry-after", "").strip()
        try:
            if asked[:1].isdecimal():
                pause = float(asked)
            else:
                pause = parsedate_to_datetime(asked).timestamp() - self._runtime.wall()
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(pause, 0.0), _MAX_PAUSE_S)


def _host(url: str) -> str:
    return urlsplit(url).hostname or "its address"
