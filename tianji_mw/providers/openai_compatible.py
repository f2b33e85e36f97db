"""Every provider that copies OpenAI's chat API, described by a registry entry instead of code."""

from __future__ import annotations

from collections.abc import Mapping

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context
from tianji_mw.providers.base import OPENAI_PATHS, Provider
from tianji_mw.providers.registry import Spec
from tianji_mw.upstream import RawHeaders


class OpenAICompatible(Provider):
    """`model: groq/llama-3.3-70b`, or any name under `general_settings.providers`."""

    spec: Spec

    @property
    def speaks(self) -> frozenset[str]:
        return self.spec.speaks

    @property
    def base(self) -> str:
        return (self.api_base or self.spec.base_url).rstrip("/")

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        path = self.spec.chat_path if wire == "chat_completions" else OPENAI_PATHS[wire]
        return f"{self.base}/{path}"

    async def credentials(self) -> RawHeaders:
        spec = self.spec
        key = self.api_key.reveal() if self.api_key else ""
        found = [(name.lower(), value.replace("{api_key}", key)) for name, value in spec.headers.items()]
        if key and spec.auth_header and not any("{api_key}" in value for value in spec.headers.values()):
            found.append((spec.auth_header.lower(), f"{spec.auth_prefix}{key}"))
        return found

    def prepares(self, request: Mapping[str, JSON], wire: str) -> bool:
        spec = self.spec
        return (
            not spec.param_mappings.keys().isdisjoint(request)
            or bool(spec.special_handling)
            or any(name in request for name in spec.drop_params)
            or (bool(spec.constraints) and "temperature" in request)
        )

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        spec = self.spec
        for old, new in spec.param_mappings.items():
            if old in request:
                value = request.pop(old)
                request.setdefault(new, value)
        for name in spec.drop_params:
            if request.pop(name, None) is not None:
                context.dropped.append(name)
        temperature = request.get("temperature")
        if isinstance(temperature, int | float):
            low = spec.constraints.get("temperature_min", temperature)
            high = spec.constraints.get("temperature_max", temperature)
            request["temperature"] = min(max(temperature, low), high)
        if spec.special_handling.get("force_store_false"):
            request["store"] = False
        if spec.special_handling.get("convert_content_list_to_string"):
            request["messages"] = [_plain(message) for message in request.get("messages") or ()]


def _plain(message: JSON) -> JSON:
    """A message whose content is a list of text parts, with the texts joined; others stay."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return message
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
