"""The rows of the benchmark: what is started, and what a client must send to reach the mock through it.

Another gateway is one more `Row` in `ROWS`. This starts nothing (`servers.py`) and measures nothing (`load.py`).
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
OUT: Final = HERE / "out"
CONF: Final = HERE / "conf"
_SIDECAR: Final = "{sidecar} run --config {conf} --port {port} --admin-port 0 --quiet"
_PROMPT: Final = (
    "You are a support agent for an online shop. Answer briefly, cite the order number, and never promise a refund. "
)


@dataclass(frozen=True)
class Row:
    """One column of the table: `Row("haproxy", "haproxy -f {conf}", conf="haproxy.cfg", package="haproxy")`.

    In `command`, and in the file named by `conf`, these are filled in: `{port}` (to listen on), `{mock_port}` (the
    upstream); in `command` also `{conf}` (the filled file), `{out}` (a folder to write to), `{sidecar}` (its program).
    """

    name: str
    command: str = ""  # empty: no gateway, the load goes straight to the mock
    conf: str = ""
    package: str = ""  # Debian package of the command's program, for the error when it is missing
    headers: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    model: str = "{}"  # "prefix/{}" where a gateway wants model names prefixed
    path: str = "/v1/chat/completions"
    live_path: str = "/health/liveliness"

    def words(self, port: int, mock_port: int, sidecar: str) -> list[str]:
        """The command line, its configuration file written to `out/`."""
        ports = {"{port}": str(port), "{mock_port}": str(mock_port)}
        conf = OUT / f"{self.name}-{self.conf}"
        if self.conf:
            conf.write_text(_fill((CONF / self.conf).read_text(), ports))
        known = {**ports, "{conf}": str(conf), "{out}": str(OUT), "{sidecar}": sidecar}
        return [_fill(word, known) for word in shlex.split(self.command)]

    def program(self, sidecar: str) -> str:
        """The first word of the command; empty when there is none."""
        return self.command.partition(" ")[0].replace("{sidecar}", sidecar)

    def body(self, model: str = "mock", *, stream: bool = False) -> str:
        """A chat request of about 0.7 KB."""
        messages = [
            {"role": "system", "content": _PROMPT * 4},
            {"role": "user", "content": "Where is my order 4711?"},
        ]
        body = {"model": self.model.format(model), "messages": messages, "temperature": 0.2, "max_tokens": 200}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return json.dumps(body, separators=(",", ":"))

    def all_headers(self) -> dict[str, str]:
        """What the client sends, `content-length` and `host` aside."""
        return {"content-type": "application/json", **self.headers}


def _fill(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def default_sidecar() -> str:
    """The console script beside the Python that runs this."""
    return str(Path(sys.executable).parent / "tianji-sidecar")


_KEY: Final = {"MOCK_KEY": "sk-mock"}
_MASTER: Final = {"authorization": "Bearer sk-bench-master"}
ROWS: Final = (
    Row("direct"),
    Row("nginx", "nginx -p {out} -c {conf} -e stderr", conf="nginx.conf", package="nginx-light"),
    Row("sidecar", _SIDECAR, conf="sidecar.yaml", headers=_MASTER, env=_KEY),
    Row("sidecar-bare", _SIDECAR, conf="bare.yaml", env=_KEY),
)
