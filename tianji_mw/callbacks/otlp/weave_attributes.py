"""The attributes of W&B Weave: OpenInference for content, `gen_ai.*` for the figures, and Weave's own. Pure.

Source: Weave's OpenTelemetry documentation, LiteLLM's `weave_otel` callback.
"""

from __future__ import annotations

from tianji_mw.callbacks.otlp import genai, openinference
from tianji_mw.callbacks.otlp.spans import Attributes, Span, Value, model_of
from tianji_mw.callbacks.record import content
from tianji_mw.records import Record


def span_attributes(span: Span, record: Record) -> Attributes:
    """The attributes of any span of a record; an error's event and the status go to the span itself."""
    found = dict(openinference.span_attributes(span, record))
    if span.role != "call":
        return {**found, "wandb.display_name": span.name}
    return {**genai.call_attributes(record.data), **found, **call_attributes(record)}


def call_attributes(record: Record) -> Attributes:
    """Weave's own: a name without slashes, and the thread of a conversation."""
    provider = content.word(record.data.get("custom_llm_provider"))
    named = "/".join(part for part in (provider, model_of(record.data)) if part)
    session = content.session_id(record)
    found: dict[str, Value] = {"wandb.display_name": named.replace("/", "__") or "call"}
    return {**found, "wandb.thread_id": session, "wandb.is_turn": True} if session else found
