"""AWS Secrets Manager over boto3: `aws-sm://prod/llm#OPENAI?version=AWSPREVIOUS`.

Who asks, first match: a web identity token with a role; a role; a profile; an access key; botocore's own chain
(environment, shared files, SSO, containers, instance metadata). Sessions of a role renew themselves.
"""

from __future__ import annotations

import binascii
import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import Field, PrivateAttr

from tianji_mw.errors import MissingExtra
from tianji_mw.hush import hush
from tianji_mw.redact import Secret
from tianji_mw.secrets.aws_answers import CLOCK, STALE, code_of, failure, refusal
from tianji_mw.secrets.base import (
    BlockingStore,
    NotAllowed,
    SecretMalformed,
    SecretValue,
    StoreMisconfigured,
    text_of,
)
from tianji_mw.secrets.reference import Reference

_CONNECT_S: Final = 5.0
_ATTEMPTS: Final = 4
_MOST_NAMES: Final = 1000
#: Shorter versions are stages such as AWSPREVIOUS.
_VERSION_ID: Final = 32


class AwsSecretsManager(BlockingStore):
    """The secrets of one region, as one identity."""

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "region": ("AWS_REGION_NAME", "AWS_REGION", "AWS_DEFAULT_REGION"),
        "endpoint_url": ("AWS_ENDPOINT_URL_SECRETS_MANAGER",),
        "role_arn": ("AWS_ROLE_NAME",),
        "session_name": ("AWS_SESSION_NAME",),
        "external_id": ("AWS_EXTERNAL_ID",),
        "profile": ("AWS_PROFILE_NAME",),
        "web_identity_token": ("AWS_WEB_IDENTITY_TOKEN",),
        "sts_endpoint": ("AWS_STS_ENDPOINT",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "aws_access_key_id": "access_key_id",
        "aws_external_id": "external_id",
        "aws_profile_name": "profile",
        "aws_region_name": "region",
        "aws_role_arn": "role_arn",
        "aws_role_name": "role_arn",
        "aws_secret_access_key": "secret_access_key",
        "aws_session_name": "session_name",
        "aws_session_token": "session_token",
        "aws_sts_endpoint": "sts_endpoint",
        "aws_web_identity_token": "web_identity_token",
        "primary_secret_name": "primary_secret",
        "profile_name": "profile",
        "region_name": "region",
        "role_name": "role_arn",
    }

    login_fields: ClassVar[frozenset[str]] = frozenset(
        {"access_key_id", "profile", "role_arn", "web_identity_token", "web_identity_token_file"}
    )

    name: str = "aws"
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: Secret | None = None
    session_token: Secret | None = None
    profile: str | None = None
    role_arn: str | None = None
    session_name: str = Field(default="tianji", min_length=2, max_length=64)
    external_id: str | None = None
    #: The token itself. A file is read again for every new session.
    web_identity_token: Secret | None = None
    web_identity_token_file: Path | None = None
    sts_endpoint: str | None = None
    #: The JSON secret whose fields are the bare names (`os.environ/NAME`).
    primary_secret: str | None = None

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)
    _client: Any = PrivateAttr(default=None)
    _credentials: Any = PrivateAttr(default=None)

    def path_of(self, name: str) -> Reference:
        if self.primary_secret:
            return Reference(store=self.name, path=self.primary_secret, field=name)
        return Reference(store=self.name, path=name)

    def read(self, ref: Reference) -> SecretValue:
        where = f"{self.name}: {ref.path}"
        arguments = {"SecretId": ref.path}
        if ref.version:
            arguments["VersionId" if len(ref.version) >= _VERSION_ID else "VersionStage"] = ref.version
        answer = self._call("get_secret_value", where, arguments)
        held = answer.get("SecretString")
        held = answer.get("SecretBinary") if held is None else held
        if not isinstance(held, str | bytes):
            raise SecretMalformed(f"{where}: the answer of AWS holds no secret")
        text = text_of(held, where, as_base64=ref.base64)
        return SecretValue(value=Secret(text), version=str(answer.get("VersionId") or ""))

    def names(self, prefix: str) -> Sequence[str]:
        found: dict[str, None] = {}
        arguments: dict[str, Any] = {"MaxResults": 100}
        if prefix and not prefix.startswith("!"):  # AWS reads '!' as 'not'
            arguments["Filters"] = [{"Key": "name", "Values": [prefix]}]
        while len(found) < _MOST_NAMES:
            answer = self._call("list_secrets", f"{self.name}: {prefix or 'list'}", arguments)
            names = (str(entry.get("Name", "")) for entry in answer.get("SecretList", ()))
            found |= dict.fromkeys(name for name in names if name.startswith(prefix))
            if not answer.get("NextToken"):
                break
            arguments["NextToken"] = answer["NextToken"]
        return sorted(found)[:_MOST_NAMES]

    def ask(self) -> float | None:
        """List one secret. An identity that may only read, and not list, is well too."""
        try:
            self._call("list_secrets", f"{self.name}: health", {"MaxResults": 1})
        except NotAllowed:
            pass
        # botocore has no public name for it; fixed keys have none at all.
        until = getattr(self._credentials, "_expiry_time", None)
        return max(0.0, (until - datetime.now(UTC)).total_seconds()) if isinstance(until, datetime) else None

    async def aclose(self) -> None:
        await super().aclose()
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(self, operation: str, where: str, arguments: Mapping[str, Any], *, again: bool = True) -> dict[str, Any]:
        try:
            import boto3  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtra("boto3", "aws") from None
        from botocore import exceptions
        from botocore.parsers import ResponseParserError

        client = None
        try:
            client = self._opened(where)
            answer = getattr(client, operation)(**arguments)
        except exceptions.ClientError as error:
            if again and code_of(error) in STALE:
                with self._lock:
                    if self._client is client:  # another thread may have a new one already
                        self._client = None
                return self._call(operation, where, arguments, again=False)
            kind, text = refusal(error)
        except exceptions.BotoCoreError as error:
            kind, text = failure(error)
        except (ResponseParserError, AttributeError, binascii.Error):  # botocore takes JSON for the right JSON
            kind, text = SecretMalformed, "the answer of AWS cannot be read"
        except RuntimeError:  # from botocore, for a new session that is over already
            kind, text = CLOCK
        else:
            return answer if isinstance(answer, dict) else {}
        raise kind(f"{where}: {text}")

    def _opened(self, where: str) -> Any:
        """The client; a new one holds new credentials."""
        from boto3.session import Session
        from botocore.config import Config

        with self._lock:
            if self._client is not None:
                return self._client
            hush("botocore")  # before the first question, which may be one to STS
            session = self._base(where)
            if session.region_name is None:
                raise StoreMisconfigured(f"{where}: no AWS region; set region, or AWS_REGION in the environment")
            config = Config(
                connect_timeout=min(_CONNECT_S, self.timeout_s),
                read_timeout=self.timeout_s,
                retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            )
            try:
                if (login := self._login(session, config, where)) is not None:
                    session = Session(botocore_session=login.session(self.profile), region_name=session.region_name)
                self._client = session.client("secretsmanager", endpoint_url=self.endpoint_url, config=config)
            except ValueError:
                raise StoreMisconfigured(f"{where}: the region or an endpoint URL is not valid") from None
            self._credentials = session.get_credentials()
            return self._client

    def _base(self, where: str) -> Any:
        """A session of the profile, the access key, or botocore's chain."""
        from boto3.session import Session

        if self.profile:
            return Session(profile_name=self.profile, region_name=self.region)
        if not self.access_key_id and not self.secret_access_key:
            return Session(region_name=self.region)
        if not self.access_key_id or not self.secret_access_key:
            raise StoreMisconfigured(f"{where}: access_key_id and secret_access_key are only used together")
        return Session(
            aws_access_key_id=self.access_key_id,
            aws_secret_access_key=self.secret_access_key.reveal(),
            aws_session_token=self.session_token.reveal() if self.session_token else None,
            region_name=self.region,
        )

    def _login(self, base: Any, config: Any, where: str) -> _Login | None:
        """How the role's sessions are had; None where there is no role, or we are it already."""
        from botocore import UNSIGNED
        from botocore.config import Config

        web = self.web_identity_token or self.web_identity_token_file
        if not self.role_arn:
            if web:
                raise StoreMisconfigured(f"{where}: a web identity token needs role_arn")
            return None
        if web:  # nor does botocore look for credentials then, which can take seconds
            config = config.merge(Config(signature_version=UNSIGNED))
        sts = base.client("sts", endpoint_url=self.sts_endpoint, config=config)
        if not web and _is_role(base, sts, self.role_arn):
            return None
        return _Login(self, sts)


