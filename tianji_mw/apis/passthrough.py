"""OpenAI paths that a gateway carries without reading: audio, images, files, batches, uploads, vector stores, tuning.

Their bodies are multipart or binary, or hold no conversation. Nothing here is guarded: identity, limits and routing
work on head and path alone. A wrapped app never gets these routes (they match at the root only, in a gateway).

Source: OpenAI API reference, one section per first path segment.
"""

from __future__ import annotations

from typing import ClassVar, Final

from tianji_mw.apis.base import Api

_ENDPOINTS: Final = (
    "audio/transcriptions",
    "audio/translations",
    "audio/speech",
    "images/generations",
    "images/edits",
    "images/variations",
    "files",
    "files/{id}",
    "files/{id}/content",
    "batches",
    "batches/{id}",
    "batches/{id}/cancel",
    "uploads",
    "uploads/{id}/parts",
    "uploads/{id}/complete",
    "uploads/{id}/cancel",
    "vector_stores",
    "vector_stores/{id}",
    "vector_stores/{id}/search",
    "vector_stores/{id}/files",
    "vector_stores/{id}/files/{id}",
    "vector_stores/{id}/files/{id}/content",
    "vector_stores/{id}/file_batches",
    "vector_stores/{id}/file_batches/{id}",
    "vector_stores/{id}/file_batches/{id}/cancel",
    "vector_stores/{id}/file_batches/{id}/files",
    "fine_tuning/jobs",
    "fine_tuning/jobs/{id}",
    "fine_tuning/jobs/{id}/cancel",
    "fine_tuning/jobs/{id}/pause",
    "fine_tuning/jobs/{id}/resume",
    "fine_tuning/jobs/{id}/events",
    "fine_tuning/jobs/{id}/checkpoints",
)


class Passthrough(Api):
    """Everything whose body goes through unread.

    >>> Passthrough.buffered, Passthrough.paths[:2]
    (False, ('/v1/audio/transcriptions', '/audio/transcriptions'))
    """

    name: ClassVar[str] = "passthrough"
    buffered: ClassVar[bool] = False
    methods: ClassVar[frozenset[str]] = frozenset({"GET", "POST", "DELETE"})
    paths: ClassVar[tuple[str, ...]] = tuple(f"{root}{path}" for path in _ENDPOINTS for root in ("/v1/", "/"))
