"""`Authentication`: nobody gets past without a valid key. Fail closed: no key, no identity, no call."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Unpack

from tianji_mw.call import Call
from tianji_mw.driver import LayerOptions, LLMMiddleware
from tianji_mw.errors import AuthenticationFailed, PermissionDenied
from tianji_mw.identity.base import Identifier
from tianji_mw.identity.keys import Keys
from tianji_mw.redact import Secret

if TYPE_CHECKING:
    from starlette.types import ASGIApp


class Authentication(LLMMiddleware):
    """Checks the caller's key before the body is read.

    >>> app.add_middleware(Authentication, master_key="sk-...")     # doctest: +SKIP
    """

    phase: ClassVar[int] = 200
    order_reason: ClassVar[str] = "what stands outside of it works for callers that nobody has checked"
    early: ClassVar[bool] = True

    def __init__(
        self,
        app: ASGIApp,
        *,
        identifier: Identifier | None = None,
        master_key: str | Secret | None = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        super().__init__(app, **options)
        if isinstance(master_key, str):
            master_key = Secret(master_key)
        if identifier is None and not master_key:
            raise ValueError("Authentication needs a master_key or an identifier")
        self._identifier: Identifier = identifier or Keys(master_key=master_key)

    async def on_request(self, call: Call) -> None:
        identity = await self._identifier.identify(call.headers)
        if identity is None:
            raise AuthenticationFailed
        call.identity = identity
        if identity.models:
            await call.load()
            # A request that names no model is not allowed either: whoever picks one would pick it for everybody.
            if call.api.required and not identity.allows(call.model):
                raise PermissionDenied(
                    f"This key may not use the model '{call.model[:200]}'.", code="model_access_denied"
                )
