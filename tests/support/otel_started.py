"""Starts OTLP destinations against a receiver, and catches what they say of a batch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.otlp_receiver import OtlpReceiver
from tianji_mw.callbacks.base import NotDelivered, Record
from tianji_mw.callbacks.otel import Otel
from tianji_mw.callbacks.otlp.exporter import OtlpCallback
from tianji_mw.runtime import Runtime

KEY = "Bearer sk-very-secret-1"


@asynccontextmanager
async def started(otel: OtlpCallback) -> AsyncIterator[Runtime]:
    async with Runtime() as runtime:
        await otel.start(runtime)
        try:
            yield runtime
        finally:
            await otel.aclose()


def over(protocol: str, receiver: OtlpReceiver, **more: Any) -> Otel:
    endpoint = f"http://{receiver.target}" if protocol == "grpc" else receiver.url
    return Otel.model_validate(
        {"protocol": protocol, "endpoint": endpoint, "headers": f"Authorization={KEY},x-a=1", **more}
    )


def answers(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Callable[[], Any]:
    return lambda: (status, headers or {}, body)


async def problem_of(otel: OtlpCallback, *batch: Record) -> NotDelivered:
    with pytest.raises(NotDelivered) as caught:
        await otel.write(batch)
    assert "sk-very-secret" not in caught.value.message + repr(caught.value)
    return caught.value
