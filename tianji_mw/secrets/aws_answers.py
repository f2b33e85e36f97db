"""What AWS answers mean, as errors of a store. Texts of AWS go nowhere: they name accounts, and may be anything."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from tianji_mw.secrets.base import (
    NotAllowed,
    SecretDenied,
    SecretError,
    SecretNotFound,
    StoreMisconfigured,
    StoreUnreachable,
)

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError

_CODE: Final = re.compile(r"[A-Za-z0-9.]{1,60}")
_XML_CODE: Final = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>")
#: Answers that may change with new credentials.
STALE: Final = frozenset(
    {"ExpiredTokenException", "ExpiredToken", "UnrecognizedClientException", "InvalidClientTokenId"}
)
_BUSY: Final = frozenset(
    {"ThrottlingException", "Throttling", "TooManyRequestsException", "RequestLimitExceeded", "IDPCommunicationError"}
)

_NO_RIGHT: Final = (NotAllowed, "not allowed; allow secretsmanager:GetSecretValue to this identity")
_UNKNOWN_KEY: Final = (SecretDenied, "AWS does not accept the access key or its signature; check the credentials")
_EXPIRED: Final = (SecretDenied, "the session of the credentials has expired; new ones are needed")
CLOCK: Final = (SecretDenied, "AWS finds the signature too old or too new; set the clock of this machine")
_NAME: Final = (SecretNotFound, "AWS has no secrets of such a name or version")
_REFUSALS: Final[Mapping[str, tuple[type[SecretError], str]]] = {
    "AccessDenied": _NO_RIGHT,
    "AccessDeniedException": _NO_RIGHT,
    "DecryptionFailure": (StoreMisconfigured, "the KMS key of the secret cannot decrypt it; check the key's state"),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "IncompleteSignature": _UNKNOWN_KEY,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidClientTokenId": _UNKNOWN_KEY,
    "InvalidParameterException": _NAME,
    "InvalidSignatureException": _UNKNOWN_KEY,
    "MissingAuthenticationToken": _UNKNOWN_KEY,
    "RequestExpired": CLOCK,
    "RequestTimeTooSkewed": CLOCK,
    "SignatureDoesNotMatch": _UNKNOWN_KEY,
    "UnrecognizedClientException": _UNKNOWN_KEY,
    "ValidationException": _NAME,
}


def code_of(error: ClientError) -> str:
    told = error.response.get("Error", {})
    code = str(told.get("Code", "")).rpartition("#")[2]
    if code.isdigit():  # a body that is no JSON: some stand-ins for AWS answer in XML
        found = _XML_CODE.search(str(told.get("Message", "")))
        return found[1] if found else ""
    return code if _CODE.fullmatch(code) else ""


def refusal(error: ClientError) -> tuple[type[SecretError], str]:
    """What an answer of AWS means. Its text goes nowhere: it names accounts, and a broken one may be anything."""
    code, text = code_of(error), str(error.response.get("Error", {}).get("Message", "")).lower()
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _BUSY or status == 429 or status >= 500:
        return StoreUnreachable, f"AWS failed or asks for a pause ({code or status})"
    if "signature expired" in text or "signature not yet current" in text:
        return CLOCK
    if error.operation_name.startswith("AssumeRole"):
        what = "web identity token" if error.operation_name.endswith("WebIdentity") else "identity"
        return SecretDenied, f"the {what} may not assume the role ({code or status}); check role_arn and its trust"
    if code == "ResourceNotFoundException":
        versioned = "staging label" in text or "versionid" in text
        return SecretNotFound, f"there is no such {'version of the secret' if versioned else 'secret in this region'}"
    if code == "InvalidRequestException" and ("deletion" in text or "deleted" in text):
        return SecretNotFound, "the secret is deleted, or marked for deletion"
    if code == "AccessDeniedException" and "kms" in text:
        return NotAllowed, "the KMS key of the secret is not allowed; allow kms:Decrypt to this identity"
    kind = SecretDenied if status in (401, 403) else StoreMisconfigured
    return _REFUSALS.get(code, (kind, f"AWS refused the question ({code or status})"))


def failure(error: BotoCoreError) -> tuple[type[SecretError], str]:
    """What a failure before an answer means."""
    from botocore import exceptions as e

    kind = type(error).__name__
    if isinstance(error, e.NoCredentialsError | e.PartialCredentialsError):
        return SecretDenied, "there are no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
    if isinstance(error, e.SSOError | e.LoginError | e.TokenRetrievalError):
        return SecretDenied, f"the login of the AWS profile is over ({kind}); log in again"
    if isinstance(error, e.ParamValidationError) and re.search(r"\b(SecretId|VersionId|VersionStage)\b", str(error)):
        return _NAME
    wrong = (
        e.ParamValidationError,
        e.ProfileNotFound,
        e.ConfigParseError,
        e.BaseEndpointResolverError,
        e.ValidationError,
        e.InvalidConfigError,
    )
    if isinstance(error, (*wrong, e.EndpointProviderError)):
        return StoreMisconfigured, f"the AWS settings are wrong ({kind}); check profile, region and endpoint"
    return StoreUnreachable, f"AWS cannot be reached ({kind})"
