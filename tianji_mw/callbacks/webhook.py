"""Alerts to a webhook as JSON, signed where there is a secret. Budget events have LiteLLM's fields.

Source: LiteLLM's `WebhookEvent`. The signature is an HMAC-SHA256 (RFC 2104) over the time, a dot and the body, so that
neither can be changed and an old request cannot be sent again later.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import orjson

from tianji_mw.alerts import WEBHOOK_FIELDS
from tianji_mw.callbacks.alerts.delivery import AlertCallback, Group, Told
from tianji_mw.callbacks.alerts.hooks import HookCallback
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime


class Webhook(HookCallback):
    """One request for each alert; equal ones of a batch are one request with their `count`. Budget events go always.

    >>> Webhook(url="https://ops.corp/alerts", secret="shared with the receiver")
    """

    title: ClassVar[str] = "The webhook"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {**AlertCallback.env_fields, "url": ("WEBHOOK_URL",)}

    url: Secret | None = None
    #: Signs the requests; without one they are not signed.
    secret: Secret | None = None
    #: Take every 2xx for a success. LiteLLM's contract is 200 alone; another 2xx is then refused, and not repeated.
    any_2xx: bool = False

    async def start(self, runtime: Runtime) -> None:
        if not self.url:
            raise SetupError("The webhook: url is missing; set it in the config, or the variable WEBHOOK_URL.")
        await super().start(runtime)

    def addresses(self) -> Iterator[Secret]:
        if self.url:
            yield self.url

    def wants(self, told: Told) -> bool:
        return (bool(told.event) and not self.alert_types) or super().wants(told)

    def targets(self, told: Told) -> Sequence[str]:
        return [address.reveal() for address in self.addresses()]

    async def deliver(self, target: str, group: Group) -> None:
        raw = orjson.dumps(body_of(group))
        # The same in every attempt, so that the receiver can tell a repetition.
        headers = {"x-tianji-delivery": group.first.record.id}
        if self.secret:
            now = str(int(self._runtime.wall()))
            headers |= {"x-tianji-timestamp": now, "x-tianji-signature": signature(self.secret, now, raw)}
        response = await self.post(target, raw, headers)
        if response.status_code != 200 and not self.any_2xx:
            message = f"The webhook answered {response.status_code}, and only 200 is success; set any_2xx to take it"
            raise NotDelivered(message, retry=False)


def signature(secret: Secret, timestamp: str, body: bytes) -> str:
    """The value of `X-Tianji-Signature`."""
    signed = timestamp.encode() + b"." + body
    return "sha256=" + hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest()


def body_of(group: Group) -> dict[str, Any]:
    """The body: of a budget event its own fields, of other alerts all there is."""
    told = group.first
    if not told.event:
        return {
            "event": told.kind,
            "event_message": told.message,
            "level": told.level,
            "time": told.at,
            "count": group.count,
            "fields": told.fields,
        }
    body = {name: told.fields.get(name) for name in ("event", "event_group", "event_message", *WEBHOOK_FIELDS)}
    lists = {name: told.fields.get(name) for name in ("alert_emails", "max_budget_alert_emails")}
    return {**body, **{name: value for name, value in lists.items() if value}}
