"""The stack in front of an SDK, in process: no port, no extra hop."""

import asyncio
from pathlib import Path

from openai import AsyncOpenAI

from tianji_mw import Stack


async def main() -> str:
    stack = Stack.from_config(Path(__file__).with_name("config.yaml"))
    async with stack.httpx_client() as http:
        client = AsyncOpenAI(api_key="sk-example", base_url="http://tianji/v1", http_client=http)
        answer = await client.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}])
        return answer.choices[0].message.content


if __name__ == "__main__":
    print(asyncio.run(main()))
