"""Replaces references in the configuration by what they point to: `os.environ/X`, `${X}`, `${X:-default}`, `$X`.

Variables come from `environment_variables` and from the mapping the caller gives; nothing here reads or changes the
process environment. References to secret managers are recognised and refused until they are implemented. No message
ever holds a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from tianji_mw.config.nodes import Node, kind, walk
from tianji_mw.config.values import Referenced
from tianji_mw.errors import ConfigError, UnresolvedReference

_OS_ENVIRON: Final = "os.environ/"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WHOLE: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
# An embedded os.environ/ counts after a blank only ("Bearer os.environ/X"); inside a path it is just text.
_PARTS: Final = re.compile(
    r"(?P<escaped>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|(?P<broken>\$\{)"
    r"|(?<=\s)os\.environ/(?P<inner>[A-Za-z_][A-Za-z0-9_]*)"
)
_MANAGERS: Final = (
    "aws-sm://", "gcp-sm://", "azure-kv://", "vault://", "conjur://", "secret://", "file://", "env://", "oidc/",
    "aws_kms/",
)  # fmt: skip

#: Told about a missing variable (the node, the name) where that is allowed.
Lenient: TypeAlias = Callable[[Node, str], None]


class MissingReference(ConfigError, UnresolvedReference):
    """A reference that points to nothing, with its place."""


class _Missing(Exception):
    """The variable `name` is not set; becomes a `MissingReference` where the place is known."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Broken(Exception):
    """A reference nobody can resolve, with the sentence that says why."""


class References:
    """Resolves the references of one configuration."""

    def __init__(self, env: Mapping[str, str], errors: list[ConfigError]) -> None:
        self._env = env
        self._errors = errors
        self._own: dict[str, str] = {}
        self._done: set[int] = set()  # a second pass would take an escaped reference for a real one

    def define(self, variables: Node | None) -> None:
        """Takes the `environment_variables` block; an entry may refer to the ones above it."""
        for name, node in (variables.fields if variables else {}).items():
            if isinstance(node.value, dict | list) or node.value is None:
                self._errors.append(node.error(f"expected text, got {kind(node.value)}"))
                continue
            if not name or "=" in name or "\0" in name:
                self._errors.append(node.error("this cannot be the name of a variable"))
                continue
            if not isinstance(node.value, str):
                node.value = node.text if node.text is not None else str(node.value)
            if not self.resolve(node):
                continue
            if "\0" in str(node.value):
                self._errors.append(node.error("a variable cannot hold a NUL character"))
            self._own[name] = str(node.value)

    def resolve_all(self, root: Node, *, lenient: Lenient | None = None) -> None:
        """Resolves every string at and below `root`. With `lenient`, a missing variable is None and is told to it."""
        for node in walk(root):
            self.resolve(node, lenient=lenient)

    def resolve(self, node: Node, *, lenient: Lenient | None = None) -> bool:
        """Resolves one string in place, once; false when it could not."""
        if not isinstance(node.value, str) or isinstance(node.value, Referenced) or id(node) in self._done:
            return True
        self._done.add(id(node))
        try:
            node.value = self._expand(node.value)
        except _Missing as missing:
            if lenient is None:
                hint = f"set {missing.name}, or give a default: ${{{missing.name}:-value}}"
                message = f"the environment variable {missing.name} is not set"
                self._errors.append(MissingReference(message, file=node.file, line=node.line, key=node.key, hint=hint))
                return False
            node.value = None
            lenient(node, missing.name)
        except _Broken as broken:
            self._errors.append(node.error(str(broken)))
            return False
        return True

    def _expand(self, text: str) -> str:
        if text.startswith(_MANAGERS):
            scheme = next(m for m in _MANAGERS if text.startswith(m))
            raise _Broken(f"references of the form {scheme}... are not implemented yet")
        if text.startswith(_OS_ENVIRON):
            name = text.removeprefix(_OS_ENVIRON)
            if name.startswith("oidc/"):
                raise _Broken("references of the form oidc/... are not implemented yet")
            if not _NAME.fullmatch(name):
                raise _Broken("what follows os.environ/ is not the name of a variable")
            return self._look_up(name)
        if whole := _WHOLE.fullmatch(text):
            try:
                return self._look_up(whole[1])
            except _Missing:
                if not whole[1].isupper():  # may be a password that begins with $: do not print it
                    raise _Broken("looks like a reference, and no such variable is set; write $$ for a $") from None
                raise
        if text.startswith("$$") and _WHOLE.fullmatch(text[1:]):
            return text[1:]
        expanded = _PARTS.sub(self._part, text)
        return Referenced(expanded) if any(not m["escaped"] for m in _PARTS.finditer(text)) else expanded

    def _part(self, match: re.Match[str]) -> str:
        if match["escaped"]:
            return "${"
        if match["broken"]:
            raise _Broken("a reference is written ${NAME} or ${NAME:-default}; for the characters themselves write $${")
        default: str | None = match["default"]
        try:
            value = self._look_up(match["name"] or match["inner"])
        except _Missing:
            if default is None:
                raise
            return default[2:]
        return value if value or default is None else default[2:]

    def _look_up(self, name: str) -> Referenced:
        value = self._own.get(name, self._env.get(name))
        if value is None:
            raise _Missing(name)
        # Files mounted as variables often end with the newline of their editor; a key never does.
        return Referenced(value.removesuffix("\n").removesuffix("\r"))
