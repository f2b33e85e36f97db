"""Alerts to Slack, or to whoever takes Slack's format, such as a Discord webhook whose address ends with `/slack`.

Source: Slack API documentation, "Sending messages using incoming webhooks" and "Formatting text for app surfaces";
LiteLLM's Slack alerting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final

from pydantic import Field

from tianji_mw.callbacks.alerts.delivery import AlertCallback, Group, Told
from tianji_mw.callbacks.alerts.hooks import HookCallback
from tianji_mw.callbacks.alerts.text import clock_time, cut, harmless, one_line
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

#: Slack advises 4,000 characters; Discord refuses more than 2,000.
_MOST: Final = 3500
_MOST_DISCORD: Final = 1900
#: What Slack reads as markup must be written so, and nothing else.
_ESCAPES: Final = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Slack(HookCallback):
    """One message for each alert; equal ones of a batch are one message that says how many they are.

    >>> Slack(webhook_url="https://hooks.slack.com/services/T0/B0/x")
    """

    title: ClassVar[str] = "Slack"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AlertCallback.env_fields,
        "webhook_url": ("SLACK_WEBHOOK_URL", "ALERTING_WEBHOOK_URL"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        **AlertCallback.aliases,
        "default_webhook_url": "webhook_url",
        "alert_to_webhook_url": "webhook_urls",
    }

    webhook_url: Secret | None = None
    #: Addresses for alerts of a type, instead of the one above.
    webhook_urls: dict[str, Secret | tuple[Secret, ...]] = Field(default_factory=dict)

    async def start(self, runtime: Runtime) -> None:
        if not self.webhook_url and not self.webhook_urls:
            names = " or ".join(self.env_fields["webhook_url"])
            raise SetupError(f"Slack: webhook_url is missing; set it in the config, or the variable {names}.")
        await super().start(runtime)

    def addresses(self) -> Iterator[Secret]:
        if self.webhook_url:
            yield self.webhook_url
        for addresses in self.webhook_urls.values():
            yield from addresses if isinstance(addresses, tuple) else (addresses,)

    def targets(self, told: Told) -> Sequence[str]:
        found = self.webhook_urls.get(told.kind) or self.webhook_url
        if not found:
            self._runtime.count("alerts_without_address", f"{self.title} {told.kind}")
            return ()
        return [address.reveal() for address in (found if isinstance(found, tuple) else (found,))]

    async def deliver(self, target: str, group: Group) -> None:
        most = _MOST_DISCORD if target.rstrip("/").endswith("/slack") else _MOST
        await self.post(target, {"text": self.text(group, most)})

    def text(self, group: Group, most: int = _MOST) -> str:
        """The message in LiteLLM's form."""
        told = group.first
        parts = [f"[Num Alerts: {group.count}]\n\n"] if group.count > 1 else []
        parts.append(f"Alert type: {_code(told.kind)}\nLevel: {_code(told.level.capitalize())}\n")
        parts.append(f"Timestamp: {_code(clock_time(told.at))}\n\nMessage: ")
        end = [f"\n\n{_escaped(name)}: {_code(value)}" for name, value in self.facts(group)]
        if self.proxy_base_url:
            end.append(f"\n\nProxy URL: {_code(self.proxy_base_url)}")
        head, tail = "".join(parts), cut("".join(end), most // 2)
        return head + cut(_escaped(told.message), max(most - len(head) - len(tail), 100)) + tail


def _escaped(text: str) -> str:
    return harmless(text).translate(_ESCAPES)


def _code(text: str) -> str:
    return f"`{_escaped(one_line(text)).replace('`', chr(0x27))}`"
