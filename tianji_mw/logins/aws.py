"""Clients of boto3 for AWS: the settings of a login, and `client`, which makes one.

Who asks, first match: a web identity token with a role; a role; a profile; an access key; botocore's own chain
(environment, shared files, SSO, containers, instance metadata). A role is assumed with what comes after it in this
list, at the first request; its sessions renew themselves. boto3's own retries are off: another attempt is a decision
of who asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import BaseModel, Field

from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.hush import hush
from tianji_mw.redact import Secret

_CONNECT_S: Final = 5.0
#: When credentials that are used as they are get looked at again; botocore does it within 15 minutes of this end.
_LOOK_AGAIN: Final = timedelta(minutes=30)
_LOGIN: Final[Mapping[str, str]] = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "aws_profile_name": "profile",
    "aws_role_name": "role_arn",
    "aws_session_name": "session_name",
    "aws_external_id": "external_id",
    "aws_sts_endpoint": "sts_endpoint",
    "aws_web_identity_token": "web_identity_token",
    "region_name": "region",
    "endpoint_url": "endpoint_url",
    "use_ssl": "use_ssl",
    "verify": "verify",
    "api_version": "api_version",
}


class AwsLogin(BaseModel):
    """The fields of a login; a plugin has it as its first base: `class Sqs(AwsLogin, Callback)`."""

    #: For `env_fields` of a plugin: what LiteLLM reads for all of AWS.
    login_env: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "region": ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"),
        "role_arn": ("AWS_ROLE_NAME",),
        "session_name": ("AWS_SESSION_NAME",),
        "external_id": ("AWS_EXTERNAL_ID",),
        "profile": ("AWS_PROFILE_NAME",),
        "web_identity_token": ("AWS_WEB_IDENTITY_TOKEN",),
        "sts_endpoint": ("AWS_STS_ENDPOINT",),
    }

    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: Secret | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    role_arn: str | None = None
    session_name: str = Field(default="tianji", min_length=2, max_length=64)
    external_id: str | None = None
    sts_endpoint: str | None = None
    #: The token itself. A file is read again for every new session.
    web_identity_token: Secret | None = None
    web_identity_token_file: Path | None = None
    #: Without TLS; an `endpoint_url` says so by itself.
    use_ssl: bool = True
    #: False: any certificate will do. A path: the authorities to trust.
    verify: bool | str | None = None
    api_version: str | None = None


def login_aliases(prefix: str) -> dict[str, str]:
    """LiteLLM's names of the login's fields (`s3_aws_role_name`, ...), for `aliases` of a plugin."""
    return {prefix + theirs: ours for theirs, ours in _LOGIN.items()}


def client(
    service: str,
    login: AwsLogin,
    *,
    title: str,
    timeout_s: float,
    connections: int = 10,
    config: Mapping[str, Any] | None = None,
) -> Any:
    """A client of boto3 that makes one attempt. Blocking for up to a second; nobody is asked yet.

    Use it in threads whose names begin with `tianji-`: botocore's DEBUG log, with bodies and tokens, is off there.

    `title`: what errors call the plugin. `config`: more of botocore's `Config`. Raises MissingExtra without
    boto3, and SetupError for settings that contradict each other.
    """
    try:
        from boto3.session import Session
    except ModuleNotFoundError:
        raise MissingExtra("boto3", "aws") from None
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    for package in ("boto3", "botocore"):
        hush(package)
    settings = Config(
        connect_timeout=min(_CONNECT_S, timeout_s),
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=connections,
    )
    verify = _verify(login.verify)
    try:
        session = Session(botocore_session=_session(login, settings, verify, title))
        made = session.client(
            service,
            api_version=login.api_version,
            endpoint_url=login.endpoint_url,
            use_ssl=login.use_ssl,
            verify=verify,
            config=settings.merge(Config(**(config or {}))),
        )
    except (BotoCoreError, ValueError) as error:
        raise SetupError(
            f"{title}: the AWS settings are not valid ({type(error).__name__}); check region, profile and endpoint."
        ) from None
    hush("botocore")  # modules that came with the client have loggers of their own
    return made


async def renewed(login: AwsLogin) -> bool:
    """After AWS has refused who we are: whether a secret manager has another key by now. The client uses it then."""
    secrets = (login.access_key_id, login.secret_access_key, login.session_token, login.web_identity_token)
    return any([await secret.renew() for secret in secrets if secret is not None])


def _session(login: AwsLogin, config: Any, verify: Any, title: str) -> Any:
    """A session of botocore with the login's credentials."""
    from botocore.session import Session

    base, web = Session(profile=login.profile), login.web_identity_token or login.web_identity_token_file
    region = login.region or base.get_config_variable("region")
    if not region:
        raise SetupError(f"{title}: no AWS region; set region, or AWS_REGION in the environment.")
    base.set_config_variable("region", region)
    if bool(login.access_key_id) != bool(login.secret_access_key):
        raise SetupError(f"{title}: access_key_id and secret_access_key are only used together.")
    if web and not login.role_arn:
        raise SetupError(f"{title}: a web identity token needs a role.")
    if login.access_key_id and not login.profile:
        base.register_component("credential_provider", _Given(partial(_held, login)))
    if not login.role_arn:
        return base
    session = Session(profile=login.profile)
    session.set_config_variable("region", region)
    session.register_component("credential_provider", _Given(_Role(login, base, config, verify).credentials))
    return session


