"""A real SMTP server on loopback (aiosmtpd) with certificates of its own, and mails that it took."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from pathlib import Path
from typing import Any, Literal

import trustme
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

USER, PASSWORD = "gateway", "smtp-SECRET-password"

Mode = Literal["starttls", "implicit", "plain"]


@dataclass
class Mail:
    """One mail that arrived."""

    sender: str
    to: list[str]
    raw: bytes
    tls: bool
    login: bool

    @property
    def message(self) -> EmailMessage:
        found = email.message_from_bytes(self.raw, policy=email.policy.default)
        assert isinstance(found, EmailMessage)
        return found

    def part(self, kind: str) -> str:
        found = self.message.get_body((kind,))
        assert found is not None
        return str(found.get_content())


@dataclass
class Box:
    """The handler of the server: what arrived, and what it answers instead of taking it."""

    mails: list[Mail] = field(default_factory=list)
    #: Answers by recipient, to the sender, and to the whole mail; used up from the front.
    recipients: dict[str, list[str]] = field(default_factory=dict)
    senders: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    logins: int = 0
    connections: int = 0
    port: int = 0
    ca_file: str = ""

    async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.senders:
            return self.senders.pop(0)
        envelope.mail_from = address
        return "250 OK"

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        if self.recipients.get(address):
            return self.recipients[address].pop(0)
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.answers:
            return self.answers.pop(0)
        login, tls = bool(session.authenticated), server.transport.get_extra_info("ssl_object") is not None
        self.mails.append(Mail(envelope.mail_from, list(envelope.rcpt_tos), envelope.content, tls, login))
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        self.logins += 1
        right = isinstance(data, LoginPassword) and (data.login, data.password) == (USER.encode(), PASSWORD.encode())
        # Otherwise the server would leave the client without an answer to a wrong password.
        return AuthResult(success=right, handled=False)


@asynccontextmanager
async def smtp_server(
    folder: Path, mode: Mode, *, names: Sequence[str] = ("localhost", "127.0.0.1"), **options: Any
) -> AsyncIterator[Box]:
    """Serves until the end of the block. `names`: those in its certificate. `options` are aiosmtpd's."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    box = Box(ca_file=str(folder / "ca.pem"))
    authority.cert_pem.write_to_path(box.ca_file)
    given: dict[str, Any] = {"authenticator": box.authenticate, "auth_require_tls": mode == "starttls"}
    if mode == "starttls":
        given |= {"tls_context": context, "require_starttls": True}
    loop = asyncio.get_running_loop()

    def accept() -> SMTP:
        box.connections += 1
        return SMTP(box, loop=loop, hostname="localhost", **{**given, **options})

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=context if mode == "implicit" else None)
    box.port = server.sockets[0].getsockname()[1]
    try:
        yield box
    finally:
        server.close()
