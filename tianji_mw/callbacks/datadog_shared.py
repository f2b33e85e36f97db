"""What both of Datadog's destinations share: where it is, the service's tags, and what is cut from a huge record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Final

from pydantic import Field

from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.service import HttpCallback
from tianji_mw.errors import SetupError
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

_UNFIT: Final = re.compile(r"[^a-z0-9_\-:./]+")
_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_TAG: Final = 200


class DatadogCallback(HttpCallback):
    """Base of both: straight to Datadog with a key, or to an agent nearby, which needs none."""

    needs: ClassVar[tuple[str, ...]] = ()
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("DD_API_KEY",),
        "api_base": ("DD_BASE_URL",),
        "site": ("DD_SITE",),
        "service": ("DD_SERVICE",),
        "env": ("DD_ENV",),
        "version": ("DD_VERSION",),
        "source": ("DD_SOURCE",),
        "hostname": ("HOSTNAME",),
        "pod_name": ("POD_NAME",),
        "batch_size": ("DD_BATCH_SIZE",),
        "agent_host": ("LITELLM_DD_AGENT_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "dd_api_key": "api_key",
        "dd_site": "site",
        "dd_agent_host": "agent_host",
        "dd_agent_port": "agent_port",
        "dd_base_url": "api_base",
    }

    #: Such as us5.datadoghq.com, ap1.datadoghq.com or datadoghq.eu.
    site: str = "datadoghq.com"
    service: str = "litellm-server"
    env: str = "unknown"
    version: str = ""
    source: str = "litellm"
    hostname: str = ""
    pod_name: str = ""
    #: An agent's host: records go there.
    agent_host: str = ""
    agent_port: int = Field(default=10518, ge=1, le=65535)

    async def start(self, runtime: Runtime) -> None:
        if not self.agent_host and not self.api_key:
            raise SetupError(f"{self.title}: api_key is missing; set it in the config, or the variable DD_API_KEY.")
        if not _HOST.fullmatch(self.site):
            raise SetupError(f"{self.title}: site is no host; write it as datadoghq.com.")
        if self.agent_host and not (_HOST.fullmatch(self.agent_host) or ":" in self.agent_host):
            raise SetupError(f"{self.title}: agent_host is no host; write its name or address alone.")
        await super().start(runtime)

    def base(self, intake: str) -> str:
        """The address of an agent, else the one that the config gives, else Datadog's own `intake`."""
        if self.agent_host:
            host = f"[{self.agent_host}]" if ":" in self.agent_host else self.agent_host
            return f"http://{host}:{self.agent_port}"
        return (self.api_base or f"https://{intake}.{self.site}").rstrip("/")

    def login(self) -> dict[str, str | Secret]:
        """The header that says who we are; an agent has a key of its own."""
        return {} if self.agent_host or self.api_key is None else {"dd-api-key": self.api_key}

    def own_tags(self) -> list[str]:
        """Tags of the process."""
        named = {
            "env": self.env, "service": self.service, "version": self.version, "hostname": self.hostname,
            "pod_name": self.pod_name,
        }  # fmt: skip
        return [tag(f"{name}:{value}") for name, value in named.items() if value]


def tags_of(record: Record) -> list[str]:
    """Tags of a call: those of its request, and its team."""
    found = [tag(f"request_tag:{one}") for one in content.tags(record)]
    who = content.mapping(record.data.get("metadata"))
    if team := content.word(who.get("user_api_key_team_alias")) or content.word(who.get("user_api_key_team_id")):
        found.append(tag(f"team:{team}"))
    return list(dict.fromkeys(found))


def tag(text: str) -> str:
    """The text as Datadog keeps tags: lower case, of a few characters, at most 200 of them."""
    return _UNFIT.sub("_", text.lower())[:_TAG].rstrip("_")
