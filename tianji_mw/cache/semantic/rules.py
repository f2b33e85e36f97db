"""The settings of a semantic cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class SemanticRules:
    """When an answer to another wording may be given. Without a threshold of one's own, thresholds are learned.

    `mode`: `serve`, or `shadow`, which compares and learns and gives nothing.
    """

    mode: Literal["serve", "shadow"] = "serve"
    #: LiteLLM's: the least cosine, in [0, 1]; it is then the same for all, and nothing is learned.
    similarity_threshold: float | None = None
    #: Wrong answers among all calls that are acceptable, where thresholds are learned.
    error_budget: float = 0.01
    #: Numbers, names, negations and the like must agree as well.
    lexical: bool = True
    #: Calls with more messages are compared with equal ones alone.
    max_messages: int | None = 4
    #: A call that asks for variety: at this temperature and above it gets an answer of its own.
    max_temperature: float = 0.8
    #: Calls that offer tools may be answered too; calls of tools in an answer are never given again to other wordings.
    allow_tools: bool = False
    #: Seconds that looking for a neighbour may take, embedding included.
    within_s: float = 0.15
    #: Neighbours that are looked at.
    neighbours: int = 16
    #: Of the answers that a provider gave although there was a neighbour, the share that is compared with its answer.
    verify: float = 1.0
    #: Of the calls that could be answered, the share that is verified instead: else nothing would be learned of them.
    explore: float = 0.05