class _Given:
    """Where a session of botocore has its credentials from."""

    def __init__(self, load_credentials: Callable[[], Any]) -> None:
        self.load_credentials = load_credentials


def _held(login: AwsLogin) -> Any:
    """The access key of the settings, as it is at each request: a secret manager may change it."""
    from botocore.credentials import Credentials, ReadOnlyCredentials

    def now() -> tuple[str, str, str | None]:
        key, secret, token = login.access_key_id, login.secret_access_key, login.session_token
        return key.reveal() if key else "", secret.reveal() if secret else "", token.reveal() if token else None

    class Held(Credentials):  # type: ignore[misc]
        def get_frozen_credentials(self) -> Any:
            return ReadOnlyCredentials(*now())

    return Held(*now(), method="explicit")


class _Role:
    """Sessions of a role. botocore asks for another when the last one nears its end."""

    def __init__(self, login: AwsLogin, base: Any, config: Any, verify: Any) -> None:
        self._login, self._base, self._config, self._verify = login, base, config, verify

    def credentials(self) -> Any:
        """Credentials that begin with the first request."""
        from botocore.credentials import DeferredRefreshableCredentials

        return DeferredRefreshableCredentials(self._fetch, "assume-role")

    def _fetch(self) -> dict[str, Any]:
        login = self._login
        web = login.web_identity_token or login.web_identity_token_file
        sts = self._sts(unsigned=bool(web))
        arguments = {"RoleArn": login.role_arn, "RoleSessionName": login.session_name}
        if web:
            answer = sts.assume_role_with_web_identity(**arguments, WebIdentityToken=self._token())
        elif (ours := self._ours(sts)) is not None:
            return ours
        else:
            more = {"ExternalId": login.external_id} if login.external_id else {}
            answer = sts.assume_role(**arguments, **more)
        found = answer["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    def _sts(self, *, unsigned: bool) -> Any:
        from botocore import UNSIGNED
        from botocore.config import Config

        # Without a signature botocore does not look for credentials either, which can take seconds.
        config = self._config.merge(Config(signature_version=UNSIGNED)) if unsigned else self._config
        endpoint = self._login.sts_endpoint
        return self._base.create_client("sts", endpoint_url=endpoint, config=config, verify=self._verify)

    def _ours(self, sts: Any) -> dict[str, Any] | None:
        """The credentials at hand, when they are a session of this role already: many roles may not assume themselves.

        `arn:aws:sts::1:assumed-role/NAME/SESSION` is a session of `arn:aws:iam::1:role/PATH/NAME`.
        """
        held = self._base.get_credentials()
        frozen = held.get_frozen_credentials() if held is not None else None
        if frozen is None or not frozen.token:
            return None
        ours, role = str(sts.get_caller_identity()["Arn"]).split(":"), str(self._login.role_arn).split(":")
        if ours[4:5] != role[4:5] or ours[-1].split("/")[:2] != ["assumed-role", role[-1].rpartition("/")[2]]:
            return None
        expiry = (datetime.now(UTC) + _LOOK_AGAIN).isoformat()
        return {
            "access_key": frozen.access_key,
            "secret_key": frozen.secret_key,
            "token": frozen.token,
            "expiry_time": expiry,
        }

    def _token(self) -> str:
        if self._login.web_identity_token:
            return self._login.web_identity_token.reveal()
        path = self._login.web_identity_token_file
        return path.read_text("ascii").strip() if path else ""


def _verify(value: bool | str | None) -> bool | str | None:
    """What boto3 takes: a text that says yes or no is no path."""
    said = {"true": True, "false": False, "": None}
    return said.get(value.strip().lower(), value) if isinstance(value, str) else value
