"""Stores records in Amazon S3, or what speaks its API (MinIO, R2, Ceph, ...), over boto3. LiteLLM's `s3_v2` and `s3`.

Sources: API reference of Amazon S3, "PutObject" and "Error responses". Names of objects: `objects/keys.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr, model_validator

from tianji_mw.callbacks import s3_answers as answers
from tianji_mw.callbacks.aws import THREADS
from tianji_mw.callbacks.objects.base import ObjectCallback, PutFailed, Stored
from tianji_mw.errors import SetupError
from tianji_mw.logins.aws import AwsLogin, client, login_aliases, renewed
from tianji_mw.runtime import Runtime

log = logging.getLogger("tianji_mw.callbacks.s3")

_CACHE: Final = "private, immutable, max-age=31536000, s-maxage=0"


class S3(AwsLogin, ObjectCallback):
    """Objects in one bucket.

    >>> S3(bucket="logs", region="eu-west-1", prefix="llm", layout="batches", format="parquet")
    """

    title: ClassVar[str] = "S3"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AwsLogin.login_env,
        "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
        "batch_size": ("DEFAULT_S3_BATCH_SIZE", "DEFAULT_BATCH_SIZE"),
        "flush_interval_s": ("DEFAULT_S3_FLUSH_INTERVAL_SECONDS",),
        "concurrent_uploads": ("DEFAULT_S3_MAX_CONCURRENT_UPLOADS",),
        "max_adaptive_uploads": ("DEFAULT_S3_MAX_ADAPTIVE_CONCURRENCY",),
        "upload_timeout_s": ("S3_UPLOAD_ATTEMPT_TIMEOUT_SECONDS",),
        "prompts_only": ("S3_LOG_PROMPTS_ONLY",),
        "partition": ("S3_PARTITION_GRANULARITY",),
    }
    no_effect: ClassVar[Mapping[str, str]] = {
        "s3_config": "set what you need of it by its own name, such as s3_verify",
        "s3_max_queue_size": "what waits is bounded by spool_max_mb",
    }
    aliases: ClassVar[Mapping[str, str]] = {
        **login_aliases("s3_"),
        "s3_bucket_name": "bucket",
        "s3_path": "prefix",
        "s3_use_virtual_hosted_style": "virtual_hosted_style",
        "s3_use_team_prefix": "team_prefix",
        "s3_use_key_prefix": "key_prefix",
        "s3_strip_base64_files": "strip_base64_files",
        "s3_log_prompts_only": "prompts_only",
        "s3_partition_granularity": "partition",
        "s3_server_side_encryption": "server_side_encryption",
        "s3_sse_kms_key_id": "kms_key_id",
        "s3_flush_interval": "flush_interval_s",
        "s3_batch_size": "batch_size",
        "s3_max_concurrent_uploads": "concurrent_uploads",
        "s3_adaptive_concurrency": "adaptive_uploads",
        "s3_max_adaptive_concurrency": "max_adaptive_uploads",
        "s3_batch_file_upload": "batch_file_upload",
        "s3_drop_on_terminal_error": "drop_refused",
        "s3_max_retry_age_seconds": "max_retry_age_s",
    }

    bucket: str = Field(min_length=1, max_length=2048)
    #: With `endpoint_url`: `https://bucket.host/key` and not `https://host/bucket/key`.
    virtual_hosted_style: bool = False
    server_side_encryption: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    kms_key_id: str | None = None
    #: LiteLLM's switch for `layout: batch_files`.
    batch_file_upload: bool = False

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)
    #: Building and signing a request is a millisecond or two under the interpreter's lock. With 16 threads in it the
    #: event loop was late by 6 to 8 ms in the median, with one at a time by 1 to 3, and uploads took no longer.
    _gate: Any = PrivateAttr(default_factory=threading.Lock)
    _in_gate: int = PrivateAttr(default=0)

    @model_validator(mode="before")
    @classmethod
    def _one_layout(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        asked = fields.get("batch_file_upload", fields.get("s3_batch_file_upload"))
        if str(asked).strip().lower() not in ("true", "1", "yes", "on"):
            return fields
        if fields.get("layout", "batch_files") != "batch_files":
            raise ValueError("'batch_file_upload' is 'layout: batch_files'; write one of them")
        return {**fields, "layout": "batch_files"}

    async def start(self, runtime: Runtime) -> None:
        """Make the client. Raises SetupError when it cannot be made; the bucket is not asked yet."""
        await super().start(runtime)
        if self.kms_key_id and self.server_side_encryption == "AES256":
            log.warning("s3: kms_key_id is not used, since server_side_encryption is AES256.")
        most = max(self.concurrent_uploads, self.max_adaptive_uploads if self.adaptive_uploads else 1)
        self._pool = ThreadPoolExecutor(most, thread_name_prefix=f"{THREADS}-s3")
        try:
            self._client = await asyncio.get_running_loop().run_in_executor(self._pool, self._opened, most)
        except SetupError:
            await self.aclose()
            raise

    def _opened(self, connections: int) -> Any:
        style = "virtual" if self.virtual_hosted_style else "path" if self.endpoint_url else "auto"
        config = {
            # The hash of the body is in the signature, over TLS too; CRC trailers are unknown to many other stores.
            "s3": {"addressing_style": style, "payload_signing_enabled": True},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "signature_version": "s3v4",
        }
        timeout_s = self.upload_timeout_s
        made = client("s3", self, title="S3", timeout_s=timeout_s, connections=connections, config=config)
        from botocore.handlers import add_expect_header

        # `Expect: 100-continue` costs small objects a round trip, and a second where a store does not know it.
        made.meta.events.unregister("before-call.s3", add_expect_header)
        made.meta.events.register("before-send.s3", self._leave)
        return made

    async def aclose(self) -> None:
        pool, made, self._pool, self._client = self._pool, self._client, None, None
        if pool is not None:  # not waited for: a thread in an upload that nobody reads ends by its timeout
            pool.shutdown(wait=False, cancel_futures=True)
        if made is not None:
            made.close()

    async def put(self, item: Stored) -> None:
        if self._pool is None:
            raise PutFailed("S3 was not started", "halt")
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._put, self._client, item))
        except answers.LoginRefused:
            await renewed(self)
            raise

    def _put(self, made: Any, item: Stored) -> None:
        """One upload, blocking. Texts of AWS and botocore go nowhere: they may quote keys."""
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        self._gate.acquire()
        self._in_gate = threading.get_ident()
        try:
            if made is not self._client:
                raise PutFailed("S3 was closed", "halt")
            made.put_object(
                Bucket=self.bucket,
                Key=item.key,
                Body=item.body,
                ContentMD5=base64.b64encode(hashlib.md5(item.body, usedforsecurity=False).digest()).decode(),
                ContentType=item.content_type,
                ContentLanguage="en",
                ContentDisposition=f'inline; filename="{item.file_name}"',
                CacheControl=_CACHE,
                **self._encryption(),
            )
        except ClientError as error:
            raise answers.refusal(error.response, error.operation_name) from None
        except BotoCoreError as error:
            raise answers.failure(error) from None
        except ResponseParserError:
            raise PutFailed("the answer of S3 cannot be read") from None
        except (RuntimeError, OSError, ValueError) as error:  # of a login: its token file, or a session that is over
            raise PutFailed(f"the AWS login failed ({type(error).__name__})", "halt") from None
        finally:
            self._leave()

    def _leave(self, **event: Any) -> None:
        """Let the next thread prepare its request; botocore calls it when this one's is about to be sent."""
        if self._in_gate == threading.get_ident():
            self._in_gate = 0
            self._gate.release()

    def _encryption(self) -> dict[str, str]:
        """A key alone means KMS; one beside another algorithm is not used."""
        algorithm = self.server_side_encryption or ("aws:kms" if self.kms_key_id else None)
        if algorithm is None:
            return {}
        if self.kms_key_id and algorithm != "AES256":
            return {"ServerSideEncryption": algorithm, "SSEKMSKeyId": self.kms_key_id}
        return {"ServerSideEncryption": algorithm}
