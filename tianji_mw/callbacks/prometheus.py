"""Metrics for Prometheus: calls, tokens, cost, latencies, providers and guardrails, under our names and LiteLLM's.

Records come in batches like everywhere, so nothing is counted in the path of a call. The page is read with `render`,
or over `metrics_app`; who may read it is decided by whoever serves it.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from tianji_mw.callbacks.base import Callback, NotDelivered
from tianji_mw.callbacks.metrics.catalogue import LATENCY, Catalogue
from tianji_mw.callbacks.metrics.choice import Choice, Group, label_name
from tianji_mw.callbacks.metrics.counting import count_call, count_events
from tianji_mw.callbacks.metrics.facts import facts_of
from tianji_mw.callbacks.metrics.page import OPENMETRICS, MetricsApp, page_of
from tianji_mw.callbacks.metrics.store import ALIVE_S, Store, StoreError
from tianji_mw.callbacks.metrics.tally import Tally
from tianji_mw.callbacks.metrics.values import Custom, text
from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from tianji_mw.records import Record
    from tianji_mw.runtime import Runtime

#: Records, and bytes of them, after which other tasks get their turn.
_AT_ONCE: Final = 16
_BYTES_AT_ONCE: Final = 256 << 10
#: Seconds between two looks at what the process counts and does.
_TELL_S: Final = 1.0
#: Seconds that a page serves for others who ask.
_PAGE_S: Final = 0.25


class Prometheus(Callback):
    """Counts the calls it is told of, each once.

    >>> Prometheus(exclude_labels=["team_alias"], latency_buckets=[0.1, 1, 10, 60])
    """

    env_fields: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "multiproc_dir": ("TIANJI_METRICS_DIR", "PROMETHEUS_MULTIPROC_DIR"),
    }
    aliases: ClassVar[Mapping[str, str]] = {
        "custom_prometheus_metadata_labels": "metadata_labels",
        "custom_prometheus_tags": "tag_labels",
        "disable_end_user_cost_tracking_prometheus_only": "no_end_user_label",
        "enable_end_user_cost_tracking_prometheus_only": "end_user_label",
        "prometheus_emit_input_sequence_length_label": "input_length_label",
        "prometheus_emit_rate_limit_labels": "rate_limit_labels",
        "prometheus_emit_stream_label": "stream_label",
        "prometheus_end_user_metrics_max_series_per_metric": "max_end_user_series",
        "prometheus_exclude_labels": "exclude_labels",
        "prometheus_exclude_metrics": "exclude_metrics",
        "prometheus_latency_buckets": "latency_buckets",
        "prometheus_metrics_config": "metrics_config",
        "prometheus_metrics_max_series_per_metric": "max_series",
    }

    flush_interval_s: float = Field(default=1.0, ge=0.01, le=3600)

    #: Where all processes of a sidecar put their numbers together. None: in memory, each for itself.
    multiproc_dir: Path | None = None
    #: Whether LiteLLM's names are on the page beside ours.
    litellm_metrics: bool = True
    #: Which of LiteLLM's, with which labels; empty: all.
    metrics_config: tuple[Group, ...] = ()
    exclude_metrics: frozenset[str] = frozenset()
    exclude_labels: frozenset[str] = frozenset()
    #: Labels with values that clients choose: `client_ip`, `user_agent` and `user_email`, and `end_user`.
    client_labels: bool = False
    end_user_label: bool = False
    no_end_user_label: bool = False
    #: Whether our own counters have the alias of the key.
    key_label: bool = False
    stream_label: bool = False
    rate_limit_labels: bool = False
    input_length_label: bool = False
    #: Paths such as `metadata.project`, and tags (`*` is any text), that become labels of LiteLLM's metrics.
    metadata_labels: tuple[str, ...] = ()
    tag_labels: tuple[str, ...] = ()
    #: Upper bounds in seconds.
    latency_buckets: tuple[float, ...] = LATENCY
    #: Series of a metric at most; also of one with the label `end_user`. New ones beyond are counted as `other`.
    max_series: int = Field(default=1_000, ge=1, le=1_000_000)
    max_end_user_series: int = Field(default=10_000, ge=1, le=1_000_000)

    _runtime: Any = PrivateAttr(default=None)
    _store: Store | None = PrivateAttr(default=None)
    _catalogue: Catalogue = PrivateAttr(default_factory=dict)
    _custom: Custom = PrivateAttr(default_factory=lambda: Custom.of({}, {}))
    _owner: str = PrivateAttr(default="")
    _lock: Any = PrivateAttr(default_factory=threading.Lock)
    #: What of the process's counts is in the store, which of its gauges are, and when they were told.
    _seen: dict[tuple[str, str], int] = PrivateAttr(default_factory=dict)
    _told: dict[tuple[str, tuple[str, ...]], float] = PrivateAttr(default_factory=dict)
    _told_at: float = PrivateAttr(default=float("-inf"))
    _edge: Callable[[], Mapping[str, int]] | None = PrivateAttr(default=None)
    #: The last page, by whether it is in OpenMetrics, and when it was made.
    _pages: dict[bool, tuple[float, tuple[bytes, str]]] = PrivateAttr(default_factory=dict)

    @field_validator("latency_buckets")
    @classmethod
    def _bounds(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        bounds = tuple(bound for bound in value if bound != float("inf"))
        if not 1 <= len(bounds) <= 50 or list(bounds) != sorted(set(bounds)) or not bounds[0] > 0:
            raise ValueError("write 1 to 50 numbers above 0, each larger than the one before")
        return LATENCY if bounds == LATENCY else bounds

    @field_validator("max_series", "max_end_user_series", mode="before")
    @classmethod
    def _limit(cls, value: Any, info: ValidationInfo) -> Any:
        """LiteLLM's `null` is the usual limit: without any, clients could fill the memory of whoever reads the page."""
        return cls.model_fields[str(info.field_name)].default if value is None else value

    async def start(self, runtime: Runtime) -> None:
        """Open the store. Raises SetupError for a folder that cannot be used."""
        paths = {label_name(path): path for path in self.metadata_labels}
        tags = {label_name(f"tag_{tag}"): tag for tag in self.tag_labels}
        self._catalogue = catalogue = self._choice((*paths, *tags)).catalogue()
        self._custom = Custom.of(paths, tags)
        limits = {
            name: self.max_end_user_series if "end_user" in metric.labels else self.max_series
            for name, metric in catalogue.items()
        }
        self._runtime, self._owner = runtime, runtime.new_id()
        try:
            self._store = await asyncio.to_thread(Store, self.multiproc_dir, catalogue, limits)
        except StoreError as error:
            raise SetupError(f"prometheus: {error}") from None
        if self.multiproc_dir is not None:
            runtime.spawn("prometheus", self._tell_always)

    async def aclose(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            await asyncio.to_thread(self._leave, store)

    async def write(self, batch: Sequence[Record]) -> None:
        """Count the records that are new, all or none of them."""
        store = self._store
        if store is None:
            raise NotDelivered("prometheus was not started")
        records = {record.id: record for record in batch}
        try:
            fresh = await asyncio.to_thread(store.fresh, records)
            new = [record for name, record in records.items() if name in fresh]
            tally, bad = await self._counted(new)
            notes = {"counted": len(new) - len(bad), "duplicate": len(batch) - len(new), "unreadable": len(bad)}
            for result, times in notes.items():
                tally.writer({"result": result}).count("tianji_metrics_records_total", times)
            await asyncio.to_thread(store.add, tally, [record.id for record in new])
        except StoreError as error:
            raise NotDelivered(f"prometheus: {error}") from None
        if bad:
            raise NotDelivered(f"prometheus: {len(bad)} records are no JSON objects", failed=[], refused=bad)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page, and its content type, for an `Accept` header. Call it in a thread. Raises StoreError."""
        openmetrics = OPENMETRICS in accept
        with self._lock:
            made_at, made = self._pages.get(openmetrics, (float("-inf"), (b"", "")))
            if time.monotonic() - made_at >= _PAGE_S:
                made = self._made(openmetrics=openmetrics)
                self._pages = {openmetrics: (time.monotonic(), made)}
            return made

    def metrics_app(self) -> MetricsApp:
        """The page as an ASGI app, for a route or a mount of the app that we are in."""
        return MetricsApp(self.render)

    def watch_edge(self, counts: Callable[[], Mapping[str, int]]) -> None:
        """Show also what the server turned away, by reason; the counts only grow."""
        self._edge = counts

    # --- inside

    def _choice(self, custom: tuple[str, ...]) -> Choice:
        return Choice(
            litellm=self.litellm_metrics,
            groups=self.metrics_config,
            without_metrics=self.exclude_metrics,
            without_labels=self.exclude_labels,
            client_labels=self.client_labels,
            end_user=self.end_user_label and not self.no_end_user_label,
            key=self.key_label,
            stream=self.stream_label,
            rate_limits=self.rate_limit_labels,
            length=self.input_length_label,
            custom=custom,
            buckets=self.latency_buckets,
        )

    async def _counted(self, records: Sequence[Record]) -> tuple[Tally, list[Record]]:
        """What records add, and those that are none."""
        tally = Tally(self._catalogue)
        bad: list[Record] = []
        size = 0
        for at, record in enumerate(records, 1):
            if _readable(record):
                facts = facts_of(record.data, self._custom)
                count_call(tally, facts, litellm=self.litellm_metrics)
            else:
                bad.append(record)
            size += len(record.raw)
            if at % _AT_ONCE == 0 or size > _BYTES_AT_ONCE:
                size = 0
                await asyncio.sleep(0)
        return tally, bad

    def _made(self, *, openmetrics: bool) -> tuple[bytes, str]:
        store = self._store
        if store is None:
            raise StoreError("the metrics are not there: the callback is not running")
        try:
            self._tell(store)
        except StoreError as error:
            # Another process may hold the file; what is in it can be read all the same.
            self._runtime.report("prometheus", str(error))
        gauges = store.gauges(self._runtime.wall())
        with closing(store.read()) as series:
            return page_of(self._catalogue, series, gauges, openmetrics=openmetrics)

    async def _tell_always(self) -> None:
        """Let the other processes know what this one counts and does."""
        while (store := self._store) is not None:
            try:
                await asyncio.to_thread(self._tell_locked, store)
            except StoreError as error:
                self._runtime.report("prometheus", str(error))
            else:
                self._runtime.report("prometheus", "")
            await self._runtime.sleep(_TELL_S)

    def _tell_locked(self, store: Store) -> None:
        with self._lock:
            self._tell(store)

    def _tell(self, store: Store) -> None:
        """Write what the process has counted since the last time, and its gauges where they changed."""
        # One step each in C, so that the event loop's changes do not disturb it.
        counts = self._runtime.counts.copy()
        if self._edge is not None:
            counts.update({("edge", reason): times for reason, times in dict(self._edge()).items()})
        growth = {key: times - self._seen.get(key, 0) for key, times in counts.items()}
        growth = {key: times for key, times in growth.items() if times > 0}
        if growth:
            tally = Tally(self._catalogue)
            count_events(tally, growth)
            store.add(tally)
            self._seen = counts
        gauges, now = self._gauges(), self._runtime.wall()
        if gauges != self._told or not 0 <= now - self._told_at < ALIVE_S / 3:
            store.tell(self._owner, now, gauges)
            self._told, self._told_at = gauges, now

    def _gauges(self) -> dict[tuple[str, tuple[str, ...]], float]:
        runtime = self._runtime
        found: dict[tuple[str, tuple[str, ...]], float] = {
            ("tianji_inflight_calls", ()): runtime.inflight,
            ("litellm_in_flight_requests", ()): runtime.inflight,
            ("tianji_draining", ()): float(runtime.draining),
            ("process_max_resident_memory_bytes", ()): _memory(),
        }
        for who in runtime.degraded.copy():
            found["tianji_degraded", (text(who),)] = 1.0
        return {key: value for key, value in found.items() if key[0] in self._catalogue}

    def _leave(self, store: Store) -> None:
        """Hand in the last counts, and go: the gauges of this process are no more."""
        with self._lock:
            try:
                self._tell(store)
                store.tell(self._owner, self._runtime.wall(), {})
            except StoreError as error:
                self._runtime.count("metrics_lost", str(error))
            store.close()


def _readable(record: Record) -> bool:
    try:
        return isinstance(record.data, dict)
    except ValueError:
        return False


def _memory() -> float:
    """The most memory that this process has had, in bytes; 0 where the system does not say."""
    if sys.platform == "win32":
        return 0.0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
