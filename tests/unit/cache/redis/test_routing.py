"""Redirections, broken connections and the breaker, against servers that answer as told."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from tests.support.redis_fake import Answer, FakeRedis, bulk, slots
from tests.support.tcp import until
from tianji_mw.redis import shared
from tianji_mw.redis.client import Redis
from tianji_mw.redis.errors import RedisDown, RedisFailed
from tianji_mw.redis.settings import RedisSettings
from tianji_mw.redis.slots import slot_of
from tianji_mw.runtime import Runtime

OK = b"+OK\r\n"


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime() as runtime:
        yield runtime


async def single(runtime: Runtime, server: FakeRedis, **more: float) -> Redis:
    return await shared(RedisSettings(port=server.port, **more), runtime)  # type: ignore[arg-type]


async def cluster(stack: AsyncExitStack, runtime: Runtime, *answers: Answer) -> tuple[Redis, list[FakeRedis]]:
    """Servers of which the first serves all slots, as they all say."""
    servers: list[FakeRedis] = []

    def answering(answer: Answer) -> Answer:
        def all_but_slots(command: list[bytes]) -> bytes | None:
            if command[0] == b"CLUSTER":
                return slots((0, 16383, servers[0].port))
            return b"+PONG\r\n" if command[0] == b"PING" else answer(command)

        return all_but_slots

    servers += [await stack.enter_async_context(FakeRedis(answering(answer))) for answer in answers]
    settings = RedisSettings(startup_nodes=tuple(("127.0.0.1", server.port) for server in servers))
    return await shared(settings, runtime), servers


async def test_one_client_for_equal_settings(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: OK) as server:
        assert await single(runtime, server) is await single(runtime, server)


async def test_moved_is_followed_and_remembered(runtime: Runtime) -> None:
    async with AsyncExitStack() as stack:
        there: list[FakeRedis] = []

        def moved(command: list[bytes]) -> bytes:
            return b"-MOVED %d 127.0.0.1:%d\r\n" % (slot_of("k"), there[1].port)

        redis, there = await cluster(stack, runtime, moved, lambda command: bulk(b"v"))
        redis.table.look = lambda: None  # type: ignore[assignment,method-assign,return-value]
        assert [await redis.run("GET", "k", key="k") for _ in range(3)] == [b"v"] * 3
        assert (there[0].asked("GET"), there[1].asked("GET")) == (1, 3)


async def test_ask_is_followed_once_and_not_remembered(runtime: Runtime) -> None:
    async with AsyncExitStack() as stack:
        there: list[FakeRedis] = []

        def ask(command: list[bytes]) -> bytes:
            return b"-ASK %d 127.0.0.1:%d\r\n" % (slot_of("k"), there[1].port)

        redis, there = await cluster(stack, runtime, ask, lambda command: OK if command == [b"ASKING"] else bulk(b"v"))
        assert [await redis.run("GET", "k", key="k") for _ in range(2)] == [b"v", b"v"]
        assert (there[0].asked("GET"), there[1].asked("GET"), there[1].asked("ASKING")) == (2, 2, 2)


async def test_redirections_in_a_circle_end(runtime: Runtime) -> None:
    async with AsyncExitStack() as stack:
        there: list[FakeRedis] = []

        def to(index: int) -> Answer:
            return lambda command: b"-MOVED 1 127.0.0.1:%d\r\n" % there[index].port

        redis, there = await cluster(stack, runtime, to(1), to(0))
        with pytest.raises(RedisFailed, match="MOVED"):
            await redis.run("GET", "k", key="k")
        assert there[0].asked("GET") + there[1].asked("GET") == 3


async def test_a_command_of_many_is_redirected_alone(runtime: Runtime) -> None:
    async with AsyncExitStack() as stack:
        there: list[FakeRedis] = []

        def some(command: list[bytes]) -> bytes:
            if command[1] == b"b":
                return b"-ASK %d 127.0.0.1:%d\r\n" % (slot_of("b"), there[1].port)
            return bulk(command[1]) if command[1] != b"c" else b"-WRONGTYPE Operation against c\r\n"

        def other(command: list[bytes]) -> bytes:
            return OK if command == [b"ASKING"] else bulk(b"there")

        redis, there = await cluster(stack, runtime, some, other)
        a, b, c = await redis.run_many([(key, ("GET", key)) for key in "abc"])
        assert (a, b) == (b"a", b"there")
        assert (c.code, c.kind) == ("WRONGTYPE", "error")
        assert "against" not in c.message


async def test_a_connection_that_broke_while_idle_costs_nothing(runtime: Runtime) -> None:
    closing = False
    async with FakeRedis(lambda command: None if closing and command[0] == b"GET" else bulk(b"v")) as server:
        redis = await single(runtime, server)
        assert await redis.run("GET", "k", key="k") == b"v"
        closing = True

        def once(command: list[bytes]) -> bytes | None:
            server.answer = lambda command: bulk(b"v")
            return None

        server.answer = once
        assert await redis.run("GET", "k", key="k") == b"v"
        assert not runtime.degraded


async def test_what_must_not_run_twice_is_not_sent_again(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: None if command[0] == b"INCR" else b"+PONG\r\n") as server:
        redis = await single(runtime, server)
        with pytest.raises(RedisFailed, match="the connection broke"):
            await redis.run("INCR", "k", key="k", repeatable=False)
        assert server.asked("INCR") == 1


async def test_silence_opens_the_breaker_and_the_probe_closes_it(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: bulk(b"v")) as server:
        redis = await single(runtime, server)
        server.answer = lambda command: b""
        with pytest.raises(RedisFailed) as caught:
            await redis.run("GET", "k", key="k")
        assert (type(caught.value), caught.value.kind) == (RedisFailed, "timeout")
        assert (
            "no answer within 200 ms; calls continue without it" in runtime.degraded[f"redis 127.0.0.1:{server.port}"]
        )
        asked = server.asked("GET")
        for _ in range(50):
            with pytest.raises(RedisDown):
                await redis.run("GET", "k", key="k")
        assert server.asked("GET") == asked
        server.answer = lambda command: bulk(b"v")
        await until(lambda: not runtime.degraded)
        assert await redis.run("GET", "k", key="k") == b"v"
        assert runtime.counts["redis_errors", "get timeout"] == 1
        assert runtime.counts["redis_errors", "get down"] == 50


async def test_a_stall_of_our_own_is_no_fault_of_the_server(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: bulk(b"v")) as server:
        redis = await single(runtime, server)

        def stalled(command: list[bytes]) -> bytes:
            time.sleep(0.6)  # the server lives in our event loop, so that this holds up us
            return bulk(b"v")

        server.answer = stalled
        with pytest.raises(RedisFailed) as caught:
            await redis.run("GET", "k", key="k")
        assert caught.value.kind == "timeout"
        server.answer = lambda command: bulk(b"v")
        assert await redis.run("GET", "k", key="k") == b"v"


async def test_too_few_connections_wait_and_open_no_breaker(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: bulk(b"v")) as server:
        redis = await single(runtime, server, max_connections=1)
        node = redis.nodes[0]
        await node._free.acquire()
        with pytest.raises(RedisFailed) as caught:
            await redis.run("GET", "k", key="k")
        assert caught.value.kind == "timeout"
        node._free.release()
        assert await redis.run("GET", "k", key="k") == b"v"


@pytest.mark.parametrize(
    ("answer", "kind", "cure"),
    [
        (b"-OOM command not allowed\r\n", "full", "maxmemory"),
        (b"-NOPERM User CANARY has no permissions\r\n", "refused", "ACL"),
        (b"-READONLY You can't write\r\n", "refused", "name the primary"),
        (b"-MISCONF Redis is configured\r\n", "error", "disk"),
        (b"-LOADING Redis is loading\r\n", "unreachable", "loads its data"),
        (b"-NOAUTH Authentication required.\r\n", "refused", "REDIS_PASSWORD"),
        (b"-WRONGPASS invalid CANARY pair\r\n", "refused", "username and password"),
        (b"-MASTERDOWN Link with MASTER is down\r\n", "unreachable", "primary is gone"),
        (b"-ERR max number of clients reached\r\n", "unreachable", "maxclients"),
        (b"-ERR wrong CANARY\r\n", "error", "(ERR)"),
        (b"-CROSSSLOT Keys CANARY\r\n", "error", "(CROSSSLOT)"),
        (b"garbage\r\n", "unreachable", "cannot be read"),
        (b"$x\r\n", "unreachable", "cannot be read"),
        (b"-MOVED nowhere\r\n", "unreachable", "cannot be read"),
        (b"HTTP/1.1 400 Bad Request\r\n", "unreachable", "cannot be read"),
        (b"$5\r\nab", "timeout", "no answer within"),
    ],
)
async def test_what_an_answer_means(runtime: Runtime, answer: bytes, kind: str, cure: str) -> None:
    async with FakeRedis(lambda command: answer if command[0] == b"GET" else OK) as server:
        redis = await single(runtime, server)
        with pytest.raises(RedisFailed) as caught:
            await redis.run("GET", "k", key="k")
        assert caught.value.kind == kind
        assert cure in caught.value.message
        assert "CANARY" not in caught.value.message


async def test_a_start_before_the_cluster(runtime: Runtime) -> None:
    async with FakeRedis(lambda command: b"*0\r\n" if command[0] == b"CLUSTER" else bulk(b"v")) as server:
        redis = await shared(RedisSettings(startup_nodes=(("127.0.0.1", server.port),)), runtime)
        with pytest.raises(RedisDown, match="in no cluster yet"):
            await redis.run("GET", "k", key="k")
        assert runtime.degraded
        server.answer = lambda c: slots((0, 16383, server.port)) if c[0] == b"CLUSTER" else bulk(b"v")
        await until(lambda: not runtime.degraded)
        assert await redis.run("GET", "k", key="k") == b"v"


@pytest.mark.parametrize(
    "answer", [b"*1\r\n:1\r\n", b"+OK\r\n", b"*1\r\n*3\r\n:0\r\n+x\r\n*2\r\n$1\r\nh\r\n:1\r\n", b"?\r\n"]
)
async def test_a_table_that_cannot_be_read(runtime: Runtime, answer: bytes) -> None:
    async with FakeRedis(lambda command: answer) as server:
        redis = await shared(RedisSettings(startup_nodes=(("127.0.0.1", server.port),)), runtime)
        with pytest.raises(RedisDown, match="cannot be read"):
            await redis.run("GET", "k", key="k")


@pytest.mark.parametrize(
    ("named", "role", "kind", "cure"),
    [
        (b"*-1\r\n", b"", "refused", "watches nothing named service_name"),
        (None, b"*1\r\n$5\r\nslave\r\n", "unreachable", "no primary yet"),
        (None, b"*0\r\n", "error", "cannot be read"),
    ],
)
async def test_sentinels_that_know_no_primary(
    runtime: Runtime, named: bytes | None, role: bytes, kind: str, cure: str
) -> None:
    def answer(command: list[bytes]) -> bytes:
        if command[0] == b"ROLE":
            return role
        return named or b"*2\r\n%s%s" % (bulk(b"127.0.0.1"), bulk(b"%d" % server.port))

    async with FakeRedis(answer) as server:
        settings = RedisSettings(sentinel_nodes=(("127.0.0.1", server.port),), service_name="mymaster")
        redis = await shared(settings, runtime)
        with pytest.raises(RedisDown, match=cure) as caught:
            await redis.run("GET", "k", key="k")
        assert caught.value.kind == kind
