"""What every callback keeps to, whatever it is: one suite for all that ship."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_transports import closed_port
from tests.support.aws import forget_aws
from tests.support.processes import ROOT
from tests.support.records import a_failure, a_record
from tianji_mw import plugins
from tianji_mw.alerts import Alert
from tianji_mw.callbacks.base import Callback, NotDelivered, Record
from tianji_mw.errors import PluginNotFound, SetupError
from tianji_mw.runtime import Runtime

CANARY = "canary-credential-0123456789"
HERE = "http://127.0.0.1:{port}"
AWS = {"region": "eu-west-1", "endpoint_url": HERE, "access_key_id": "AK", "secret_access_key": CANARY}

#: The least that each needs, with nobody at the address.
SETTINGS: Mapping[str, dict[str, Any]] = {
    "alerting": {},
    "arize": {"api_key": CANARY, "space_id": "s", "http_endpoint": HERE},
    "azure_blob": {"account": "a", "container": "c", "account_key": "Y2FuYXJ5LWNyZWRlbnRpYWw=", "endpoint_url": HERE},
    "braintrust": {"api_key": CANARY, "api_base": HERE},
    "datadog": {"api_key": CANARY, "api_base": HERE},
    "datadog_llm_observability": {"api_key": CANARY, "api_base": HERE},
    "dynamodb": {"table": "logs", **AWS},
    "email": {
        "host": "127.0.0.1",
        "port": "{port}",
        "sender": "a@example.com",
        "to": ["b@example.com"],
        "starttls": False,
    },
    "gcs": {"bucket": "b", "endpoint_url": HERE},
    "gcs_pubsub": {"project_id": "p", "topic_id": "t", "api_base": HERE},
    "generic_api": {"endpoint": HERE, "headers": {"authorization": CANARY}},
    "helicone": {"api_key": CANARY, "api_base": HERE},
    "langfuse": {"public_key": "pk", "secret_key": CANARY, "endpoint": HERE},
    "langsmith": {"api_key": CANARY, "api_base": HERE},
    "mlflow": {"endpoint": HERE, "api_key": CANARY},
    "ms_teams": {"webhook_url": HERE + f"/{CANARY}"},
    "otel": {"endpoint": HERE, "protocol": "http/protobuf", "headers": {"authorization": CANARY}},
    "phoenix": {"endpoint": HERE, "api_key": CANARY},
    "prometheus": {},
    "resend_email": {"api_key": CANARY, "api_base": HERE, "sender": "a@example.com", "to": ["b@example.com"]},
    "s3": {"bucket": "b", **AWS},
    "sendgrid_email": {"api_key": CANARY, "api_base": HERE, "sender": "a@example.com", "to": ["b@example.com"]},
    "slack": {"webhook_url": HERE + f"/{CANARY}"},
    "sqs": {"queue_url": HERE + "/1/logs", **AWS},
    "wandb": {"api_key": CANARY, "project_id": "e/p", "endpoint": HERE},
    "webhook": {"url": HERE, "secret": CANARY},
}
#: Destinations that nobody has to be reached for.
AT_HOME = {"alerting", "prometheus"}
each = pytest.mark.parametrize("name", sorted(SETTINGS))


def kind_of(name: str) -> type[Callback]:
    return plugins.find("callbacks", name, Callback)  # type: ignore[type-abstract]


def made(name: str) -> Callback:
    port = closed_port()

    def filled(value: Any) -> Any:
        return value.replace("{port}", str(port)) if isinstance(value, str) else value

    return kind_of(name)(**{key: filled(value) for key, value in SETTINGS[name].items()})


def batch_for(callback: Callback) -> list[Record]:
    if "call" in callback.kinds:
        now = time.time()
        return [a_record(startTime=now, endTime=now + 1), a_failure(startTime=now, endTime=now + 1)]
    fields = {"event": "budget_crossed", "event_group": "team", "spend": 12.0, "alert_emails": ["c@example.com"]}
    alert = Alert(kind="budget_alerts", message="over budget", fields=fields)
    return [Record.of(f"alert-{at}", alert.as_dict(float(at)), "alert") for at in range(2)]


def test_the_table_names_every_callback_that_ships() -> None:
    shipped = set()
    for name in plugins.names("callbacks"):
        try:
            kind_of(name)
        except PluginNotFound:
            continue
        shipped.add(name)
    assert shipped == set(SETTINGS)


@each
def test_its_class_is_sound(name: str) -> None:
    kind = kind_of(name)
    fields = set(kind.model_fields)
    assert set(kind.env_fields) <= fields
    assert set(kind.aliases.values()) <= fields
    assert not set(kind.aliases) & fields, "an alias that is a field hides it"
    assert kind.kinds <= {"call", "alert"}
    assert kind.__doc__


@each
def test_it_is_documented(name: str) -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "callbacks").glob("*.md"))
    assert f"`{name}`" in pages + (ROOT / "docs" / "callbacks.md").read_text()


@each
def test_it_takes_no_unknown_setting(name: str) -> None:
    with pytest.raises(ValueError, match="colour"):
        kind_of(name)(**{**SETTINGS[name], "colour": "red", **({"port": 25} if name == "email" else {})})


@each
async def test_nobody_at_the_address_stops_no_start_and_loses_no_record(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forget_aws(monkeypatch, tmp_path)
    caplog.set_level("DEBUG")
    callback = made(name)
    async with Runtime() as runtime:
        await callback.start(runtime)
        batch = batch_for(callback)
        if name in AT_HOME:
            await callback.write(batch)
        else:
            with pytest.raises(NotDelivered) as raised:
                async with asyncio.timeout(30):
                    await callback.write(batch)
            problem = raised.value
            assert problem.retry
            assert not problem.refused
            assert problem.failed is None or {record.id for record in problem.failed} == {one.id for one in batch}
            assert CANARY not in problem.message
        await callback.aclose()
        await callback.aclose()
    assert CANARY not in caplog.text
    assert CANARY not in repr(callback)


@each
async def test_what_was_not_started_delivers_nothing(name: str) -> None:
    callback = made(name)
    with pytest.raises(NotDelivered):
        await callback.write(batch_for(callback))
    await callback.aclose()


@each
async def test_without_settings_it_does_not_start(name: str) -> None:
    if name in AT_HOME | {"otel", "phoenix"}:
        return
    async with Runtime() as runtime:
        with pytest.raises((SetupError, ValueError)) as raised:
            await kind_of(name)().start(runtime)
    assert re.search(r"missing|required|set |needs", str(raised.value)), str(raised.value)


@pytest.mark.slow
def test_finding_them_all_loads_no_sdk() -> None:
    code = """
import sys
from tianji_mw import plugins
from tianji_mw.callbacks.base import Callback
for name in sys.argv[1:]:
    plugins.find("callbacks", name, Callback)
print(" ".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, *SETTINGS], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    # httpx itself imports zstandard where that is installed.
    sdks = {"boto3", "botocore", "azure", "google.auth", "google.cloud", "grpc", "pyarrow", "aiosmtplib",
            "opentelemetry", "prometheus_client", "langfuse", "langsmith", "braintrust", "cryptography"}  # fmt: skip
    assert not loaded & sdks
