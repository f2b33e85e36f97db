"""Amazon SQS: a message for each record, ten in a request. FIFO queues keep the order within a team or key.

Source: API reference of SQS, "SendMessageBatch": an answer of 200 may say of single entries that they failed.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import orjson
from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.aws import AwsCallback
from tianji_mw.callbacks.aws_answers import Answer, Ask, all_in_time, asked
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.sqs_messages import Message, Rules, entry_of, message_of, packed
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.logins.aws import login_aliases, renewed
from tianji_mw.records import Record
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime


class Sqs(AwsCallback):
    """Messages in one queue.

    >>> Sqs(queue_url="https://sqs.eu-west-1.amazonaws.com/123456789012/llm-logs", region="eu-west-1")
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AwsCallback.login_env,
        "endpoint_url": ("AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"),
        "batch_size": ("DEFAULT_SQS_BATCH_SIZE", "DEFAULT_BATCH_SIZE"),
        "flush_interval_s": ("DEFAULT_SQS_FLUSH_INTERVAL_SECONDS",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        **login_aliases("sqs_"),
        "sqs_queue_url": "queue_url",
        "sqs_strip_base64_files": "strip_base64_files",
        "sqs_batch_size": "batch_size",
        "sqs_flush_interval": "flush_interval_s",
        "sqs_max_message_bytes": "max_message_bytes",
        "sqs_aws_use_application_level_encryption": "encrypt",
        "sqs_app_encryption_key_b64": "encryption_key",
        "sqs_app_encryption_aad": "encryption_aad",
    }

    queue_url: str = Field(pattern=r"^https?://\S+/\S+$")
    strip_base64_files: bool = False
    #: Of a message and of a request. AWS takes 1 MiB since 2025; older endpoints and some queues take less.
    max_message_bytes: int = Field(default=262_144, ge=1024, le=1 << 20)
    requests_at_once: int = Field(default=8, ge=1, le=64)
    #: Encrypts bodies with AES-256-GCM; the key is 32 bytes in base64.
    encrypt: bool = False
    encryption_key: Secret | None = None
    encryption_aad: str = ""

    _rules: Rules = PrivateAttr(default_factory=lambda: Rules(max_bytes=0))

    @property
    def fifo(self) -> bool:
        """Whether the queue keeps an order."""
        return self.queue_url.endswith(".fifo")

    @property
    def ordered(self) -> bool:
        return self.fifo

    async def start(self, runtime: Runtime) -> None:
        """Make the client. Raises SetupError for a key that is none; the queue is not asked yet."""
        key = self._key() if self.encrypt else b""
        aad = self.encryption_aad.encode()
        self._rules = Rules(
            max_bytes=self.max_message_bytes, no_files=self.strip_base64_files, fifo=self.fifo, key=key, aad=aad
        )
        await self.open("sqs", "SQS")

    def _key(self) -> bytes:
        try:
            import cryptography  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("cryptography", "secret-cache") from None
        try:
            key = base64.b64decode(self.encryption_key.reveal(), validate=True) if self.encryption_key else b""
        except binascii.Error:
            key = b""
        if len(key) != 32:
            raise SetupError("SQS: encryption_key is not 32 bytes in base64; make one with: openssl rand -base64 32")
        return key

    async def write(self, batch: Sequence[Record]) -> None:
        if self._client is None:
            raise NotDelivered("SQS was not started")
        messages, bad = self._messages(batch)
        requests = packed(messages, self.max_message_bytes)
        at_once = self.requests_at_once
        asks: list[Ask] = [partial(self._ask, request) for request in requests]
        if self.fifo:
            stopped: set[str] = set()
            asks, at_once = [partial(self._in_order, [request], stopped) for request in requests], 1
        keys = [[message.record.id for message in request] for request in requests]
        answers = await all_in_time(asks, keys, at_once, self.timeout_s)
        if any(answer.login for answer in answers):
            await renewed(self)
        failed = {key for answer in answers for key in answer.failed}
        refused = {key for answer in answers for key in answer.refused}
        if failed or refused or bad:
            told = next((answer.message for answer in answers if answer.message), "records are too large, or no JSON")
            raise NotDelivered(
                f"SQS: {told}",
                failed=[record for record in batch if record.id in failed],
                refused=[*bad, *(record for record in batch if record.id in refused)],
            )

    def _messages(self, batch: Sequence[Record]) -> tuple[list[Message], list[Record]]:
        messages: list[Message] = []
        bad: list[Record] = []
        for record in {record.id: record for record in batch}.values():
            try:
                message = message_of(record, self._rules)
            except (orjson.JSONDecodeError, TypeError, ValueError):
                message = None
            if message is None:
                bad.append(record)
            else:
                messages.append(message)
        return messages, bad

    async def _in_order(self, requests: Sequence[Sequence[Message]], stopped: set[str]) -> Answer:
        """One request after the other; after a message that failed, none of its group (`stopped`) goes before it."""
        found: list[Answer] = []
        for request in requests:
            waiting = [message for message in request if message.group in stopped]
            found.append(Answer(failed=[message.record.id for message in waiting]))
            going = [message for message in request if message.group not in stopped]
            if not going:
                continue
            answer = await self._ask(going)
            failed = set(answer.failed)
            stopped |= {message.group for message in going if message.record.id in failed}
            found.append(answer)
        return Answer.of(found)

    async def _ask(self, messages: Sequence[Message]) -> Answer:
        """One request; where it was refused, one for each message."""
        made, url = self._client, self.queue_url
        entries = [entry_of(message, number) for number, message in enumerate(messages)]
        keys = [message.record.id for message in messages]

        def call() -> Any:
            return made.send_message_batch(QueueUrl=url, Entries=entries)

        got = await asked(self._pool, call, keys)
        if got.refused and len(messages) > 1:
            alone = [[message] for message in messages]
            return (
                await self._in_order(alone, set()) if self.fifo else Answer.of([await self._ask(one) for one in alone])
            )
        return _read(got.answer, messages) if got.answer else got


def _read(answer: Mapping[str, Any], messages: Sequence[Message]) -> Answer:
    """Only what AWS names as taken is delivered; of the others, those that failed by our fault are refused."""
    taken = {str(entry.get("Id")) for entry in answer.get("Successful", ())}
    bad = {str(entry.get("Id")): entry for entry in answer.get("Failed", ())}
    failed: list[str] = []
    refused: list[str] = []
    for number, message in enumerate(messages):
        entry = bad.get(str(number))
        if entry is not None and entry.get("SenderFault"):
            refused.append(message.record.id)
        elif entry is not None or str(number) not in taken:
            failed.append(message.record.id)
    codes = sorted({str(entry.get("Code", ""))[:60] for entry in bad.values()})
    count = len(failed) + len(refused)
    return Answer(
        failed=failed, refused=refused, message=f"{count} messages failed: {', '.join(codes)}" if count else ""
    )
