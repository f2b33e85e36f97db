"""Presidio in this process: its AnalyzerEngine over a spaCy model, or over none for what can be told by its form.

Nothing is downloaded: models are those that are installed, and the list of public suffixes is the one in the package.
Analysis runs in threads of its own, a few at a time; one whose caller has gone runs to its end and is not waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from tianji_mw.apis.base import JSON
from tianji_mw.errors import InvalidRequest, MissingExtra, SetupError
from tianji_mw.guardrails.base import GuardrailFailed
from tianji_mw.guardrails.presidio_findings import Finding, Question, read
from tianji_mw.runtime import Runtime

#: The name of no model.
BLANK: Final = "none"
#: Best first. Models are called `<language>_<kind>_<size>`.
_SIZES: Final = ("trf", "lg", "md", "sm")
#: Presidio's own choice (`conf/spacy.yaml`): these are wrong too often, or no personal data.
_IGNORED: Final = (
    "ORG", "ORGANIZATION", "CARDINAL", "EVENT", "FAC", "LANGUAGE", "LAW", "MONEY", "ORDINAL", "PERCENT", "PRODUCT",
    "QUANTITY", "WORK_OF_ART", "MISC",
)  # fmt: skip


class Local:
    """An engine and the threads that it works in."""

    def __init__(self, engine: Any, recognizers: Sequence[dict[str, JSON]], threads: int) -> None:
        self._engine = engine
        self._recognizers = _built(recognizers)
        self._languages = frozenset(engine.supported_languages)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="presidio")

    def expect(self, language: str, entities: Iterable[str]) -> None:
        """Raises SetupError when the config names a language or an entity that cannot be served."""
        if language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise SetupError(f"Presidio: the language is '{language}', and the engine's models are for: {known}.")
        known_entities = set(self._engine.get_supported_entities())
        known_entities |= {name for one in self._recognizers for name in one.supported_entities}
        for name in entities:
            if name not in known_entities:
                raise SetupError(f"Presidio: nothing that is installed finds the entity '{name}'.")

    async def analyze(self, text: str, question: Question) -> Sequence[Finding]:
        """What the engine finds. Raises InvalidRequest for a language that it was not started with."""
        if question.language not in self._languages:
            known = ", ".join(sorted(self._languages))
            raise InvalidRequest(
                f"The guardrail knows no language '{question.language[:20]}', only: {known}.",
                param="guardrail_config.language",
            )
        # No anyio limiter: it lets go of a thread that is abandoned, and hung ones would pile up.
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._analyzed, text, question))

    def _analyzed(self, text: str, question: Question) -> list[Finding]:
        found = self._engine.analyze(
            text=text,
            language=question.language,
            entities=list(question.entities) or None,
            ad_hoc_recognizers=self._recognizers,
            allow_list=list(question.allow_list) or None,
        )
        names = ("entity_type", "start", "end", "score")
        try:
            return [read({name: getattr(one, name) for name in names}, len(text)) for one in found]
        except ValueError as error:
            raise GuardrailFailed(f"Presidio: the engine's answer {error}") from None

    async def aclose(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _built(recognizers: Sequence[dict[str, JSON]]) -> list[Any]:
    if not recognizers:
        return []
    import regex  # type: ignore[import-untyped]
    from presidio_analyzer import PatternRecognizer

    try:
        built = [PatternRecognizer.from_dict(dict(one)) for one in recognizers]
        for pattern in (pattern for one in built for pattern in one.patterns):
            regex.compile(pattern.regex)
    except (ValueError, TypeError, KeyError, AttributeError, regex.error) as error:
        raise SetupError(f"Presidio: an ad-hoc recognizer is not valid ({type(error).__name__}).") from None
    return built


async def shared(runtime: Runtime, models: Mapping[str, str]) -> Any:
    """The engine for these models, which are large: guardrails of one process that want the same share it."""

    async def load() -> Any:
        return await asyncio.to_thread(build, models)

    async def unload(engine: Any) -> None:
        """Nothing holds it any more."""

    return await runtime.shared(("presidio", *sorted(models.items())), load, unload)


def build(models: Mapping[str, str]) -> Any:
    """An AnalyzerEngine with the spaCy model of each language; an empty name is the best that is installed.

    Blocking, some seconds. Raises SetupError when a package or a model is missing.
    """
    try:
        import spacy
        from presidio_analyzer import AnalyzerEngine
        from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine
    except ModuleNotFoundError:
        raise MissingExtra("presidio-analyzer", "presidio") from None
    chosen = {language: name or _installed(language) for language, name in models.items()}
    loaded = {language: _pipeline(spacy, language, name) for language, name in chosen.items()}
    nlp = SpacyNlpEngine(
        models=[{"lang_code": language, "model_name": name} for language, name in chosen.items()],
        ner_model_configuration=NerModelConfiguration(labels_to_ignore=list(_IGNORED)),
    )
    nlp.nlp = loaded  # its own `load` would download what is missing
    engine = AnalyzerEngine(nlp_engine=nlp, supported_languages=list(chosen))
    blank = {language for language, name in chosen.items() if name == BLANK}
    _settle(engine, blank)
    return engine


def _installed(language: str) -> str:
    """The best model of this language that is installed."""
    import spacy

    def rank(name: str) -> tuple[int, str]:
        return next((at for at, size in enumerate(_SIZES) if size in name.split("_")), len(_SIZES)), name

    found = sorted((name for name in spacy.util.get_installed_models() if name.startswith(f"{language}_")), key=rank)
    if not found:
        raise SetupError(
            f"Presidio: no spaCy model for the language '{language}' is installed; install one (such as "
            f"{language}_core_web_sm), set analyzer_api_base, or set nlp_model: none to go without names and places."
        )
    return str(found[0])


def _pipeline(spacy: Any, language: str, name: str) -> Any:
    """A model, or a pipeline that knows words and nothing about them."""
    if name != BLANK:
        if not spacy.util.is_package(name):
            raise SetupError(f"Presidio: the spaCy model '{name}' is not installed.")
        try:
            return spacy.load(name)
        except (OSError, ValueError, ImportError) as error:
            raise SetupError(f"Presidio: spaCy cannot load '{name}' ({type(error).__name__}).") from None
    try:
        pipeline = spacy.blank(language)
    except ImportError:
        raise SetupError(f"Presidio: spaCy knows no language '{language}'.") from None
    pipeline.tokenizer = _Words(pipeline.tokenizer)
    return pipeline


class _Words:
    """A tokenizer that takes words for their own lemmas: Presidio looks for words such as "card" among the lemmas."""

    def __init__(self, inner: Callable[[str], Any]) -> None:
        self._inner = inner

    def __call__(self, text: str) -> Any:
        document = self._inner(text)
        for token in document:
            token.lemma_ = token.lower_
        return document


def _settle(engine: Any, blank: Set[str]) -> None:
    """Take away what cannot work without a model, and what would ask the network.

    The recognizer of mail addresses by itself fetches the newest list of public suffixes; it gets that in the package.
    """
    from tldextract import TLDExtract

    extract = TLDExtract(suffix_list_urls=(), cache_dir=None)
    kept = []
    for recognizer in engine.registry.recognizers:
        kind = type(recognizer).__name__
        if kind == "EmailRecognizer":
            recognizer.validate_result = lambda text: extract(text).fqdn != ""
        if kind != "SpacyRecognizer" or recognizer.supported_language not in blank:
            kept.append(recognizer)
    engine.registry.recognizers = kept
