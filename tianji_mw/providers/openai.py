"""OpenAI, and any server that copies its whole API (`openai/<model>` with an `api_base`).

Source: OpenAI API reference. Bodies go through as they came; only the model name is replaced, and for reasoning models
the older name of the token limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context
from tianji_mw.providers.base import Provider
from tianji_mw.upstream import RawHeaders


class OpenAI(Provider):
    """`model: openai/gpt-4o`. Environment: OPENAI_API_KEY, OPENAI_BASE_URL, OPENAI_ORGANIZATION."""

    default_base: ClassVar[str] = "https://api.openai.com/v1"
    key_env: ClassVar[tuple[str, ...]] = ("OPENAI_API_KEY",)
    base_env: ClassVar[tuple[str, ...]] = ("OPENAI_BASE_URL", "OPENAI_API_BASE")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {"organization": ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID")}
    forwards: ClassVar[frozenset[str]] = frozenset({"openai-beta", "idempotency-key"})

    name: str = "openai"
    organization: str = ""

    @property
    def speaks(self) -> frozenset[str]:
        return _SPEAKS

    def static_headers(self) -> RawHeaders:
        return [("openai-organization", self.organization)] if self.organization else ()

    def prepares(self, request: Mapping[str, JSON], wire: str, model: str) -> bool:
        return wire == "chat_completions" and "max_tokens" in request and reasons(model)

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        rename_limit(request)


_SPEAKS: Final = frozenset(
    {"chat_completions", "completions", "embeddings", "responses", "moderations", "rerank", "passthrough"}
)
_REASONING: Final = ("o1", "o3", "o4", "gpt-5")


def reasons(model: str) -> bool:
    """Whether this is one of OpenAI's reasoning models, by name (also `azure/o3`, or a fine-tune's `ft:o4-mini:`)."""
    return model.rpartition("/")[2].removeprefix("ft:").startswith(_REASONING)


def rename_limit(request: dict[str, JSON]) -> None:
    """Reasoning models refuse `max_tokens`; the newer field means the same."""
    limit = request.pop("max_tokens", None)
    if limit is not None:
        request.setdefault("max_completion_tokens", limit)
