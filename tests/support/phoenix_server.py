"""A real Phoenix, of the environment `.tools/phoenix`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support import mlflow_server
from tests.support.processes import ROOT, Running, free_port, server

PROGRAM = ROOT / ".tools/phoenix/bin/phoenix"


@contextmanager
def phoenix(folder: Path) -> Iterator[Running]:
    """`admin_port` is that of gRPC. Its data are in `folder`."""
    mlflow_server.there(PROGRAM, "arize-phoenix==20.26.1")
    port, grpc_port = free_port(), free_port()
    env = {
        "PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(port), "PHOENIX_GRPC_PORT": str(grpc_port),
        "PHOENIX_WORKING_DIR": str(folder), "PHOENIX_TELEMETRY_ENABLED": "false",
    }  # fmt: skip
    with server([str(PROGRAM), "serve"], folder, port=port, admin_port=grpc_port, env=env, probe="") as running:
        mlflow_server.wait(running, "/healthz")
        yield running
