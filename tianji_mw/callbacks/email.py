"""Mails about budgets, keys and other alerts over SMTP (aiosmtplib), with STARTTLS or implicit TLS.

Asked for TLS, it never sends without. Each attempt opens one connection, for all mails of its batch.

Source: RFC 5321, RFC 3207 (STARTTLS), RFC 8314 (implicit TLS); LiteLLM's `SMTP_...` variables.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.alerts.delivery import Group, ServiceDown
from tianji_mw.callbacks.alerts.letters import Letter, as_html, as_text
from tianji_mw.callbacks.alerts.mails import MailCallback, mail_id
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

if TYPE_CHECKING:
    from aiosmtplib import SMTP

log = logging.getLogger("tianji_mw.callbacks.email")


class Email(MailCallback):
    """A mail for each alert and recipient.

    >>> Email(host="smtp.corp", username="gateway", password="secret", sender="llm@corp.example")
    """

    title: ClassVar[str] = "SMTP"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **MailCallback.env_fields,
        "host": ("SMTP_HOST",),
        "port": ("SMTP_PORT",),
        "username": ("SMTP_USERNAME",),
        "password": ("SMTP_PASSWORD",),
        "starttls": ("SMTP_TLS",),
        "implicit_tls": ("SMTP_USE_SSL",),
        "smtp_timeout_s": ("SMTP_TIMEOUT",),
    }

    host: str = ""
    port: int = Field(default=587, ge=1, le=65535)
    #: Login happens only with both.
    username: str = ""
    password: Secret | None = None
    #: Go over to TLS before anything else is said; a server that cannot gets no mail.
    starttls: bool = True
    #: TLS from the first byte, instead of STARTTLS; always so with port 465.
    implicit_tls: bool = False
    #: More certificates to trust, in a PEM file.
    ca_file: str = ""
    #: Seconds for each step of the conversation.
    smtp_timeout_s: float = Field(default=30.0, gt=0, le=600)

    _tls: Any = PrivateAttr(default=None)
    _smtp: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        try:
            import aiosmtplib  # noqa: F401
        except ImportError:
            raise MissingExtra("aiosmtplib", "email") from None
        if not self.host:
            raise SetupError("SMTP: host is missing; set it in the config, or the variable SMTP_HOST.")
        await super().start(runtime)
        self._tls = ssl.create_default_context()
        try:
            if self.ca_file:
                self._tls.load_verify_locations(self.ca_file)
        except OSError:
            raise SetupError(f"SMTP: ca_file {self.ca_file!r} cannot be read, or holds no certificates.") from None
        if self._login and not (self.starttls or self._implicit):
            log.warning("SMTP: the login goes to %s without TLS, as starttls and implicit_tls are off", self.host)

    @property
    def _implicit(self) -> bool:
        return self.implicit_tls or self.port == 465

    @property
    def _login(self) -> bool:
        return bool(self.username and self.password)

    async def write(self, batch: Sequence[Record]) -> None:
        try:
            await super().write(batch)
        finally:
            smtp, self._smtp = self._smtp, None
            if smtp is not None:
                await _leave(smtp)

    async def send(self, recipient: str, letter: Letter, group: Group) -> None:
        import aiosmtplib

        message = self.message(recipient, letter, group)
        smtp = await self._connected()
        try:
            await smtp.send_message(message, sender=self.sender, recipients=[recipient])
        except aiosmtplib.SMTPRecipientsRefused as error:
            code = error.recipients[0].code
            raise NotDelivered(f"SMTP: the recipient was refused with {code}", retry=code < 500) from None
        except aiosmtplib.SMTPDataError as error:
            raise NotDelivered(f"SMTP: the mail was refused with {error.code}", retry=error.code < 500) from None
        except aiosmtplib.SMTPNotSupported:
            raise NotDelivered("SMTP: the server takes only ASCII in addresses", retry=False) from None
        except aiosmtplib.SMTPSenderRefused as error:
            # Whoever sends is a setting, and can be mended.
            raise ServiceDown(f"SMTP: the sender was refused with {error.code}") from None
        except (aiosmtplib.SMTPException, OSError) as error:
            self._hang_up()
            raise NotDelivered(f"SMTP: {_said(error)}") from None
        except ValueError:
            raise NotDelivered("SMTP: an address or the mail cannot be written", retry=False) from None

    async def _connected(self) -> SMTP:
        """The connection of this batch, opened at its first mail."""
        import aiosmtplib

        if self._smtp is not None and self._smtp.is_connected:
            connected: SMTP = self._smtp
            return connected
        secret = self.password
        smtp = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            use_tls=self._implicit,
            start_tls=self.starttls and not self._implicit,
            tls_context=self._tls,
            timeout=self.smtp_timeout_s,
            username=self.username if self._login else None,
            password=secret.reveal() if self._login and secret is not None else None,
        )
        try:
            await smtp.connect()
        except aiosmtplib.SMTPAuthenticationError as error:
            raise ServiceDown(f"SMTP: the login was refused with {error.code}") from None
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            raise ServiceDown(f"SMTP: {_said(error)}") from None
        self._smtp = smtp
        return smtp

    def _hang_up(self) -> None:
        smtp, self._smtp = self._smtp, None
        if smtp is not None:
            smtp.close()

    def message(self, recipient: str, letter: Letter, group: Group) -> EmailMessage:
        """The mail. Its Message-ID is the same in every attempt."""
        told = group.first
        message = EmailMessage(policy=SMTP_POLICY)
        # Python's headers take encoded words (RFC 2047) apart; nobody's name may become one.
        subject = letter.subject.replace("=?", "= ?")
        try:
            message["From"], message["To"], message["Subject"] = self.sender, recipient, subject
            message["Date"] = format_datetime(datetime.fromtimestamp(told.at, UTC))
            message["Message-ID"] = f"<{mail_id(recipient, group)}@{self.sender.rpartition('@')[2]}>"
            message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no holiday notes in return
        except (MessageError, ValueError):
            raise NotDelivered("SMTP: the mail's headers cannot be written", retry=False) from None
        message.set_content(as_text(letter, self.brand), cte="quoted-printable")
        message.add_alternative(as_html(letter, self.brand), subtype="html", cte="quoted-printable")
        return message


async def _leave(smtp: SMTP) -> None:
    """Say goodbye; what the server thinks of it does not matter."""
    import aiosmtplib

    task = asyncio.current_task()
    if task is not None and task.cancelling():
        smtp.close()
        return
    try:
        await smtp.quit(timeout=2.0)
    except (aiosmtplib.SMTPException, OSError):
        pass
    finally:
        smtp.close()


def _said(error: BaseException) -> str:
    """What went wrong, without texts of the server: they may quote addresses or a login."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        return f"the server answered {code}"
    if isinstance(error, TimeoutError):
        return "the server did not answer in time"
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted ({cause.verify_message})"
    if "STARTTLS" in str(error):
        return "the server does not offer STARTTLS, and without TLS nothing is sent"
    return type(cause).__name__
