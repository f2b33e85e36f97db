"""Around a Litestar app: wrap it from outside, so that nothing reaches a route unchecked.

uvicorn examples.litestar_app:app
"""

from litestar import Litestar, post

from examples.plugins.no_codename import NoCodename
from tianji_mw import Authentication, Guardrails


@post("/v1/chat/completions", status_code=200)
async def chat(data: dict) -> dict:
    message = {"role": "assistant", "content": "Hello from Litestar."}
    return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message}]}


app = Authentication(Guardrails(Litestar([chat]), checks=[NoCodename()]), master_key="sk-example")
