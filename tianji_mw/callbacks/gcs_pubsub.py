"""Publishes records to a topic of Google Pub/Sub, many in one request. LiteLLM's `gcs_pubsub`.

Source: Pub/Sub REST reference v1, "projects.topics.publish", and "Quotas and limits".
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final
from urllib.parse import quote

from pydantic import Field, PrivateAttr, model_validator

from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.service import HttpCallback
from tianji_mw.logins.google import GoogleLogin, GoogleToken, LoginFailed, with_scheme
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

_SCOPE: Final = "https://www.googleapis.com/auth/pubsub"
_MOST_MESSAGES: Final = 1000
#: Google takes 10 MB in one request.
_MOST_BYTES: Final = 10_000_000
#: What stands around all messages.
_FRAME: Final = 64


class _TokenRefused(NotDelivered):
    """401."""


class GcsPubsub(GoogleLogin, HttpCallback):
    """Messages of one topic: the record as it is, with its id in the attribute `litellm_call_id`.

    >>> GcsPubsub(project_id="my-project", topic_id="llm-calls")
    """

    title: ClassVar[str] = "Google Pub/Sub"
    needs: ClassVar[tuple[str, ...]] = ("project_id", "topic_id")
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "project_id": ("GCS_PUBSUB_PROJECT_ID",),
        "topic_id": ("GCS_PUBSUB_TOPIC_ID",),
        "credentials_file": ("GCS_PATH_SERVICE_ACCOUNT",),
        "api_base": ("PUBSUB_EMULATOR_HOST",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "gcs_pubsub_project_id": "project_id",
        "gcs_pubsub_topic_id": "topic_id",
        "gcs_path_service_account": "credentials_file",
        "endpoint_url": "api_base",
    }

    batch_size: int = Field(default=_MOST_MESSAGES, ge=1, le=100_000)
    api_base: str = "https://pubsub.googleapis.com"
    project_id: str = ""
    topic_id: str = ""

    _login: GoogleToken | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _whole(self) -> GcsPubsub:
        if self.api_base and "://" not in self.api_base:
            object.__setattr__(self, "api_base", with_scheme(self.api_base))
        return self

    async def start(self, runtime: Runtime) -> None:
        await super().start(runtime)
        self._login = await self.logged_in(self.title, self.api_base, scope=_SCOPE, timeout_s=self.timeout_s)

    async def aclose(self) -> None:
        login, self._login = self._login, None
        if login is not None:
            login.close()
        await super().aclose()

    def failure(self, response: Any) -> NotDelivered:
        found = super().failure(response)
        return _TokenRefused(found.message, retry_after_s=found.retry_after_s) if response.status_code == 401 else found

    async def write(self, batch: Sequence[Record]) -> None:
        """One request after the other; after one that fails, the rest is left for the next attempt."""
        requests, large = grouped(batch)
        for number, (records, body) in enumerate(requests):
            try:
                await self._publish(body, len(records))
            except NotDelivered as error:
                # What Google refuses as a whole is halved by the outbox: only this request, so that it is found.
                left = [record for later, _ in requests[number:] for record in later]
                raise NotDelivered(
                    error.message, failed=left, refused=large, retry=error.retry, retry_after_s=error.retry_after_s
                ) from None
        if large:
            raise NotDelivered(f"{self.title}: {len(large)} records have more than 10 MB", failed=(), refused=large)

    async def _publish(self, body: bytes, count: int) -> None:
        path = f"/v1/projects/{quote(self.project_id, safe='')}/topics/{quote(self.topic_id, safe='')}:publish"
        try:
            if self._login is None:
                response = await self.post(path, body)
            else:
                response = await self._posted(self._login, path, body)
        except LoginFailed as error:
            raise NotDelivered(f"{self.title}: {error.message}") from None
        try:
            ids = response.json()["messageIds"]
        except (ValueError, KeyError, TypeError):
            ids = None
        if not isinstance(ids, list) or len(ids) != count:
            raise NotDelivered(f"{self.title}: the answer does not name all messages")

    async def _posted(self, login: GoogleToken, path: str, body: bytes) -> Any:
        token = await login.token()
        try:
            return await self.post(path, body, {"authorization": Secret(f"Bearer {token}")})
        except _TokenRefused:
            token = await login.token(refused=token)
            return await self.post(path, body, {"authorization": Secret(f"Bearer {token}")})


def grouped(batch: Sequence[Record]) -> tuple[list[tuple[list[Record], bytes]], list[Record]]:
    """Requests of at most 1000 messages and 10 MB, as records and body; and the records that fit in none."""
    requests: list[tuple[list[Record], list[bytes], int]] = []
    large: list[Record] = []
    for record in batch:
        text = message(record)
        if len(text) + _FRAME > _MOST_BYTES:
            large.append(record)
            continue
        if not requests or len(requests[-1][0]) >= _MOST_MESSAGES or requests[-1][2] + len(text) + 1 > _MOST_BYTES:
            requests.append(([], [], _FRAME))
        records, texts, size = requests[-1]
        records.append(record)
        texts.append(text)
        requests[-1] = (records, texts, size + len(text) + 1)
    return [(records, b'{"messages":[' + b",".join(texts) + b"]}") for records, texts, _ in requests], large


def message(record: Record) -> bytes:
    """One message as JSON. The id is a UUID; what is none is kept out of the attributes by its encoding."""
    name = quote(record.id, safe="")[:1024].encode()
    kind = record.kind.encode()
    data = base64.b64encode(record.raw)
    return b'{"data":"' + data + b'","attributes":{"litellm_call_id":"' + name + b'","kind":"' + kind + b'"}}'
