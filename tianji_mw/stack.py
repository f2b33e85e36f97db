"""A `Stack`: middlewares in a checked order, around an app of yours or around the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.middleware import Middleware

from tianji_mw.driver import LLMMiddleware, inner_layers

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tianji_mw.transport import Flavour


class Stack:
    """Layers, outermost first, and the app they end in. A wrong order raises OrderError that names both layers.

    >>> layers = [Middleware(Authentication, master_key="sk-1"), Middleware(Guardrails, checks=[])]  # doctest: +SKIP
    >>> app = Stack(layers).wrap(fastapi_app)                                                       # doctest: +SKIP
    """

    def __init__(self, layers: Sequence[Middleware], terminal: ASGIApp | None = None) -> None:
        self._layers = tuple(layers)
        self._app = self.wrap(terminal) if terminal is not None else None

    @classmethod
    def from_config(
        cls, path: str | Path, *, env: Mapping[str, str] | None = None, terminal: ASGIApp | None = None
    ) -> Stack:
        """The stack a config file describes, ending in the gateway, or in `terminal`, an app of yours.

        Your app then finds in `call.deployment` which entry of `model_list` routing has chosen. Raises ConfigErrors.
        """
        from tianji_mw.compose import compose
        from tianji_mw.config import load

        return compose(load(path, env=env), env=env, terminal=terminal)

    def wrap(self, app: ASGIApp) -> ASGIApp:
        """The layers around `app`."""
        for layer in reversed(self._layers):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        return app

    @property
    def app(self) -> ASGIApp:
        """The whole stack as one ASGI app."""
        if self._app is None:
            raise RuntimeError("this stack has no terminal app; use wrap(app), or Stack(layers, terminal)")
        return self._app

    def httpx_client(self, flavour: Flavour | None = None, **options: Any) -> Any:
        """An httpx client served by the stack in process: `AsyncOpenAI(http_client=stack.httpx_client())`."""
        from tianji_mw.transport import client

        return client(self.app, flavour, **options)

    def explain(self) -> list[tuple[int, str]]:
        """Phase and name of each live layer, outermost first."""
        return explain(self.app)


def explain(app: ASGIApp) -> list[tuple[int, str]]:
    """Phase and name of each layer that really stands around `app`'s innermost part."""
    return [(layer.phase, type(layer).__name__) for layer in inner_layers(app) if isinstance(layer, LLMMiddleware)]
