"""Around a Quart app.

hypercorn examples.quart_app:app
"""

from quart import Quart

from examples.plugins.no_codename import NoCodename
from tianji_mw import Authentication, Guardrails

app = Quart(__name__)


@app.post("/v1/chat/completions")
async def chat():
    message = {"role": "assistant", "content": "Hello from Quart."}
    return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}


app.asgi_app = Authentication(Guardrails(app.asgi_app, checks=[NoCodename()]), master_key="sk-example")
