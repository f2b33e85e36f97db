"""Around a Django project's ASGI application. Django has no lifespan: the layers start at the first request.

daphne examples.django_app:app
"""

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from examples.plugins.no_codename import NoCodename
from tianji_mw import Authentication, Guardrails

if not settings.configured:
    settings.configure(ROOT_URLCONF=__name__, SECRET_KEY="example", ALLOWED_HOSTS=["*"])
    django.setup()


@csrf_exempt
def chat(request):
    message = {"role": "assistant", "content": "Hello from Django."}
    return JsonResponse({"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]})


urlpatterns = [path("v1/chat/completions", chat)]
app = Authentication(Guardrails(get_asgi_application(), checks=[NoCodename()]), master_key="sk-example")
