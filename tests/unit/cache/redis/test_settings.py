"""Where Redis is: LiteLLM's spellings, the environment's, and what is wrong with a configuration."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.processes import environment
from tianji_mw.cache.dual import Dual
from tianji_mw.cache.redis import RedisStore
from tianji_mw.redact import Secret
from tianji_mw.redis.settings import RedisSettings

CANARY = "pw-CANARY-51"


@pytest.mark.parametrize(
    "written",
    [
        [["10.0.0.1", 7001], ["10.0.0.2", 7002]],
        [{"host": "10.0.0.1", "port": "7001"}, {"host": "10.0.0.2", "port": 7002}],
        ["10.0.0.1:7001", "10.0.0.2:7002"],
        '[{"host": "10.0.0.1", "port": "7001"}, ["10.0.0.2", 7002]]',
        "10.0.0.1:7001, 10.0.0.2:7002",
    ],
)
@pytest.mark.parametrize("name", ["startup_nodes", "redis_startup_nodes", "addrs"])
def test_nodes_in_every_spelling(written: Any, name: str) -> None:
    settings = RedisSettings.model_validate({name: written})
    assert settings.startup_nodes == (("10.0.0.1", 7001), ("10.0.0.2", 7002))
    assert settings.mode == "cluster"


def test_a_node_of_ipv6_and_one_without_a_port() -> None:
    settings = RedisSettings.model_validate({"addrs": ["[::1]:7001", "cache"]})
    assert settings.startup_nodes == (("::1", 7001), ("cache", 6379))
    assert settings.where == "[::1]:7001"


def test_litellms_names() -> None:
    store = RedisStore.model_validate(
        {
            "redis_host": "h", "redis_port": "7000", "redis_password": CANARY, "redis_db": "2", "redis_ssl": "true",
            "redis_flush_size": 50, "max_connections": 7, "socket_timeout": 1.5,
        }
    )  # fmt: skip
    assert (store.host, store.port, store.db, store.ssl) == ("h", 7000, 2, True)
    assert (store.flush_size, store.max_connections, store.op_timeout_s) == (50, 7, 1.5)
    assert store.password == Secret(CANARY)
    assert CANARY not in repr(store) + store.model_dump_json()


def test_dual_takes_the_lives_of_both() -> None:
    dual = Dual.model_validate({"default_in_memory_ttl": 30, "default_in_redis_ttl": 60})
    assert (dual.memory_ttl_s, dual.redis_ttl_s) == (30, 60)


def test_a_url_goes_before_the_fields() -> None:
    settings = RedisSettings.model_validate({"url": f"rediss://bob:{CANARY}%40@cache:7000/3", "host": "other"})
    found = settings.connection()
    assert (found.host, found.port, found.db, found.ssl, found.username) == ("cache", 7000, 3, True, "bob")
    assert found.password == Secret(f"{CANARY}@")
    assert found.url is None


def test_equal_settings_share_a_key() -> None:
    one = RedisStore.model_validate({"url": "redis://:pw@h:7000", "flush_size": 1}).connection()
    other = Dual.model_validate({"host": "h", "port": 7000, "password": "pw"}).connection()
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({"url": f"http://u:{CANARY}@h"}, "rediss:// for TLS"),
        ({"url": f"redis://u:{CANARY}@h:x"}, "redis://user:password@host"),
        ({"url": f"redis://u:{CANARY}@h?ssl_cert_reqs=none"}, "as fields of their own"),
        ({"url": f"redis://u:{CANARY}@h/one"}, "must look like"),
        ({"addrs": ["h:1"], "db": 2}, "namespace"),
        ({"addrs": ["h:1"], "sentinel_nodes": [["h", 2]], "service_name": "m"}, "one of them"),
        ({"sentinel_nodes": [["h", 2]]}, "service_name"),
        ({"service_name": "m"}, "sentinel_nodes"),
        ({"startup_nodes": "[oops"}, "JSON list"),
        ({"startup_nodes": [["h", 70000]]}, "65535"),
        ({"startup_nodes": [{"hots": "h"}]}, "startup_nodes"),
        ({"ssl_keyfile": "k.pem"}, "ssl_certfile"),
        ({"op_timeout_s": 0}, "op_timeout_s"),
        ({"redis_host": "a", "host": "b"}, "same setting"),
        ({"passwort": CANARY}, "passwort"),
    ],
)
def test_what_is_wrong_names_the_cure_and_no_password(fields: dict[str, Any], cure: str) -> None:
    with pytest.raises(ValidationError) as caught:
        RedisSettings.model_validate(fields)
    assert cure in str(caught.value)
    assert CANARY not in str(caught.value)


def test_without_redis_py_the_plugins_load_and_the_start_names_the_extra() -> None:
    code = """
import asyncio, sys
sys.modules["redis"] = None
from tianji_mw.cache.dual import Dual
from tianji_mw.cache.redis import RedisStore
from tianji_mw.errors import MissingExtra
from tianji_mw.runtime import Runtime
async def main():
    async with Runtime() as runtime:
        for store in (RedisStore(), Dual()):
            try:
                await store.start(runtime)
            except MissingExtra as error:
                print(error.message)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert done.stdout.splitlines() == ["redis is not installed; run: pip install 'tianji-mw[redis]'"] * 2, done.stderr
