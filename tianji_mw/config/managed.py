"""Secret managers in the configuration: which stores there are, and which strings mean a secret in one of them.

The blocks of the stores are read first and may only use the environment. Then every string of the rest is looked
through, all secrets are fetched in parallel, and the references find them here. No message ever holds a value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from tianji_mw.config import known
from tianji_mw.config.nodes import Node, kind, plain, walk
from tianji_mw.config.sift import notice
from tianji_mw.config.values import Managed, as_switch, is_secret_name
from tianji_mw.errors import ConfigError, UnresolvedReference
from tianji_mw.secrets.reference import Reference, is_reference

if TYPE_CHECKING:
    from tianji_mw.config.references import References
    from tianji_mw.config.settings import Notice
    from tianji_mw.redact import Secret
    from tianji_mw.secrets.base import SecretStore
    from tianji_mw.secrets.live import LiveSecret
    from tianji_mw.secrets.resolver import Resolver

#: What is done with secrets: fetched, or the start stops; fetched, and those that fail later; not asked for at all.
Resolving: TypeAlias = Literal["fail", "defer", "skip"]

_VARIABLE: Final = re.compile(
    r"^os\.environ/([A-Za-z_][A-Za-z0-9_.-]*)$|^\$([A-Za-z_][A-Za-z0-9_]*)$"
    r"|(?<!\$)\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-[^}]*)?\}|(?<=\s)os\.environ/([A-Za-z_][A-Za-z0-9_]*)"
)
#: Keys that hold secrets whatever their last part is called.
_CREDENTIAL: Final = re.compile(r"\.(?:extra_)?headers\.[^.]+$|^secrets\.")
#: Keys of `key_management_settings` that say how keys are written; nothing is written.
_WRITING: Final = frozenset(
    {
        "store_virtual_keys", "prefix_for_stored_virtual_keys", "description", "tags", "kms_key_id", "replica_regions",
        "custom_secret_manager",
    }
)  # fmt: skip
_OF_AWS: Final = ("aws_", "primary_secret_name")
_MODES: Final = frozenset({"read_only", "write_only", "read_and_write"})


class Unresolved(ConfigError, UnresolvedReference):
    """A secret that could not be had, with the place of its reference."""


class Managers:
    """The stores of one configuration, and the secrets that its strings mean."""

    def __init__(self, env: Mapping[str, str], errors: list[ConfigError], resolving: Resolving) -> None:
        self.resolving = resolving
        self.resolver: Resolver | None = None
        self._env = env
        self._errors = errors
        self._stores: dict[str, SecretStore] = {}
        self._default: SecretStore | None = None
        self._hosted: frozenset[str] | None = None
        self._cache: dict[str, Any] = {}
        self._found: dict[str, Managed | None] = {}

    # --- the stores

    def open(self, root: Node, references: References, notices: list[Notice]) -> None:
        """Take the blocks of the stores out of the tree."""
        self._env = references.variables
        blocks = {name: root.fields.pop(name) for name in known.MANAGER_ROOT_KEYS if name in root.fields}
        general = root.child("general_settings")
        blocks |= {k: general.fields.pop(k) for k in known.MANAGER_GENERAL_KEYS if general and k in general.fields}
        before = len(self._errors)
        for block in blocks.values():
            for node in walk(block):
                if isinstance(node.value, str) and is_reference(node.value):
                    text = "the settings of a secret manager cannot come from a secret manager"
                    self._errors.append(node.error(text, hint="use an environment variable: os.environ/NAME"))
                else:
                    references.resolve(node)
        if len(self._errors) > before:
            return
        for name, node in (blocks["secret_managers"].fields if "secret_managers" in blocks else {}).items():
            self._add(name, node)
        if (single := blocks.get("secret_manager")) is not None:
            self._default = self._add("", single)
        self._choose(blocks, notices)
        self._read_cache(blocks.get("secret_cache"))

    def _choose(self, blocks: Mapping[str, Node], notices: list[Notice]) -> None:
        """The store that bare names are asked of: LiteLLM's `key_management_system` and its settings."""
        settings = blocks.get("key_management_settings")
        if settings is not None and not isinstance(settings.value, dict | None):
            self._errors.append(settings.error(f"expected a mapping, got {kind(settings.value)}"))
            return
        fields = dict(settings.fields) if settings else {}
        written = sorted(_WRITING & fields.keys())
        notices.extend(notice("not_implemented", fields.pop(name), "secrets are only read") for name in written)
        readable = self._readable(fields.pop("access_mode", None))
        self._host(fields.pop("hosted_keys", None))
        system = blocks.get("key_management_system") or _switched(blocks)
        if system is None or system.value in (None, "local"):
            for node in fields.values():
                self._errors.append(node.error("key_management_system is missing, so this has no effect"))
        elif not isinstance(system.value, str):
            self._errors.append(system.error(f"expected text, got {kind(system.value)}"))
        elif system.value in self._stores:
            self._default = self._stores[system.value]
            for node in fields.values():
                self._errors.append(node.error(f"the settings of '{system.value}' stand in secret_managers"))
        else:
            if "aws" not in str(system.value):
                # LiteLLM has one set of settings for all managers; these mean nothing to the others.
                foreign = sorted(name for name in fields if name.startswith(_OF_AWS))
                notices.extend(notice("not_implemented", fields.pop(name), "only AWS has it") for name in foreign)
            self._default = self._made(str(system.value), str(system.value), fields, system)
        if not readable:
            self._default = None

    def _host(self, hosted: Node | None) -> None:
        """The names that the default store is asked for; all of them without this key."""
        if hosted is None or hosted.value is None:
            return
        names = plain(hosted)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self._errors.append(hosted.error("expected a list of names"))
            return
        self._hosted = frozenset(names)

    def _readable(self, mode: Node | None) -> bool:
        if mode is None or mode.value is None:
            return True
        if mode.value not in _MODES:
            self._errors.append(mode.error(f"must be one of {', '.join(sorted(_MODES))}"))
        return mode.value != "write_only"

    def _add(self, name: str, node: Node) -> SecretStore | None:
        fields = dict(node.fields)
        of = fields.pop("type", None)
        if of is None or not isinstance(of.value, str):
            self._errors.append(node.error("a secret manager needs a type", hint="such as type: vault", at="type"))
            return None
        return self._made(str(of.value), name or str(of.value), fields, node)

    def _made(self, of: str, name: str, fields: Mapping[str, Node], node: Node) -> SecretStore | None:
        from tianji_mw.secrets.configure import WrongSetting, store_of

        given = {key: plain(value) for key, value in fields.items()}
        try:
            store = self._stores[name] = store_of(of, name, given, self._env)
        except WrongSetting as error:
            place = fields.get(error.field, node)
            at = error.field if place is node else ""
            self._errors.append(place.error(error.message, hint=error.hint, at=at))
            return None
        return store

    def _read_cache(self, node: Node | None) -> None:
        from tianji_mw.secrets.configure import WrongSetting, cache_options

        if node is None or node.value is None:
            return
        try:
            self._cache = cache_options(plain(node))
        except WrongSetting as error:
            self._errors.append(node.fields.get(error.field, node).error(error.message, hint=error.hint))

    # --- the secrets

    def fetch(self, root: Node, variables: Node | None) -> None:
        """Fetch all secrets that strings below these nodes mean, at once. What fails is an error of its places."""
        wanted = self._wanted([*walk(root), *(walk(variables) if variables else ())])
        if not wanted and not self._stores:
            return
        resolver = self.resolver = self._open_resolver()
        handles: dict[str, LiveSecret] = {}
        for name, nodes in wanted.items():
            try:
                handles[name] = resolver.secret(self._reference(name))
            except (ValueError, UnresolvedReference) as error:
                self._refuse(name, nodes, str(error))
        failed = resolver.resolve(handles.values()) if self.resolving != "skip" else {}
        for name, handle in handles.items():
            if handle.ready:
                self._found[name] = Managed(handle.reveal(), handle)
            elif not name.startswith("os.environ/") or name.removeprefix("os.environ/") not in self._env:
                self._miss(name, handle, wanted[name], failed)

    def _wanted(self, nodes: list[Node]) -> dict[str, list[Node]]:
        """References, and where each is used; hosted names may be used nowhere."""
        wanted: dict[str, list[Node]] = {}
        for node in nodes:
            if isinstance(node.value, str):
                for name in self._named(node.value):
                    wanted.setdefault(name, []).append(node)
        if self._default is not None:
            for name in self._hosted or ():
                wanted.setdefault(f"os.environ/{name}", [])
        return wanted

    def _miss(
        self, name: str, handle: LiveSecret, nodes: list[Node], failed: Mapping[LiveSecret, UnresolvedReference]
    ) -> None:
        if self.resolving == "fail":
            self._refuse(name, nodes, failed[handle].message)
        elif nodes:
            self._found[name] = Managed("unresolved", handle)

    @property
    def hosted(self) -> dict[str, Secret]:
        """What the default store holds of the names that it is said to host, for whoever looks for a variable."""
        found = {name: self._found.get(f"os.environ/{name}") for name in self._hosted or ()}
        return {name: managed.live for name, managed in found.items() if managed is not None}

    def _reference(self, name: str) -> str | Reference:
        if not name.startswith("os.environ/"):
            return name
        assert self._default is not None
        return self._default.path_of(name.removeprefix("os.environ/"))

    def _open_resolver(self) -> Resolver:
        from tianji_mw.secrets.configure import store_of
        from tianji_mw.secrets.env import Environment
        from tianji_mw.secrets.resolver import Resolver

        env = self._env
        stores = {"env": Environment(env=dict(env)), **self._stores}
        return Resolver(stores, open_kind=lambda of: store_of(of, of, {}, env), **self._cache)

    def _refuse(self, name: str, nodes: list[Node], why: str) -> None:
        self._found[name] = None
        for node in nodes:
            self._errors.append(Unresolved(why, file=node.file, line=node.line, key=node.key))

    def _named(self, text: str) -> Iterator[str]:
        """The secrets that a string means."""
        if is_reference(text):
            yield text
        elif self._default is not None:
            for match in _VARIABLE.finditer(text):
                name = next(group for group in match.groups() if group)
                if self._hosted is None or name in self._hosted:
                    yield f"os.environ/{name}"

    def __contains__(self, name: str) -> bool:
        """Whether this reference was looked at, with or without success."""
        return name in self._found

    def get(self, name: str) -> Managed | None:
        """The secret of a reference, or of `os.environ/NAME`; None where it failed and was reported."""
        return self._found.get(name)


def _switched(blocks: Mapping[str, Node]) -> Node | None:
    """The manager that one of LiteLLM's older switches means."""
    for switch, meant in known.MANAGER_SWITCHES.items():
        node = blocks.get(switch)
        if node is not None and as_switch(node.value) is True:
            return Node(meant, node.file, node.line, node.key)
    return None


def holds_credential(node: Node) -> bool:
    """Whether a key holds a secret by its name, so that its value may come later."""
    return bool(_CREDENTIAL.search(node.key)) or is_secret_name(node.key.rpartition(".")[2])
