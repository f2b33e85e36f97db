"""Every error of the suite, and how each looks to a client.

    TianjiError
    ├── SetupError            the operator must change something before the suite can start
    │   ├── ConfigError       a file, line and key are wrong
    │   ├── OrderError        two middlewares stand in an order that opens a hole
    │   ├── MissingExtra      an optional dependency is not installed
    │   ├── PluginNotFound    no plugin of that name
    │   └── UnresolvedReference   a secret or variable a config string points to is missing
    ├── RequestError          the client must change the request
    │   ├── InvalidRequest · UnknownModel · BodyTooLarge · UnsupportedEncoding · ReceiveTimeout · UnsupportedParams
    │   └── RouteNotFound · MethodNotAllowed
    ├── Refusal               the suite decided not to serve the request
    │   └── AuthenticationFailed · PermissionDenied · Blocked · GuardrailUnavailable · RateLimited · Overloaded
    └── UpstreamError         the provider failed; `status` is the provider's where it gave one
        └── UpstreamUnreachable · UpstreamTimeout · UpstreamTruncated · UpstreamMalformed · NoDeployment

One leaf per thing somebody would do differently. Where an error becomes bytes is decided by the client's API
(`apis/`), never where it is raised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class TianjiError(Exception):
    """Root of the tree: a sentence for people, and the facts a client needs.

    `message` is shown to clients, so it never holds a secret, a full URL or a stack trace.
    """

    status: int = 500
    type: ClassVar[str] = "api_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        #: More about the reason; LiteLLM's `provider_specific_fields`.
        self.fields: Mapping[str, Any] = fields or {}
        self.param = param
        self.headers: Mapping[str, str] = headers or {}
        if code is not None:
            self.code = code

    @property
    def kind(self) -> str:
        """OpenAI's `error.type` for this error."""
        return self.type


# --- the operator -----------------------------------------------------------------------------------------------


class SetupError(TianjiError):
    """The suite cannot start like this."""

    type = "configuration_error"


class ConfigError(SetupError):
    """A key of a configuration file is wrong: names file, line, key and cure."""

    def __init__(self, message: str, *, file: str = "", line: int | None = None, key: str = "", hint: str = "") -> None:
        self.file, self.line, self.key, self.hint = file, line, key, hint
        self.reason = message
        where = f"{file}:{line}" if line is not None else file
        parts = [f"{where}: " if where else "", f"{key}: " if key else "", message, f" ({hint})" if hint else ""]
        super().__init__("".join(parts))


class ConfigErrors(SetupError):
    """Several wrong keys, reported together so that one start shows them all."""

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        self.errors = tuple(errors)
        super().__init__("\n".join(e.message for e in self.errors))


class OrderError(SetupError):
    """Two middlewares stand in the wrong order."""


class MissingExtra(SetupError, ImportError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'tianji-mw[{extra}]'")


class PluginNotFound(SetupError):
    """No file, entry point or dotted path gives this plugin."""


class UnresolvedReference(SetupError):
    """A reference in the configuration points to nothing."""


# --- the client -------------------------------------------------------------------------------------------------


class RequestError(TianjiError):
    """The client can cure this by sending something else."""

    status = 400
    type = "invalid_request_error"


class InvalidRequest(RequestError):
    """Not JSON, or not the shape of the API."""


class UnsupportedParams(RequestError):
    """The chosen provider has no such parameter; `drop_params` would leave it out."""

    code = "unsupported_parameter"


class UnknownModel(RequestError):
    """No deployment serves this model name."""

    status = 404
    code = "model_not_found"


class RouteNotFound(RequestError):
    """The gateway has no such path."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(RequestError):
    """The path exists, for another method."""

    status = 405


class BodyTooLarge(RequestError):
    """The request body is above the limit."""

    status = 413
    code = "request_too_large"


class UnsupportedEncoding(RequestError):
    """The request body is compressed; the suite reads plain JSON only (a small body could inflate without bound)."""

    status = 415


class ReceiveTimeout(RequestError):
    """The client did not send its body in time."""

    status = 408
    type = "timeout_error"


# --- our decision -----------------------------------------------------------------------------------------------


class Refusal(TianjiError):
    """The suite decided against serving the request."""

    status = 403
    type = "permission_error"


class AuthenticationFailed(Refusal):
    """No key, an unknown key, an expired key: one answer for all, so that nothing can be learned from it."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"

    def __init__(self) -> None:
        super().__init__("Authentication failed: send a valid API key as 'Authorization: Bearer <key>'.")


class PermissionDenied(Refusal):
    """A known caller may not do this."""


class Blocked(Refusal):
    """A guardrail blocked the content."""

    status = 400
    type = "invalid_request_error"
    code = "content_policy_violation"


class GuardrailUnavailable(Refusal):
    """A guardrail failed, and its content was not let through: a failure, and no judgement of the content."""

    status = 503
    type = "api_error"
    code = "guardrail_unavailable"


class RateLimited(Refusal):
    """The caller is over a limit; `headers` carries `retry-after`."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class Overloaded(Refusal):
    """The gateway sheds load or drains."""

    status = 503
    type = "api_error"
    code = "overloaded"


# --- the provider -----------------------------------------------------------------------------------------------

_TYPE_OF_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    424: "invalid_request_error",
    429: "rate_limit_error",
    503: "api_error",
    504: "timeout_error",
    529: "api_error",
}


def type_of_status(status: int) -> str:
    """OpenAI's `error.type` for an upstream's HTTP status."""
    return _TYPE_OF_STATUS.get(status, "invalid_request_error" if 400 <= status < 500 else "api_error")


class UpstreamError(TianjiError):
    """The provider answered with an error, or not at all.

    `status` is the provider's own where it gave one, else 502. `body` is the provider's error body, kept so that
    a client which speaks the provider's API gets it unchanged.
    """

    status = 502

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        super().__init__(message, param=param, code=code, headers=headers)
        self.provider = provider
        self.body = body
        if status is not None:
            self.status = status

    @property
    def kind(self) -> str:
        return type_of_status(self.status)


class UpstreamUnreachable(UpstreamError):
    """DNS, refused, reset before an answer, TLS."""


class UpstreamTimeout(UpstreamError):
    """A deadline passed: connect, first byte, between bytes or total (named in the message)."""

    status = 408


class UpstreamTruncated(UpstreamError):
    """The answer stopped before its end."""


class UpstreamMalformed(UpstreamError):
    """The answer is not what the provider's API promises (HTML, no JSON, over a limit)."""


class NoDeployment(UpstreamError):
    """Deployments exist for the model, and none can be used now; `headers` carries `retry-after`."""

    status = 429

    def __init__(self, message: str, *, cooling: bool = False, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, headers=headers)
        #: All of them are in cooldown.
        self.cooling = cooling

    @property
    def kind(self) -> str:
        return "all_deployments_in_cooldown" if self.cooling else "rate_limit_error"
