"""`Secrets`: the layer that keeps secrets fresh while the app serves, and hands them to it by name.

It stands last before the terminal app: no outer layer ever holds a value. Deployments hold `LiveSecret`s, which show
the value of the moment when the request is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Unpack

from tianji_mw.call import Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import ConfigError, ConfigErrors
from tianji_mw.redact import Secret
from tianji_mw.secrets.live import LiveSecret
from tianji_mw.secrets.resolver import Resolver

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tianji_mw.runtime import Runtime
    from tianji_mw.secrets.base import SecretStore

#: Where the named secrets lie in the ASGI scope, for code that has no Call: `await scope[SECRETS_KEY].get("name")`.
SECRETS_KEY: Final = "tianji_mw.secrets"


class Named:
    """Secrets by the names that the operator gave them; nothing else can be asked for."""

    __slots__ = ("_names", "_resolver")

    def __init__(self, names: Mapping[str, Secret], resolver: Resolver) -> None:
        self._names = names
        self._resolver = resolver

    async def get(self, name: str) -> Secret:
        """The secret of that name. Raises KeyError for an unknown name, SecretError when it cannot be had."""
        secret = self._names.get(name)
        if secret is None:
            raise KeyError(f"no secret is named {name!r}; there are: {', '.join(sorted(self._names)) or 'none'}")
        if isinstance(secret, LiveSecret) and not secret.ready:
            await self._resolver.get(secret.ref)
        return secret

    def __repr__(self) -> str:
        return f"Named({', '.join(sorted(self._names))})"


class Secrets(LLMMiddleware):
    """Named secrets for the wrapped app, and rotation for everything inside.

    >>> app.add_middleware(Secrets, names={"openai": "vault://llm/openai#key"})     # doctest: +SKIP
    >>> key = await current_call().secret("openai")                                 # doctest: +SKIP
    """

    phase: ClassVar[int] = 900
    order_reason: ClassVar[str] = "no layer outside of the last one may hold a provider's key"

    def __init__(
        self,
        app: ASGIApp,
        *,
        names: Mapping[str, str | Secret] | None = None,
        stores: Mapping[str, SecretStore] | list[SecretStore] | None = None,
        resolver: Resolver | None = None,
        allow_unresolved: bool = False,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        if resolver is None:
            from tianji_mw.secrets.configure import open_kind

            given = stores if isinstance(stores, Mapping) else {_name(store): store for store in stores or ()}
            resolver = Resolver({name: _named(store, name) for name, store in given.items()}, open_kind=open_kind)
        self.resolver = resolver
        self._allow_unresolved = allow_unresolved
        self._secrets: dict[str, Secret] = {
            name: value if isinstance(value, Secret) else resolver.secret(value)
            for name, value in (names or {}).items()
        }
        self._named = Named(self._secrets, resolver)

    async def start(self, runtime: Runtime) -> None:
        """Fetch what is named, all at once. Raises ConfigErrors that list every name without a value."""
        wanted = [secret for secret in self._secrets.values() if isinstance(secret, LiveSecret)]
        failed = await self.resolver.fetch(wanted)
        if failed and not self._allow_unresolved:
            raise ConfigErrors(
                [
                    ConfigError(failed[secret].message, key=f"secrets.{name}")
                    for name, secret in self._secrets.items()
                    if isinstance(secret, LiveSecret) and secret in failed
                ]
            )
        self.resolver.start(runtime)

    async def aclose(self) -> None:
        await self.resolver.aclose()

    async def on_request(self, call: Call) -> None:
        call.named = self._named

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._secrets and scope["type"] in ("http", "websocket"):
            scope = {**scope, SECRETS_KEY: self._named}
        await super().__call__(scope, receive, send)


def _name(store: SecretStore) -> str:
    from tianji_mw.secrets.resolver import kind_of

    return store.name or kind_of(store)


def _named(store: SecretStore, name: str) -> SecretStore:
    return store if store.name == name else store.model_copy(update={"name": name})
