"""`AwsCallback`: the base of destinations with one client of boto3, and no plugin. The login: `logins/aws.py`."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from pydantic import Field, PrivateAttr

from tianji_mw.callbacks.base import Callback
from tianji_mw.logins.aws import AwsLogin, client

#: How threads are called in which clients work: botocore's DEBUG log, with bodies and tokens, is off there.
THREADS: Final = "tianji-callbacks"


class AwsCallback(AwsLogin, Callback):
    """Base of destinations with one client of boto3, which works in threads. No plugin."""

    #: How many requests are open at once.
    requests_at_once: int = Field(default=4, ge=1, le=64)

    _pool: ThreadPoolExecutor | None = PrivateAttr(default=None)
    _client: Any = PrivateAttr(default=None)

    async def open(self, service: str, title: str) -> None:
        """Make the client. Raises SetupError when it cannot be made; nobody is asked yet."""
        self._pool = ThreadPoolExecutor(self.requests_at_once, thread_name_prefix=f"{THREADS}-{service}")
        self._client = await asyncio.get_running_loop().run_in_executor(
            self._pool,
            lambda: client(
                service, self, title=title, timeout_s=self.timeout_s, connections=max(10, self.requests_at_once)
            ),
        )

    async def aclose(self) -> None:
        pool, made, self._pool, self._client = self._pool, self._client, None, None
        if pool is not None:  # not waited for: a thread in a request that nobody reads ends by its timeout
            pool.shutdown(wait=False, cancel_futures=True)
        if made is not None:
            made.close()
