"""A provider of your own, outside the package: an OpenAI-like server with another address and another key header.

In YAML: `litellm_params: {model: small-1, custom_llm_provider: "examples.plugins.shouting_provider:Shouting", ...}`.
"""

from typing import ClassVar

from tianji_mw import Provider


class Shouting(Provider):
    """Speaks chat completions at `/generate` and wants its key as `x-shout-key`."""

    name: str = "shouting"
    key_env: ClassVar[tuple[str, ...]] = ("SHOUTING_API_KEY",)

    @property
    def speaks(self) -> frozenset[str]:
        return frozenset({"chat_completions"})

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        return f"{self.base}/generate"

    async def credentials(self) -> list[tuple[str, str]]:
        return [("x-shout-key", self.api_key.reveal())] if self.api_key else []
