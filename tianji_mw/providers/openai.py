"""OpenAI, and any server that copies its whole API (`openai/<model>` with an `api_base`).

Source: OpenAI API reference. Bodies go through as they came; only the model name is replaced.
"""

from __future__ import annotations

from typing import ClassVar

from tianji_mw.providers.base import Provider
from tianji_mw.upstream import RawHeaders


class OpenAI(Provider):
    """`model: openai/gpt-4o`. Environment: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORGANIZATION."""

    default_base: ClassVar[str] = "https://api.openai.com/v1"
    key_env: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    base_env: ClassVar[tuple[str, ...]] = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
    forwards: ClassVar[frozenset[str]] = frozenset({"openai-beta", "idempotency-key"})

    name: str = "openai"
    organization: str = ""

    @property
    def speaks(self) -> frozenset[str]:
        return _SPEAKS

    def static_headers(self) -> RawHeaders:
        extra = [("openai-organization", self.organization)] if self.organization else []
        return [*super().static_headers(), *extra]


_SPEAKS = frozenset({"chat_completions", "completions", "embeddings", "responses", "moderations", "rerank", "passthrough"})
