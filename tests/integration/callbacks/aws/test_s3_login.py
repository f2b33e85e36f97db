"""Who S3 is asked as: keys, profiles, roles, web identities. moto checks signatures; scripted servers what is sent."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import ssl
import sys
from pathlib import Path

import pytest
import trustme

from tests.integration.secret_stores.servers import Answer, Asked, moto, scripted
from tests.support.processes import Running
from tests.support.records import a_record
from tests.support.s3_store import OK, REGION, Make, boto, stored, xml
from tianji_mw.callbacks.base import NotDelivered
from tianji_mw.callbacks.s3 import S3
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("callbacks-aws")]


async def test_names_that_need_escapes_are_signed_as_they_are_sent(tmp_path: Path) -> None:
    with moto(tmp_path, INITIAL_NO_AUTH_ACTION_COUNT="4") as server:
        iam = boto(server.url, "iam")
        iam.create_user(UserName="logger")
        key = iam.create_access_key(UserName="logger")["AccessKey"]
        rights = {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}}
        iam.put_user_policy(UserName="logger", PolicyName="p", PolicyDocument=json.dumps(rights))
        login = {"key": key["AccessKeyId"], "secret": key["SecretAccessKey"]}
        setup = {"CreateBucketConfiguration": {"LocationConstraint": REGION}}
        boto(server.url, **login).create_bucket(Bucket="strict", **setup)
        settings = {
            "bucket": "strict",
            "region": REGION,
            "endpoint_url": server.url,
            "access_key_id": key["AccessKeyId"],
        }
        good = S3(**settings, secret_access_key=key["SecretAccessKey"], prefix="a b/ü+%/=&", team_prefix=True)
        wrong = S3(**settings, secret_access_key="wrong-secret-key")
        unknown = S3(**{**settings, "access_key_id": "AKIAUNKNOWN"}, secret_access_key="wrong-secret-key")
        odd = a_record(id="x y/ä?#&=+%41 \U0001f600", metadata={"user_api_key_team_alias": "t e/am é"})
        for callback in (good, wrong, unknown):
            await callback.start(Runtime())
        await good.write([odd])
        found = stored(server, "strict", **login)
        assert found == {"a b/ü+%/=&/t e_am é/2026-11-22/time-19-33-20-100000_x y_ä?#&=+%41 \U0001f600.json": odd.raw}
        many = [a_record(id=f"m{at}") for at in range(30)]
        for callback, code in ((wrong, "SignatureDoesNotMatch"), (unknown, "InvalidAccessKeyId")):
            with pytest.raises(NotDelivered) as caught:
                await callback.write(many)
            assert code in caught.value.message
            assert "wrong-secret" not in caught.value.message
            assert caught.value.retry
            assert len(caught.value.failed or ()) == 30
        for callback in (good, wrong, unknown):
            await callback.aclose()


async def test_a_role_is_assumed_and_its_session_used(server: Running, bucket: str, make: Make) -> None:
    role = "arn:aws:iam::123456789012:role/logs/writer"
    s3 = await make(bucket, role_arn=role, sts_endpoint=server.url, external_id="e-1", session_name="tj")
    await s3.write([a_record()])
    assert len(stored(server, bucket)) == 1


async def test_a_role_by_web_identity(server: Running, bucket: str, make: Make, tmp_path: Path) -> None:
    role = "arn:aws:iam::123456789012:role/writer"
    token = tmp_path / "token"
    token.write_text("web-token-of-a-file\n")
    settings = {"role_arn": role, "sts_endpoint": server.url, "access_key_id": None, "secret_access_key": None}
    await (await make(bucket, **settings, web_identity_token_file=token)).write([a_record(id="by-file")])
    await (await make(bucket, **settings, web_identity_token="web-token-itself")).write([a_record(id="by-text")])
    assert len(stored(server, bucket)) == 2
    gone = await make(bucket, **settings, web_identity_token_file=tmp_path / "none")
    with pytest.raises(NotDelivered, match="login failed") as caught:
        await gone.write([a_record()])
    assert str(tmp_path) not in caught.value.message


async def test_what_sts_is_asked(make: Make, bucket: str) -> None:
    answer = (
        '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>'
        "<AccessKeyId>ASIAROLE</AccessKeyId><SecretAccessKey>of-role</SecretAccessKey>"
        "<SessionToken>tok-role</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration>"
        "</Credentials></AssumeRoleResult></AssumeRoleResponse>"
    )

    def by_request(asked: Asked) -> Answer:
        return (200, answer, {"content-type": "text/xml"}) if asked.method == "POST" else OK

    with scripted(by_request=by_request) as server:
        s3 = await make(
            bucket, endpoint_url=server.url, sts_endpoint=server.url, role_arn="arn:aws:iam::1:role/x", external_id="e1"
        )
        assert server.asked == []  # nothing at the start
        await s3.write([a_record(), a_record(id="b")])
        sts = [asked for asked in server.asked if asked.method == "POST"]
        assert len(sts) == 1
        assert "ExternalId=e1" in sts[0].body
        assert "RoleSessionName=tianji" in sts[0].body
        put = next(asked for asked in server.asked if asked.method == "PUT")
        assert "Credential=ASIAROLE/" in put.headers["Authorization"]
        assert put.headers["X-Amz-Security-Token"] == "tok-role"


async def test_a_session_of_the_role_is_used_as_it_is(make: Make, bucket: str) -> None:
    """Many roles may not assume themselves: workloads that run as the role already have its session."""
    answer = (
        '<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>'
        "<Arn>arn:aws:sts::1:assumed-role/writer/pod</Arn><UserId>u</UserId><Account>1</Account>"
        "</GetCallerIdentityResult></GetCallerIdentityResponse>"
    )

    def by_request(asked: Asked) -> Answer:
        return (200, answer, {"content-type": "text/xml"}) if asked.method == "POST" else OK

    with scripted(by_request=by_request) as server:
        role = "arn:aws:iam::1:role/team/writer"
        s3 = await make(
            bucket, endpoint_url=server.url, sts_endpoint=server.url, role_arn=role, session_token="tok-pod"
        )
        await s3.write([a_record()])
        assert [asked.method for asked in server.asked] == ["POST", "PUT"]
        assert "GetCallerIdentity" in server.asked[0].body
        assert server.asked[1].headers["X-Amz-Security-Token"] == "tok-pod"


async def test_a_profile_of_the_shared_file(make: Make, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "aws-credentials").write_text("[logs]\naws_access_key_id = AKIAPROF\naws_secret_access_key = s\n")
    (tmp_path / "aws-config").write_text("[profile logs]\nregion = eu-north-1\n")
    with scripted(OK) as server:
        login = {"profile": "logs", "region": None, "access_key_id": None, "secret_access_key": None}
        await (await make(bucket, endpoint_url=server.url, **login)).write([a_record()])
        assert "Credential=AKIAPROF/" in server.asked[0].headers["Authorization"]
        assert "/eu-north-1/s3/" in server.asked[0].headers["Authorization"]


async def test_no_credentials_at_all(make: Make, bucket: str) -> None:
    with scripted(OK) as server:
        s3 = await make(bucket, endpoint_url=server.url, access_key_id=None, secret_access_key=None)
        with pytest.raises(NotDelivered, match="NoCredentialsError") as caught:
            await s3.write([a_record(), a_record(id="b")])
        assert len(caught.value.failed or ()) == 2
        assert server.asked == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
async def test_certificates_are_checked_unless_the_config_says_no(make: Make, bucket: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        sent = re.search(rb"content-length: (\d+)", head.lower())
        await reader.readexactly(int(sent[1]) if sent else 0)
        writer.write(b'HTTP/1.1 200 OK\r\nETag: "x"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
        await writer.drain()
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        with pytest.raises(NotDelivered, match="SSLError"):
            await (await make(bucket, endpoint_url=url)).write([a_record()])
        for verify in (str(tmp_path / "ca.pem"), False, "false"):
            await (await make(bucket, endpoint_url=url, s3_verify=verify)).write([a_record()])
    finally:
        listener.close()


async def test_a_role_that_is_refused_stops_the_batch(make: Make, bucket: str) -> None:
    body = (
        "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>m</Message></Error></ErrorResponse>"
    )
    with scripted((403, body, {"content-type": "text/xml"})) as server:
        s3 = await make(
            bucket, endpoint_url=server.url, sts_endpoint=server.url, role_arn="arn:aws:iam::1:role/x",
            concurrent_uploads=1,
        )  # fmt: skip
        with pytest.raises(NotDelivered, match=r"AccessDenied \(AssumeRole, 403\)") as caught:
            await s3.write([a_record(id=f"c{at}") for at in range(9)])
        assert len(caught.value.failed or ()) == 9
        assert len(server.asked) == 1


async def test_a_key_that_was_changed_is_used(make: Make) -> None:
    class Rotated(Secret):
        __slots__ = ("now",)

        def __init__(self, *values: str) -> None:
            super().__init__(values[0])
            self.now = list(values)

        def reveal(self) -> str:
            return self.now[0]

        async def renew(self) -> bool:
            del self.now[0]
            return True

    def by_request(asked: Asked) -> Answer:
        return OK if "Credential=AKIANEW/" in asked.headers["Authorization"] else xml("InvalidAccessKeyId", 403)

    with scripted(by_request=by_request) as server:
        login = {"access_key_id": Rotated("AKIAOLD", "AKIANEW"), "secret_access_key": Rotated("old", "new")}
        s3 = await make("logs", endpoint_url=server.url, **login)
        with pytest.raises(NotDelivered, match="InvalidAccessKeyId"):
            await s3.write([a_record()])
        await s3.write([a_record()])


async def test_botocores_debug_log_is_silent(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(OK) as server:
        s3 = await make("logs", endpoint_url=server.url, session_token="tok-secret", secret_access_key="key-secret")
        await s3.write([a_record(messages="said in confidence")])
    assert "tok-secret" not in caplog.text
    assert "key-secret" not in caplog.text
    assert "said in confidence" not in caplog.text


async def test_what_stops_the_start(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SetupError, match="no AWS region"):
        await make("logs", region=None)
    with pytest.raises(SetupError, match="only used together"):
        await make("logs", secret_access_key=None)
    with pytest.raises(SetupError, match="needs a role"):
        await make("logs", web_identity_token="t")
    with pytest.raises(SetupError, match="not valid"):
        await make("logs", endpoint_url="no address")
    with pytest.raises(SetupError, match="ProfileNotFound"):
        await make("logs", profile="nobody")
    monkeypatch.setitem(sys.modules, "boto3.session", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[aws\]"):
        await make("logs")
