"""A real MLflow tracking server, of the environment `.tools/mlflow`."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.processes import ROOT, Running, free_port, server

PROGRAM = ROOT / ".tools/mlflow/bin/mlflow"
PYTHON = PROGRAM.with_name("python")
#: The first start makes the database.
READY_WITHIN_S = 200.0


@contextmanager
def mlflow(folder: Path) -> Iterator[Running]:
    """Its data are in `folder`."""
    there(PROGRAM, "'mlflow>=3.17'")
    port = free_port()
    command = [
        str(PROGRAM), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--default-artifact-root", f"{folder}/artifacts",
    ]  # fmt: skip
    env = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with server(command, folder, port=port, env=env, probe="") as running:
        wait(running, "/health")
        yield running


def there(program: Path, package: str) -> None:
    if not program.exists():
        pytest.fail(f"{program} is missing; run: uv venv {program.parents[1]} && uv pip install {package}")


def wait(running: Running, path: str) -> None:
    """Until the server answers 200."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline:
        if running.process.poll() is not None:
            raise AssertionError(f"the server ended with {running.process.returncode}:\n{running.output()}")
        try:
            with urllib.request.urlopen(running.url + path, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"the server did not answer within {READY_WITHIN_S} s:\n{running.output()}")
