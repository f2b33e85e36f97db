"""The whole gateway as an app inside your app: `/llm/v1/chat/completions`, `/llm/v1/messages`, ...

uvicorn examples.mounted_gateway:app
"""

from pathlib import Path

from fastapi import FastAPI

from tianji_mw import Gateway

app = FastAPI()
app.mount("/llm", Gateway.from_config(Path(__file__).with_name("config.yaml")))


@app.get("/")
def home() -> dict[str, str]:
    return {"models": "/llm/v1/models"}
