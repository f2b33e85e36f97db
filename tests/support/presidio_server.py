"""Presidio's two REST services over its real AnalyzerEngine: `/analyze` as its own app writes it, and `/anonymize`.

The anonymizer's package is not installed here; what it does to findings is written after its contract: contained and
equal findings fall away, neighbours of one kind with only blanks between become one, items tell places in the new text.
"""

from __future__ import annotations

from typing import Any

import orjson
from presidio_analyzer import PatternRecognizer

from tianji_mw.testing import Received, Reply


class PresidioServer:
    """What a `FakeLLM` answers: `FakeLLM(PresidioServer(engine))`."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def __call__(self, request: Received) -> Reply:
        if request.path == "/health":
            return Reply(headers={"content-type": "text/plain"}, parts=[b"Presidio Analyzer service is up"])
        try:
            body = request.json
            if request.path == "/analyze":
                return Reply.json(self.analyze(body))
            if request.path == "/anonymize":
                return Reply.json(anonymized(body["text"], body["analyzer_results"], body.get("anonymizers") or {}))
        except (KeyError, ValueError, TypeError) as error:
            return Reply.json({"error": str(error)}, status=500)
        return Reply.json({"error": "not found"}, status=404)

    def analyze(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        found = self._engine.analyze(
            text=body["text"],
            language=body["language"],
            entities=body.get("entities"),
            correlation_id=body.get("correlation_id"),
            score_threshold=body.get("score_threshold"),
            ad_hoc_recognizers=[PatternRecognizer.from_dict(one) for one in body.get("ad_hoc_recognizers") or ()],
            allow_list=body.get("allow_list"),
        )
        return [{**one.to_dict(), "analysis_explanation": None} for one in found]


def anonymized(text: str, results: list[dict[str, Any]], anonymizers: dict[str, Any]) -> dict[str, Any]:
    """The answer of `/anonymize`."""
    kept: list[dict[str, Any]] = []
    for one in sorted(results, key=lambda r: (r["start"], -r["end"], -r["score"])):
        if kept and one["end"] <= kept[-1]["end"]:
            continue
        if kept and one["entity_type"] == kept[-1]["entity_type"] and not text[kept[-1]["end"] : one["start"]].strip():
            kept[-1] = {**kept[-1], "end": one["end"]}
        else:
            kept.append(one)
    made, items, at = "", [], 0
    for one in kept:
        kind = one["entity_type"]
        how = anonymizers.get(kind) or anonymizers.get("DEFAULT") or {"type": "replace"}
        new = how.get("new_value", f"<{kind}>") if how["type"] == "replace" else ""
        made += text[at : one["start"]]
        items.append(
            {"start": len(made), "end": len(made) + len(new), "entity_type": kind, "text": new, "operator": how["type"]}
        )
        made += new
        at = one["end"]
    items.reverse()  # as the real one, from the end
    return {"text": made + text[at:], "items": items}


def text_of(body: bytes) -> str:
    """The content of a chat stream, joined as a client does."""
    events = [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event.get("choices"))
