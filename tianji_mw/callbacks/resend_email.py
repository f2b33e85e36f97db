"""Mails about budgets, keys and other alerts through Resend.

Source: Resend API reference, `POST /emails`; its Idempotency-Key keeps a repeated attempt from becoming a second mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tianji_mw.callbacks.alerts.delivery import Group, ServiceDown
from tianji_mw.callbacks.alerts.letters import Letter, as_html, as_text
from tianji_mw.callbacks.alerts.mails import MailCallback, mail_id
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.service import HttpCallback


class ResendEmail(MailCallback, HttpCallback):
    """A mail for each alert and recipient.

    >>> ResendEmail(api_key="re_1", sender="llm@corp.example", to=["ops@corp.example"])
    """

    title: ClassVar[str] = "Resend"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {**MailCallback.env_fields, "api_key": ("RESEND_API_KEY",)}

    api_base: str = "https://api.resend.com"
    timeout_s: float = Field(default=60.0, gt=0, le=3600)

    async def send(self, recipient: str, letter: Letter, group: Group) -> None:
        body = {
            "from": self.sender,
            "to": [recipient],
            "subject": letter.subject,
            "html": as_html(letter, self.brand),
            "text": as_text(letter, self.brand),
        }
        assert self.api_key is not None
        headers = {"authorization": f"Bearer {self.api_key.reveal()}", "idempotency-key": mail_id(recipient, group)}
        try:
            await self.post("/emails", body, headers)
        except NotDelivered as problem:
            if not problem.retry:
                raise
            raise ServiceDown(problem.message, retry_after_s=problem.retry_after_s) from None
