"""What is the same in all requests of one client API to one deployment: made once, used for each call.

Address and headers become one tuple that the transport recognises, so that a request costs no look at them. What a
request itself may change (its parameters, headers that are passed on, a rotated key) is compared, never assumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tianji_mw import outgoing
from tianji_mw.errors import UpstreamError
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from tianji_mw.apis.base import Api
    from tianji_mw.call import Call
    from tianji_mw.routing.base import Deployment
    from tianji_mw.upstream import RawHeaders, Transport

_OWN: Mapping[bool, RawHeaders] = {
    stream: (
        ("content-type", "application/json"),
        ("accept", "text/event-stream" if stream else "application/json"),
        ("accept-encoding", "identity"),
    )
    for stream in (False, True)
}


class Plan:
    """How calls of `api` are sent to `deployment`. Raises InvalidRequest when its provider cannot serve the API."""

    __slots__ = (
        "_addresses", "_changing", "_forwards", "_headers", "_model", "_transport", "bridge", "deployment", "provider",
        "rules", "wire",
    )  # fmt: skip

    def __init__(self, deployment: Deployment, api: Api) -> None:
        provider = deployment.provider
        self.deployment = deployment
        self.provider = provider
        self.bridge = provider.bridge(api.name)
        self.wire = provider.wire(api.name)
        self.rules = deployment.rules_of.get(api.name, deployment.rules)
        #: The provider's name of the model; with a `*` each call has its own.
        self._model = deployment.model if "*" not in deployment.model else None
        self._transport = provider.transport()
        self._forwards = frozenset(name.encode() for name in provider.forwards)
        self._addresses: dict[bool, str] = {}
        self._headers: dict[bool, tuple[RawHeaders, RawHeaders]] = {}
        #: Secrets in the operator's headers that may change while we serve.
        self._changing = tuple(
            value for value in provider.extra_headers.values() if isinstance(value, Secret) and value.changes
        )

    def model(self, call: Call) -> str:
        """The provider's name of the model that the call asks for."""
        return self._model if self._model is not None else self.deployment.upstream_model(call.group or call.model)

    def url(self, call: Call, *, stream: bool) -> str:
        """The address of a request."""
        if self._model is None:
            return self.provider.url(self.wire, self.model(call), stream=stream)
        found = self._addresses.get(stream)
        if found is None:
            found = self._addresses[stream] = self.provider.url(self.wire, self._model, stream=stream)
        return found

    async def headers(self, call: Call, *, stream: bool) -> RawHeaders:
        """All headers of a request. Raises UpstreamError (401) when a credential is needed and there is none."""
        provider = self.provider
        try:
            credentials = await provider.credentials()
        except UpstreamError as error:
            # A login that was refused, perhaps because its secret was replaced a moment ago.
            if error.code != "invalid_credentials" or not await outgoing.renew(provider):
                raise
            credentials = await provider.credentials()
        if not credentials and (missing := provider.lacks()):
            raise outgoing.no_key(provider, self.deployment, missing)
        if call.upstream_headers or (self._forwards and not call.headers.isdisjoint(self._forwards)):
            made = provider.headers(_OWN[stream], call.headers, credentials)
            given = [give(self.deployment).items() for give in call.upstream_headers]
            return list({**dict(pair for pairs in given for pair in pairs), **made}.items())
        mark = credentials
        if self._changing:
            mark = [*credentials, *(("", secret.reveal()) for secret in self._changing)]
        known = self._headers.get(stream)
        if known is None or known[0] != mark:
            built = tuple(provider.headers(_OWN[stream], {}, credentials).items())
            known = self._headers[stream] = mark, built
        return known[1]

    async def renewed(self, call: Call, refused: RawHeaders, *, stream: bool) -> RawHeaders | None:
        """Headers with another credential than the one an upstream has just refused; None when there is no other."""
        headers = await self.headers(call, stream=stream)
        if headers == refused and await outgoing.renew(self.provider):
            headers = await self.headers(call, stream=stream)
        if headers == refused:
            return None
        call.runtime.count("credential_retries", self.provider.name)
        return headers

    def transport(self, call: Call) -> Transport:
        """The provider's own way of sending, or the shared one."""
        return self._transport or call.runtime.transport
