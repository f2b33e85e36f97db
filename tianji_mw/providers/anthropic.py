"""Anthropic's Messages API. Chat completions, completions and responses are bridged onto it.

Source: Anthropic API reference, "Messages", "Versioning", "Errors".
"""

from __future__ import annotations

from typing import ClassVar

from tianji_mw.bridges.base import Bridge
from tianji_mw.providers.base import OPENAI_PATHS, Provider, bridge_over_chat
from tianji_mw.upstream import RawHeaders


class Anthropic(Provider):
    """`model: anthropic/claude-...`. Environment: ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL."""

    default_base: ClassVar[str] = "https://api.anthropic.com"
    key_env: ClassVar[tuple[str, ...]] = ("ANTHROPIC_API_KEY",)
    base_env: ClassVar[tuple[str, ...]] = ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_BASE")
    forwards: ClassVar[frozenset[str]] = frozenset({"anthropic-beta", "anthropic-version"})

    prefills: ClassVar[bool] = True

    name: str = "anthropic"

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset({"messages", "count_tokens"})

    def wire(self, api: str) -> str:
        return api if api in self.speaks else "messages"

    def bridge(self, api: str) -> Bridge | None:
        if api in self.speaks:
            return None
        from tianji_mw.bridges.chain import Chain
        from tianji_mw.bridges.chat_over_messages import ChatOverMessages

        if api == "chat_completions":
            return ChatOverMessages()
        over = bridge_over_chat(api)
        return Chain(over, ChatOverMessages()) if over is not None else super().bridge(api)

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        return f"{self.base.removesuffix('/v1')}/v1/{OPENAI_PATHS[wire]}"

    async def credentials(self) -> RawHeaders:
        if not self.api_key:
            return []
        key = self.api_key.reveal()
        # OAuth access tokens are told by their prefix and go as a bearer token.
        return [("authorization", f"Bearer {key}")] if key.startswith("sk-ant-oat") else [("x-api-key", key)]

    def static_headers(self) -> RawHeaders:
        return [("anthropic-version", "2023-06-01")]
