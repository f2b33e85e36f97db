"""What the tests of mails share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.alert_records import Clock
from tests.support.loopback import Loopback
from tests.support.records import undelivered
from tests.support.smtp_server import PASSWORD, USER, Box
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.callbacks.email import Email
from tianji_mw.callbacks.resend_email import ResendEmail
from tianji_mw.callbacks.sendgrid_email import SendGridEmail
from tianji_mw.testing import FakeLLM

Serve = Callable[..., Any]


KEY = "re_SECRET_key"


def settings(box: Box, **fields: Any) -> dict[str, Any]:
    return {
        "host": "127.0.0.1", "port": box.port, "ca_file": box.ca_file, "sender": "llm@corp.example",
        "username": USER, "password": PASSWORD, "to": "a@x.io", "smtp_timeout_s": 5, **fields,
    }  # fmt: skip


async def mailer(clock: Clock, box: Box, **fields: Any) -> Email:
    callback = Email(**settings(box, **fields))
    await callback.start(clock.runtime)
    return callback


async def failure(callback: Callback, *batch: Record) -> NotDelivered:
    failed = await undelivered(callback, batch)
    shown = f"{failed.message} {failed!r} {failed.__cause__!r}"
    assert "SECRET" not in shown
    assert "@x.io" not in shown
    return failed


class Mute(Loopback):
    """Accepts, says `first`, and then nothing for ever."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.accepted = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            writer.write(self.first)
            await reader.read()
        finally:
            writer.close()


def over_http(api: FakeLLM, which: int, **fields: Any) -> Callback:
    options = {"api_key": KEY, "api_base": api.url, "sender": "llm@corp.example", "to": "a@x.io, b@x.io", **fields}
    return [ResendEmail, SendGridEmail][which](**options)
