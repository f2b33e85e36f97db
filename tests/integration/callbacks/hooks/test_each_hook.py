"""Slack, Teams and the webhook: what each sends."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given

from tests.support.alert_records import NOON, Clock, a_crossing, an_alert, recorded
from tests.support.hook_cases import PATH, SECRET, TEXT, Start, each, failure, genuine, texts
from tianji_mw.alerts import Budget, budget_alert
from tianji_mw.callbacks.alerts.delivery import Group, read
from tianji_mw.callbacks.ms_teams import MSTeams
from tianji_mw.callbacks.slack import Slack
from tianji_mw.callbacks.webhook import Webhook
from tianji_mw.testing import FakeLLM, Received, Reply

# --- Slack


async def test_slack_takes_litellms_form(hook: FakeLLM, start: Start) -> None:
    callback = await start(Slack(webhook_url=hook.url + PATH, proxy_base_url="https://llm.corp"))
    await callback.write([a_crossing(96.0)])
    (request,) = hook.requests
    assert (request.method, request.path) == ("POST", PATH)
    assert request.headers["content-type"] == "application/json"
    assert request.json == {
        "text": "Alert type: `budget_alerts`\nLevel: `High`\nTimestamp: `12:00:01`\n\n"
        "Message: Team Budget: 5% or less of budget remaining\nTeam: ml (t1)\nSpend: $96.00\nBudget: $100.00"
        "\n\nProxy URL: `https://llm.corp`"
    }


async def test_slack_shows_the_fields_of_other_alerts(hook: FakeLLM, start: Start) -> None:
    callback = await start(Slack(webhook_url=hook.url))
    await callback.write([an_alert(fields={"model": "gpt`4", "api_base": "https://a&b", "nothing": None})])
    (text,) = texts(hook)
    assert text.endswith("Message: It is down\n\nmodel: `gpt'4`\n\napi_base: `https://a&amp;b`")


async def test_slack_squashes_equal_alerts(hook: FakeLLM, start: Start) -> None:
    callback = await start(Slack(webhook_url=hook.url))
    await callback.write([an_alert() for _ in range(40)])
    (text,) = texts(hook)
    assert text.startswith("[Num Alerts: 40]\n\nAlert type: `llm_exceptions`\n")


async def test_slack_routes_by_type(hook: FakeLLM, start: Start) -> None:
    callback = await start(
        Slack(
            default_webhook_url=f"{hook.url}/default",
            alert_to_webhook_url={
                "budget_alerts": [f"{hook.url}/finance", f"{hook.url}/ops"],
                "llm_too_slow": f"{hook.url}/speed",
            },
        )
    )
    await callback.write([a_crossing(), an_alert(kind="llm_too_slow"), an_alert()])
    assert [request.path for request in hook.requests] == ["/finance", "/ops", "/speed", "/default"]


async def test_slack_without_an_address_for_a_type(hook: FakeLLM, start: Start, clock: Clock) -> None:
    callback = await start(Slack(webhook_urls={"budget_alerts": hook.url}))
    await callback.write([an_alert(), a_crossing()])
    assert len(hook.requests) == 1
    assert clock.runtime.counts["alerts_without_address", "Slack llm_exceptions"] == 1


async def test_slack_does_not_send_twice_to_the_address_that_took_it(start: Start) -> None:
    async with FakeLLM(lambda request: Reply()) as good, FakeLLM(lambda request: Reply()) as bad:
        bad.replies.extend([Reply(status=500)] * 2)
        callback = await start(Slack(webhook_urls={"budget_alerts": [bad.url, good.url]}))
        record = a_crossing()
        for _ in range(2):
            assert (await failure(callback, record)).failed == [record]
        await callback.write([record])
        await callback.write([a_crossing()])
        assert (len(good.requests), len(bad.requests)) == (1, 3)


async def test_slack_messages_have_an_end(hook: FakeLLM, start: Start) -> None:
    callback = await start(Slack(webhook_urls={"a": f"{hook.url}/x", "b": f"{hook.url}/api/webhooks/1/t/slack"}))
    many = {f"field{at}": "y" * 900 for at in range(40)}
    await callback.write([an_alert("<&>" * 50_000, kind=kind, fields=many) for kind in "ab"])
    one, two = texts(hook)
    assert 3000 < len(one) <= 3500
    assert 1500 < len(two) <= 1900
    assert "more characters" in texts(hook)[0]


@given(message=TEXT, kind=TEXT, name=TEXT, value=TEXT)
def test_slack_markup_is_escaped(message: str, kind: str, name: str, value: str) -> None:
    told = read(an_alert(message, kind=kind or "k", fields={name: value}))
    assert told is not None
    text = Slack().text(Group("key", [told]))
    assert "<" not in text
    assert ">" not in text
    assert "@everyone" not in text
    assert "](" not in text
    head = text.partition("Message: ")[0]
    assert head.count("`") == 6
    assert head.count("\n") == 4
    for part in text.split("&")[1:]:
        assert part.startswith(("amp;", "lt;", "gt;"))


# --- Microsoft Teams


async def test_teams_gets_an_adaptive_card(hook: FakeLLM, start: Start) -> None:
    callback = await start(MSTeams(webhook_url=f"{hook.url}/workflows/x?sig=SECRET"))
    hook.replies.append(Reply(status=202))
    await callback.write([an_alert("It is down\nreally", fields={"model": "gpt"}), a_crossing(96.0)])
    first, second = hook.requests
    assert first.path == "/workflows/x?sig=SECRET"
    assert first.json == {
        "type": "message",
        "attachments": [
            {
                "contentType": "application/vnd.microsoft.card.adaptive",
                "contentUrl": None,
                "content": {
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "type": "AdaptiveCard",
                    "version": "1.2",
                    "body": [
                        {
                            "type": "TextBlock",
                            "text": "**Alert type:** llm_exceptions\n\n**Level:** Medium\n\n**Timestamp:** 12:00:01\n\n"
                            "**Message:** It is down\n\nreally\n\n**model:** gpt",
                            "wrap": True,
                        }
                    ],
                },
            }
        ],
    }
    (block,) = second.json["attachments"][0]["content"]["body"]
    assert "5% or less of budget remaining" in block["text"]


async def test_a_connector_that_says_200_and_did_not_deliver(hook: FakeLLM, start: Start) -> None:
    callback = await start(MSTeams(webhook_url=hook.url))
    said = (
        b"Webhook message delivery failed with error: Microsoft Teams endpoint returned HTTP error 429 with ContextId x"
    )
    hook.replies.append(Reply(parts=[said]))
    record = an_alert()
    assert (await failure(callback, record)).failed == [record]
    await callback.write([record])
    assert len(hook.requests) == 2


async def test_a_card_fits_into_a_message(hook: FakeLLM, start: Start) -> None:
    callback = await start(MSTeams(webhook_url=hook.url, proxy_base_url="https://x"))
    await callback.write([an_alert("\U0001f600\n" * 50_000, fields={str(at): "ü" * 900 for at in range(40)})])
    assert len(hook.requests[0].body) < 28 * 1024


@given(message=TEXT, kind=TEXT, name=TEXT, value=TEXT)
def test_teams_links_show_where_they_lead(message: str, kind: str, name: str, value: str) -> None:
    told = read(an_alert(message, kind=kind or "k", fields={name: value}))
    assert told is not None
    assert "](" not in MSTeams().text(Group("key", [told] * 2))


# --- webhook


async def test_a_budget_event_is_litellms(hook: FakeLLM, start: Start) -> None:
    callback = await start(Webhook(url=f"{hook.url}/alerts"))
    record = a_crossing(86.1)
    await callback.write([record])
    (request,) = hook.requests
    assert (request.method, request.path) == ("POST", "/alerts")
    assert request.json == {
        "event": "threshold_crossed", "event_group": "team",
        "event_message": "Team Budget: 15% or less of budget remaining", "spend": 86.1, "max_budget": 100.0,
        "soft_budget": None, "team_id": "t1", "team_alias": "ml", "token": None, "customer_id": None, "user_id": None,
        "user_email": None, "key_alias": None, "organization_id": None, "projected_exceeded_date": None,
        "projected_spend": None,
    }  # fmt: skip
    assert request.headers["x-tianji-delivery"] == record.id
    assert "x-tianji-signature" not in request.headers


async def test_addresses_are_in_the_event_where_there_are_some(hook: FakeLLM, start: Start) -> None:
    callback = await start(Webhook(url=hook.url))
    await callback.write([a_crossing(86.1, alert_emails=["a@x.io"], max_budget_alert_emails={"50": ["b@x.io"]})])
    (request,) = hook.requests
    assert request.json["alert_emails"] == ["a@x.io"]
    assert request.json["max_budget_alert_emails"] == {"50": ["b@x.io"]}
    assert "percent" not in request.json


async def test_other_alerts(hook: FakeLLM, start: Start) -> None:
    callback = await start(Webhook(url=hook.url))
    await callback.write([an_alert(fields={"model": "gpt", "n": [1]}), an_alert(fields={"model": "gpt", "n": [1]})])
    assert [request.json for request in hook.requests] == [
        {
            "event": "llm_exceptions", "event_message": "It is down", "level": "medium", "time": NOON, "count": 2,
            "fields": {"model": "gpt", "n": [1]},
        }
    ]  # fmt: skip


async def test_spend_of_each_request_of_an_end_user_goes_to_the_webhook(hook: FakeLLM, start: Start) -> None:
    callback = await start(Webhook(url=hook.url))
    spent = Budget(group="end_user", spend=0.01, customer_id="c-1")
    await callback.write([recorded(budget_alert("spend_tracked", spent)) for _ in range(3)])
    assert [(one.json["event"], one.json["customer_id"]) for one in hook.requests] == [("spend_tracked", "c-1")] * 3


async def test_types_hold_for_events_too(hook: FakeLLM, start: Start) -> None:
    callback = await start(Webhook(url=hook.url, alert_types=["llm_exceptions"]))
    await callback.write([a_crossing(), an_alert()])
    assert [request.json["event"] for request in hook.requests] == ["llm_exceptions"]


async def test_a_signature_covers_time_and_body(hook: FakeLLM, start: Start, clock: Clock) -> None:
    callback = await start(Webhook(url=hook.url, secret=SECRET))
    hook.replies.append(Reply(status=500))
    record = a_crossing(team_alias="münchen")
    await failure(callback, record)
    clock.pass_by(100)
    await callback.write([record])
    first, second = hook.requests
    assert genuine(first)
    assert genuine(second)
    assert not genuine(second, "another")
    assert not genuine(Received("POST", "/", second.headers, second.body + b" "))
    assert not genuine(Received("POST", "/", {**second.headers, "x-tianji-timestamp": "1"}, second.body))
    assert int(second.headers["x-tianji-timestamp"]) == int(first.headers["x-tianji-timestamp"]) + 100
    assert first.headers["x-tianji-delivery"] == second.headers["x-tianji-delivery"]
    assert SECRET not in repr(callback)


@pytest.mark.parametrize("status", [201, 202, 204])
async def test_only_200_is_success(hook: FakeLLM, start: Start, status: int) -> None:
    callback = await start(Webhook(url=hook.url))
    hook.replies.append(Reply(status=status))
    record = a_crossing()
    failed = await failure(callback, record)
    assert (failed.failed, failed.refused) == ([], [record])
    assert "any_2xx" in failed.message


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_unless_the_config_says_so(hook: FakeLLM, start: Start, status: int) -> None:
    callback = await start(Webhook(url=hook.url, any_2xx="true"))
    hook.replies.append(Reply(status=status))
    await callback.write([a_crossing()])


async def test_odd_fields(hook: FakeLLM, start: Start) -> None:
    odd = {"event": "budget_crossed", "spend": "much", "alert_emails": 5, "team_id": {"a": [None]}}
    callbacks = [*each(hook.url)]
    for callback in callbacks:
        await start(callback)
        await callback.write([an_alert("", kind="budget_alerts", fields=odd)])
    assert len(hook.requests) == 3
    assert orjson.loads(hook.requests[2].body)["team_id"] == {"a": [None]}
