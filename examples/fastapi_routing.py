"""Routing alone in front of a handler of yours: it asks the deployment that was chosen, and another one if that fails.

uvicorn examples.fastapi_routing:app
"""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse

from tianji_mw import Stack, current_call

api = FastAPI()
DOWN = {"east"}


@api.post("/v1/chat/completions")
async def chat(request: dict):
    deployment = current_call().deployment
    if deployment.id in DOWN:
        # This answer says that the handler has done nothing yet, so that it may be asked again.
        return JSONResponse({"error": {"message": "no"}}, 503, {"x-should-retry": "true"})
    message = {"role": "assistant", "content": f"{deployment.provider.name}/{deployment.model} at {deployment.id}"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": request["model"], "choices": [choice]}


app = Stack.from_config(Path(__file__).with_name("routing.yaml"), terminal=api).app
