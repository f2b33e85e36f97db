"""Two middlewares around an app you have: keys and a guardrail in front of your own LLM endpoint.

uvicorn examples.fastapi_two_middlewares:app
"""

import json

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from examples.plugins.no_codename import NoCodename
from tianji_mw import Authentication, Guardrails, current_call

app = FastAPI()


@app.post("/v1/chat/completions")
async def chat(request: dict):
    call = current_call()
    text = f"Hello {call.identity.alias}, you asked {call.model}."
    if not request.get("stream"):
        choice = {"index": 0, "message": {"role": "assistant", "content": text}}
        return {"id": "1", "object": "chat.completion", "choices": [choice]}

    async def events():
        for word in text.split(" "):
            chunk = {"choices": [{"index": 0, "delta": {"content": word + " "}}]}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


# Starlette runs the middleware that was added last first: keys are checked before anything else happens.
app.add_middleware(Guardrails, checks=[NoCodename()])
app.add_middleware(Authentication, master_key="sk-example")
