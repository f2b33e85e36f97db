"""How records go to a destination: what an outbox is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnFailure = Literal["spool", "retry", "discard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """How records go to a destination.

    `on_failure`: `spool` keeps what fails until it is delivered or the spool is full; `retry` gives it up after
    `max_retries`; `discard` gives it up at once, as LiteLLM does.
    """

    batch_size: int = 512
    max_batch_bytes: int = 4 << 20
    flush_interval_s: float = 5.0
    concurrency: int = 1
    #: Nothing new goes before what has failed.
    ordered: bool = False
    timeout_s: float = 30.0
    on_failure: OnFailure = "spool"
    max_retries: int = 5
    backoff_s: float = 0.5
    max_backoff_s: float = 30.0
