"""AWS Secrets Manager against moto (also with signatures and policies checked), and scripted answers for the rest."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest

from tests.integration.secret_stores.servers import Answer, Asked, aws_answer, aws_error, moto, scripted
from tests.support.aws import forget_aws
from tests.support.processes import Running, free_port
from tianji_mw.errors import MissingExtra
from tianji_mw.redact import Secret
from tianji_mw.secrets.aws import AwsSecretsManager
from tianji_mw.secrets.base import (
    SecretDenied,
    SecretError,
    SecretMalformed,
    SecretNotFound,
    StoreMisconfigured,
    StoreUnreachable,
    field_of,
)
from tianji_mw.secrets.configure import store_of
from tianji_mw.secrets.reference import parse

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("secrets-aws")]

REGION = "eu-west-1"
ROLE = "arn:aws:iam::123456789012:role/team/reader"
#: Calls of `_people`, after which moto checks signatures and policies.
SETUP_CALLS = 9
Make = Callable[..., AwsSecretsManager]


@pytest.fixture(autouse=True)
def machine_without_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of the machine that runs the tests."""
    forget_aws(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with moto(tmp_path_factory.mktemp("moto")) as running:
        yield running


def _client(server: Running, service: str, key: str = "AKIASETUP", secret: str = "setup") -> Any:
    return boto3.client(
        service,
        region_name=REGION,
        endpoint_url=server.url,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )


@pytest.fixture(scope="module")
def manager(server: Running) -> Any:
    return _client(server, "secretsmanager")


@pytest.fixture
async def make(server: Running) -> AsyncIterator[Make]:
    """Stores on moto, or where the arguments say, closed when the test ends."""
    made: list[AwsSecretsManager] = []

    def build(**settings: Any) -> AwsSecretsManager:
        fixed = {"region": REGION, "endpoint_url": server.url, "access_key_id": "AKIA1", "secret_access_key": "s-1"}
        store = AwsSecretsManager(**{k: v for k, v in (fixed | settings).items() if v is not None})
        made.append(store)
        return store

    yield build
    for store in made:
        await store.aclose()


async def _fails(store: AwsSecretsManager, ref: str, kind: type[SecretError], *words: str) -> SecretError:
    with pytest.raises(SecretError) as caught:
        await store.get(parse(ref))
    assert isinstance(caught.value, kind), repr(caught.value)
    assert caught.value.message.startswith(f"aws: {parse(ref).path}: ")
    assert all(word in caught.value.message for word in words), caught.value.message
    return caught.value


# --- values


async def test_a_string(make: Make, manager: Any) -> None:
    made = manager.create_secret(Name="a/string", SecretString="sk-1\n")
    found = await make().get(parse("aws-sm://a/string"))
    assert (found.value, found.version, found.mapping) == (Secret("sk-1"), made["VersionId"], False)
    assert await make().get(parse(f"aws-sm://{made['ARN']}")) == found


async def test_a_field_of_a_json_secret(make: Make, manager: Any) -> None:
    manager.create_secret(Name="a/json", SecretString=json.dumps({"OPENAI": "sk-2", "n": 3}))
    ref = parse("aws-sm://a/json#OPENAI")
    found = await make().get(ref)
    assert field_of(found, ref, "here") == "sk-2"
    with pytest.raises(SecretNotFound):
        field_of(found, parse("aws-sm://a/json#NONE"), "here")


async def test_bare_names_are_fields_of_the_primary_secret(make: Make, manager: Any) -> None:
    manager.create_secret(Name="primary", SecretString=json.dumps({"OPENAI_API_KEY": "sk-3"}))
    store = make(primary_secret="primary")
    ref = store.path_of("OPENAI_API_KEY")
    assert (ref.path, ref.field) == ("primary", "OPENAI_API_KEY")
    assert field_of(await store.get(ref), ref, "here") == "sk-3"
    assert make().path_of("OPENAI_API_KEY").path == "OPENAI_API_KEY"


async def test_a_binary_secret(make: Make, manager: Any) -> None:
    manager.create_secret(Name="bin", SecretBinary=b"\xff\x00\x01")
    manager.create_secret(Name="bin-text", SecretBinary=b"sk-4")
    assert (await make().get(parse("aws-sm://bin?encoding=base64"))).value == Secret("/wAB")
    assert (await make().get(parse("aws-sm://bin-text"))).value == Secret("sk-4")
    await _fails(make(), "aws-sm://bin", SecretMalformed, "binary")


async def test_versions_and_stages(make: Make, manager: Any) -> None:
    first = manager.create_secret(Name="turned", SecretString="old")["VersionId"]
    manager.put_secret_value(SecretId="turned", SecretString="new")
    store = make()
    assert (await store.get(parse("aws-sm://turned"))).value == Secret("new")
    assert (await store.get(parse("aws-sm://turned?version=AWSPREVIOUS"))).value == Secret("old")
    assert (await store.get(parse(f"aws-sm://turned?version={first}"))).value == Secret("old")
    await _fails(store, f"aws-sm://turned?version={'0' * 36}", SecretNotFound, "version")
    await _fails(store, "aws-sm://turned?stage=NOWHERE", SecretNotFound)


async def test_names(make: Make, manager: Any) -> None:
    for n in range(105):
        manager.create_secret(Name=f"many/{n:03}", SecretString="x")
    found = await make().list("many/")
    assert found == [f"many/{n:03}" for n in range(105)]
    assert "many/000" in await make().list()


async def test_readers_at_once_share_the_client(make: Make, manager: Any) -> None:
    manager.create_secret(Name="shared", SecretString="sk-5")
    store = make()
    found = await asyncio.gather(*(store.get(parse("aws-sm://shared")) for _ in range(30)))
    assert {f.value.reveal() for f in found} == {"sk-5"}


async def test_nothing_of_it_is_logged(make: Make, server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    answers = aws_answer(SecretString="sk-in-no-log", VersionId="v"), aws_error("AccessDeniedException")
    with scripted(*answers) as aws:
        store = make(endpoint_url=aws.url, secret_access_key="own-secret", session_token="own-session")
        await store.get(parse("aws-sm://x"))
        await _fails(store, "aws-sm://x", SecretDenied)
        web = make(
            access_key_id=None, secret_access_key=None, endpoint_url=aws.url, sts_endpoint=server.url, role_arn=ROLE,
            web_identity_token="web-token-1",
        )  # fmt: skip
        await _fails(web, "aws-sm://x", SecretDenied)
        role = make(endpoint_url=aws.url, sts_endpoint=server.url, role_arn=ROLE, session_token="own-session")
        await _fails(role, "aws-sm://x", SecretDenied)
    for record in caplog.records:
        for secret in ("sk-in-no-log", "own-secret", "own-session", "web-token-1"):
            assert secret not in record.getMessage(), (record.name, record.getMessage()[:300])


# --- what is not there


async def test_not_found_and_another_region(make: Make, manager: Any) -> None:
    manager.create_secret(Name="here", SecretString="x")
    await _fails(make(), "aws-sm://nowhere", SecretNotFound, "no such secret in this region")
    await _fails(make(region="us-east-1"), "aws-sm://here", SecretNotFound, "region")


async def test_deleted(make: Make, manager: Any) -> None:
    manager.create_secret(Name="gone", SecretString="x")
    manager.delete_secret(SecretId="gone", RecoveryWindowInDays=7)
    await _fails(make(), "aws-sm://gone", SecretNotFound, "deleted")


# --- settings


async def test_no_region(make: Make) -> None:
    await _fails(make(region=None), "aws-sm://x", StoreMisconfigured, "region", "AWS_REGION")


async def test_without_the_sdk(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match=r"tianji-mw\[aws\]"):
        await make().get(parse("aws-sm://x"))


async def test_no_credentials(make: Make) -> None:
    store = make(access_key_id=None, secret_access_key=None)
    await _fails(store, "aws-sm://x", SecretDenied, "AWS_ACCESS_KEY_ID")


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"secret_access_key": None}, "together"),
        ({"profile": "nobody"}, "profile"),
        ({"region": "no region!"}, "region"),
        ({"endpoint_url": "no url"}, "endpoint"),
        ({"web_identity_token": "jwt"}, "role_arn"),
    ],
)
async def test_wrong_settings(make: Make, settings: dict[str, Any], word: str) -> None:
    await _fails(make(**settings), "aws-sm://x", StoreMisconfigured, word)


