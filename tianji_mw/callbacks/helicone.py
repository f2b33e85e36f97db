"""Helicone: every call through its log API, or headers for the calls that go through Helicone's own proxy.

Source: Helicone's docs, "Custom model integration" (`POST /custom/v1/log`) and "Header directory".
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, Literal
from urllib.parse import urlsplit

import orjson
from pydantic import Field

from tianji_mw.callbacks._groups import ODD, Delivery
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.helicone_headers import proxy_headers
from tianji_mw.callbacks.helicone_log import log_of, upstream_of
from tianji_mw.callbacks.record.redaction import without_content
from tianji_mw.callbacks.record.wishes import Wishes
from tianji_mw.callbacks.service import HttpCallback

if TYPE_CHECKING:
    from tianji_mw.call import Call

_HOST: Final = re.compile(r"[a-z0-9.:-]+")
_DOMAINS: Final = ("helicone.ai", "hconeai.com")


class Helicone(HttpCallback):
    """Logs calls at Helicone. With `mode: proxy`, calls that go through Helicone's proxy get its headers instead.

    >>> Helicone(api_key="sk-helicone-...")
    """

    title: ClassVar[str] = "Helicone"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("HELICONE_API_KEY",),
        "api_base": ("HELICONE_API_BASE",),
    }
    aliases: ClassVar[Mapping[str, str]] = {"helicone_api_key": "api_key", "helicone_api_base": "api_base"}

    #: Of the log API. LiteLLM's https://api.hconeai.com is an old name of it.
    api_base: str = "https://api.worker.helicone.ai"
    mode: Literal["log", "proxy"] = "log"
    #: Further hosts that are Helicone's proxy: one of your own.
    proxy_hosts: tuple[str, ...] = ()
    #: Headers for the proxy, such as `Helicone-Cache-Enabled` or `Helicone-Target-Url`; they win over a client's.
    proxy_headers: dict[str, str] = Field(default_factory=dict)
    #: Helicone keeps no content: taken out of logs, and asked of the proxy.
    turn_off_message_logging: bool = False
    message_logging: bool = True

    batch_size: int = Field(default=64, ge=1, le=100_000)
    #: Requests of one `write` that are open at once: there is one for each record.
    requests_at_once: int = Field(default=8, ge=1, le=64)

    # --- the log API

    async def write(self, batch: Sequence[Record]) -> None:
        delivery = Delivery(self.title)
        waiting = deque(batch)
        workers = [self._work(waiting, delivery) for _ in range(min(self.requests_at_once, len(waiting)))]
        async with asyncio.TaskGroup() as group:
            for worker in workers:
                group.create_task(worker)
        delivery.done()

    async def _work(self, waiting: deque[Record], delivery: Delivery) -> None:
        while waiting:
            record = waiting.popleft()
            if delivery.halted:
                delivery.failed.append(record)
                continue
            try:
                if (body := self._body(record)) is not None:
                    await self.post("/custom/v1/log", body, self._login())
            except NotDelivered as problem:
                delivery.missed([record], problem)
            else:
                delivery.took()

    def _body(self, record: Record) -> bytes | None:
        """None: it went through Helicone's proxy, and is known there. Raises NotDelivered for one that is no record."""
        try:
            if is_helicone(upstream_of(record), self.proxy_hosts):
                return None
            if not self._content:
                record = Record.of(record.id, without_content(record.data))
            return orjson.dumps(log_of(record))
        except ODD:
            raise NotDelivered(f"{self.title}: a record cannot be read", retry=False) from None

    def _login(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.api_key.reveal()}"} if self.api_key is not None else {}

    @property
    def _content(self) -> bool:
        return self.message_logging and not self.turn_off_message_logging

    # --- the proxy

    def on_request(self, call: Call) -> None:
        if self.mode == "proxy":
            call.upstream_headers.append(lambda deployment: self.headers(call, deployment.provider.base))

    def headers(self, call: Call, url: str) -> dict[str, str]:
        """The headers for an attempt at this address, lower case. They hold the key: none where it is not Helicone."""
        if self.api_key is None or not is_helicone(url, self.proxy_hosts):
            return {}
        content = Wishes().content(call, self._content)
        return proxy_headers(call, self.api_key, content=content, own=self.proxy_headers)


def is_helicone(url: str, hosts: Sequence[str] = ()) -> bool:
    """Whether this is an address of Helicone's (https), or of one of these hosts of the operator's own."""
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").rstrip(".")
    except ValueError:
        return False
    if not _HOST.fullmatch(host):
        return False  # such as `evil.com\\.helicone.ai`, which clients read in two ways
    if host in hosts:
        return parts.scheme in ("http", "https")
    return parts.scheme == "https" and any(host == domain or host.endswith(f".{domain}") for domain in _DOMAINS)
