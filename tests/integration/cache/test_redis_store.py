"""`RedisStore` against one real server: round trips, logins, TLS, a full memory, a replica."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.redis_servers import PASSWORD, Server, redis_server
from tests.support.tcp import TcpServer, until
from tianji_mw.cache.base import StoreFailed
from tianji_mw.cache.redis import RedisStore
from tianji_mw.errors import SetupError
from tianji_mw.redact import Secret
from tianji_mw.redis.scripts import Script
from tianji_mw.redis.slots import tagged
from tianji_mw.runtime import Runtime

pytestmark = pytest.mark.slow

#: A password that the operator got wrong, and must not read anywhere.
WRONG = "wrong-CANARY-77"

Start = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime() as runtime:
        yield runtime


@pytest.fixture
def start(runtime: Runtime) -> Start:
    async def started(server: Server | Tls, **fields: Any) -> RedisStore:
        store = RedisStore.model_validate({"host": "127.0.0.1", "port": server.port, **fields})
        await store.start(runtime)
        return store

    return started


async def test_a_get_is_one_round_trip(server: Server, start: Start) -> None:
    store = await start(server)
    await store.put("k", b"v", 60)
    with server.client() as plain:
        before = plain.info("stats")["total_commands_processed"]
        for _ in range(20):
            assert await store.get("k") == b"v"
        # The one more is the second INFO.
        assert plain.info("stats")["total_commands_processed"] - before == 21


async def test_many_go_together(server: Server, start: Start) -> None:
    store = await start(server)
    await store.put_many([(f"many:{n}", b"%d" % n, 60.0) for n in range(250)])
    with server.client() as plain:
        before = plain.info("stats")["total_reads_processed"]
        found = await store.get_many([f"many:{n}" for n in range(0, 500, 5)])
        reads = plain.info("stats")["total_reads_processed"] - before
    assert found == [b"%d" % n if n < 250 else None for n in range(0, 500, 5)]
    assert reads <= 3  # a large pipeline may come in two pieces; the one more is the second INFO
    assert sorted([key async for key in store.keys("many:24")]) == ["many:24", *(f"many:24{n}" for n in range(10))]
    assert await store.delete([f"many:{n}" for n in range(300)]) == 250


async def test_a_value_goes_with_its_time(server: Server, start: Start) -> None:
    store = await start(server)
    await store.put("short", b"v", 0.05)
    await store.put("long", b"v", 60)
    server.client().set("for-ever", b"v")
    found = await store.get_with_ttl(["long", "for-ever", "none"])
    assert [value for value, _ in found] == [b"v", b"v", None]
    assert 59 < found[0][1] <= 60
    assert (found[1][1], found[2][1]) == (float("inf"), 0)
    await asyncio.sleep(0.1)
    assert await store.get("short") is None


async def test_signs_of_patterns_are_letters(server: Server, start: Start) -> None:
    store = await start(server)
    names = ["p*q", "p?q", "p[a]q", "pxq", "p\\q", "p^q"]
    await store.put_many([(name, b"", 60.0) for name in names])
    for name in names:
        assert [key async for key in store.keys(name)] == [name]


async def test_a_script_after_a_flush_of_scripts(server: Server, start: Start) -> None:
    store, script = await start(server), Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    key = tagged("k", "count")
    assert [await script.run(store.client, [key], [2]) for _ in range(2)] == [2, 4]
    server.client().script_flush()
    assert await script.run(store.client, [key], [2]) == 6


async def test_figures(server: Server, start: Start) -> None:
    store = await start(server)
    await store.ping()
    report = await store.report()
    assert report["server"].startswith("Redis 8")
    assert (report["mode"], report["nodes"]) == ("standalone", {f"127.0.0.1:{server.port}": "up"})
    assert report["bytes"] > 0
    assert report["items"] == server.client().dbsize()


async def test_databases_are_apart(server: Server, start: Start) -> None:
    one, other = await start(server, db=1), await start(server, db=2)
    await one.put("db", b"1", 60)
    assert (await one.get("db"), await other.get("db")) == (b"1", None)


async def test_a_full_memory_is_full(tmp_path: Path, start: Start) -> None:
    with redis_server(tmp_path, "--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = await start(server)
        items = [(f"k{n}", b"x" * 50_000, 60.0) for n in range(200)]
        with pytest.raises(StoreFailed, match="maxmemory-policy allkeys-lru") as caught:
            await store.put_many(items)
        assert caught.value.kind == "full"
        assert await store.get("k0") == b"x" * 50_000


async def test_a_replica_refuses_writes(tmp_path: Path, server: Server, start: Start) -> None:
    with redis_server(tmp_path, "--replicaof", f"127.0.0.1 {server.port}") as replica:
        store = await start(replica)
        with pytest.raises(StoreFailed, match="it is a replica; name the primary") as caught:
            await store.put("k", b"v", 60)
        assert caught.value.kind == "refused"


# --- logins


class Rotating(Secret):
    """The value of now; a store's secret may change."""

    __slots__ = ("now",)

    def __init__(self, now: str) -> None:
        super().__init__(now)
        self.now = now

    def reveal(self) -> str:
        return self.now


