"""Mails over a real SMTP server: what is in them, who gets them, what refusals mean."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.support.alert_records import NOON, Clock, a_crossing, an_alert, recorded
from tests.support.mail_cases import Serve, failure, mailer
from tianji_mw.alerts import Budget, crossings
from tianji_mw.callbacks.email import Email

# --- a mail


async def test_a_mail_over_starttls(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(
        clock, box, proxy_base_url="https://llm.corp", support_contact="help@corp.example", logo_url="https://x/l.png"
    )
    record = a_crossing(96.0, team_alias='Müller & "<b>"')
    await callback.write([record])
    (mail,) = box.mails
    assert (mail.sender, mail.to, mail.tls, mail.login) == ("llm@corp.example", ["a@x.io"], True, True)
    message = mail.message
    assert message["from"] == "llm@corp.example"
    assert message["to"] == "a@x.io"
    assert message["subject"] == 'The budget of the team Müller & "<b>" is nearly used up'
    assert parsedate_to_datetime(message["date"]).timestamp() == NOON
    assert message["message-id"].endswith("@corp.example>")
    assert message.get_content_type() == "multipart/alternative"
    assert 'Team: Müller & "<b>"' in mail.part("plain")
    assert "Gateway: https://llm.corp" in mail.part("plain")
    shown = mail.part("html")
    assert "<td>Müller &amp; &quot;&lt;b&gt;&quot;</td>" in shown
    assert '<img src="https://x/l.png"' in shown
    assert "help@corp.example" in shown


async def test_a_mail_over_implicit_tls(serve: Serve, clock: Clock) -> None:
    box = await serve("implicit")
    await (await mailer(clock, box, implicit_tls="True")).write([a_crossing()])
    assert [(mail.tls, mail.login) for mail in box.mails] == [(True, True)]


def test_port_465_is_implicit_tls() -> None:
    assert Email(port=465)._implicit
    assert not Email(port=587)._implicit


async def test_a_mail_without_tls_only_when_the_config_says_so(
    serve: Serve, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    box = await serve("plain")
    await (await mailer(clock, box, starttls="False")).write([a_crossing()])
    assert [(mail.tls, mail.login) for mail in box.mails] == [(False, True)]
    assert "without TLS" in caplog.text


@pytest.mark.parametrize("missing", [{"username": ""}, {"password": ""}])
async def test_login_needs_both(serve: Serve, clock: Clock, missing: dict[str, Any]) -> None:
    box = await serve()
    await (await mailer(clock, box, **missing)).write([a_crossing()])
    assert [mail.login for mail in box.mails] == [False]
    assert box.logins == 0


async def test_one_connection_for_a_batch(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, to="a@x.io,b@x.io,c@x.io")
    await callback.write([a_crossing(), a_crossing(96.0), a_crossing(team_id="t2")])
    assert (len(box.mails), box.connections, box.logins) == (9, 1, 1)
    assert {len(mail.to) for mail in box.mails} == {1}
    assert len({mail.message["message-id"] for mail in box.mails}) == 9


async def test_unicode_and_odd_lines(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, alert_types=["llm_exceptions"])
    text = "\U0001f600 ü\r\n.\r\nQUIT\n.leading dot\n" + "x" * 3000 + "\x00\u2028end"
    await callback.write([an_alert(text)])
    (mail,) = box.mails
    plain = mail.part("plain")
    assert "\n.\n" in plain.replace("\r\n", "\n")
    assert ".leading dot" in plain
    assert "x" * 3000 in plain
    assert max(len(line) for line in mail.raw.split(b"\r\n")) <= 998


# --- who gets it


async def test_owner_percentage_and_config(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, to="ops@x.io")
    budget = Budget(
        group="key", spend=80.0, max_budget=100.0, token="h" * 64, key_alias="ci", user_email="owner@x.io",
        max_budget_alert_emails={"50": ["a@x.io"], "75": ["a@x.io", "b@x.io"], "95": ["c@x.io"]},
    )  # fmt: skip
    await callback.write([recorded(alert) for alert in crossings(budget, warn_at=0.8)])
    found = sorted((mail.message["subject"].partition(" ")[0], mail.to[0]) for mail in box.mails)
    assert found == sorted(
        [("50", to) for to in ("ops@x.io", "owner@x.io", "a@x.io")]
        + [("75", to) for to in ("ops@x.io", "owner@x.io", "a@x.io", "b@x.io")]
    )


async def test_each_threshold_goes_once_to_each(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, budget_alert_ttl_s="100")
    for spend in (86.0, 87.0, 96.0, 97.0, 100.0, 101.0):
        await callback.write([a_crossing(spend)])
    assert len(box.mails) == 3
    await callback.write([a_crossing(86.0, alert_emails=["new@x.io"])])
    assert [mail.to for mail in box.mails[3:]] == [["new@x.io"]]
    clock.pass_by(101)
    await callback.write([a_crossing(102.0)])
    assert len(box.mails) == 5


async def test_nobody_to_write_to(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, to="")
    await callback.write([a_crossing(), a_crossing(alert_emails=["", "  "]), a_crossing(user_email="")])
    assert (box.mails, box.connections) == ([], 0)
    assert clock.runtime.counts["mails_without_recipient", "threshold_crossed"] == 3


async def test_an_address_that_is_none_is_refused_and_the_others_get_it(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, to="a@x.io")
    record = a_crossing(alert_emails=["evil@x.io\r\nRCPT TO:<victim@x.io>", "b@x.io"], user_email="no address")
    failed = await failure(callback, record)
    assert (failed.failed, failed.refused) == ([], [record])
    assert sorted(mail.to[0] for mail in box.mails) == ["a@x.io", "b@x.io"]


# --- what the server says


async def test_an_unknown_recipient_is_refused_and_the_others_get_it(serve: Serve, clock: Clock) -> None:
    box = await serve()
    box.recipients["bounce@x.io"] = ["550 5.1.1 no such user"]
    callback = await mailer(clock, box, to="bounce@x.io,a@x.io")
    record, other = a_crossing(), a_crossing(96.0)
    failed = await failure(callback, record, other)
    assert (failed.failed, failed.refused) == ([], [record])
    assert failed.message == "SMTP: the recipient was refused with 550"
    assert sorted(mail.to[0] for mail in box.mails) == ["a@x.io", "a@x.io", "bounce@x.io"]
    failed = await failure(callback, record)
    assert failed.refused == [record]
    assert len(box.mails) == 3


async def test_a_greylisted_recipient_is_tried_again_and_the_others_get_it_once(serve: Serve, clock: Clock) -> None:
    box = await serve()
    box.recipients["grey@x.io"] = ["451 4.7.1 greylisted, come back later"]
    callback = await mailer(clock, box, to="grey@x.io,a@x.io")
    record = a_crossing()
    failed = await failure(callback, record)
    assert (failed.failed, list(failed.refused)) == ([record], [])
    assert "451" in failed.message
    await callback.write([record])
    await callback.write([a_crossing()])
    assert [mail.to[0] for mail in box.mails] == ["a@x.io", "grey@x.io"]


@pytest.mark.parametrize("able", [True, False])
async def test_addresses_beyond_ascii_need_a_server_that_takes_them(serve: Serve, clock: Clock, able: bool) -> None:
    box = await serve(enable_SMTPUTF8=able)
    callback = await mailer(clock, box, to="jörg@x.io,a@x.io")
    record = a_crossing()
    if able:
        await callback.write([record])
        assert sorted(mail.to[0] for mail in box.mails) == ["a@x.io", "jörg@x.io"]
    else:
        assert (await failure(callback, record)).refused == [record]
        assert [mail.to[0] for mail in box.mails] == ["a@x.io"]


@pytest.mark.parametrize(("answer", "again"), [("552 too large", False), ("554 spam", False), ("452 full", True)])
async def test_a_mail_that_is_not_taken(serve: Serve, clock: Clock, answer: str, again: bool) -> None:
    box = await serve()
    box.answers.append(answer)
    callback = await mailer(clock, box)
    bad, good = a_crossing(), a_crossing(96.0)
    failed = await failure(callback, bad, good)
    assert (failed.failed, list(failed.refused)) == (([bad], []) if again else ([], [bad]))
    assert len(box.mails) == 1
    if again:
        await callback.write([bad, good])
        assert len(box.mails) == 2


async def test_a_wrong_password_is_tried_once_for_each_batch(serve: Serve, clock: Clock) -> None:
    box = await serve(auth_exclude_mechanism=["LOGIN", "CRAM-MD5"])
    callback = await mailer(clock, box, password="wrong-SECRET", to="a@x.io,b@x.io")
    batch = [a_crossing(), a_crossing(96.0)]
    failed = await failure(callback, *batch)
    assert failed.message == "SMTP: the login was refused with 535"
    assert (failed.failed, list(failed.refused)) == (batch, [])
    assert (box.connections, box.logins) == (1, 1)


async def test_a_sender_that_is_not_allowed_can_be_mended(serve: Serve, clock: Clock) -> None:
    box = await serve()
    box.senders.append("553 not your address")
    callback = await mailer(clock, box, to="a@x.io,b@x.io")
    record = a_crossing()
    failed = await failure(callback, record)
    assert (failed.failed, failed.message) == ([record], "SMTP: the sender was refused with 553")
    await callback.write([record])
    assert len(box.mails) == 2
