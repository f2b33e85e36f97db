"""Several worker processes on one listening socket: starts them, replaces the dead, hands the end on to all.

The socket is bound here and inherited, not SO_REUSEPORT: with that, connections queued for a worker that ends are
reset. POSIX only. Workers share nothing else; each has its own admin port, `admin_port + index`.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import TYPE_CHECKING, Final

from sidecar.drain import FORCED_EXIT_S, Drain
from sidecar.server import START_FAILED, ServerConfig, serve_here
from tianji_mw.errors import SetupError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from sidecar.server import AppFactory

log = logging.getLogger("tianji_mw.sidecar")

# What a parent tells its workers; the end of the pipe (a parent that was killed) means _DRAIN.
_DRAIN: Final = b"d"
_HURRY: Final = b"h"
_FORCE: Final = b"f"
#: A worker that lived shorter than this died of something a new one would die of as well: wait before the next.
_STABLE_S: Final = 5.0
_BACKOFF_S: Final = (0.0, 0.5, 2.0, 5.0)


def supervise(factory: AppFactory, config: ServerConfig, main: socket.socket) -> int:
    """Run `config.workers` processes until a signal; the exit status, the worst of the workers'."""
    if sys.platform == "win32":
        raise SetupError("several workers need a POSIX system; use workers: 1")
    logging.basicConfig(level=config.log_level.upper())
    return Parent(factory, config, main).run()


class Worker:
    """One worker process and the pipe to it."""

    def __init__(
        self, factory: AppFactory, config: ServerConfig, main: socket.socket, index: int, *, first: bool
    ) -> None:
        context = multiprocessing.get_context("spawn")
        theirs, self._ours = context.Pipe(duplex=False)
        self.index = index
        self.first = first
        self.started = time.monotonic()
        self.process: SpawnProcess = context.Process(
            target=work, args=(factory, config, main, index, theirs), name=f"tianji-worker-{index}"
        )
        self.process.start()
        theirs.close()

    def tell(self, word: bytes) -> None:
        """Tell it to end; one that is dead or dying does not hear it."""
        try:
            self._ours.send_bytes(word)
        except OSError as error:
            log.debug("worker %d did not hear %r: %r", self.index, word, error)

    def close(self) -> int:
        """Collect the dead process; its exit status."""
        self.process.join()
        self._ours.close()
        status = self.process.exitcode or 0
        self.process.close()
        return status


class Parent:
    """The supervising process. It serves nothing itself."""

    def __init__(self, factory: AppFactory, config: ServerConfig, main: socket.socket) -> None:
        self._factory = factory
        self._config = config
        self._main = main
        self._workers: dict[int, Worker] = {}
        self._deaths = 0
        #: One of the first workers could not start, so none will. Later the same is no reason to end the others.
        self._hopeless = False
        self._signals: list[int] = []
        self._wake, self._alarm = socket.socketpair()

    def run(self) -> int:
        """Keep the workers running until a signal, then end them."""
        with self._handling():
            for index in range(self._config.workers):
                self._start(index, first=True)
            log.info("%d workers, pids %s", len(self._workers), [w.process.pid for w in self._workers.values()])
            status = 0
            while not self._signals and not self._hopeless:
                status = self._watch(None)
            # Workers hold the port while they drain; with a copy here, clients would queue for nobody.
            self._main.close()
            return max(status, self._end())

    def _start(self, index: int, *, first: bool = False) -> None:
        self._workers[index] = Worker(self._factory, self._config, self._main, index, first=first)

    def _watch(self, seconds: float | None) -> int:
        """Wait for a signal or the death of a worker, and replace the dead unless the end has begun."""
        sentinels = {worker.process.sentinel: worker for worker in self._workers.values()}
        worst = 0
        for ready in wait([*sentinels, self._wake], seconds):
            worker = sentinels.get(ready) if isinstance(ready, int) else None
            if worker is None:
                self._wake.recv(64)
                continue
            del self._workers[worker.index]
            lived = time.monotonic() - worker.started
            status = worker.close()
            worst = max(worst, abs(status))
            self._hopeless = self._hopeless or (worker.first and status == START_FAILED)
            if self._signals or self._hopeless:
                continue
            self._deaths = 0 if lived >= _STABLE_S else self._deaths + 1
            log.error("worker %d ended with status %d after %.0f s; starting another", worker.index, status, lived)
            if self._pause(_BACKOFF_S[min(self._deaths, len(_BACKOFF_S) - 1)]):
                self._start(worker.index)
        return worst

    def _pause(self, seconds: float) -> bool:
        """Sleep unless a signal comes; False if one did."""
        if seconds and not self._signals:
            wait([self._wake], seconds)
        return not self._signals

    def _end(self) -> int:
        """Tell every worker, wait for them as long as they may take, kill the rest; the worst exit status."""
        self._tell(_HURRY if signal.SIGINT in self._signals[:1] else _DRAIN)
        end = time.monotonic() + self._config.exit_within_s + 3.0
        worst, forced = 0, False
        while self._workers and (left := end - time.monotonic()) > 0:
            if len(self._signals) > 1 and not forced:
                forced = True
                self._tell(_FORCE)
                end = time.monotonic() + FORCED_EXIT_S
                continue
            worst = max(worst, self._watch(left))
        for worker in self._workers.values():
            worst = 1
            log.critical("worker %d did not end in time and is killed", worker.index)
            worker.process.kill()
            worker.close()
        return worst

    def _tell(self, word: bytes) -> None:
        for worker in self._workers.values():
            worker.tell(word)

    @contextmanager
    def _handling(self) -> Iterator[None]:
        def handle(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            self._alarm.send(b"!")

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self._wake.close()
            self._alarm.close()


def work(factory: AppFactory, config: ServerConfig, main: socket.socket, index: int, orders: Connection) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to us too; the parent decides
    admin_port = config.admin_port + index if config.admin_port else 0
    mine = config.model_copy(update={"admin_port": admin_port, "workers": 1})
    drain = Drain(interrupt=False, follow=_following(orders))
    try:
        status = serve_here(factory, mine, main, drain=drain)
    except SetupError as error:
        log.critical("%s", error.message)
        status = START_FAILED
    sys.stdout.flush()
    sys.stderr.flush()
    # Spawned processes wait at exit for foreign threads; the drain has already waited for whatever mattered.
    os._exit(status)


def _following(orders: Connection) -> Callable[[Drain], None]:
    """Have the running loop obey the parent's pipe."""

    def obey(drain: Drain) -> None:
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                word = orders.recv_bytes()
            except (EOFError, OSError):
                loop.remove_reader(orders.fileno())
                log.warning("the parent process is gone")
                drain.request()
                return
            if word == _FORCE:
                drain.force()
            else:
                drain.request(hurry=word == _HURRY)

        loop.add_reader(orders.fileno(), read)

    return obey
