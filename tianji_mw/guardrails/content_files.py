"""Reads the files that `content_filter` names: categories and blocked words, YAML or JSON. Read once, at the start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import orjson
from pydantic import ValidationError

from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails.content_options import BlockedWord, CategoryWords, Options

_MAX_BYTES: Final = 16 * 2**20
_MAX_PARENTS: Final = 8

T = TypeVar("T", bound=Options)


class _BlockedWords(Options):
    blocked_words: tuple[BlockedWord, ...]


class Files:
    """Files beside the config. `folder`: what relative paths are relative to, and may not lead out of."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def category(self, path: Path, key: str) -> CategoryWords:
        """The category of a file, with what it inherits."""
        return self._category(self.place(path, key), key, ())

    def inherited(self, words: CategoryWords, key: str) -> CategoryWords:
        """A category with what it inherits."""
        return self._united(words, self._folder, key, ())

    def blocked_words(self, path: Path) -> tuple[BlockedWord, ...]:
        """The words of `blocked_words_file`."""
        key = "blocked_words_file"
        place = self.place(path, key)
        return _read(place, key, _BlockedWords).blocked_words

    def place(self, path: Path, key: str, folder: Path | None = None) -> Path:
        """Where a file is. Raises SetupError when it leads out of the folder, or is no file."""
        base = folder or self._folder
        place = path if path.is_absolute() else (base / path).resolve()
        if not path.is_absolute() and not place.is_relative_to(self._folder.resolve()):
            text = f"content_filter: {key}: {path} leads out of {self._folder.resolve()}; give the absolute path"
            raise SetupError(text)
        if not place.is_file():
            raise SetupError(f"content_filter: {key}: there is no file {place}; paths are relative to the config file")
        return place

    def _category(self, place: Path, key: str, parents: tuple[Path, ...]) -> CategoryWords:
        if place in parents or len(parents) > _MAX_PARENTS:
            raise SetupError(f"content_filter: {key}: {place} inherits from itself; take one `inherit_from` out")
        return self._united(_read(place, key, CategoryWords), place.parent, key, (*parents, place))

    def _united(self, words: CategoryWords, folder: Path, key: str, parents: tuple[Path, ...]) -> CategoryWords:
        if words.inherit_from is None:
            return words
        key = f"{key}: inherit_from"
        base = self._category(self.place(words.inherit_from, key, folder), key, parents)
        inherited: dict[str, Any] = {
            "exceptions": words.exceptions + base.exceptions,
            "always_block_keywords": words.always_block_keywords + base.always_block_keywords,
            "phrase_patterns": words.phrase_patterns + base.phrase_patterns,
        }
        if words.identifier_words:  # as in LiteLLM: the inherited keywords count beside an identifier alone
            more = tuple(keyword.keyword for keyword in base.keywords)
            inherited["additional_block_words"] = words.additional_block_words + base.additional_block_words + more
        else:
            inherited["keywords"] = words.keywords + base.keywords
            inherited["identifier_words"] = base.identifier_words
            inherited["additional_block_words"] = words.additional_block_words + base.additional_block_words
        return words.model_copy(update=inherited)


def _read(place: Path, key: str, kind: type[T]) -> T:
    value = _parsed(place, key)
    if kind is CategoryWords and isinstance(value, list):
        value = {"keywords": _listed(value, place, key)}
    if not isinstance(value, dict):
        raise SetupError(f"content_filter: {key}: {place} holds no mapping of keys")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in found["loc"])
        known = f"; known keys are {', '.join(kind.model_fields)}" if found["type"] == "extra_forbidden" else ""
        raise SetupError(f"content_filter: {key}: {place}: {where}: {found['msg']}{known}") from None


def _listed(rows: Sequence[Any], place: Path, key: str) -> list[dict[str, Any]]:
    """The word lists of LiteLLM: `[{id, match: "a|b", severity: 1-4}]`."""
    found: list[dict[str, Any]] = []
    for at, row in enumerate(rows):
        match, severity = (row.get("match"), row.get("severity", 2)) if isinstance(row, dict) else (None, 2)
        if not isinstance(match, str) or type(severity) is not int or not 1 <= severity <= 4:
            raise SetupError(f"content_filter: {key}: {place}: [{at}]: expected `match: a|b`, `severity` 1 to 4")
        words = [word.strip() for word in match.split("|")]
        found += [{"keyword": word, "severity": min(severity, 3)} for word in words if word]
    return found


def _parsed(place: Path, key: str) -> Any:
    try:
        if place.stat().st_size > _MAX_BYTES:
            raise SetupError(f"content_filter: {key}: {place} is larger than {_MAX_BYTES >> 20} MiB")
        data = place.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SetupError(f"content_filter: {key}: {place} cannot be read ({reason})") from None
    if place.suffix.lower() == ".json":
        try:
            return orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise SetupError(f"content_filter: {key}: {place}:{error.lineno}: not valid JSON") from None
    return _yaml(data, place, key)


def _yaml(data: bytes, place: Path, key: str) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        raise MissingExtra("pyyaml", "sidecar") from None
    try:
        return yaml.load(data, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SetupError(f"content_filter: {key}: {place}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise SetupError(f"content_filter: {key}: {place}: not valid YAML") from None
