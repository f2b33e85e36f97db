"""The `Resolver`: from references to `LiveSecret`s, over one cache for all stores.

Each secret is fetched once, however many fields and callers want it; it is fetched again in the background before it
is stale; while its store is down the last good value stays, up to a hard limit. Callers never wait for a store when a
value is known.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from tianji_mw.errors import SetupError
from tianji_mw.secrets.base import SecretError, SecretStore, SecretValue, StoreMisconfigured, StoreUnreachable
from tianji_mw.secrets.live import Entry, LiveSecret
from tianji_mw.secrets.reference import Reference, parse

if TYPE_CHECKING:
    from tianji_mw.runtime import Runtime
    from tianji_mw.secrets.last_good import LastGood

log = logging.getLogger("tianji_mw.secrets")

#: A value may be this much older than its time to live when its store is down.
MAX_STALE_S: Final = 7 * 86_400.0
#: All references of a start together.
STARTUP_S: Final = 30.0
_JITTER: Final = 0.1
_BACKOFF_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
#: Index of the longest pause while there is no value at all.
_SOON: Final = 1
_TICK_S: Final = 0.5


class Resolver:
    """All stores of one config, and what was read from them.

    >>> resolver = Resolver({"env": Environment(env={"KEY": "sk-1"})})
    >>> asyncio.run(resolver.get("env://KEY")).reveal()
    'sk-1'
    """

    def __init__(
        self,
        stores: Mapping[str, SecretStore],
        *,
        open_kind: Callable[[str], SecretStore] | None = None,
        max_stale_s: float = MAX_STALE_S,
        last_good: LastGood | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._stores = dict(stores)
        self._open_kind = open_kind
        self._max_stale_s = max_stale_s
        self._last_good = last_good
        self._clock = clock
        self._wall = wall
        self._entries: dict[tuple[str, str, str, bool], Entry] = {}
        self._handles: dict[Reference, LiveSecret] = {}
        self._by_text: dict[str, LiveSecret] = {}
        self._runtime: Runtime | None = None

    @property
    def stores(self) -> Mapping[str, SecretStore]:
        """By name."""
        return self._stores

    @property
    def entries(self) -> Iterable[Entry]:
        """Every secret that is in use."""
        return self._entries.values()

    # --- handles

    def secret(self, wanted: str | Reference) -> LiveSecret:
        """The handle of a reference, perhaps without a value yet.

        Raises ValueError for what is no reference, StoreMisconfigured when no store serves it.
        """
        if isinstance(wanted, str):
            found = self._by_text.get(wanted)
            if found is None:
                found = self._by_text[wanted] = self.secret(parse(wanted))
            return found
        found = self._handles.get(wanted)
        if found is None:
            found = self._handles[wanted] = self._made(wanted)
        return found

    async def get(self, wanted: str | Reference) -> LiveSecret:
        """The handle of a reference, with a value. Raises SecretError when there is none to be had."""
        handle = self.secret(wanted)
        if not handle.ready:
            await self._refresh(handle.entry)
            if not handle.ready:
                raise _why(handle)
        return handle

    def _made(self, ref: Reference) -> LiveSecret:
        store = self._store(ref)
        key = (store.name, ref.path, ref.version, ref.base64)
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = Entry(store, ref)
        elif ref.ttl_s is not None:
            entry.ttl_s = min(entry.ttl_s, ref.ttl_s)
        handle = LiveSecret(entry, ref, self)
        entry.handles.append(handle)
        if entry.value is not None:
            handle.take(entry.value)
        return handle

    def _store(self, ref: Reference) -> SecretStore:
        if ref.store:
            if ref.store not in self._stores:
                known = ", ".join(sorted(self._stores)) or "none"
                raise StoreMisconfigured(f"there is no secret manager named '{ref.store}'; there are: {known}")
            return self._stores[ref.store]
        of_kind = [store for store in self._stores.values() if kind_of(store) == ref.kind]
        if len(of_kind) > 1:
            names = ", ".join(store.name for store in of_kind)
            raise StoreMisconfigured(f"several secret managers are of this kind ({names}); write secret://NAME/...")
        if not of_kind:
            if self._open_kind is None:
                raise StoreMisconfigured(f"no secret manager of the kind '{ref.kind}' is configured")
            of_kind = [self._open_kind(ref.kind)]
            self._stores[of_kind[0].name] = of_kind[0]
        return of_kind[0]

    # --- fetching

    def resolve(self, handles: Iterable[LiveSecret], *, within_s: float = STARTUP_S) -> dict[LiveSecret, SecretError]:
        """Fetch all of them in parallel and wait, also inside of a running loop; what failed, and why."""
        wanted = list(handles)
        found: dict[LiveSecret, SecretError] = {}

        def work() -> None:
            found.update(asyncio.run(self.fetch(wanted, within_s=within_s)))

        thread = threading.Thread(target=work, name="tianji-secrets-start")
        thread.start()
        thread.join()
        return found

    async def fetch(
        self, handles: Iterable[LiveSecret], *, within_s: float = STARTUP_S
    ) -> dict[LiveSecret, SecretError]:
        """Fetch all of them in parallel; what failed, and why."""
        handles = list(handles)
        entries = list(dict.fromkeys(handle.entry for handle in handles if not handle.ready))
        try:
            async with asyncio.timeout(within_s):
                await asyncio.gather(*(self._refresh(entry) for entry in entries))
        except TimeoutError:
            for entry in entries:
                if entry.value is None and entry.error is None:
                    entry.error = StoreUnreachable(f"{entry.where}: no answer within {within_s:g} s")
        return {handle: _why(handle) for handle in handles if not handle.ready}

    async def _refresh(self, entry: Entry) -> None:
        """Ask the store, once for all who want it; the result is in the entry."""
        # Shielded: a caller who gives up must not take the answer away from the others.
        await asyncio.shield(self._asking(entry))

    def _asking(self, entry: Entry) -> asyncio.Task[None]:
        task = entry.task
        # A task of a loop that has ended is never done.
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            task = entry.task = asyncio.create_task(self._ask(entry), name="tianji:secret")
        return task

    async def _ask(self, entry: Entry) -> None:
        store = entry.store
        try:
            async with asyncio.timeout(store.timeout_s + 5.0):
                value = await store.get(entry.ref)
        except TimeoutError:
            self._failed(entry, StoreUnreachable(f"{entry.where}: no answer within {store.timeout_s + 5.0:g} s"))
        except SecretError as error:
            self._failed(entry, error)
        except SetupError as error:
            self._failed(entry, StoreMisconfigured(f"{entry.where}: {error.message}"))
        except Exception as error:  # noqa: BLE001
            # Plugin failsafe. Only the kind of fault is told: its text may quote what the store sent.
            self._failed(entry, StoreUnreachable(f"{entry.where}: the store failed ({type(error).__name__})"))
        else:
            entry.take(value)
            self._succeeded(entry, value)

    def _succeeded(self, entry: Entry, value: SecretValue) -> None:
        if entry.failures:
            log.info("%s: the secret can be read again", entry.where)
        earlier, entry.failures, entry.fetched = entry.fetched, 0, self._wall()
        if entry.error is not None and earlier:
            log.error("a secret was changed to something that cannot be used: %s", entry.error.message)
        life = entry.ttl_s
        if value.expires is not None:
            life = max(1.0, min(life, (value.expires - self._wall()) * 0.9))
        entry.due = self._clock() + life * (1 - _JITTER * random.random())  # noqa: S311 - spreads questions
        if self._last_good is not None:
            self._last_good.note(entry)
        self._count("ok", entry)

    def _failed(self, entry: Entry, error: SecretError) -> None:
        first = entry.failures == 0
        entry.error = error
        # Where calls wait for it, a store that is back must be noticed soon.
        longest = len(_BACKOFF_S) - 1 if entry.value is not None else _SOON
        pause = _BACKOFF_S[min(entry.failures, longest)]
        entry.failures += 1
        entry.due = self._clock() + min(pause, entry.ttl_s)
        if entry.value is None and self._last_good is not None and error.passing:
            self._last_good.restore(entry, self._max_stale_s)
        if entry.value is not None and self._wall() - entry.fetched > entry.ttl_s + self._max_stale_s:
            log.error("%s: the last good value is too old and is not used any more", entry.where)
            entry.void()
        if first and entry.value is not None:
            log.warning("a secret cannot be refreshed; the last good value is used: %s", error.message)
        self._count(error.reason, entry)

    def _count(self, result: str, entry: Entry) -> None:
        if self._runtime is not None:
            self._runtime.count("secret_fetches", f"{entry.store.name} {result}")
            self._tell(self._runtime)

    def _tell(self, runtime: Runtime) -> None:
        entries = self._entries.values()
        missing = any(handle for entry in entries for handle in entry.handles if not handle.ready)
        trouble = "the last good values of secrets are used" if any(entry.error for entry in entries) else ""
        runtime.report("secrets", "some secrets are not available" if missing else trouble)

    async def renew(self, entry: Entry) -> bool:
        """Fetch anew because an upstream refused the value; whether it has changed.

        A value that turned out the same is not asked for again for a while: the key is wrong in the store as well.
        """
        if self._clock() < entry.vain_until:
            return False
        before = entry.value
        await self._refresh(entry)
        if entry.value is not None and (before is None or entry.value.value != before.value):
            entry.vain, entry.vain_until = 0, 0.0
            return True
        entry.vain_until = self._clock() + _BACKOFF_S[min(entry.vain, len(_BACKOFF_S) - 1)]
        entry.vain += 1
        return False

    # --- in the background

    def start(self, runtime: Runtime) -> None:
        """Keep the values fresh until the runtime closes."""
        self._runtime = runtime
        self._tell(runtime)
        runtime.spawn("secrets", lambda: self._keep_fresh(runtime.sleep))

    async def _keep_fresh(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        while True:
            now = self._clock()
            due = [entry for entry in self._entries.values() if entry.due <= now]
            for entry in due:
                self._asking(entry)
            await sleep(_TICK_S)

    # --- for people

    def report(self) -> dict[str, dict[str, Any]]:
        """Per store: state, secrets in use, the oldest value's age in seconds, the last error. Never a value."""
        now = self._wall()
        found: dict[str, dict[str, Any]] = {}
        for name in self._stores:
            entries = [entry for entry in self._entries.values() if entry.store.name == name]
            if not entries and name == "env":
                continue  # it is always there
            errors = [entry.error for entry in entries if entry.error is not None]
            missing = sum(entry.value is None for entry in entries)
            ages = [now - entry.fetched for entry in entries if entry.fetched]
            found[name] = {
                "status": "down" if missing else "degraded" if errors else "ok",
                "secrets": len(entries),
                "unresolved": missing,
                "oldest_s": round(max(ages), 1) if ages else None,
                "last_error": errors[-1].reason if errors else None,
            }
        return found

    async def health(self) -> dict[str, float | SecretError | None]:
        """Ask each configured store how it is: seconds until its login ends, None without an end, or what is wrong."""

        async def one(store: SecretStore) -> float | SecretError | None:
            try:
                async with asyncio.timeout(store.timeout_s + 5.0):
                    return await store.health()
            except SecretError as error:
                return error
            except SetupError as error:
                return StoreMisconfigured(f"{store.name}: {error.message}")
            except TimeoutError:
                return StoreUnreachable(f"{store.name}: no answer within {store.timeout_s + 5.0:g} s")

        names = list(self._stores)
        return dict(zip(names, await asyncio.gather(*(one(self._stores[name]) for name in names)), strict=True))

    async def refresh(self) -> None:
        """Fetch everything anew, now."""
        await asyncio.gather(*(self._refresh(entry) for entry in list(self._entries.values())))

    async def aclose(self) -> None:
        """Close the stores."""
        for store in self._stores.values():
            await store.aclose()


def _why(handle: LiveSecret) -> SecretError:
    entry = handle.entry
    return handle.error or entry.error or StoreUnreachable(f"{entry.where}: no value yet")


def kind_of(store: SecretStore) -> str:
    """The name of the file that a store's class lies in, which is what references call it."""
    return type(store).__module__.rpartition(".")[2]
