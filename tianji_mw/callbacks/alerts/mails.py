"""`MailCallback`: what all destinations share that send mails about alerts. It is their base, and no plugin.

Every recipient gets a mail of their own: nobody sees who else got it, and one bad address keeps nothing from the
others. An alert without any recipient is counted and not sent.
"""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field

from tianji_mw.alerts import emails
from tianji_mw.callbacks.alerts.delivery import AlertCallback, Group, Told
from tianji_mw.callbacks.alerts.letters import Letter, Sender, letter_of
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.errors import SetupError
from tianji_mw.runtime import Runtime

#: Stricter than RFC 5321, section 4.1.2: no quotes, no comments, no literals, nothing that ends a line or a list.
_ADDRESS: Final = re.compile(r'[^\s"(),:;<>@\[\\\]]{1,64}@\w[\w.-]{0,252}')
#: Types that mails are for; `alert_types` may name others.
_KINDS: Final = frozenset(
    {"budget_alerts", "new_virtual_key_created", "virtual_key_updated", "new_internal_user_created"}
)


def is_email(address: str) -> bool:
    """Whether a mail can be sent there."""
    # "=?" begins an encoded word (RFC 2047), which a header's parser takes apart.
    fits = len(address) <= 254 and address.isprintable() and "=?" not in address
    return fits and _ADDRESS.fullmatch(address) is not None


def _with_commas(value: Any) -> Any:
    return emails(value) if isinstance(value, str) else value


class MailCallback(AlertCallback):
    """Base of destinations that send mails. Subclasses write `send`.

    Recipients are `to`, and whom the alert itself names: the owner, `alert_emails`, those of the percentage spent.
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AlertCallback.env_fields,
        "sender": ("SMTP_SENDER_EMAIL",),
        "logo_url": ("EMAIL_LOGO_URL", "SMTP_SENDER_LOGO"),
        "support_contact": ("EMAIL_SUPPORT_CONTACT",),
        "budget_alert_ttl_s": ("EMAIL_BUDGET_ALERT_TTL",),
    }

    #: Address that the mails come from.
    sender: str = ""
    #: Who gets every mail, as a list or with commas.
    to: Annotated[tuple[str, ...], BeforeValidator(_with_commas)] = Field(default=())
    #: Picture on top of the mails; an http or https address.
    logo_url: str = ""
    #: Whom the mails name for questions.
    support_contact: str = ""
    #: A batch is a mail after the other.
    batch_size: int = Field(default=64, ge=1, le=100_000)
    timeout_s: float = Field(default=300.0, gt=0, le=3600)

    async def start(self, runtime: Runtime) -> None:
        if not self.sender:
            variables = " or ".join(self.env_fields["sender"])
            raise SetupError(f"{self.title}: sender is missing; set it in the config, or the variable {variables}.")
        if wrong := [address for address in (self.sender, *self.to) if not is_email(address)]:
            raise SetupError(f"{self.title}: {wrong[0]!r} is no address for mails; write it as name@host.")
        await super().start(runtime)

    def wants(self, told: Told) -> bool:
        return told.kind in (self.alert_types or _KINDS)

    def targets(self, told: Told) -> Sequence[str]:
        found = dict.fromkeys([*self.to, *recipients(told)])
        if not found:
            self._runtime.count("mails_without_recipient", told.event or told.kind)
        return list(found)

    async def deliver(self, target: str, group: Group) -> None:
        if not is_email(target):
            raise NotDelivered(f"{self.title}: a recipient's address is none", retry=False)
        await self.send(target, letter_of(group), group)

    @abstractmethod
    async def send(self, recipient: str, letter: Letter, group: Group) -> None:
        """Send one mail. Raises NotDelivered."""

    @property
    def brand(self) -> Sender:
        """What is the same in all mails."""
        return Sender(logo_url=self.logo_url, support=self.support_contact, proxy_url=self.proxy_base_url)


def mail_id(recipient: str, group: Group) -> str:
    """What tells this mail from all others; the same in every attempt."""
    return hashlib.sha256(f"{group.first.record.id}\n{recipient}".encode()).hexdigest()[:32]


def recipients(told: Told) -> list[str]:
    """Whom the alert itself names, by the rules of LiteLLM."""
    fields: Mapping[str, Any] = told.fields
    owner, named = emails(fields.get("user_email")), emails(fields.get("alert_emails"))
    if told.event == "soft_budget_crossed" and fields.get("event_group") == "team":
        return named
    if told.event == "max_budget_alert":
        return [*owner, *named, *_of_percentage(fields)]
    return [*owner, *named]


def _of_percentage(fields: Mapping[str, Any]) -> list[str]:
    by_percent, percent = fields.get("max_budget_alert_emails"), fields.get("percent")
    if not isinstance(by_percent, Mapping) or not isinstance(percent, int | float):
        return []
    return [address for key, value in by_percent.items() if _number(key) == percent for address in emails(value)]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