@pytest.mark.parametrize(
    ("fields", "cure"),
    [
        ({}, "set password"),
        ({"password": WRONG}, "check username and password"),
        ({"username": "nobody", "password": PASSWORD}, "check username and password"),
    ],
)
async def test_a_wrong_login_is_refused_with_the_cure(
    tmp_path: Path, runtime: Runtime, start: Start, fields: dict[str, str], cure: str
) -> None:
    with redis_server(tmp_path, "--requirepass", PASSWORD, login={"password": PASSWORD}) as server:
        store = await start(server, **fields)
        with pytest.raises(StoreFailed, match=cure) as caught:
            await store.get("k")
        assert caught.value.kind == "refused"
        told = str(runtime.degraded) + caught.value.message
        assert cure in runtime.degraded[f"redis 127.0.0.1:{server.port}"]
        assert WRONG not in told
        assert PASSWORD not in told


async def test_a_rotated_password_heals_it(tmp_path: Path, runtime: Runtime, start: Start) -> None:
    with redis_server(tmp_path, "--requirepass", PASSWORD, login={"password": PASSWORD}) as server:
        secret = Rotating(WRONG)
        store = await start(server, password=secret)
        with pytest.raises(StoreFailed):
            await store.put("k", b"v", 60)
        secret.now = PASSWORD
        await until(lambda: not runtime.degraded)
        await store.put("k", b"v", 60)
        assert await store.get("k") == b"v"


async def test_a_user_of_an_acl(tmp_path: Path, runtime: Runtime, start: Start) -> None:
    acl = ["--user", "gateway", "on", f">{PASSWORD}", "~mine:*", "+get", "+set"]
    with redis_server(tmp_path, *acl) as server:
        store = await start(server, username="gateway", password=PASSWORD)
        await store.put("mine:k", b"v", 60)
        assert await store.get("mine:k") == b"v"
        with pytest.raises(StoreFailed, match="ACL user lacks") as caught:
            await store.get("other")
        assert caught.value.kind == "refused"
        with pytest.raises(StoreFailed, match="ACL user lacks"):
            await store.delete(["mine:k"])
        assert await store.get("mine:k") == b"v"  # a right that is missing keeps nobody away
        assert not runtime.degraded


# --- TLS


@dataclass(frozen=True)
class Tls:
    """A port that speaks TLS and wants a certificate of the client, and the folder of the files."""

    port: int
    folder: Path


@pytest.fixture
async def tls(tmp_path: Path, server: Server) -> AsyncIterator[Tls]:
    """The server's build has no TLS: a relay before it has."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    leaf, own = authority.issue_cert("localhost"), authority.issue_cert("gateway.internal")
    own.private_key_pem.write_to_path(str(tmp_path / "client.key"))
    own.cert_chain_pems[0].write_to_path(str(tmp_path / "client.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    leaf.configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await asyncio.gather(_copy(reader, there), _copy(back, writer))
        finally:
            there.close()

    async with TcpServer(relay, tls=context) as running:
        yield Tls(running.port, tmp_path)


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        sink.write(data)
        await sink.drain()
    sink.close()


async def test_tls_with_a_client_certificate(tls: Tls, start: Start) -> None:
    pair = {"ssl_certfile": f"{tls.folder}/client.pem", "ssl_keyfile": f"{tls.folder}/client.key"}
    store = await start(tls, host="localhost", ssl=True, ssl_ca_certs=f"{tls.folder}/ca.pem", **pair)
    await store.put("k", b"v" * 100_000, 60)
    assert await store.get("k") == b"v" * 100_000
    careless = await start(tls, ssl=True, ssl_cert_reqs="none", **pair)
    assert await careless.get("k") == b"v" * 100_000


async def test_an_authority_that_is_not_known(tls: Tls, start: Start) -> None:
    store = await start(tls, host="localhost", ssl=True)
    with pytest.raises(StoreFailed, match="set ssl_ca_certs") as caught:
        await store.get("k")
    assert caught.value.kind == "unreachable"


async def test_a_certificate_of_another_host(tls: Tls, start: Start) -> None:
    store = await start(tls, ssl=True, ssl_ca_certs=f"{tls.folder}/ca.pem")
    with pytest.raises(StoreFailed, match="check the host name"):
        await store.get("k")


async def test_no_client_certificate(tls: Tls, start: Start) -> None:
    store = await start(tls, host="localhost", ssl=True, ssl_ca_certs=f"{tls.folder}/ca.pem")
    with pytest.raises(StoreFailed, match="Redis at localhost"):
        await store.get("k")


async def test_tls_to_a_plain_port(server: Server, start: Start) -> None:
    store = await start(server, ssl=True)
    with pytest.raises(StoreFailed):
        await store.get("k")


async def test_files_that_are_not_there_stop_the_start(server: Server, start: Start, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="check ssl_ca_certs"):
        await start(server, ssl=True, ssl_ca_certs=str(tmp_path / "none.pem"))
