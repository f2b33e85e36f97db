"""Importing the suite is cheap: no vendor SDK, no web framework, nothing of what is not used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tianji_mw

ROOT = Path(tianji_mw.__file__).resolve().parents[1]
VENDORS = {
    "openai",
    "anthropic",
    "boto3",
    "botocore",
    "google",
    "azure",
    "hvac",
    "redis",
    "fastapi",
    "litestar",
    "django",
    "quart",
    "litellm",
    "langchain",
    "uvicorn",
    "typer",
    "rich",
    "aiohttp",
    "httpx",
    "httpx2",
    "yaml",
    "prometheus_client",
}


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_loads_no_vendor_and_no_web_framework() -> None:
    assert not loaded_by("import tianji_mw") & VENDORS


def test_one_middleware_loads_only_what_it_needs() -> None:
    assert not loaded_by("from tianji_mw import Authentication, Guardrails") & VENDORS


def test_the_gateway_without_traffic_loads_no_http_client() -> None:
    statement = (
        "from tianji_mw import Gateway; from tianji_mw.routing.table import Deployments; Gateway(Deployments([]))"
    )
    assert not loaded_by(statement) & VENDORS


@pytest.mark.parametrize("name", tianji_mw.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(tianji_mw, name) is not None
    assert name in dir(tianji_mw)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gatway'"):
        _ = tianji_mw.Gatway  # type: ignore[attr-defined]


@pytest.mark.parametrize("folder", ["tianji_mw", "sidecar"])
def test_files_and_functions_stay_small(folder: str) -> None:
    too_long = []
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text("utf-8")
        if text.count("\n") > 400:
            too_long.append(f"{path}: {text.count(chr(10))} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > 50:
                    too_long.append(f"{path}:{node.lineno} {node.name}: {lines} lines")
    assert not too_long


def test_client_libraries_are_named_in_few_files() -> None:
    """SDKs are moving from httpx to httpx2: only these files may know a client library."""
    named: dict[str, set[str]] = {"httpx": set(), "aiohttp": set()}
    for path in (ROOT / "tianji_mw").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            else:
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for module in modules:
                if module in named:
                    named[module].add(path.name)
    assert named["httpx"] <= {"http.py", "http2.py", "transport.py"}
    assert named["aiohttp"] == {"aiohttp.py"}
