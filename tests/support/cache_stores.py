"""Cache stores on their real servers and emulators: each function opens one, and gives what makes its stores."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tianji_mw.cache.base import CacheStore
from tianji_mw.cache.disk import Disk
from tianji_mw.cache.dual import Dual
from tianji_mw.cache.memory import Memory
from tianji_mw.cache.redis import RedisStore

Open = Callable[[ExitStack, Path], Callable[[], CacheStore]]


def memory(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    return Memory


def disk(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    return lambda: Disk(disk_cache_dir=folder)


def redis(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    from tests.support.redis_servers import redis_server

    server = stack.enter_context(redis_server(folder))
    return lambda: RedisStore(host="127.0.0.1", port=server.port)


def cluster(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    from tests.support.redis_servers import redis_cluster

    found = stack.enter_context(redis_cluster(folder, replicas=0))
    return lambda: RedisStore(startup_nodes=found.nodes)


def dual(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    from tests.support.redis_servers import redis_server

    server = stack.enter_context(redis_server(folder))
    return lambda: Dual(host="127.0.0.1", port=server.port)


def s3(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    from tests.integration.secret_stores.servers import moto
    from tests.support.s3_store import REGION, boto
    from tianji_mw.cache.s3 import S3
    from tianji_mw.redact import Secret

    running = stack.enter_context(moto(folder))
    boto(running.url).create_bucket(Bucket="answers", CreateBucketConfiguration={"LocationConstraint": REGION})
    login = {"access_key_id": Secret("AKIASETUP"), "secret_access_key": Secret("setup")}
    return lambda: S3(s3_bucket_name="answers", s3_path="a/b", region=REGION, endpoint_url=running.url, **login)


def gcs(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    import httpx

    from tests.support.storage_servers import fake_gcs
    from tianji_mw.cache.gcs import Gcs

    running = stack.enter_context(fake_gcs(folder))
    httpx.post(f"{running.url}/storage/v1/b?project=p", json={"name": "answers"}).raise_for_status()
    return lambda: Gcs(gcs_bucket_name="answers", gcs_path="cache", endpoint_url=running.url)


def azure_blob(stack: ExitStack, folder: Path) -> Callable[[], CacheStore]:
    from azure.storage.blob import BlobServiceClient

    from tests.support.storage_servers import AZURE_ACCOUNT, AZURE_KEY, azurite
    from tianji_mw.cache.azure_blob import AzureBlob
    from tianji_mw.redact import Secret

    running = stack.enter_context(azurite(folder))
    url, login = f"{running.url}/{AZURE_ACCOUNT}", {"account_name": AZURE_ACCOUNT, "account_key": AZURE_KEY}
    BlobServiceClient(url, credential=login).create_container("answers")
    return lambda: AzureBlob(
        azure_account_url=url, azure_blob_container="answers", account=AZURE_ACCOUNT, account_key=Secret(AZURE_KEY)
    )
