"""Mails about budgets, keys and other alerts through SendGrid.

Source: SendGrid API reference, `POST /v3/mail/send`, which answers 202. It knows no idempotency key: an attempt whose
answer was lost may become a second mail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from tianji_mw.callbacks.alerts.delivery import Group, ServiceDown
from tianji_mw.callbacks.alerts.letters import Letter, as_html, as_text
from tianji_mw.callbacks.alerts.mails import MailCallback
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.service import HttpCallback


class SendGridEmail(MailCallback, HttpCallback):
    """A mail for each alert and recipient.

    >>> SendGridEmail(api_key="SG.1", sender="llm@corp.example", to=["ops@corp.example"])
    """

    title: ClassVar[str] = "SendGrid"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **MailCallback.env_fields,
        "api_key": ("SENDGRID_API_KEY",),
        "sender": ("SENDGRID_SENDER_EMAIL", "SMTP_SENDER_EMAIL"),
    }

    api_base: str = "https://api.sendgrid.com"
    timeout_s: float = Field(default=60.0, gt=0, le=3600)

    async def send(self, recipient: str, letter: Letter, group: Group) -> None:
        body = {
            "personalizations": [{"to": [{"email": recipient}]}],
            "from": {"email": self.sender},
            "subject": letter.subject,
            # Plain text must come first.
            "content": [
                {"type": "text/plain", "value": as_text(letter, self.brand)},
                {"type": "text/html", "value": as_html(letter, self.brand)},
            ],
        }
        assert self.api_key is not None
        try:
            await self.post("/v3/mail/send", body, {"authorization": f"Bearer {self.api_key.reveal()}"})
        except NotDelivered as problem:
            if not problem.retry:
                raise
            raise ServiceDown(problem.message, retry_after_s=problem.retry_after_s) from None
