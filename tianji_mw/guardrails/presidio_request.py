"""What the config and a request say about the question to Presidio: ad-hoc recognizers, language, entities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import orjson

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.errors import InvalidRequest, SetupError
from tianji_mw.guardrails.presidio_findings import Question

RequestConfig = Literal["add", "replace", "ignore"]

_FIELD: Final = "guardrail_config"
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{1,8}){0,3}")
_MAX_ENTITIES: Final = 200


def read_recognizers(path: str) -> list[dict[str, JSON]]:
    """The list of recognizers in a JSON file. Raises SetupError when it is missing or holds something else."""
    try:
        found = orjson.loads(Path(path).read_bytes())
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise SetupError(f"Presidio: the file of ad_hoc_recognizers cannot be read: {why}.") from None
    except orjson.JSONDecodeError:
        raise SetupError("Presidio: the file of ad_hoc_recognizers is no JSON.") from None
    if not isinstance(found, list) or not all(_is_recognizer(one) for one in found):
        raise SetupError(
            "Presidio: the file of ad_hoc_recognizers must hold a list of recognizers, each with a 'name', a "
            "'supported_entity', and 'patterns' or a 'deny_list'."
        )
    return found


def _is_recognizer(found: JSON) -> bool:
    if not isinstance(found, dict) or not all(
        isinstance(found.get(name), str) for name in ("name", "supported_entity")
    ):
        return False
    lists = [found.get(name) for name in ("patterns", "deny_list")]
    return any(lists) and all(value is None or isinstance(value, list) for value in lists)


def question_of(call: Call, base: Question, allowed: RequestConfig) -> Question:
    """The question of the config, with what the request's `guardrail_config` may change. Raises InvalidRequest."""
    base = base._replace(correlation_id=call.id)
    given = call.request.get(_FIELD)
    if given is None or allowed == "ignore":
        return base
    if not isinstance(given, dict):
        raise InvalidRequest(f"'{_FIELD}' must be an object.", param=_FIELD)
    language = given.get("language")
    if language is not None:
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise InvalidRequest(f"'{_FIELD}.language' must be a code such as 'en'.", param=f"{_FIELD}.language")
        base = base._replace(language=language)
    entities = given.get("entities")
    if not entities:
        return base
    if not isinstance(entities, list) or not _are_names(entities):
        raise InvalidRequest(f"'{_FIELD}.entities' must be a list of names.", param=f"{_FIELD}.entities")
    if allowed == "replace":
        return base._replace(entities=tuple(entities))
    # Without any in the config everything is looked for already.
    return base._replace(entities=tuple(dict.fromkeys([*base.entities, *entities]))) if base.entities else base


def _are_names(found: Sequence[JSON]) -> bool:
    return len(found) <= _MAX_ENTITIES and all(isinstance(one, str) and 0 < len(one) <= 200 for one in found)
