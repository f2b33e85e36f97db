"""YAML text to nodes: every value keeps its line, duplicate keys are errors, scalars follow YAML 1.1 as PyYAML does.

Reads parser events instead of `yaml.compose`: the composer of libyaml recurses in C and ends the process on deeply
nested input. Dates stay text. Nothing is ever constructed from a tag.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn

import yaml

from tianji_mw.config.nodes import MAX_DEPTH, MAX_VALUES, Node, Scalar, join
from tianji_mw.errors import ConfigError, ConfigErrors

_TAG: Final = "tag:yaml.org,2002:"
_TEXT: Final = frozenset({_TAG + "str", _TAG + "timestamp", _TAG + "value"})
_MERGE: Final = _TAG + "merge"
_COLLECTIONS: Final = frozenset({None, "!", _TAG + "map", _TAG + "seq", _TAG + "omap"})
# The C parser is ten times faster; a PyYAML built without libyaml lacks it.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class YamlSyntax(ConfigError):
    """The text is not YAML: names file, line and column."""

    def __init__(self, problem: str, *, file: str, line: int, column: int) -> None:
        super().__init__(problem, file=f"{file}:{line}", line=column)
        self.file, self.line, self.column = file, line, column


def parse(text: str, file: str, errors: list[ConfigError]) -> Node:
    """The root node of one YAML document. Broken syntax raises; wrong keys go to `errors` and reading goes on."""
    loader = None
    try:
        loader = _Loader(text)
        return _Reader(loader, file, errors).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = f"not valid YAML: {error.problem or error.context}"
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise ConfigErrors([YamlSyntax(problem, file=file, line=line, column=column)]) from None
    except yaml.reader.ReaderError as error:
        # Position is the only location it has; its text names the character, which is never printable.
        line = text.count("\n", 0, error.position) + 1
        problem = "not valid YAML: a control character or broken encoding"
        raise ConfigErrors([ConfigError(problem, file=file, line=line)]) from None
    except UnicodeEncodeError as error:
        line = text.count("\n", 0, error.start) + 1
        raise ConfigErrors([ConfigError("not valid YAML: broken encoding", file=file, line=line)]) from None
    finally:
        if loader is not None:
            loader.dispose()


class _Reader:
    """Builds the tree of one document; holds the state of that one reading."""

    def __init__(self, loader: Any, file: str, errors: list[ConfigError]) -> None:
        self._loader, self._file, self._errors = loader, file, errors
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def document(self) -> Node:
        self._loader.get_event()  # stream start
        if self._loader.check_event(yaml.StreamEndEvent):
            return Node(None, self._file, 1)
        self._loader.get_event()  # document start
        root = self._node(self._loader.get_event(), "", None, 0)
        self._loader.get_event()  # document end
        if not self._loader.check_event(yaml.StreamEndEvent):
            line = self._loader.peek_event().start_mark.line + 1
            self._stop("a second YAML document; a configuration is one document", line, hint="use `include`")
        return root

    def _node(self, event: Any, key: str, line: int | None, depth: int) -> Node:
        line = line or event.start_mark.line + 1
        self._count += 1
        if self._count > MAX_VALUES:
            self._stop(f"more than {MAX_VALUES} values, aliases expanded", line, key)
        if depth > MAX_DEPTH:
            self._stop(f"nested deeper than {MAX_DEPTH} levels", line, key)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                self._stop("an alias (*) to an anchor (&) that is not complete before it", line, key)
            return self._copy(self._anchors[event.anchor], key, line, depth)
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, key, line)
        else:
            node = self._collection(event, key, line, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _collection(self, event: Any, key: str, line: int, depth: int) -> Node:
        node = Node(None, self._file, line, key)
        if event.tag not in _COLLECTIONS:
            self._errors.append(node.error("YAML tags are not supported"))
        node.value = (
            self._sequence(key, depth) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(key, depth)
        )
        return node

    def _sequence(self, key: str, depth: int) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := self._loader.get_event(), yaml.SequenceEndEvent):
            items.append(self._node(event, join(key, len(items)), None, depth + 1))
        return items

    def _mapping(self, key: str, depth: int) -> dict[str, Node]:
        fields: dict[str, Node] = {}
        merged: list[Node] = []
        while not isinstance(event := self._loader.get_event(), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            name, tag = self._name(event, key, line, depth)
            child = self._node(self._loader.get_event(), join(key, name or "?"), line, depth + 1)
            if tag == _MERGE:
                merged += child.items or [child]
            elif name is None:
                hint = "put it in quotes" if isinstance(event, yaml.ScalarEvent) else ""
                self._errors.append(Node(None, self._file, line, key).error("every key must be text", hint=hint))
            elif name in fields:
                first = fields[name]
                self._errors.append(child.error(f"the same key stands twice, first in {first.place}"))
            else:
                fields[name] = child
        for source in merged:  # `<<`: the first source wins, and a key written here wins over all
            if not isinstance(source.value, dict):
                self._errors.append(source.error("`<<` merges mappings only"))
            for name, child in source.fields.items():
                if name not in fields:
                    fields[name] = self._copy(child, join(key, name), child.line, depth + 1)
        return fields

    def _name(self, event: Any, key: str, line: int, depth: int) -> tuple[str | None, str]:
        """The text of a key and its tag; None for a key that is no text."""
        if not isinstance(event, yaml.ScalarEvent):
            self._node(event, key, line, depth + 1)
            return None, ""
        tag = self._tag(event)
        return (event.value if tag in _TEXT or tag == _MERGE else None), tag

    def _tag(self, event: Any) -> str:
        if event.tag is not None and event.tag != "!":
            return str(event.tag)
        return str(self._loader.resolve(yaml.ScalarNode, event.value, event.implicit))

    def _scalar(self, event: Any, key: str, line: int) -> Node:
        node = Node(None, self._file, line, key, event.value)
        try:
            node.value = self._value(self._tag(event), event.value)
        except ValueError:
            self._errors.append(node.error("a number or tag that cannot be read", hint="put text in quotes"))
        return node

    def _value(self, tag: str, text: str) -> Scalar:
        if tag in _TEXT or tag == _MERGE:
            return text
        scalar = yaml.ScalarNode(tag, text)
        match tag.removeprefix(_TAG):
            case "null":
                return None
            case "bool":
                if text.lower() in self._loader.bool_values:
                    return bool(self._loader.construct_yaml_bool(scalar))
            case "int":
                return int(self._loader.construct_yaml_int(scalar))
            case "float":
                return float(self._loader.construct_yaml_float(scalar))
        raise ValueError("unknown tag")

    def _copy(self, node: Node, key: str, line: int | None, depth: int) -> Node:
        """An anchor's value for another place; counted, and a tree of its own because later stages edit nodes."""
        self._count += 1
        if self._count > MAX_VALUES:
            self._stop(f"more than {MAX_VALUES} values, aliases expanded", line, key)
        if depth > MAX_DEPTH:
            self._stop(f"nested deeper than {MAX_DEPTH} levels", line, key)
        copied = Node(node.value, node.file, line, key, node.text)
        if isinstance(node.value, dict):
            pairs = node.value.items()
            copied.value = {k: self._copy(v, join(key, k), v.line, depth + 1) for k, v in pairs}
        elif isinstance(node.value, list):
            copied.value = [self._copy(v, join(key, at), v.line, depth + 1) for at, v in enumerate(node.value)]
        return copied

    def _stop(self, message: str, line: int | None, key: str = "", *, hint: str = "") -> NoReturn:
        raise ConfigErrors([ConfigError(message, file=self._file, line=line, key=key, hint=hint)])
