"""LangSmith: every call as a run of a project, in batches; a call that took several attempts has a run for each.

Source: LangSmith's API reference (`POST /runs/batch`, `GET /info`), and what its SDK sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw.callbacks._groups import Delivery, Item, Limits, built, groups, joined
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.langsmith_runs import Naming, runs_of
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.service import HttpCallback
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

#: What the service takes where it does not say.
_DEFAULT: Final = Limits(100, 20 << 20)
#: Bytes of a request around its runs.
_AROUND: Final = 32
#: Seconds after which a service that told no limits is asked again.
_ASK_AGAIN_S: Final = 300.0
_HEX: Final = re.compile(r"[0-9a-f]{8}")


class Langsmith(HttpCallback):
    """Sends calls to LangSmith.

    >>> Langsmith(api_key="lsv2_...", project="gateway")
    """

    title: ClassVar[str] = "LangSmith"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "api_key": ("LANGSMITH_API_KEY",),
        "api_base": ("LANGSMITH_BASE_URL", "LANGSMITH_ENDPOINT"),
        "project": ("LANGSMITH_PROJECT",),
        "tenant_id": ("LANGSMITH_TENANT_ID",),
        "run_name": ("LANGSMITH_DEFAULT_RUN_NAME",),
        "batch_size": ("LANGSMITH_BATCH_SIZE",),
        "sample_rate": ("LANGSMITH_SAMPLING_RATE",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "langsmith_api_key": "api_key",
        "langsmith_base_url": "api_base",
        "langsmith_project": "project",
        "langsmith_tenant_id": "tenant_id",
        "langsmith_default_run_name": "run_name",
        "langsmith_batch_size": "batch_size",
        "langsmith_sampling_rate": "sample_rate",
    }

    #: `/api/v1` is added where it has no path. Regions have their own hosts, such as https://eu.api.smith.langchain.com.
    api_base: str = "https://api.smith.langchain.com"
    #: Its name; a request's metadata may name another one.
    project: str = "litellm-completion"
    #: The workspace, for keys that open several.
    tenant_id: str = ""
    run_name: str = "LLMRun"
    #: Share of the calls that went well, decided by the trace, as for every destination. Failures are all sent.
    sample_rate: float = Field(default=1.0, ge=0.0, le=1.0)

    _limits: Limits | None = PrivateAttr(default=None)
    _ask_at: float = PrivateAttr(default=0.0)
    _known: Mapping[str, str | Secret] = PrivateAttr(default_factory=dict)

    async def start(self, runtime: Runtime) -> None:
        await super().start(runtime)
        tenant: dict[str, str | Secret] = {"x-tenant-id": self.tenant_id} if self.tenant_id else {}
        self._known = {"x-api-key": self.api_key or Secret(""), **tenant}

    async def write(self, batch: Sequence[Record]) -> None:
        limits = await self._allowed()
        naming = Naming(project=self.project, run_name=self.run_name)

        def build(record: Record) -> list[bytes]:
            if not self._is_sampled(record):
                return []
            runs = [orjson.dumps(run) for run in runs_of(record, naming)]
            if len(runs) > limits.count or sum(map(len, runs)) + len(runs) > limits.size:
                runs = [orjson.dumps(run) for run in runs_of(record, naming, brief=True)]
            return runs

        items, refused = await built(batch, build, limits)
        delivery = Delivery(self.title, refused)
        await delivery.send(groups(items, limits), self._send)
        delivery.done()

    def _is_sampled(self, record: Record) -> bool:
        """The environment may set the rate, so it is decided here; by the rule of `Destination.wants`."""
        digits = content.as_text(content.ours(record).get("trace_id") or record.data.get("trace_id"))[:8]
        if self.sample_rate >= 1 or content.failure(record) is not None or not _HEX.fullmatch(digits):
            return True
        return int(digits, 16) < self.sample_rate * (1 << 32)

    async def _send(self, group: list[Item]) -> None:
        try:
            await self.post(self._url("/runs/batch"), b'{"post":[%b],"patch":[]}' % joined(group), self._known)
        except _AlreadyThere:
            return

    def failure(self, response: Any) -> NotDelivered:
        problem = super().failure(response)
        return _AlreadyThere(problem.message) if response.status_code == 409 else problem

    def _url(self, path: str) -> str:
        base = self.api_base.rstrip("/")
        return f"{base}{'' if urlsplit(base).path else '/api/v1'}{path}"

    async def _allowed(self) -> Limits:
        """The service's limits, asked for once."""
        if self._limits is not None or self._wall is None or self._wall() < self._ask_at:
            return self._limits or _DEFAULT
        self._ask_at = self._wall() + _ASK_AGAIN_S
        try:
            answer = await self.post(self._url("/info"), b"", self._known, method="GET")
            told = content.mapping(content.mapping(orjson.loads(answer.content)).get("batch_ingest_config"))
        except (NotDelivered, orjson.JSONDecodeError):
            return _DEFAULT
        count, size = content.count(told.get("size_limit")), content.count(told.get("size_limit_bytes"))
        self._limits = Limits(count or _DEFAULT.count, max((size or _DEFAULT.size) - _AROUND, 1))
        return self._limits


class _AlreadyThere(NotDelivered):
    """The service has these runs from an earlier attempt."""
