"""MLflow: every call as a trace of an experiment, by OTLP and REST; or sums of calls as metrics of one run a day.

Source: MLflow's tracing and REST documentation, its SDK 3.17, LiteLLM's `mlflow` callback. The SDK is not needed.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Final, Literal
from urllib.parse import quote

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw import redact
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.mlflow_runs import Totals
from tianji_mw.callbacks.otlp import mlflow_attributes
from tianji_mw.callbacks.otlp.exporter import Answered, Group, Headers, OtlpCallback
from tianji_mw.callbacks.otlp.spans import Attributes, Span
from tianji_mw.callbacks.record import content
from tianji_mw.callbacks.service import is_address
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.mlflow")

_V2: Final = "/api/2.0/mlflow"
#: Requests for `trace_info` at once.
_AT_ONCE: Final = 8
#: Answers of servers that have no such API.
_ABSENT: Final = frozenset({"405", "501"})


class Mlflow(OtlpCallback):
    """Sends calls to an MLflow tracking server.

    >>> Mlflow(endpoint="http://mlflow:5000", experiment_name="gateway")
    """

    title: ClassVar[str] = "MLflow"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "endpoint": ("MLFLOW_TRACKING_URI",),
        "api_key": ("MLFLOW_TRACKING_TOKEN",),
        "username": ("MLFLOW_TRACKING_USERNAME",),
        "password": ("MLFLOW_TRACKING_PASSWORD",),
        "experiment_name": ("MLFLOW_EXPERIMENT_NAME",),
        "experiment_id": ("MLFLOW_EXPERIMENT_ID",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "tracking_uri": "endpoint",
        "mlflow_tracking_uri": "endpoint",
        "tracking_token": "api_key",
        "token": "api_key",
    }

    batch_size: int = Field(default=100, ge=1, le=100_000)
    protocol: Literal["http/protobuf"] = "http/protobuf"
    #: A token, or a user and a password.
    username: str = ""
    password: Secret | None = None
    #: Made where it does not exist. The id goes before the name.
    experiment_name: str = "litellm"
    experiment_id: str = ""
    #: `runs`: no traces; one run for each process and day, with sums of its calls as metrics.
    mode: Literal["traces", "runs"] = "traces"
    run_name: str = "tianji-mw"

    _experiment: str = PrivateAttr(default="")
    #: Whether the server takes `trace_info`.
    _infos: bool = PrivateAttr(default=True)
    _totals: Totals = PrivateAttr(default_factory=Totals)
    _run: str = PrivateAttr(default="")
    _day: str = PrivateAttr(default="")

    async def start(self, runtime: Runtime) -> None:
        if self.endpoint and not is_address(self.endpoint):
            raise SetupError(
                f"{self.title}: endpoint is no address; write that of a tracking server, http://host:5000."
            )
        await super().start(runtime)
        self._experiment, self._infos = self.experiment_id, True

    async def aclose(self) -> None:
        if self._run:
            await self._finish()
        await super().aclose()

    # --- what is sent

    def resource(self, record: Record) -> Attributes:
        return {"service.name": "tianji-mw"}

    def attributes(self, span: Span, record: Record) -> Attributes:
        return mlflow_attributes.span_attributes(span, record)

    def extra_headers(self, record: Record) -> Headers:
        return {**self._login(), "x-mlflow-experiment-id": self._experiment}

    def _login(self) -> Headers:
        if self.api_key is not None:
            return {"authorization": Secret(f"Bearer {self.api_key.reveal()}")}
        if self.username and self.password is not None:
            pair = f"{self.username}:{self.password.reveal()}".encode()
            return {"authorization": Secret(f"Basic {base64.b64encode(pair).decode()}")}
        return {}

    def failure(self, response: Any) -> NotDelivered:
        """Servers may quote a login; it is in no message."""
        problem = super().failure(response)
        hidden = [value for value in (self.password, *self._login().values()) if isinstance(value, Secret)]
        problem.message = redact.text(problem.message, hidden)
        problem.args = (problem.message,)
        return problem

    # --- delivery

    async def write(self, batch: Sequence[Record]) -> None:
        if not self._experiment:
            self._experiment = await self._resolved()
        if self.mode == "runs":
            await self._count(batch)
        else:
            await super().write(batch)

    async def send_spans(self, group: Group) -> None:
        """The spans, and then `trace_info` of each call: who, and which session; the spans do not tell the server."""
        try:
            await super().send_spans(group)
        except Answered as problem:
            if problem.code in ("404", *_ABSENT):
                problem.message += " (traces need MLflow 3.6 or later with a database; `mode: runs` works with others)"
                problem.args = (problem.message,)
                problem.retry = True
            raise
        roots = {id(span.source): span for _, spans in group.spans.values() for span in spans if span.role == "call"}
        slots = asyncio.Semaphore(_AT_ONCE)

        async def tell(record: Record) -> None:
            async with slots:
                await self._tell(roots[id(record.data)], record)

        found = await asyncio.gather(*(tell(record) for record in group.records), return_exceptions=True)
        if problems := [one for one in found if isinstance(one, BaseException)]:
            raise problems[0]

    async def _tell(self, root: Span, record: Record) -> None:
        """Send `trace_info`. A server that has no use for it has the spans all the same."""
        if not self._infos:
            return
        body = mlflow_attributes.trace_info(root, record, self._experiment)
        try:
            await self._call("POST", "/api/3.0/mlflow/traces", body)
        except Answered as problem:
            gone = problem.code == "404" and "RESOURCE_DOES_NOT_EXIST" in problem.message
            if gone:
                self._experiment = self.experiment_id  # the name is looked up once more
                raise
            if problem.code == "404" or problem.code in _ABSENT:
                self._infos = False
                log.warning("%s takes no trace_info: user, session and tags are left out", self.title)
            elif problem.retry:
                raise
            self._runtime.count("mlflow_trace_info", problem.code)

    async def _call(self, method: str, path: str, body: Any = None) -> Mapping[str, Any]:
        """A call of the REST API; the answer's object. Raises NotDelivered."""
        raw = b"" if body is None else orjson.dumps(body)
        headers = {**self.headers, **self._login()}
        answer = await self.post(self.endpoint.rstrip("/") + path, raw, headers, method=method)
        try:
            return content.mapping(orjson.loads(answer.content or b"{}"))
        except orjson.JSONDecodeError:
            raise NotDelivered(f"{self.title} answered without JSON; is it the address of a tracking server?") from None

    async def _resolved(self) -> str:
        """The id of the experiment, which is made where there is none. Raises NotDelivered."""
        if (found := await self._found()) is not None:
            return found
        try:
            made = await self._call("POST", f"{_V2}/experiments/create", {"name": self.experiment_name})
        except Answered as problem:
            if problem.code != "400":
                raise
            made = {"experiment_id": await self._found()}  # another process was faster
        if (found := content.word(made.get("experiment_id"))) is None:
            raise NotDelivered(f"{self.title} answered without the id of the experiment")
        return found

    async def _found(self) -> str | None:
        name = quote(self.experiment_name, safe="")
        try:
            answer = await self._call("GET", f"{_V2}/experiments/get-by-name?experiment_name={name}")
        except Answered as problem:
            if problem.code == "404" and "RESOURCE_DOES_NOT_EXIST" in problem.message:
                return None
            raise
        found = content.mapping(answer.get("experiment"))
        if found.get("lifecycle_stage") == "deleted":
            raise NotDelivered(f"{self.title}: the experiment is deleted; restore it, or configure another one")
        return content.word(found.get("experiment_id"))

    # --- runs

    async def _count(self, batch: Sequence[Record]) -> None:
        """Add the records to the day's sums, and log the sums as they stand: what failed is in the next ones."""
        now_ms = int(self._runtime.wall() * 1000)
        day = datetime.fromtimestamp(now_ms // 1000, UTC).strftime("%Y-%m-%d")
        if self._run and day != self._day:
            await self._finish()
            self._totals = Totals()
        for record in batch:
            self._totals.add(record)
        if not self._run:
            self._run, self._day = await self._begun(now_ms, day), day
        body = {"run_id": self._run, "metrics": self._totals.metrics(now_ms), "params": [], "tags": []}
        try:
            await self._call("POST", f"{_V2}/runs/log-batch", body)
        except Answered as problem:
            if problem.code == "404":
                self._run = ""  # somebody deleted it; the next attempt makes another
            problem.retry = True
            raise

    async def _begun(self, now_ms: int, day: str) -> str:
        tags = [{"key": "tianji.day", "value": day}, {"key": "mlflow.source.name", "value": "tianji-mw"}]
        body = {
            "experiment_id": self._experiment,
            "start_time": now_ms,
            "run_name": f"{self.run_name} {day}",
            "tags": tags,
        }
        answer = await self._call("POST", f"{_V2}/runs/create", body)
        info = content.mapping(content.mapping(answer.get("run")).get("info"))
        if (found := content.word(info.get("run_id"))) is None:
            raise NotDelivered(f"{self.title} answered without the id of the run")
        return found

    async def _finish(self) -> None:
        """End the run. It stays open, and is counted, where the server cannot be reached."""
        run, self._run = self._run, ""
        body = {"run_id": run, "status": "FINISHED", "end_time": int(self._runtime.wall() * 1000)}
        try:
            await self._call("POST", f"{_V2}/runs/update", body)
        except NotDelivered:
            self._runtime.count("mlflow_run_left_open", self.title)
