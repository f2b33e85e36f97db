"""Entries in Amazon S3, or what speaks its API, over boto3. LiteLLM's `s3`.

Sources: API reference of Amazon S3, "GetObject", "PutObject", "ListObjectsV2" and "Error responses".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from tianji_mw.cache._objects import BEYOND, BlockingObjects, Threads, moment
from tianji_mw.cache.base import StoreFailed
from tianji_mw.logins.aws import AwsLogin, client, login_aliases, renewed
from tianji_mw.runtime import Runtime

_REFUSED: Final = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "403", "401"}
)
_BUSY: Final = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "503", "429"})


class S3(AwsLogin, BlockingObjects):
    """Objects in one bucket.

    >>> S3(s3_bucket_name="answers", s3_region_name="eu-west-1", s3_path="cache").bucket
    'answers'
    """

    title: ClassVar[str] = "S3"
    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **AwsLogin.login_env,
        "endpoint_url": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        **login_aliases("s3_"),
        "s3_bucket_name": "bucket",
        "s3_path": "path",
    }

    bucket: str = Field(min_length=1, max_length=2048)

    _client: Any = PrivateAttr(default=None)

    async def start(self, runtime: Runtime) -> None:
        """Make the client; nobody is asked yet. Raises MissingExtra, SetupError."""
        await super().start(runtime)
        self._threads = Threads("s3")
        self._client = await self._threads.run(self._opened)

    def _opened(self) -> Any:
        config = {
            "s3": {"addressing_style": "path" if self.endpoint_url else "auto"},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
        return client("s3", self, title="S3", timeout_s=self.timeout_s, connections=16, config=config)

    async def aclose(self) -> None:
        threads, made, self._threads, self._client = self._threads, self._client, None, None
        if threads is not None:
            threads.close()
        if made is not None:
            made.close()

    async def _renew(self) -> None:
        await renewed(self)  # the next request uses it

    # --- in a thread

    def _tried(self, work: Callable[..., Any], *arguments: Any) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return work(*arguments)
        except ClientError as error:
            raise self._refusal(error.response) from None
        except BotoCoreError as error:
            name = type(error).__name__
            kind = "timeout" if "Timeout" in name else "unreachable" if "Connect" in name else "error"
            raise StoreFailed(f"S3 bucket '{self.bucket}': no answer ({name})", kind=kind) from None
        except (OSError, RuntimeError, ValueError) as error:  # of a login: its token file, or a session that is over
            raise StoreFailed(f"the AWS login failed ({type(error).__name__})", kind="refused") from None

    def _refusal(self, response: Mapping[str, Any]) -> StoreFailed:
        code = str(response.get("Error", {}).get("Code", ""))
        where = f"S3 bucket '{self.bucket}'"
        if code == "NoSuchBucket":
            return StoreFailed(f"{where} does not exist; set cache_params.s3_bucket_name", kind="refused")
        if code in _REFUSED:
            return StoreFailed(f"{where} refused who we are ({code}); check the key and its rights", kind="refused")
        return StoreFailed(f"{where} answered with {code or 'an error'}", kind="busy" if code in _BUSY else "error")

    def _read(self, name: str) -> bytes | None:
        from botocore.exceptions import ClientError

        try:
            found = self._client.get_object(Bucket=self.bucket, Key=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise
        body: bytes = found["Body"].read(self.max_item_bytes + BEYOND)
        return body

    def _write(self, name: str, body: bytes, ends: float) -> None:
        life = f"private, immutable, max-age={max(1, int(ends - self._wall()))}"
        self._client.put_object(
            Bucket=self.bucket,
            Key=name,
            Body=body,
            CacheControl=life,
            Expires=moment(ends),
            ContentType="application/octet-stream",
        )

    def _remove(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._client.head_object(Bucket=self.bucket, Key=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return False
            raise
        self._client.delete_object(Bucket=self.bucket, Key=name)
        return True

    def _pages(self, prefix: str) -> Iterator[list[str]]:
        after: dict[str, str] = {}
        while True:
            found = self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **after)
            yield [item["Key"] for item in found.get("Contents", ())]
            if not found.get("IsTruncated"):
                return
            after = {"ContinuationToken": found["NextContinuationToken"]}
