"""Settings of S3: LiteLLM's names and ours; and what errors mean."""

from __future__ import annotations

from typing import Any

import pytest
from botocore import exceptions
from pydantic import ValidationError

from tianji_mw.callbacks.s3 import S3
from tianji_mw.callbacks.s3_answers import LOGIN, REFUSED, failure, refusal

LITELLM = {
    "s3_bucket_name": "logs", "s3_region_name": "eu-west-1", "s3_path": "a/b", "s3_endpoint_url": "http://minio:9000",
    "s3_use_virtual_hosted_style": "true", "s3_use_ssl": "false", "s3_verify": "/etc/ca.pem",
    "s3_api_version": "2006-03-01", "s3_aws_access_key_id": "AKIA", "s3_aws_secret_access_key": "sec",
    "s3_aws_session_token": "tok", "s3_aws_role_name": "arn:aws:iam::1:role/x", "s3_aws_session_name": "sess",
    "s3_aws_sts_endpoint": "http://sts", "s3_aws_web_identity_token": "web", "s3_aws_profile_name": "prof",
    "s3_use_team_prefix": True, "s3_use_key_prefix": True, "s3_strip_base64_files": True, "s3_log_prompts_only": "true",
    "s3_partition_granularity": "hour", "s3_server_side_encryption": "aws:kms", "s3_sse_kms_key_id": "k",
    "s3_flush_interval": "3", "s3_batch_size": "9", "s3_max_concurrent_uploads": 4, "s3_adaptive_concurrency": True,
    "s3_max_adaptive_concurrency": 50, "s3_batch_file_upload": True, "s3_drop_on_terminal_error": False,
    "s3_max_retry_age_seconds": 60,
}  # fmt: skip


def test_litellms_settings_are_ours() -> None:
    made = S3(**LITELLM)
    assert (made.bucket, made.region, made.prefix, made.endpoint_url) == (
        "logs",
        "eu-west-1",
        "a/b",
        "http://minio:9000",
    )
    assert (made.virtual_hosted_style, made.use_ssl, made.verify) == (True, False, "/etc/ca.pem")
    assert made.access_key_id is not None
    assert made.secret_access_key is not None
    assert made.session_token is not None
    login = (made.access_key_id, made.secret_access_key, made.session_token)
    assert [secret.reveal() for secret in login] == ["AKIA", "sec", "tok"]
    assert (made.role_arn, made.session_name, made.profile) == ("arn:aws:iam::1:role/x", "sess", "prof")
    assert (made.sts_endpoint, made.api_version, made.partition) == ("http://sts", "2006-03-01", "hour")
    assert (made.team_prefix, made.key_prefix, made.strip_base64_files, made.prompts_only) == (True,) * 4
    assert (made.server_side_encryption, made.kms_key_id) == ("aws:kms", "k")
    assert (made.flush_interval_s, made.batch_size, made.concurrent_uploads) == (3, 9, 4)
    assert (made.adaptive_uploads, made.max_adaptive_uploads) == (True, 50)
    assert (made.layout, made.drop_refused, made.max_retry_age_s) == ("batch_files", False, 60)
    assert "sec" not in repr(made).replace("secret_access_key", "")


def test_defaults() -> None:
    made = S3(bucket="b")
    assert (made.layout, made.partition, made.format, made.batch_size) == ("records", "day", "jsonl", 512)
    assert (made.flush_interval_s, made.concurrent_uploads, made.upload_timeout_s) == (5, 16, 30)
    assert not made.prompts_only


def test_every_alias_and_variable_leads_to_a_field() -> None:
    assert set(S3.aliases.values()) <= set(S3.model_fields)
    assert set(S3.env_fields) <= set(S3.model_fields)
    assert set(LITELLM) <= set(S3.aliases)


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"bucket": ""}, {"bucket": "b", "s3_bucket_name": "c"}, {"bucket": "b", "server_side_encryption": "rot13"},
        {"bucket": "b", "layout": "batches", "s3_batch_file_upload": True}, {"bucket": "b", "s3_bucket": "x"},
        {"bucket": "b", "session_name": "x"},
    ],
)  # fmt: skip
def test_settings_that_are_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        S3(**wrong)


def test_a_switch_that_is_off_leaves_the_layout() -> None:
    assert S3(bucket="b", layout="batches", s3_batch_file_upload=False).layout == "batches"
    assert S3(bucket="b", batch_file_upload="false").layout == "records"


def _told(code: str, status: int, operation: str = "PutObject", **headers: str) -> tuple[str, float | None]:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    found = refusal({"Error": {"Code": code, "Message": "AKIASECRET"}, "ResponseMetadata": meta}, operation)
    assert "AKIASECRET" not in found.message
    return found.kind, found.retry_after_s


@pytest.mark.parametrize("code", sorted(REFUSED))
def test_refused_for_ever(code: str) -> None:
    assert _told(code, 400) == ("refused", None)


@pytest.mark.parametrize("code", sorted({*LOGIN, "NoSuchBucket", "PermanentRedirect", "KMS.DisabledException"}))
def test_what_somebody_must_mend_stops_the_batch(code: str) -> None:
    assert _told(code, 403)[0] == "halt"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("SlowDown", 503, "busy"), ("503", 503, "busy"), ("429", 429, "busy"), ("Throttling", 400, "busy"),
        ("AccessDenied", 403, "retry"), ("InternalError", 500, "retry"), ("BadDigest", 400, "retry"),
        ("RequestTimeout", 400, "retry"), ("OperationAborted", 409, "retry"), ("", 400, "retry"),
        ("EntityTooLarge", 400, "too_large"), ("413", 413, "too_large"),
    ],
)  # fmt: skip
def test_kinds_of_errors(code: str, status: int, kind: str) -> None:
    assert _told(code, status)[0] == kind


def test_a_role_that_is_denied_is_no_matter_of_one_object() -> None:
    assert _told("AccessDenied", 403, "AssumeRole")[0] == "halt"


def test_retry_after() -> None:
    assert _told("SlowDown", 503, **{"retry-after": "12"}) == ("busy", 12.0)
    assert _told("SlowDown", 503, **{"retry-after": "soon"}) == ("busy", None)
    assert _told("SlowDown", 503, **{"retry-after": "99999999"}) == ("busy", 3600.0)


def test_an_answer_that_is_odd() -> None:
    assert refusal({}, "PutObject").kind == "retry"
    assert "\n" not in refusal({"Error": {"Code": "a\nb<c>"}}, "PutObject").message


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (exceptions.ReadTimeoutError(endpoint_url="http://k:s@x"), "retry"),
        (exceptions.ConnectionClosedError(endpoint_url="http://k:s@x"), "retry"),
        (exceptions.ConnectTimeoutError(endpoint_url="http://k:s@x"), "halt"),
        (exceptions.EndpointConnectionError(endpoint_url="http://k:s@x"), "halt"),
        (exceptions.SSLError(endpoint_url="http://k:s@x", error="e"), "halt"),
        (exceptions.NoCredentialsError(), "halt"),
        (exceptions.ParamValidationError(report="r"), "refused"),
    ],
)
def test_errors_of_botocore(error: Exception, kind: str) -> None:
    found = failure(error)
    assert found.kind == kind
    assert "k:s" not in found.message
