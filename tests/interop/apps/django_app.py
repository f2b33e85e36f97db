"""Django's side of the interop tests. One process has one Django configuration, so all its views live here."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import include, path

from tests.interop.apps import llm
from tests.interop.apps.routes_app import BARE, CHAT, PREFIXED, hit
from tianji_mw import current_call


def application() -> Any:
    """The ASGI app, configured once per process."""
    import django
    from django.core.asgi import get_asgi_application

    if not settings.configured:
        settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], MIDDLEWARE=[], LOGGING_CONFIG=None)
        django.setup()
    return get_asgi_application()


def _counted(name: str) -> Any:
    async def view(request: HttpRequest) -> JsonResponse:
        return JsonResponse(hit(name))

    return view


async def own_chat(request: HttpRequest) -> HttpResponse:
    """An LLM endpoint of the user's own, plain and streamed."""
    asked = json.loads(request.body)
    if asked.get("stream"):

        async def events() -> AsyncIterator[bytes]:
            for event in llm.events(asked):
                yield event

        return StreamingHttpResponse(events(), content_type="text/event-stream")
    call = current_call()
    llm.SEEN.append(call.identity.alias if call is not None and call.identity is not None else None)
    return JsonResponse(llm.answer(asked))


def sync_chat(request: HttpRequest) -> HttpResponse:
    """The same, not async: Django runs it in a thread."""
    call = current_call()
    llm.SEEN.append(call.identity.alias if call is not None and call.identity is not None else None)
    return JsonResponse(llm.answer(json.loads(request.body)))


def health(request: HttpRequest) -> HttpResponse:
    return HttpResponse("fine")


urlpatterns = [
    path(CHAT[1:], _counted(CHAT)),
    path("api/", include([path(CHAT[1:], _counted(PREFIXED))])),
    path(BARE[1:], _counted(BARE)),
    path("own/v1/chat/completions", own_chat),
    path("sync/v1/chat/completions", sync_chat),
    path("health", health),
]
