"""What an error of S3 or of boto3 means for an object, and for those after it. Pure, and without their texts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from tianji_mw.callbacks.objects.base import PutFailed

#: The object is wrong, and will be wrong again.
REFUSED: Final = frozenset({"InvalidArgument", "InvalidDigest", "InvalidRequest", "KeyTooLongError", "MalformedXML"})
_LARGE: Final = frozenset({"EntityTooLarge", "MaxMessageLengthExceeded"})
_BUSY: Final = frozenset(
    {"SlowDown", "ServiceUnavailable", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
)
#: AWS does not know us, or not any more.
LOGIN: Final = frozenset(
    {
        "AuthorizationHeaderMalformed", "ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId",
        "InvalidClientTokenId", "InvalidIdentityToken", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired",
    }
)  # fmt: skip
#: Somebody must mend the bucket, its key or a clock. AccessDenied is not here: a policy may deny one folder only.
_HALT: Final = frozenset(
    {
        "AccountProblem", "AllAccessDisabled", "IllegalLocationConstraintException", "InvalidBucketName",
        "NoSuchBucket", "NotSignedUp", "PermanentRedirect", "RequestTimeTooSkewed",
    }
)  # fmt: skip
#: botocore's errors after which another upload may go well at once; after all others none does.
_PASSING: Final = frozenset({"ConnectionClosedError", "HTTPClientError", "ReadTimeoutError", "ResponseStreamingError"})
_MOST_PAUSE_S: Final = 3600.0


class LoginRefused(PutFailed):
    """Who we are was refused; a secret manager may have another key by now."""


def refusal(response: Mapping[str, Any], operation: str) -> PutFailed:
    """What an error of AWS means (the `response` of a ClientError). `operation`: PutObject, or a question to STS."""
    code = re.sub(r"\W", "", str(response.get("Error", {}).get("Code", "")).replace(".", "_"))[:60] or "no code"
    meta = response.get("ResponseMetadata", {})
    status = meta.get("HTTPStatusCode", 0)
    told = f"{code} ({operation}, {status})"
    pause = _pause(meta.get("HTTPHeaders", {}))
    if code in LOGIN:
        return LoginRefused(told, "halt", retry_after_s=pause)
    if operation != "PutObject" or code in _HALT or code.startswith("KMS_"):
        return PutFailed(told, "halt", retry_after_s=pause)
    if code in _LARGE or status == 413:
        return PutFailed(told, "too_large")
    if code in REFUSED:
        return PutFailed(told, "refused")
    return PutFailed(told, "busy" if code in _BUSY or status in (429, 503) else "retry", retry_after_s=pause)


def failure(error: Exception) -> PutFailed:
    """What an error of botocore means: the request was not sent, or nothing came back."""
    name = type(error).__name__
    if name == "ParamValidationError":
        return PutFailed("boto3 does not take the key or a header of it", "refused")
    return PutFailed(f"no answer of S3 ({name})", "retry" if name in _PASSING else "halt")


def _pause(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds; S3 itself sends none, stores behind other gateways do."""
    asked = str(headers.get("retry-after", "")).strip()
    return min(float(asked), _MOST_PAUSE_S) if asked.isascii() and asked.isdigit() else None
