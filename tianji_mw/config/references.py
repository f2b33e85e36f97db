"""Replaces references in the configuration by what they point to: `os.environ/X`, `${X}`, `${X:-default}`, `$X`.

Variables come from `environment_variables` and from the mapping the caller gives; nothing here reads or changes the
process environment. Secrets of a manager come from `managed.py`, which has fetched them. No message ever holds a value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from tianji_mw.config.managed import Managers, holds_credential
from tianji_mw.config.nodes import Node, kind, walk
from tianji_mw.config.values import Managed, Referenced
from tianji_mw.errors import ConfigError, UnresolvedReference
from tianji_mw.secrets.reference import is_reference

_OS_ENVIRON: Final = "os.environ/"
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_WHOLE: Final = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
# An embedded os.environ/ counts after a blank only ("Bearer os.environ/X"); inside a path it is just text.
_PARTS: Final = re.compile(
    r"(?P<escaped>\$\$\{)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-[^}]*)?\}|(?P<broken>\$\{)"
    r"|(?<=\s)os\.environ/(?P<inner>[A-Za-z_][A-Za-z0-9_]*)"
)
_LATER: Final = ("conjur://", "oidc/", "aws_kms/")

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


class _Reported(Exception):
    """A secret that could not be had; its places are reported already."""


class References:
    """Resolves the references of one configuration."""

    def __init__(self, env: Mapping[str, str], errors: list[ConfigError], managers: Managers | None = None) -> None:
        self._env = env
        self._managers = managers
        self._errors = errors
        self._own: dict[str, str] = {}
        self._done: set[int] = set()  # a second pass would take an escaped reference for a real one

    def define_literals(self, variables: Node | None) -> None:
        """Takes what the settings of secret managers may already refer to: entries that refer to nothing themselves."""
        for name, node in (variables.fields if variables else {}).items():
            if isinstance(node.value, str) and not re.search(r"\$|os\.environ/|://|oidc/|aws_kms/", node.value):
                self._own[name] = node.value

    @property
    def variables(self) -> dict[str, str]:
        """The environment with what the config adds to it, as far as it is known."""
        return {**self._env, **self._own}

    def define(self, variables: Node | None) -> None:
        """Takes the `environment_variables` block; an entry may refer to the ones above it."""
        self._own.clear()
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
        except _Reported:
            return False
        if isinstance(node.value, Managed) and not node.value.live.ready and not holds_credential(node):
            return self._leave_out(node)
        return True

    def _leave_out(self, node: Node) -> bool:
        """A secret that is not fetched yet, in a place where a value is needed now."""
        node.value = None
        if self._managers is not None and self._managers.resolving == "skip":
            return True
        self._errors.append(node.error("only credentials can be resolved later, and this is none"))
        return False

    def _expand(self, text: str) -> str:
        if is_reference(text):
            return self._managed(text)
        if text.startswith(_LATER):
            scheme = next(m for m in _LATER if text.startswith(m))
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
        return self._composed(text)

    def _managed(self, name: str) -> Managed:
        found = self._managers.get(name) if self._managers is not None else None
        if found is None:
            raise _Reported
        return found

    def _composed(self, text: str) -> str:
        """Text with references inside of it; it stays alive where one of them is a secret of a manager."""
        pieces: list[str] = []
        end, referred = 0, False
        for match in _PARTS.finditer(text):
            pieces += [text[end : match.start()], self._part(match)]
            end, referred = match.end(), referred or not match["escaped"]
        if not pieces:
            return text
        pieces.append(text[end:])
        expanded = "".join(pieces)
        if any(isinstance(piece, Managed) for piece in pieces):
            from tianji_mw.secrets.live import Composed

            parts = tuple(piece.live if isinstance(piece, Managed) else str(piece) for piece in pieces)
            return Managed(expanded, Composed(parts))
        return Referenced(expanded) if referred else expanded

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
        if self._managers is not None and f"os.environ/{name}" in self._managers:
            return self._managed(f"os.environ/{name}")
        value = self._own.get(name, self._env.get(name))
        if value is None:
            raise _Missing(name)
        # Files mounted as variables often end with the newline of their editor; a key never does.
        return Referenced(value.removesuffix("\n").removesuffix("\r"))
