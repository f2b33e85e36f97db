"""A moto, buckets in it, and destinations that are closed when their test ends."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.secret_stores.servers import moto
from tests.support.aws import forget_aws
from tests.support.processes import Running
from tests.support.s3_store import REGION, Make, boto
from tianji_mw.callbacks.s3 import S3
from tianji_mw.runtime import Runtime


@pytest.fixture(autouse=True)
def machine_without_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_aws(monkeypatch, tmp_path)


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def bucket(server: Running) -> str:
    name = f"logs-{uuid.uuid4().hex[:12]}"
    boto(server.url).create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    return name


@pytest.fixture
async def make(server: Running) -> AsyncIterator[Make]:
    """Destinations on moto, or where the arguments say, started; closed when the test ends."""
    made: list[S3] = []

    async def build(bucket: str, **settings: Any) -> S3:
        fixed = {"region": REGION, "endpoint_url": server.url, "access_key_id": "AKIA1", "secret_access_key": "s-1"}
        callback = S3(bucket=bucket, **{k: v for k, v in (fixed | settings).items() if v is not None})
        made.append(callback)
        await callback.start(Runtime())
        return callback

    yield build
    for callback in made:
        await callback.aclose()
