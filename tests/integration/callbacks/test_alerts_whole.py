"""From a config in LiteLLM's spelling to the destinations of alerts: calls that fail, slow answers, budgets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.smtp_server import PASSWORD, USER, smtp_server
from tests.support.stack import ANSWER, CHAT, Serve
from tianji_mw.alerts import Budget, crossings
from tianji_mw.stack import Stack
from tianji_mw.testing import FakeLLM, Reply, drive

FAST = {"DEFAULT_FLUSH_INTERVAL_SECONDS": "0.05"}


def config(folder: Path, llm: FakeLLM, more: str) -> Path:
    path = folder / "config.yaml"
    model = f"{{model: openai/gpt-4o, api_base: '{llm.url}/v1', api_key: sk-key}}"
    models = f"model_list:\n  - {{model_name: gpt-4o, litellm_params: {model}}}\n"
    path.write_text(f"{models}litellm_settings: {{num_retries: 0}}\n{more}\n")
    return path


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


async def test_failures_and_an_outage_reach_slack(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM() as llm, FakeLLM(lambda request: Reply()) as hook:
        more = f"""
general_settings:
  alerting: [slack]
  alert_types: [llm_exceptions, outage_alerts]
  alert_to_webhook_url: {{outage_alerts: ['{hook.url}/oncall', '{hook.url}/ops']}}
  alerting_args: {{minor_outage_alert_threshold: 2, daily_report_frequency: 100}}
"""
        app = await serve(
            Stack.from_config(config(tmp_path, llm, more), env={**FAST, "SLACK_WEBHOOK_URL": f"{hook.url}/default"}).app
        )
        for _ in range(3):
            assert (await drive(app, CHAT)).status >= 500
        await until(lambda: {request.path for request in hook.requests} >= {"/oncall", "/ops", "/default"})
    outages = [request.json["text"] for request in hook.requests if request.path == "/oncall"]
    assert len(outages) == 1
    assert outages[0].startswith("Alert type: `outage_alerts`\nLevel: `Medium`\n")
    assert "LLM call failed" in next(r.json["text"] for r in hook.requests if r.path == "/default")


async def test_slow_answers_reach_teams_and_a_webhook(tmp_path: Path, serve: Serve) -> None:
    async with (
        FakeLLM(lambda request: Reply.json(ANSWER, delay_s=0.2)) as llm,
        FakeLLM(lambda request: Reply()) as hook,
    ):
        more = "general_settings: {alerting: [ms_teams, webhook], alerting_threshold: 0.1}"
        urls = {"MS_TEAMS_WEBHOOK_URL": f"{hook.url}/teams", "WEBHOOK_URL": f"{hook.url}/hook"}
        app = await serve(Stack.from_config(config(tmp_path, llm, more), env={**FAST, **urls}).app)
        assert (await drive(app, CHAT)).status == 200
        await until(lambda: len(hook.requests) == 2)
    by_path: dict[str, Any] = {request.path: request.json for request in hook.requests}
    assert by_path["/hook"]["event"] == "llm_too_slow"
    assert by_path["/hook"]["fields"]["model"] == "gpt-4o"
    (block,) = by_path["/teams"]["attachments"][0]["content"]["body"]
    assert "Answers are slow" in block["text"]


async def test_budgets_reach_all_destinations(tmp_path: Path, serve: Serve) -> None:
    async with FakeLLM() as llm, FakeLLM(lambda request: Reply()) as hook, smtp_server(tmp_path, "starttls") as box:
        more = f"""
general_settings: {{alerting: [slack, ms_teams, webhook, email]}}
callback_settings:
  webhook: {{secret: shared}}
  email: {{ca_file: '{box.ca_file}', to: ops@x.io}}
"""
        env = {
            "SLACK_WEBHOOK_URL": f"{hook.url}/slack", "MS_TEAMS_WEBHOOK_URL": f"{hook.url}/teams",
            "WEBHOOK_URL": f"{hook.url}/hook", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(box.port),
            "SMTP_USERNAME": USER, "SMTP_PASSWORD": PASSWORD, "SMTP_TLS": "True",
            "SMTP_SENDER_EMAIL": "llm@corp.example",
        }  # fmt: skip
        app = await serve(Stack.from_config(config(tmp_path, llm, more), env={**FAST, **env}).app)
        budget = Budget(
            group="team", spend=96.0, max_budget=100.0, team_id="t1", team_alias="ml", alert_emails=["lead@x.io"]
        )
        for _ in range(3):
            for alert in crossings(budget):
                app.runtime.alert(alert)
        await until(lambda: len(hook.requests) == 3 and len(box.mails) == 2)
    by_path = {request.path: request for request in hook.requests}
    assert by_path["/hook"].json["event"] == "threshold_crossed"
    assert by_path["/hook"].headers["x-tianji-signature"].startswith("sha256=")
    assert sorted(mail.to[0] for mail in box.mails) == ["lead@x.io", "ops@x.io"]
