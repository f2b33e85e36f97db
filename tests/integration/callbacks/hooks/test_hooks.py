"""Slack, Teams and the webhook: what they share."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.alert_records import Clock, an_alert
from tests.support.hook_cases import PATH, Start, each, failure, texts
from tianji_mw.callbacks.base import Callback
from tianji_mw.callbacks.ms_teams import MSTeams
from tianji_mw.callbacks.slack import Slack
from tianji_mw.callbacks.webhook import Webhook
from tianji_mw.errors import SetupError
from tianji_mw.journal import Journal
from tianji_mw.outbox import Delivery, Outbox
from tianji_mw.plugins import find
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply


def test_found_by_their_names() -> None:
    assert find("callbacks", "slack", Callback) is Slack
    assert find("callbacks", "ms_teams", Callback) is MSTeams
    assert find("callbacks", "webhook", Callback) is Webhook


# --- what all three share


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("status", [400, 413, 422])
async def test_a_bad_alert_is_refused_alone(hook: FakeLLM, start: Start, status: int, which: int) -> None:
    callback = await start(each(hook.url + PATH)[which])
    hook.replies.append(Reply(status=status, parts=[b"invalid_payload"]))
    bad, good = an_alert(), an_alert("another")
    failed = await failure(callback, bad, good)
    assert (failed.failed, failed.refused) == ([], [bad])
    assert f"answered {status}: invalid_payload" in failed.message
    assert len(hook.requests) == 2


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("status", [301, 401, 403, 404, 408, 500, 503])
async def test_other_statuses_are_tried_again(hook: FakeLLM, start: Start, status: int, which: int) -> None:
    callback = await start(each(hook.url + PATH)[which])
    hook.replies.append(Reply(status=status, parts=[f"no {PATH}".encode()], headers={"location": hook.url + PATH}))
    record = an_alert()
    failed = await failure(callback, record)
    assert (failed.failed, list(failed.refused)) == ([record], [])
    assert f"at 127.0.0.1 answered {status}" in failed.message
    await callback.write([record])
    await callback.write([record])
    assert len(hook.requests) == 2


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    ("asked", "pause"),
    [("30", 30.0), ("1.5", 1.5), ("999999", 3600.0), ("soon", None), ("Thu, 26 Nov 2026 12:00:12 GMT", 10.0)],
)
async def test_a_limit_says_when_to_come_back(
    hook: FakeLLM, start: Start, asked: str, pause: float | None, which: int
) -> None:
    callback = await start(each(hook.url + PATH)[which])
    hook.replies.append(Reply(status=429, headers={"retry-after": asked}, parts=[b"rate_limited"]))
    batch = [an_alert(f"It is down {at}") for at in range(5)]
    failed = await failure(callback, *batch)
    assert failed.retry_after_s == pause
    assert failed.failed == (batch if pause is not None else batch[:1])
    await callback.write(batch)
    assert len(hook.requests) == 6


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    "reply", [Reply(refuse=True), Reply(garbage=b"nonsense\r\n\r\n"), Reply(parts=[b"x" * (2 << 20)]), Reply(delay_s=5)]
)
async def test_broken_answers(hook: FakeLLM, start: Start, reply: Reply, which: int) -> None:
    callback = await start(each(hook.url + PATH, request_timeout_s=0.5)[which])
    hook.replies.append(reply)
    record = an_alert()
    async with asyncio.timeout(10):
        assert (await failure(callback, record)).failed == [record]


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_nobody_at_the_address(start: Start, which: int) -> None:
    async with FakeLLM() as gone:
        callback = await start(each(gone.url + PATH)[which])
    assert "127.0.0.1" in (await failure(callback, an_alert())).message


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_no_address(clock: Clock, which: int) -> None:
    callback = [Slack(), MSTeams(), Webhook()][which]
    variable = ["SLACK_WEBHOOK_URL or ALERTING_WEBHOOK_URL", "MS_TEAMS_WEBHOOK_URL", "WEBHOOK_URL"][which]
    with pytest.raises(SetupError, match=variable):
        await callback.start(clock.runtime)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("url", ["hooks.slack.com/SECRET", "ftp://x/SECRET", "https://", "https://[SECRET"])
async def test_addresses_that_are_none(clock: Clock, url: str, which: int) -> None:
    with pytest.raises(SetupError) as caught:
        await each(url)[which].start(clock.runtime)
    assert "SECRET" not in str(caught.value)
    assert "SECRET" not in repr(each(url)[which])


async def test_a_batch_that_is_cancelled_goes_on_where_it_ended(hook: FakeLLM, start: Start) -> None:
    """The outbox cancels a write that takes too long; what was taken before does not go out twice."""
    callback = await start(Slack(webhook_url=hook.url))
    hook.replies.extend([Reply(parts=[b"ok"]), Reply(delay_s=30)])
    batch = [an_alert("one"), an_alert("two"), an_alert("three")]
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await callback.write(batch)
    await callback.write(batch)
    assert [text.rpartition(" ")[2] for text in texts(hook)] == ["one", "two", "three", "two"]


# --- through the outbox


async def test_an_outbox_delivers_every_alert_once_in_spite_of_limits(hook: FakeLLM) -> None:
    busy, down = Reply(status=429, headers={"retry-after": "0"}), Reply(status=503)
    hook.replies.extend([Reply(), busy, Reply(), down, Reply(status=400), Reply(), Reply(refuse=True)])
    async with Runtime() as runtime:
        callback, journal = Slack(webhook_url=hook.url), Journal(None)
        await callback.start(runtime)
        await journal.open("one")
        delivery = Delivery(flush_interval_s=0.01, backoff_s=0.01, max_backoff_s=0.05)
        outbox = Outbox("slack", callback.write, journal=journal, runtime=runtime, delivery=delivery)
        outbox.start()
        for at in range(10):
            record = an_alert(f"It is down {at}")
            journal.offer(("slack",), record.id, "alert", record.raw)
        async with asyncio.timeout(20):
            await outbox.drain(20)
        await outbox.aclose()
        await callback.aclose()
        journal.close()
    assert (outbox.delivered, outbox.dropped, outbox.pending) == (9, {"refused": 1}, 0)
    assert len(hook.requests) == 13
    assert len({text.rpartition(" ")[2] for text in texts(hook)}) == 10