async def test_the_settings_of_litellm() -> None:
    block = {
        "aws_region_name": REGION, "aws_role_name": ROLE, "aws_session_name": "gw", "primary_secret_name": "prod/llm",
        "aws_web_identity_token": "jwt",
    }  # fmt: skip
    store = store_of("aws_secret_manager", "aws", block, {"AWS_EXTERNAL_ID": "ext", "AWS_STS_ENDPOINT": "http://sts"})
    assert isinstance(store, AwsSecretsManager)
    assert (store.region, store.role_arn, store.session_name) == (REGION, ROLE, "gw")
    assert (store.primary_secret, store.external_id, store.sts_endpoint) == ("prod/llm", "ext", "http://sts")
    assert "jwt" not in repr(store) + str(store) + store.model_dump_json()


async def test_a_profile(make: Make, manager: Any, tmp_path: Path) -> None:
    manager.create_secret(Name="by-profile", SecretString="x")
    (tmp_path / "aws-config").write_text(f"[profile corp]\nregion = {REGION}\n")
    (tmp_path / "aws-credentials").write_text("[corp]\naws_access_key_id = AKIA2\naws_secret_access_key = s\n")
    store = make(profile="corp", region=None, access_key_id=None, secret_access_key=None)
    assert (await store.get(parse("aws-sm://by-profile"))).value == Secret("x")
    assert store._credentials.access_key == "AKIA2"


