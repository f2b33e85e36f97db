"""A cache alone around an app you have: equal questions of a customer are answered once.

uvicorn examples.fastapi_cache:app
"""

from itertools import count

from fastapi import FastAPI

from tianji_mw import Cache, CacheRules

app = FastAPI()
numbers = count(1)


@app.post("/v1/chat/completions")
async def chat(request: dict):
    message = {"role": "assistant", "content": f"Answer number {next(numbers)}."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "1", "object": "chat.completion", "model": request["model"], "choices": [choice]}


# Whose call it is, the app knows; answers are shared among the calls of one customer.
rules = CacheRules(ttl_s=600, tenant=lambda call: call.headers.get("x-customer"))
app.add_middleware(Cache, rules=rules)
