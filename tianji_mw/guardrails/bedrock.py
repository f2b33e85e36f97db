"""Guardrails of Amazon Bedrock, over boto3. All texts of one side go in one call, unless they are too large for it.

What AWS says about a text decides alone: LiteLLM's `mask_*` switches change nothing. Source: API reference of Amazon
Bedrock Runtime, "ApplyGuardrail".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Final, Literal

import orjson
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails import bedrock_answers as answers
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Span, Verdict, mask
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

_THREADS: Final = 16
_PAUSES_S: Final = (0.5, 1.0, 2.0)
#: A text unit of AWS, in characters: shorter texts are not split further.
_SMALLEST: Final = 1000


class Bedrock(Guardrail):
    """Blocks what a guardrail of Bedrock blocks, and takes over the texts that it has made anonymous.

    >>> Bedrock(guardrailIdentifier="gr1", guardrailVersion="DRAFT", aws_region_name="us-east-1")
    """

    model_config = ConfigDict(populate_by_name=True, coerce_numbers_to_str=True)

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "aws_region_name": ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"),
        "aws_bedrock_runtime_endpoint": ("AWS_BEDROCK_RUNTIME_ENDPOINT",),
    }
    #: A service judges sentences, not words: this much of a stream is held back as its context.
    window: ClassVar[int] = 400
    #: Masked texts come back whole, and each question costs a call.
    release: ClassVar[Release] = "whole"

    guardrail_identifier: str = Field(
        min_length=1, max_length=2048, validation_alias=AliasChoices("guardrailIdentifier", "guardrail_identifier")
    )
    guardrail_version: str = Field(
        pattern=r"^(DRAFT|[1-9][0-9]{0,7})$", validation_alias=AliasChoices("guardrailVersion", "guardrail_version")
    )
    output_scope: Literal["INTERVENTIONS", "FULL"] = Field(
        default="INTERVENTIONS", validation_alias=AliasChoices("outputScope", "output_scope")
    )
    aws_region_name: str | None = None
    aws_access_key_id: str | None = None
    aws_secret_access_key: Secret | None = None
    aws_session_token: Secret | None = None
    aws_profile_name: str | None = None
    aws_role_name: str | None = None
    aws_session_name: str = Field(default="tianji", min_length=2, max_length=64)
    aws_external_id: str | None = None
    aws_sts_endpoint: str | None = None
    aws_bedrock_runtime_endpoint: str | None = None
    #: Characters of one call, once AWS has found the texts too large.
    chunk_budget_chars: int = Field(default=25_000, ge=_SMALLEST)
    #: Findings of automated reasoning that block; AWS itself only reports them.
    automated_reasoning_blocks: frozenset[answers.Finding] = frozenset()
    #: LiteLLM's; ignored.
    mask_request_content: bool = False
    mask_response_content: bool = False

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    _runtime: Runtime | None = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Make the client. Raises SetupError when it cannot be made; AWS is not asked yet."""
        try:
            import boto3  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("boto3", "aws") from None
        self._runtime = runtime
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix=answers.THREAD)
        try:
            self._client = await asyncio.get_running_loop().run_in_executor(self._pool, self._opened)
        except SetupError:
            await self.aclose()
            raise

    def _opened(self) -> Any:
        """A new client, blocking."""
        from boto3.session import Session
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        options: dict[str, Any] = {"signature_version": "v4"} if self._logs_in() else {}
        config = Config(
            connect_timeout=min(3.0, self.timeout_s),
            read_timeout=self.timeout_s,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=_THREADS,
            **options,
        )
        try:
            session = Session(botocore_session=self._session(config))
            client = session.client("bedrock-runtime", endpoint_url=self.aws_bedrock_runtime_endpoint, config=config)
        except (BotoCoreError, ValueError) as error:
            text = f"bedrock: the AWS settings are not valid ({type(error).__name__}); check region, profile, endpoint."
            raise SetupError(text) from None
        client.meta.events.register("before-parse.bedrock-runtime.ApplyGuardrail", answers.keep)
        for name in [n for n in logging.root.manager.loggerDict if n.partition(".")[0] == "botocore"]:
            logging.getLogger(name).addFilter(answers.quiet)
        return client

    def _logs_in(self) -> bool:
        """Whether the config says who we are; a bearer token of the environment does not count then."""
        if bool(self.aws_access_key_id) != bool(self.aws_secret_access_key):
            raise SetupError("bedrock: aws_access_key_id and aws_secret_access_key are only used together.")
        return bool(self.aws_access_key_id or self.aws_profile_name or self.aws_role_name)

    def _session(self, config: Any) -> Any:
        """A session of botocore with the profile, the access key or its own chain, and the role on top of it."""
        from botocore.credentials import AssumeRoleCredentialFetcher
        from botocore.session import Session

        base, role = (Session(profile=self.aws_profile_name) for _ in range(2))
        region = self.aws_region_name or base.get_config_variable("region")
        if not region:
            raise SetupError("bedrock: no AWS region; set aws_region_name, or AWS_REGION in the environment.")
        for session in (base, role):
            session.set_config_variable("region", region)
        if self.aws_access_key_id and self.aws_secret_access_key:
            token = self.aws_session_token.reveal() if self.aws_session_token else None
            base.set_credentials(self.aws_access_key_id, self.aws_secret_access_key.reveal(), token)
        if not self.aws_role_name:
            return base
        if (credentials := base.get_credentials()) is None:
            raise SetupError("bedrock: there are no AWS credentials that could assume aws_role_name.")
        sts = partial(base.create_client, region_name=region, endpoint_url=self.aws_sts_endpoint, config=config)
        more = {"ExternalId": self.aws_external_id} if self.aws_external_id else {}
        more["RoleSessionName"] = self.aws_session_name
        fetcher = AssumeRoleCredentialFetcher(sts, credentials, self.aws_role_name, extra_args=more)
        role.register_component("credential_provider", _Role(fetcher))
        return role

    async def aclose(self) -> None:
        pool, client, self._pool, self._client = self._pool, self._client, None, None
        if pool is not None:  # not waited for: a thread in a question that nobody reads ends by its timeout
            pool.shutdown(wait=False, cancel_futures=True)
        if client is not None:
            client.close()

    async def check(self, text: str, call: Call) -> Verdict:
        return (await self.judge([Said(text)], "input", call))[0]

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        verdicts = [ALLOW] * len(said)
        full = [at for at, one in enumerate(said) if one.text.strip()]
        if not full:
            return verdicts
        found = await self._judged([said[at].text for at in full], "INPUT" if side == "input" else "OUTPUT")
        for order, at in enumerate(full):
            if isinstance(found, Verdict):
                verdicts[at] = found
            elif found[order] != (text := said[at].text):
                verdicts[at] = mask(Span(0, len(text), "ANONYMIZED", found[order]))
        return verdicts

    async def _judged(self, texts: list[str], source: str) -> list[str] | Verdict:
        """The texts as they may go on, or the block of them all."""
        try:
            about = {"guardrailIdentifier": self.guardrail_identifier, "guardrailVersion": self.guardrail_version}
            return answers.decision(await self._asked(texts, source), texts, self.automated_reasoning_blocks, about)
        except answers.Refused as error:
            size = sum(map(len, texts))
            if error.kind != "large" or size <= _SMALLEST:
                raise
        most = self.chunk_budget_chars if size > self.chunk_budget_chars else size // 2
        parts = [(at, piece) for at, text in enumerate(texts) for piece in answers.cut(text, most)]
        fresh = [""] * len(texts)
        for batch in answers.batches(parts, most):
            sent = [piece for _, piece in batch if piece.strip()]
            found = await self._judged(sent, source) if sent else []
            if isinstance(found, Verdict):
                return found
            news = iter(found)
            for at, piece in batch:
                fresh[at] += next(news) if piece.strip() else piece
        return fresh

    async def _asked(self, texts: list[str], source: str) -> dict[str, JSON]:
        """The answer of AWS; asked again when it is busy, or a secret manager has another key by now."""
        if self._pool is None or self._client is None or self._runtime is None:
            raise GuardrailFailed("Bedrock was not started")
        ask = partial(asyncio.get_running_loop().run_in_executor, self._pool)
        pauses, renewed, began = list(_PAUSES_S), False, self._runtime.clock()
        while True:
            try:
                return await ask(self._call, self._client, texts, source)
            except answers.Refused as error:
                # A pause beyond the deadline would end as silence, which a busy service is not.
                left_s = self.timeout_s - (self._runtime.clock() - began) / 1e9
                if error.kind == "busy" and pauses and pauses[0] < left_s:
                    await self._runtime.sleep(pauses.pop(0))
                elif error.kind == "login" and not renewed and await self._renewed():
                    renewed, self._client = True, await ask(self._opened)
                else:
                    raise

    async def _renewed(self) -> bool:
        held = [secret for secret in (self.aws_secret_access_key, self.aws_session_token) if secret is not None]
        return any([await secret.renew() for secret in held])

    def _call(self, client: Any, texts: list[str], source: str) -> dict[str, JSON]:
        """One question, blocking. Texts of AWS and botocore go nowhere: they may quote what was sent."""
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        try:
            answer = client.apply_guardrail(
                guardrailIdentifier=self.guardrail_identifier,
                guardrailVersion=self.guardrail_version,
                source=source,
                outputScope=self.output_scope,
                content=[{"text": {"text": text}} for text in texts],
            )
            found = orjson.loads(answer[answers.RAW])
        except exceptions.ClientError as error:
            raise answers.refusal(error.response) from None
        except exceptions.BotoCoreError as error:
            raise answers.failure(error) from None
        except (ResponseParserError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise GuardrailFailed(f"the answer of Bedrock cannot be read ({type(error).__name__})") from None
        if not isinstance(found, dict):
            raise GuardrailFailed("Bedrock answered with something that is no JSON object")
        return found


class _Role:
    """Where a session of botocore has the role's credentials from; it asks again when the last ones near their end."""

    def __init__(self, fetcher: Any) -> None:
        self._fetcher = fetcher

    def load_credentials(self) -> Any:
        """The name that botocore calls."""
        from botocore.credentials import DeferredRefreshableCredentials

        return DeferredRefreshableCredentials(self._fetcher.fetch_credentials, "assume-role")
