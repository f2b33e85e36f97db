"""An S3 for tests: what is in it, by boto3, and errors as it writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import boto3

from tests.integration.secret_stores.servers import Answer
from tests.support.processes import Running

REGION: Final = "eu-west-1"
OK: Final[Answer] = (200, "", {"ETag": '"x"'})
#: The fixture `make`.
Make = Callable[..., Any]


def boto(url: str, service: str = "s3", key: str = "AKIASETUP", secret: str = "setup") -> Any:
    return boto3.client(
        service, region_name=REGION, endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret
    )


def stored(server: Running, bucket: str, **login: str) -> dict[str, bytes]:
    s3 = boto(server.url, **login)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
    return {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in keys}


def download(server: Running, bucket: str, root: Path) -> Path:
    for key, body in stored(server, bucket).items():
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    return root


def xml(code: str, status: int, **headers: str) -> Answer:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>of key s-1</Message></Error>'
    return status, body, {"content-type": "application/xml", **headers}
