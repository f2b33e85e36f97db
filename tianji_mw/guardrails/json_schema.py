"""JSON Schema: the answer's text must be JSON that a schema allows, whatever the model promises about its format.

It needs the whole answer: a stream is held back until its end. Several texts in one answer (several choices, reasoning
beside the answer) are no single JSON together, and are blocked. Source: JSON Schema 2020-12 and older drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final

import orjson
from pydantic import ConfigDict, Field, PrivateAttr

from tianji_mw.apis.base import JSON
from tianji_mw.call import Call
from tianji_mw.errors import MissingExtra, SetupError
from tianji_mw.guardrails.base import ALLOW, Guardrail, GuardrailFailed, Release, Said, Side, Verdict, block
from tianji_mw.runtime import Runtime

_FENCE: Final = "```"
_CATEGORY: Final = "json_schema"
_ERROR: Final = "The answer does not fit the JSON schema"


class JsonSchema(Guardrail):
    """Blocks answers that are no JSON, or not the JSON of `schema`.

    >>> JsonSchema(schema={"type": "object", "required": ["city"]})
    """

    model_config = ConfigDict(populate_by_name=True)

    sides: ClassVar[frozenset[Side]] = frozenset({"output"})
    release: ClassVar[Release] = "whole"

    mode: tuple[str, ...] = ("post_call",)
    schema_: dict[str, JSON] = Field(alias="schema")
    #: Take JSON inside of a Markdown code fence too, as many models write it.
    strip_fences: bool = True

    _validator: Any = PrivateAttr(default=None)
    _names: frozenset[str] = PrivateAttr(default=frozenset())

    async def start(self, runtime: Runtime) -> None:
        """Read the schema. Raises SetupError where it is wrong, or needs what is not in it: nothing is fetched."""
        try:
            from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
            from jsonschema.exceptions import SchemaError  # type: ignore[import-untyped]
            from jsonschema.validators import validator_for  # type: ignore[import-untyped]
            from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]
        except ModuleNotFoundError:
            raise MissingExtra("jsonschema", "json-schema") from None
        kind = validator_for(self.schema_, default=Draft202012Validator)
        try:
            kind.check_schema(self.schema_)
        except SchemaError as error:
            text = f"json_schema: the schema is not valid at {error.json_path} (rule '{error.validator}')."
            raise SetupError(text) from None
        for path, part in _parts(self.schema_, "$"):
            ref = part.get("$ref")
            if isinstance(ref, str) and not ref.startswith("#"):
                raise SetupError(f"json_schema: {path}.$ref points out of the schema; put the part into its $defs.")
        # Without this registry the library would fetch what it does not know.
        self._validator = kind(self.schema_, registry=REGISTRY)
        self._names = frozenset(
            name
            for _, part in _parts(self.schema_, "$")
            if isinstance(properties := part.get("properties"), dict)
            for name in properties
        )

    async def aclose(self) -> None:
        self._validator = None

    async def check(self, text: str, call: Call) -> Verdict:
        return self._verdict(text)

    async def judge(self, said: Sequence[Said], side: Side, call: Call) -> Sequence[Verdict]:
        """A text that is only a piece of one that fits passes with it: answers are shown whole and in their strings."""
        verdicts = [self._verdict(one.text) for one in said]
        fitting = [one.text for one, verdict in zip(said, verdicts, strict=True) if not verdict.blocked]
        return [
            ALLOW if any(one.text in whole for whole in fitting) else verdict
            for one, verdict in zip(said, verdicts, strict=True)
        ]

    def _verdict(self, text: str) -> Verdict:
        from jsonschema.exceptions import best_match
        from referencing.exceptions import Unresolvable

        if self._validator is None:
            raise GuardrailFailed("json_schema was not started")
        try:
            value = orjson.loads(_unfenced(text) if self.strip_fences else text)
        except (orjson.JSONDecodeError, UnicodeError):
            return block(_CATEGORY, error=_ERROR, path="$", rule="json")
        try:
            error = best_match(self._validator.iter_errors(value))
        except RecursionError:
            raise GuardrailFailed("json_schema: the answer is nested too deep") from None
        except Unresolvable:
            raise GuardrailFailed("json_schema: a $ref of the schema points to nothing") from None
        if error is None:
            return ALLOW
        return block(_CATEGORY, error=_ERROR, path=self._place(error.absolute_path), rule=str(error.validator))

    def _place(self, path: Sequence[str | int]) -> str:
        """A JSON path. Names that only the answer has are hidden: they are a part of its text."""
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" if step in self._names else ".*" for step in path)
        return "$" + "".join(steps)


def _parts(value: JSON, path: str) -> Iterator[tuple[str, Mapping[str, JSON]]]:
    """All mappings of a schema, with the place of each."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}")
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from _parts(item, f"{path}[{at}]")


def _unfenced(text: str) -> str:
    """What stands inside of a fence that is around the whole text; else the text."""
    bare = text.strip()
    head, line_end, rest = bare.partition("\n")
    if not line_end or head.strip().lower() not in (_FENCE, f"{_FENCE}json") or not rest.endswith(_FENCE):
        return text
    return rest.removesuffix(_FENCE)