# --- who we are, with signatures and policies checked


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, dict[str, tuple[str, str]]]]:
    """A moto that checks, and its users: name -> key and secret."""
    folder = tmp_path_factory.mktemp("guarded")
    with moto(folder, INITIAL_NO_AUTH_ACTION_COUNT=str(SETUP_CALLS)) as running:
        yield running, _people(running)


def _people(server: Running) -> dict[str, tuple[str, str]]:
    iam = _client(server, "iam")
    _client(server, "secretsmanager").create_secret(Name="guarded", SecretString="sk-6")
    read = [{"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "*"}]
    turn = [{"Effect": "Allow", "Action": "sts:*", "Resource": "*"}]
    trust = [
        {
            "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole",
            "Condition": {"StringEquals": {"sts:ExternalId": "ext-1"}},
        }
    ]  # fmt: skip
    keys = {}
    for user, statements in (("reader", read), ("turner", turn)):
        iam.create_user(UserName=user)
        iam.put_user_policy(UserName=user, PolicyName="p", PolicyDocument=_policy(statements))
        made = iam.create_access_key(UserName=user)["AccessKey"]
        keys[user] = (made["AccessKeyId"], made["SecretAccessKey"])
    iam.create_role(RoleName="reader", Path="/team/", AssumeRolePolicyDocument=_policy(trust))
    iam.put_role_policy(RoleName="reader", PolicyName="p", PolicyDocument=_policy(read))
    return keys


def _policy(statements: list[dict[str, Any]]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": statements})


def _as(guarded: tuple[Running, dict[str, tuple[str, str]]], user: str) -> dict[str, str]:
    server, keys = guarded
    return {
        "endpoint_url": server.url,
        "sts_endpoint": server.url,
        "access_key_id": keys[user][0],
        "secret_access_key": keys[user][1],
    }


async def test_an_allowed_user(make: Make, guarded: Any) -> None:
    store = make(**_as(guarded, "reader"))
    assert (await store.get(parse("aws-sm://guarded"))).value == Secret("sk-6")
    assert await store.health() is None  # it may not list, and is well


async def test_a_wrong_signature(make: Make, guarded: Any) -> None:
    store = make(**_as(guarded, "reader") | {"secret_access_key": "sk-wrong-secret"})
    error = await _fails(store, "aws-sm://guarded", SecretDenied, "signature")
    assert "sk-wrong" not in error.message
    with pytest.raises(SecretDenied):
        await store.health()
    await _fails(make(**_as(guarded, "reader") | {"access_key_id": "AKIANOBODY"}), "aws-sm://guarded", SecretDenied)


async def test_denied_by_policy(make: Make, guarded: Any) -> None:
    store = make(**_as(guarded, "turner"))
    await _fails(store, "aws-sm://guarded", SecretDenied, "secretsmanager:GetSecretValue")


async def test_a_role(make: Make, guarded: Any) -> None:
    store = make(**_as(guarded, "turner"), role_arn=ROLE, external_id="ext-1")
    assert (await store.get(parse("aws-sm://guarded"))).value == Secret("sk-6")
    left = await store.health()
    assert left is not None
    assert 3000 < left <= 3600
    for user, external in (("turner", "ext-2"), ("reader", "ext-1")):
        store = make(**_as(guarded, user), role_arn=ROLE, external_id=external)
        await _fails(store, "aws-sm://guarded", SecretDenied, "assume the role")


async def test_a_session_of_the_role_is_used_as_it_is(make: Make, server: Running, manager: Any) -> None:
    manager.create_secret(Name="ambient", SecretString="x")
    ours = _client(server, "sts").assume_role(RoleArn=ROLE, RoleSessionName="pod")["Credentials"]
    session = {
        "access_key_id": ours["AccessKeyId"], "secret_access_key": ours["SecretAccessKey"],
        "session_token": ours["SessionToken"], "sts_endpoint": server.url,
    }  # fmt: skip
    store = make(**session, role_arn=ROLE)
    await store.get(parse("aws-sm://ambient"))
    assert store._credentials.access_key == ours["AccessKeyId"]
    other = make(**session, role_arn=ROLE.replace("reader", "writer"))
    await other.get(parse("aws-sm://ambient"))
    assert other._credentials.access_key != ours["AccessKeyId"]


async def test_web_identity_with_moto(make: Make, server: Running, manager: Any) -> None:
    manager.create_secret(Name="by-web", SecretString="x")
    store = make(
        access_key_id=None, secret_access_key=None, role_arn=ROLE, web_identity_token="jwt-1", sts_endpoint=server.url
    )
    assert (await store.get(parse("aws-sm://by-web"))).value == Secret("x")
    assert store._credentials.token


# --- sessions over time, with a scripted STS


def _sts(action: str, seconds: float, n: int) -> Answer:
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    keys = f"<AccessKeyId>ASIA{n}</AccessKeyId><SecretAccessKey>s{n}</SecretAccessKey><SessionToken>t{n}</SessionToken>"
    return 200, (
        f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>{keys}'
        f"<Expiration>{until}</Expiration></Credentials></{action}Result></{action}Response>"
    )


async def test_the_token_file_is_read_for_each_session_and_nothing_is_signed(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "jwt"
    file.write_text("jwt-1\n")
    action = "AssumeRoleWithWebIdentity"
    with (
        scripted(_sts(action, 300, 1), _sts(action, 3600, 2)) as sts,
        scripted(aws_answer(SecretString="x", VersionId="v")) as aws,
    ):
        store = make(
            access_key_id=None, secret_access_key=None, role_arn=ROLE, session_name="gw", sts_endpoint=sts.url,
            endpoint_url=aws.url, web_identity_token_file=file,
        )  # fmt: skip
        await store.get(parse("aws-sm://x"))
        file.write_text("jwt-2\n")
        for _ in range(3):
            await store.get(parse("aws-sm://x"))
        forms = [parse_qs(asked.body) for asked in sts.asked]
        assert [form["WebIdentityToken"] for form in forms] == [["jwt-1"], ["jwt-2"]]
        assert forms[0]["RoleArn"] == [ROLE]
        assert forms[0]["RoleSessionName"] == ["gw"]
        assert all("Authorization" not in asked.headers for asked in sts.asked)
        assert all("Policy" not in form for form in forms)
        assert aws.asked[-1].headers["X-Amz-Security-Token"] == "t2"
        assert "ASIA2" in aws.asked[-1].headers["Authorization"]


async def test_an_expired_session_is_replaced_once(make: Make) -> None:
    action = "AssumeRole"
    expired = aws_error("ExpiredTokenException")
    with (
        scripted(_sts(action, 3600, 1), _sts(action, 3600, 2)) as sts,
        scripted(expired, aws_answer(SecretString="x", VersionId="v"), expired) as aws,
    ):
        store = make(role_arn=ROLE, external_id="ext", sts_endpoint=sts.url, endpoint_url=aws.url)
        assert (await store.get(parse("aws-sm://x"))).value == Secret("x")
        assert [parse_qs(asked.body)["ExternalId"] for asked in sts.asked] == [["ext"], ["ext"]]
        assert "ASIA2" in aws.asked[-1].headers["Authorization"]
        await _fails(store, "aws-sm://x", SecretDenied, "expired")


async def test_a_session_that_is_over_at_once_means_the_clock(make: Make) -> None:
    with scripted(_sts("AssumeRole", -60, 1)) as sts:
        await _fails(make(role_arn=ROLE, sts_endpoint=sts.url), "aws-sm://x", SecretDenied, "clock")


async def test_token_files_that_are_no_use(make: Make, tmp_path: Path) -> None:
    settings = {"access_key_id": None, "secret_access_key": None, "role_arn": ROLE}
    for file in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").touch()
        with pytest.raises(StoreMisconfigured, match="web identity token file"):
            await make(**settings, web_identity_token_file=file).get(parse("aws-sm://x"))


# --- AWS in trouble


async def test_nobody_answers(make: Make) -> None:
    store = make(endpoint_url=f"http://127.0.0.1:{free_port()}")
    error = await _fails(store, "aws-sm://x", StoreUnreachable)
    assert error.passing
    with pytest.raises(StoreUnreachable):
        await store.health()


async def test_no_answer_in_time(make: Make) -> None:
    def slow(asked: Asked) -> Answer:
        time.sleep(1.0)
        return aws_answer(SecretString="late")

    with scripted(aws_answer(), by_request=slow) as aws:
        await _fails(make(endpoint_url=aws.url, timeout_s=0.1), "aws-sm://x", StoreUnreachable, "ReadTimeoutError")


@pytest.mark.parametrize("trouble", [aws_error("ThrottlingException"), aws_error("InternalServiceError", status=500)])
async def test_throttled_and_failing(make: Make, trouble: Answer) -> None:
    with scripted(trouble, trouble, aws_answer(SecretString="x", VersionId="v")) as aws:
        assert (await make(endpoint_url=aws.url).get(parse("aws-sm://x"))).value == Secret("x")
    with scripted(trouble) as aws:
        await _fails(make(endpoint_url=aws.url), "aws-sm://x", StoreUnreachable, "pause")
        assert len(aws.asked) == 4


@pytest.mark.parametrize(
    ("answer", "kind", "word"),
    [
        (aws_error("RequestTimeTooSkewed"), SecretDenied, "clock"),
        (aws_error("InvalidSignatureException", "Signature expired: 20260101T000000Z is now"), SecretDenied, "clock"),
        (aws_error("prefix#InvalidSignatureException", "does not match"), SecretDenied, "signature"),
        (aws_error("UnrecognizedClientException"), SecretDenied, "access key"),
        (aws_error("AccessDeniedException", "Access to KMS is not allowed"), SecretDenied, "kms:Decrypt"),
        (aws_error("DecryptionFailure"), StoreMisconfigured, "KMS"),
        (aws_error("ValidationException"), SecretNotFound, "name"),
        (aws_error("OddException <script>"), StoreMisconfigured, "(400)"),
        ((404, "<html>sk-leaked"), StoreMisconfigured, "(404)"),
        ((200, "{sk-leaked"), SecretMalformed, "no secret"),
        ((200, '["sk-leaked"]'), SecretMalformed, ""),
        (aws_answer(Name="x"), SecretMalformed, "no secret"),
        (aws_answer(SecretString=None, SecretBinary="abc"), SecretMalformed, ""),
    ],
)
async def test_answers(make: Make, answer: Answer, kind: type[SecretError], word: str) -> None:
    with scripted(answer) as aws:
        error = await _fails(make(endpoint_url=aws.url), "aws-sm://x", kind, word)
        assert "sk-leaked" not in repr(error) + error.message
        assert "told by the test" not in error.message