class _Login:
    """Sessions of a role. botocore asks it for credentials when the last ones near their end."""

    def __init__(self, store: AwsSecretsManager, sts: Any) -> None:
        self._store, self._sts, self._where = store, sts, f"{store.name}: {store.role_arn}"

    def session(self, profile: str | None) -> Any:
        """A session of botocore that has its credentials from here."""
        from botocore.session import Session

        session = Session(profile=profile)
        session.register_component("credential_provider", self)
        return session

    def load_credentials(self) -> Any:
        """The name that botocore calls."""
        from botocore.credentials import DeferredRefreshableCredentials

        return DeferredRefreshableCredentials(self._fetch, "assume-role")

    def _fetch(self) -> dict[str, str]:
        store = self._store
        arguments = {"RoleArn": store.role_arn, "RoleSessionName": store.session_name}
        if store.web_identity_token or store.web_identity_token_file:
            # No session policy, unlike LiteLLM: its list has only actions of Bedrock.
            answer = self._sts.assume_role_with_web_identity(**arguments, WebIdentityToken=self._token())
        else:
            if store.external_id:
                arguments["ExternalId"] = store.external_id
            answer = self._sts.assume_role(**arguments)
        found = answer["Credentials"]
        return {
            "access_key": found["AccessKeyId"],
            "secret_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expiry_time": found["Expiration"].isoformat(),
        }

    def _token(self) -> str:
        if self._store.web_identity_token:
            return self._store.web_identity_token.reveal()
        path = self._store.web_identity_token_file
        try:
            found = path.read_text("ascii").strip() if path else ""
        except (OSError, ValueError) as error:
            text = f"the web identity token file cannot be read ({type(error).__name__})"
            raise StoreMisconfigured(f"{self._where}: {text}") from None
        if not found:
            raise StoreMisconfigured(f"{self._where}: the web identity token file is empty")
        return found


def _is_role(base: Any, sts: Any, role_arn: str) -> bool:
    """Whether the credentials at hand are a session of this role: many roles may not assume themselves."""
    credentials = base.get_credentials()
    if credentials is None or not credentials.token:
        return False
    # arn:aws:sts::1:assumed-role/NAME/SESSION is a session of arn:aws:iam::1:role/PATH/NAME
    ours, role = str(sts.get_caller_identity()["Arn"]).split(":"), role_arn.split(":")
    return ours[4:5] == role[4:5] and ours[-1].split("/")[:2] == ["assumed-role", role_arn.rpartition("/")[2]]
