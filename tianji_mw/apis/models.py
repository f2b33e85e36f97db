"""The list of models: `GET /v1/models` and `GET /v1/models/{id}`. Facts only: a gateway answers it by itself.

Source: OpenAI API reference, "Models". There is no request body and no text. A model name with a slash has to be
percent-encoded by the client, because `{id}` is one path segment.
"""

from __future__ import annotations

from typing import ClassVar

from tianji_mw.apis.base import Api


class Models(Api):
    """Where clients ask which models they may use.

    >>> Models().methods
    frozenset({'GET'})
    """

    name: ClassVar[str] = "models"
    methods: ClassVar[frozenset[str]] = frozenset({"GET"})
    paths: ClassVar[tuple[str, ...]] = (
        "/v1/models",
        "/models",
        "/v1/models/{id}",
        "/models/{id}",
        # `provider/model`, written plainly or with an encoded slash
        "/v1/models/{id}/{id}",
        "/models/{id}/{id}",
    )
