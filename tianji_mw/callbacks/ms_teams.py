"""Alerts to Microsoft Teams: an adaptive card for the webhook of a workflow, or of an old connector.

Source: Microsoft Teams documentation, "Create incoming webhooks" and "Adaptive Cards"; connectors answer 200 for what
Teams then did not take, and say so in the body.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

from tianji_mw.callbacks.alerts.delivery import AlertCallback, Group, Told
from tianji_mw.callbacks.alerts.hooks import HookCallback
from tianji_mw.callbacks.alerts.text import clock_time, cut, harmless, one_line
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

#: A message may have 28 KB; four bytes a character, and room for the card around it.
_MOST: Final = 6000
_NOT_TAKEN: Final = b"Webhook message delivery failed"


class MSTeams(HookCallback):
    """One card for each alert; equal ones of a batch are one card that says how many they are.

    >>> MSTeams(webhook_url="https://example.logic.azure.com/workflows/x?sig=y")
    """

    title: ClassVar[str] = "Microsoft Teams"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AlertCallback.env_fields,
        "webhook_url": ("MS_TEAMS_WEBHOOK_URL",),
    }

    webhook_url: Secret | None = None

    async def start(self, runtime: Runtime) -> None:
        if not self.webhook_url:
            raise SetupError(
                "Microsoft Teams: webhook_url is missing; set it in the config, or the variable MS_TEAMS_WEBHOOK_URL."
            )
        await super().start(runtime)

    def addresses(self) -> Iterator[Secret]:
        if self.webhook_url:
            yield self.webhook_url

    def targets(self, told: Told) -> Sequence[str]:
        return [address.reveal() for address in self.addresses()]

    async def deliver(self, target: str, group: Group) -> None:
        response = await self.post(target, card(self.text(group)))
        if response.content.lstrip().startswith(_NOT_TAKEN):
            raise NotDelivered("Microsoft Teams answered 200, and that the message was not delivered")

    def text(self, group: Group) -> str:
        """The text of the card; its paragraphs are two line ends apart."""
        told = group.first
        parts = [f"[Num Alerts: {group.count}]"] if group.count > 1 else []
        parts.append(f"**Alert type:** {_plain(told.kind)}")
        parts.append(f"**Level:** {_plain(told.level.capitalize())}")
        parts.append(f"**Timestamp:** {clock_time(told.at)}")
        lines = [_plain(line) for line in cut(told.message, _MOST // 2).splitlines() if line.strip()]
        parts.append("**Message:** " + "\n\n".join(lines))
        parts.extend(f"**{_plain(name)}:** {_plain(value)}" for name, value in self.facts(group))
        if self.proxy_base_url:
            parts.append(f"**Proxy URL:** {_plain(self.proxy_base_url)}")
        return cut("\n\n".join(parts), _MOST)


def _plain(text: str) -> str:
    return harmless(one_line(text))


def card(text: str) -> dict[str, Any]:
    """A message with an adaptive card that holds this text."""
    return {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.2",
                    "body": [{"type": "TextBlock", "text": text, "wrap": True}],
                },
            }
        ],
    }
