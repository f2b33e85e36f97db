"""`HttpGuardrail`: what all guardrails share that ask a service over HTTP. It is the base of such files, and no plugin.

One client for each service, opened at the start. Errors name the guardrail and the status, and never a text, a key
or a part of the answer.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from tianji_mw import http, plugins
from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.errors import SetupError, TianjiError
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Verdict
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

T = TypeVar("T")

#: Questions that one check has open at once.
_AT_ONCE: Final = 8
_GATEWAY: Final = frozenset({502, 503, 504})


class HttpService(BaseModel):
    """A service that answers JSON over HTTP: its address, its key, its errors. Subclasses write `login`."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    #: What error messages call it.
    title: ClassVar[str]
    #: Variables that a setting may come from; see `Guardrail`.
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: Fields that cannot stay empty.
    needs: ClassVar[tuple[str, ...]] = ("api_key", "api_base")

    api_key: Secret | None = None
    #: Address of the service, without a path unless its class says otherwise.
    api_base: str = ""
    timeout_s: float = Field(default=10.0, gt=0, le=600)

    _client: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Open the client. Raises SetupError when a setting is missing."""
        for field in self.needs:
            if not getattr(self, field):
                variables = " or ".join(self.env_fields.get(field, ()))
                cure = f"set it in the config, or the variable {variables}" if variables else "set it in the config"
                raise SetupError(f"{self.title}: {field} is missing; {cure}.")
        if not _is_address(self.api_base):
            raise SetupError(f"{self.title}: api_base is no address; write it as https://host.")
        # Of compressed answers only the packed size would be bounded.
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        connect_s = min(3.0, self.timeout_s)
        self._client = http.client(timeout_s=self.timeout_s, connect_s=connect_s, headers=headers, guard=False)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    @abstractmethod
    def login(self, key: str) -> Mapping[str, str]:
        """The headers that carry the key, which is empty where there is none."""

    async def post(self, path: str, body: JSON, headers: Mapping[str, str | Secret] | None = None) -> dict[str, JSON]:
        """The JSON object that the service answers. Raises GuardrailFailed."""
        if self._client is None:
            raise GuardrailFailed(f"{self.title} was not started")
        url = self.api_base.rstrip("/") + path if path else self.api_base
        try:
            raw = orjson.dumps(body)
        except TypeError:
            raise GuardrailFailed(f"{self.title}: a text is no valid Unicode") from None
        response = await self._sent(url, raw, headers or {})
        # A key of a secret manager may have been changed since it was read.
        if response.status_code == 401 and await self._renewed():
            response = await self._sent(url, raw, headers or {})
        return self._read(response)

    async def _renewed(self) -> bool:
        try:
            return self.api_key is not None and await self.api_key.renew()
        except TianjiError:
            return False

    async def _sent(self, url: str, raw: bytes, headers: Mapping[str, str | Secret]) -> Any:
        try:
            login = self.login(_shown(self.api_key or ""))
            own = {name.lower(): _shown(value) for name, value in headers.items()}
            sent = {"content-type": "application/json", **own, **login}
            # Shortly before the layer's own deadline, so that this is known as silence of the service.
            async with asyncio.timeout(0.95 * self.timeout_s):
                return await self._client.post(url, content=raw, headers=sent)
        except (TimeoutError, http.HTTPError, TianjiError, UnicodeError) as error:
            silent = isinstance(error, (TimeoutError, http.TimeoutException))
            what = "did not answer in time" if silent else f"cannot be asked ({type(error).__name__})"
            raise GuardrailFailed(
                f"{self.title} {what}", unreachable=silent or isinstance(error, http.BROKEN)
            ) from None

    def _read(self, response: Any) -> dict[str, JSON]:
        status = response.status_code
        if status != 200:
            asked = response.headers.get("retry-after", "")
            pause = min(float(asked), 3600.0) if asked.isdecimal() and len(asked) < 10 else None
            told = f"{self.title} answered with status {status}"
            raise GuardrailFailed(told, unreachable=status in _GATEWAY, retry_after_s=pause)
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise GuardrailFailed(f"{self.title} answered with something that is no JSON object")
        return answer

    def malformed(self, what: str) -> GuardrailFailed:
        """The error for an answer that is not what the API promises; `what` holds no part of it."""
        return GuardrailFailed(f"{self.title}: the answer {what}")


class HttpGuardrail(HttpService, Guardrail):
    """Base of guardrails behind an HTTP API. Subclasses write `login` and `ask`."""

    #: LiteLLM's and other names of our fields.
    aliases: ClassVar[Mapping[str, str]] = {}
    #: One question for each answer; asked about each part of a stream, a service would be asked hundreds of times.
    release: ClassVar[Release] = "whole"
    #: It judges sentences, not words: this much is its context where an entry wants streams to flow.
    window: ClassVar[int] = 400

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, fields: Any) -> Any:
        return plugins.in_our_names(fields, cls.aliases)

    async def check(self, text: str, call: Call) -> Verdict:
        return (await self.judge([Said(text)], "input", call))[0]

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        """Ask about the texts that hold more than blanks; most services refuse empty ones."""
        verdicts = [ALLOW] * len(said)
        full = [at for at, one in enumerate(said) if one.text.strip()]
        if full:
            found = await self.ask([said[at] for at in full], side, call)
            for at, verdict in zip(full, found, strict=True):
                verdicts[at] = verdict
        return verdicts

    @abstractmethod
    async def ask(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        """One verdict for each text; none of them is blank, and there is at least one."""


def _shown(value: str | Secret) -> str:
    return value.reveal() if isinstance(value, Secret) else value


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def at_once(questions: Iterable[Callable[[], Awaitable[T]]]) -> list[T]:
    """The answers in the order of the questions, of which some run at once. The first that fails ends them all."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(question: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await question()

    tasks = [asyncio.ensure_future(one(question)) for question in questions]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
