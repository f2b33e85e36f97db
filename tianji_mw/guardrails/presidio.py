"""Presidio: personal data is masked or blocked; with `output_parse_pii` answers get it back where the model says it.

An analyzer is asked over REST, or works in this process where none is configured (extra `presidio`). Settings have
LiteLLM's names or our shorter ones. Source: Presidio's OpenAPI description; LiteLLM's `presidio`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import Field, PrivateAttr, field_validator, model_validator

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.guardrails import presidio_local
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Span, Verdict
from tianji_mw.guardrails.presidio_findings import (
    Analyzer,
    Finding,
    Question,
    chunks,
    inside_strings,
    interleaved,
    outside,
    runs,
    united,
)
from tianji_mw.guardrails.presidio_request import RequestConfig, question_of, read_recognizers
from tianji_mw.guardrails.presidio_service import Service
from tianji_mw.guardrails.presidio_tokens import LONGEST, Tokens, is_json
from tianji_mw.guardrails.presidio_verdicts import Text, fitting, masked, refusal
from tianji_mw.guardrails.service import at_once
from tianji_mw.redact import Secret
from tianji_mw.runtime import Runtime

Action = Literal["mask", "block"]
Score = Annotated[float, Field(ge=0, le=1)]

_ALL: Final = "ALL"
_CONTEXT: Final = 400


class Presidio(Guardrail):
    """Masks personal data as `<PERSON>`, or blocks it, by entity.

    >>> Presidio(entities={"PERSON": "mask", "US_SSN": "block"}, output_parse_pii=True)
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "analyzer_api_base": ("PRESIDIO_ANALYZER_API_BASE",),
        "anonymizer_api_base": ("PRESIDIO_ANONYMIZER_API_BASE",),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "pii_entities_config": "entities",
        "presidio_run_on": "filter_scope",
        **{
            f"presidio_{name}": name
            for name in (
                "analyzer_api_base", "anonymizer_api_base", "language", "score_thresholds", "entities_deny_list",
                "ad_hoc_recognizers", "filter_scope", "analyze_chunk_size_bytes",
            )
        },
    }  # fmt: skip

    #: Addresses of the services; `http://` goes before those without a scheme. Without an analyzer the engine runs in
    #: this process, without an anonymizer things become `<TYPE>`.
    analyzer_api_base: str = ""
    anonymizer_api_base: str = ""
    #: Sent to both as a bearer token.
    api_key: Secret | None = None
    #: What is looked for, and what happens to it. Without any: all that the analyzer knows, masked.
    entities: dict[str, Action] = Field(default_factory=dict)
    language: str = Field(default="en", pattern=r"^[A-Za-z]{2,3}(-[A-Za-z0-9]+)*$")
    #: What is less sure than this is no finding; `ALL` stands for entities that are not named.
    score_thresholds: dict[str, Score] = Field(default_factory=dict)
    #: Never findings.
    entities_deny_list: frozenset[str] = frozenset()
    allow_list: tuple[str, ...] = ()
    #: A JSON file with a list of recognizers in Presidio's form.
    ad_hoc_recognizers: str = ""
    #: The sides that are checked; those of the mode when empty.
    filter_scope: Literal["input", "output", "both"] | None = None
    #: Things in requests become tokens, and the tokens in the answer become the things again.
    output_parse_pii: bool = False
    #: Longer texts are analyzed in pieces.
    analyze_chunk_size_bytes: int = Field(default=500_000, ge=1000, le=10_000_000)
    #: For tests without Presidio: the text that every text becomes, alone or as LiteLLM's `{"text": ...}`.
    mock_redacted_text: str | dict[str, JSON] | None = None
    #: LiteLLM's switch for the mode of this name.
    logging_only: bool = False
    #: What a request's `guardrail_config` may do: name a language and further entities, replace those of the config (as
    #: in LiteLLM: clients can then switch them off), or nothing.
    request_config: RequestConfig = "add"
    #: In this process: a spaCy model, `none` for what has a form alone, or models by language. The best one that is
    #: installed when empty.
    nlp_model: str | dict[str, str] = ""
    threads: int = Field(default=2, ge=1, le=64)
    #: In Python: an AnalyzerEngine of your own.
    engine: Any = Field(default=None, exclude=True)

    _analyzer: Analyzer | None = PrivateAttr(default=None)
    _anonymizer: Service | None = PrivateAttr(default=None)
    _recognizers: list[dict[str, JSON]] = PrivateAttr(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        fields = {name: value for name, value in fields.items() if value is not None and value != ""}
        renamed = {cls.aliases.get(name, name): value for name, value in fields.items()}
        if len(renamed) < len(fields):
            raise ValueError("a setting is given under two names; write one of them")
        if str(renamed.get("logging_only")).lower() == "true":
            renamed["mode"] = ("logging_only",)
        return renamed

    @field_validator("entities", mode="before")
    @classmethod
    def _in_small(cls, given: Any) -> Any:
        """LiteLLM writes MASK and BLOCK."""
        small = isinstance(given, dict) and given.items()
        return {key: value.lower() if isinstance(value, str) else value for key, value in small} if small else given

    # --- where it runs

    @property
    def release(self) -> Release:  # type: ignore[override]
        """Tokens are found in what flows; recognizers need whole texts, and each question costs."""
        return "whole" if self._masks_answers else "window"

    @property
    def window(self) -> int:  # type: ignore[override]
        """A token, or, in characters, what recognizers see of a stream that does not wait for its end."""
        return _CONTEXT if self._masks_answers else LONGEST

    def runs_on(self, side: Side, mode: tuple[str, ...] | None = None) -> bool:
        """By mode or scope; tokens are restored wherever requests are masked."""
        given = self.mode if mode is None else mode
        return self._masks(side, given) or (self.output_parse_pii and self._masks("input", given))

    def _masks(self, side: Side, mode: tuple[str, ...]) -> bool:
        if self.filter_scope is None:
            return super().runs_on(side, mode)
        anywhere = super().runs_on("input", mode) or super().runs_on("output", mode)
        return anywhere and self.filter_scope in (side, "both")

    @property
    def _masks_answers(self) -> bool:
        # A tag may have switched the answer on, unless it was for the tokens.
        return self._masks("output", self.mode) or not self.output_parse_pii

    async def start(self, runtime: Runtime) -> None:
        """Open the clients, or load the engine. Raises SetupError."""
        if self.ad_hoc_recognizers:
            self._recognizers = read_recognizers(self.ad_hoc_recognizers)
        if self.mock_redacted_text is not None:
            return
        service = partial(Service, timeout_s=self.timeout_s, api_key=self.api_key)
        if self.analyzer_api_base:
            self._analyzer = analyzer = service(self.analyzer_api_base, "analyzer")
            await analyzer.start(runtime)
        else:
            models = self.nlp_model if isinstance(self.nlp_model, dict) else {self.language: self.nlp_model}
            engine = self.engine or await presidio_local.shared(runtime, models)
            self._analyzer = local = presidio_local.Local(engine, self._recognizers, self.threads)
            local.expect(self.language, self.entities)
        if self.anonymizer_api_base:
            self._anonymizer = service(self.anonymizer_api_base, "anonymizer")
            await self._anonymizer.start(runtime)

    async def aclose(self) -> None:
        for one in (self._analyzer, self._anonymizer):
            if one is not None:
                await one.aclose()
        self._analyzer = self._anonymizer = None

    # --- what it decides

    async def check(self, text: str, call: Call) -> Verdict:
        return (await self.judge([Said(text)], "input", call))[0]

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        """Raises GuardrailFailed, and InvalidRequest for what the request's own config says."""
        if self.mock_redacted_text is not None:
            return [self._mocked(one.text) for one in said]
        tokens = call.note(Tokens)
        if side == "input" or not self.output_parse_pii:
            if self.output_parse_pii:
                tokens.avoid([*(one.text for one in said), *(part.text for part in call.api.texts(call.request))])
            return await self._judged([Text(one.text, (), ()) for one in said], side, call)
        restored = [(one.text, tokens.restored(one.text)) for one in said]
        if not self._masks_answers:
            return [Verdict(False, spans=tuple(spans)) for _, spans in restored]
        return await self._judged([Text(text, spans, tokens.own(text, spans)) for text, spans in restored], side, call)

    async def _judged(self, texts: Sequence[Text], side: Side, call: Call) -> list[Verdict]:
        found = await self._findings([text.now for text in texts], side, call)
        left = [
            [rest for one in own for rest in outside(one, text.own, text.now)]
            for text, own in zip(texts, found, strict=True)
        ]
        blocked = [[one.entity for one in own if self.entities.get(one.entity) == "block"] for own in left]
        if any(blocked):
            return [refusal(names) if names else ALLOW for names in blocked]
        runs_of = [
            inside_strings(runs(own), text.now) if own and is_json(text.now) else runs(own)
            for text, own in zip(texts, left, strict=True)
        ]
        tokens = call.note(Tokens) if self.output_parse_pii and side == "input" else None
        if tokens is None and self._anonymizer is not None:
            asked = [(text.now, own) for text, own in zip(texts, runs_of, strict=True) if own]
            answers = iter(await at_once(partial(self._anonymizer.anonymize, *one) for one in asked))
            spans = [fitting(text.now, next(answers)) if own else [] for text, own in zip(texts, runs_of, strict=True)]
        else:
            spans = [masked(text.now, own, tokens) for text, own in zip(texts, runs_of, strict=True)]
        return [text.verdict(own) for text, own in zip(texts, spans, strict=True)]

    async def _findings(self, texts: Sequence[str], side: Side, call: Call) -> list[list[Finding]]:
        """What counts as found in each text; equal ones are asked about once."""
        if self._analyzer is None:
            raise GuardrailFailed("Presidio was not started")
        base = Question(self.language, tuple(self.entities), self._recognizers, self.allow_list, "")
        question = question_of(call, base, self.request_config)
        wanted = dict.fromkeys(text for text in texts if text.strip())
        if side == "output" and len(texts) > 1 and texts[0] not in texts[1:] and interleaved(texts[0], texts[1:]):
            # The texts of several channels in the order in which they came: things would be found at the seams.
            wanted.pop(texts[0], None)
        cut = [(text, at, piece) for text in wanted for at, piece in chunks(text, self.analyze_chunk_size_bytes)]
        answers = await at_once(partial(self._analyzer.analyze, piece, question) for _, _, piece in cut)
        parts: dict[str, list[tuple[int, Sequence[Finding]]]] = {}
        for (text, at, _), answer in zip(cut, answers, strict=True):
            parts.setdefault(text, []).append((at, [one for one in answer if self._counts(one)]))
        return [united(parts.get(text, [])) for text in texts]

    def _counts(self, one: Finding) -> bool:
        least = self.score_thresholds.get(one.entity, self.score_thresholds.get(_ALL, 0.0))
        return one.score >= least and one.entity not in self.entities_deny_list

    def _mocked(self, text: str) -> Verdict:
        made = self.mock_redacted_text
        made = made.get("text") if isinstance(made, dict) else made
        if not isinstance(made, str):
            raise GuardrailFailed("Presidio: mock_redacted_text has no text")
        return Verdict(False, "PII", (Span(0, len(text), "PII", made),)) if text.strip() else ALLOW
