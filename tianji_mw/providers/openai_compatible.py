"""Every provider that copies OpenAI's chat API, described by a registry entry instead of code."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.bridges.base import Context
from tianji_mw.providers.base import OPENAI_PATHS, Provider
from tianji_mw.providers.registry import Spec
from tianji_mw.redact import Secret
from tianji_mw.upstream import RawHeaders


class OpenAICompatible(Provider):
    """`model: groq/llama-3.3-70b`, or any name under `general_settings.providers`."""

    name: str = "openai_compatible"
    spec: Spec = Spec()

    @model_validator(mode="after")
    def _has_base(self) -> OpenAICompatible:
        if not (self.api_base or self.spec.base_url):
            variable = f" or {self.spec.api_base_env[0]}" if self.spec.api_base_env else ""
            raise ValueError(f"the provider '{self.name}' has no address of its own: set 'api_base'{variable}")
        return self

    @property
    def speaks(self) -> frozenset[str]:
        return self.spec.speaks

    @property
    def base(self) -> str:
        return (self.api_base or self.spec.base_url).rstrip("/")

    def url(self, wire: str, model: str, *, stream: bool) -> str:
        path = self.spec.chat_path.lstrip("/") if wire == "chat_completions" else OPENAI_PATHS[wire]
        return f"{self.base}/{path}"

    async def credentials(self) -> RawHeaders:
        if not self.api_key:
            return []
        spec, key = self.spec, self.api_key.reveal()
        found = [(k.lower(), v.replace("{api_key}", key)) for k, v in self._headers() if "{api_key}" in v]
        if not found and spec.auth_header:
            found = [(spec.auth_header.lower(), f"{spec.auth_prefix}{key}")]
        return found

    def lacks(self) -> str:
        spec = self.spec
        with_key = bool(spec.auth_header) or any("{api_key}" in value for _, value in self._headers())
        if self.api_base or spec.is_local or not spec.api_key_env or not with_key or self._headers_say_who():
            return ""
        return f"set {spec.api_key_env[0]}, or 'api_key'"

    def static_headers(self) -> RawHeaders:
        return [(name.lower(), value) for name, value in self._headers() if "{api_key}" not in value]

    def _headers(self) -> list[tuple[str, str]]:
        return [(k, v.reveal() if isinstance(v, Secret) else v) for k, v in self.spec.headers.items()]

    @property
    def secrets(self) -> tuple[Secret, ...]:
        own = (v for v in self.spec.headers.values() if isinstance(v, Secret) and "{api_key}" not in v.reveal())
        return (*super().secrets, *own)

    def prepares(self, request: Mapping[str, JSON], wire: str, model: str) -> bool:
        spec = self.spec
        return (
            not spec.param_mappings.keys().isdisjoint(request)
            or any(spec.special_handling.values())
            or any(name in request for name in spec.drop_params)
            or (bool(spec.constraints) and "temperature" in request)
        )

    def prepare(self, request: dict[str, JSON], wire: str, context: Context) -> None:
        spec = self.spec
        renamed = {spec.param_mappings[old]: request.pop(old) for old in spec.param_mappings.keys() & request.keys()}
        for name, value in renamed.items():
            # Where a client sends both names, the provider's own one holds.
            request.setdefault(name, value)
        for name in spec.drop_params:
            if name in request:
                del request[name]
                context.dropped.append(name)
        _clamp(request, spec)
        if wire in ("chat_completions", "responses") and spec.special_handling.get("force_store_false"):
            request["store"] = False
        if spec.special_handling.get("convert_content_list_to_string") and isinstance(request.get("messages"), list):
            request["messages"] = [_plain(message) for message in request["messages"]]


def _clamp(request: dict[str, JSON], spec: Spec) -> None:
    """Bring the temperature into the provider's range."""
    given = request.get("temperature")
    if isinstance(given, bool) or not isinstance(given, int | float):
        return
    value, limits, n = given, spec.constraints, request.get("n")
    if isinstance(n, int) and n > 1:
        value = max(value, limits.get("temperature_min_with_n_gt_1", value))
    value = max(value, limits.get("temperature_min", value))
    request["temperature"] = min(value, limits.get("temperature_max", value))


def _plain(message: JSON) -> JSON:
    """A message whose content is a list of text parts, with the texts joined; others stay."""
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(content, list) or not all(isinstance(p, dict) and p.get("type") == "text" for p in content):
        return message
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
