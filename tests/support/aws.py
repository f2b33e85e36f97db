"""AWS settings of the machine that runs the tests, taken away."""

from __future__ import annotations

from pathlib import Path

import pytest


def forget_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No profile, region, login or proxy of this machine reaches boto3."""
    for name in (
        "PROFILE", "REGION", "DEFAULT_REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN",
        "BEARER_TOKEN_BEDROCK",
    ):  # fmt: skip
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
