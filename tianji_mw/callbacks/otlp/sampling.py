"""Which traces are in a sample: all calls of a trace get the same answer, and so do all attempts. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tianji_mw.callbacks.otlp.spans import trace_id_of


def in_sample(data: Mapping[str, Any], rate: float) -> bool:
    """Whether the record's trace is in the sample. By a hash: ids that are UUIDs are not evenly spread themselves."""
    digest = hashlib.sha256(trace_id_of(data)).digest()
    return int.from_bytes(digest[:8]) < rate * 2**64
