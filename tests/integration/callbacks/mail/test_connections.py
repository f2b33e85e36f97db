"""Mails: TLS, connections, and the services that send them over HTTP."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.alert_records import Clock, a_crossing
from tests.support.mail_cases import KEY, Mute, Serve, failure, mailer, over_http, settings
from tests.support.smtp_server import Mode
from tianji_mw.callbacks.email import Email
from tianji_mw.errors import SetupError
from tianji_mw.journal import Journal
from tianji_mw.outbox import Delivery, Outbox
from tianji_mw.runtime import Runtime
from tianji_mw.testing import FakeLLM, Reply

# --- TLS


async def test_no_mail_without_tls_to_a_server_that_has_none(serve: Serve, clock: Clock) -> None:
    box = await serve("plain")
    callback = await mailer(clock, box)
    record = a_crossing()
    failed = await failure(callback, record)
    assert failed.failed == [record]
    assert failed.message == "SMTP: the server does not offer STARTTLS, and without TLS nothing is sent"
    assert (box.mails, box.logins) == ([], 0)


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_certificate_that_is_not_trusted(serve: Serve, clock: Clock, mode: Mode) -> None:
    box = await serve(mode)
    callback = await mailer(clock, box, ca_file="", implicit_tls=mode == "implicit")
    record = a_crossing()
    failed = await failure(callback, record)
    assert failed.failed == [record]
    assert "certificate is not trusted" in failed.message
    assert (box.mails, box.logins) == ([], 0)


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_a_certificate_of_another_host(serve: Serve, clock: Clock, mode: Mode) -> None:
    box = await serve(mode, names=("smtp.elsewhere.example",))
    callback = await mailer(clock, box, implicit_tls=mode == "implicit")
    failed = await failure(callback, a_crossing())
    assert "certificate is not trusted (IP address mismatch" in failed.message
    assert (box.mails, box.logins) == ([], 0)


# --- connections


async def test_nobody_there(serve: Serve, clock: Clock) -> None:
    box = await serve()
    callback = await mailer(clock, box, port=1)
    record = a_crossing()
    assert (await failure(callback, record)).failed == [record]


@pytest.mark.parametrize(
    "first", [b"", b"220 here\r\n", b"nonsense\r\n", b"\xff\xff\r\n", b"421 busy\r\n", b"554 go\r\n"]
)
async def test_silence_and_nonsense_end_in_time(clock: Clock, first: bytes) -> None:
    async with Mute(first) as server:
        port = int(server.url.rpartition(":")[2])
        callback = Email(host="127.0.0.1", port=port, sender="a@b.io", to="a@x.io, b@x.io", smtp_timeout_s=0.3)
        await callback.start(clock.runtime)
        record = a_crossing()
        async with asyncio.timeout(10):
            assert (await failure(callback, record)).failed == [record]
        assert server.accepted == 1


async def test_a_server_that_closes_in_the_middle(serve: Serve, clock: Clock) -> None:
    box = await serve(data_size_limit=None)
    box.recipients["a@x.io"] = ["421 4.3.2 closing"]
    callback = await mailer(clock, box, to="a@x.io,b@x.io")
    record = a_crossing()
    assert (await failure(callback, record)).failed == [record]
    await callback.write([record])
    assert sorted(mail.to[0] for mail in box.mails) == ["a@x.io", "b@x.io"]


async def test_a_write_that_is_cancelled_leaves_no_connection(clock: Clock) -> None:
    async with Mute(b"220 here\r\n") as server:
        port = int(server.url.rpartition(":")[2])
        callback = Email(host="127.0.0.1", port=port, sender="a@b.io", to="a@x.io", smtp_timeout_s=60)
        await callback.start(clock.runtime)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await callback.write([a_crossing()])
        async with asyncio.timeout(5):
            await asyncio.gather(*server._tasks)


async def test_an_outbox_delivers_every_mail_once(serve: Serve) -> None:
    box = await serve()
    box.recipients["grey@x.io"] = ["451 later"] * 2
    box.answers.extend(["452 full"])
    async with Runtime() as runtime:
        callback, journal = Email(**settings(box, to="a@x.io,grey@x.io")), Journal(None)
        await callback.start(runtime)
        await journal.open("one")
        delivery = Delivery(flush_interval_s=0.01, backoff_s=0.01, max_backoff_s=0.05)
        outbox = Outbox("email", callback.write, journal=journal, runtime=runtime, delivery=delivery)
        outbox.start()
        for at in range(5):
            record = a_crossing(team_id=f"t{at}")
            journal.offer(("email",), record.id, "alert", record.raw)
        await outbox.drain(20)
        await outbox.aclose()
        journal.close()
    assert (outbox.delivered, outbox.dropped, outbox.pending) == (5, {}, 0)
    assert sorted(mail.to[0] for mail in box.mails) == ["a@x.io"] * 5 + ["grey@x.io"] * 5


# --- over HTTP


async def test_resend(api: FakeLLM, clock: Clock) -> None:
    callback = over_http(api, 0, to="a@x.io")
    await callback.start(clock.runtime)
    await callback.write([a_crossing(team_alias="<b>")])
    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/emails")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert len(request.headers["idempotency-key"]) == 32
    body = request.json
    assert (body["from"], body["to"]) == ("llm@corp.example", ["a@x.io"])
    assert body["subject"] == "The budget of the team <b> is nearly used up"
    assert "<td>&lt;b&gt;</td>" in body["html"]
    assert "Team: <b>" in body["text"]
    await callback.aclose()


async def test_sendgrid(api: FakeLLM, clock: Clock) -> None:
    callback = over_http(api, 1, to="a@x.io")
    await callback.start(clock.runtime)
    await callback.write([a_crossing(team_alias="<b>")])
    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/v3/mail/send")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    body = request.json
    assert body["personalizations"] == [{"to": [{"email": "a@x.io"}]}]
    assert body["from"] == {"email": "llm@corp.example"}
    assert [one["type"] for one in body["content"]] == ["text/plain", "text/html"]
    assert "<td>&lt;b&gt;</td>" in body["content"][1]["value"]
    await callback.aclose()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_a_service_that_does_not_take_mails_is_asked_once(
    api: FakeLLM, clock: Clock, which: int, status: int
) -> None:
    callback = over_http(api, which)
    await callback.start(clock.runtime)
    api.replies.append(Reply(status=status, headers={"retry-after": "7"}, parts=[f"no {KEY}".encode()]))
    record = a_crossing()
    failed = await failure(callback, record)
    assert (failed.failed, failed.retry_after_s) == ([record], 7.0)
    assert len(api.requests) == 1
    await callback.write([record])
    assert len(api.requests) == 3
    await callback.aclose()


@pytest.mark.parametrize("which", [0, 1])
async def test_a_mail_that_the_service_refuses(api: FakeLLM, clock: Clock, which: int) -> None:
    callback = over_http(api, which)
    await callback.start(clock.runtime)
    api.replies.append(Reply(status=422))
    record = a_crossing()
    assert (await failure(callback, record)).refused == [record]
    assert len(api.requests) == 2
    await callback.aclose()


@pytest.mark.parametrize("which", [0, 1])
async def test_settings_that_are_missing(api: FakeLLM, clock: Clock, which: int) -> None:
    for fields, named in (({"api_key": None}, "_API_KEY"), ({"sender": ""}, "SMTP_SENDER_EMAIL")):
        with pytest.raises(SetupError, match=named):
            await over_http(api, which, **fields).start(clock.runtime)
