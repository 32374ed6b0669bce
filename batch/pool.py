"""Worker processes that read films, and what happens when one of them dies."""

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal, Protocol, cast

from batch.reading import Loaded
from batch.rows import Row
from batch.sources import Film
from modules.errors import ConfigurationError

Reason = Literal["worker_died", "out_of_memory", "timed_out"]
MAX_DEATHS = 2  # of workers on one film; after them it is recorded as failed
MAX_FAILED_STARTS = 3  # in a row
POLL_S = 1.0  # how often the time limit of films is looked at
LEAVE_S = 5.0  # for a worker to end when there is nothing left to do
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Reads(Protocol):
    """Reads films inside a worker."""

    def __call__(self, film: Film) -> Row:
        """Return the row of a film; raises MemoryError alone."""
        ...

    def close(self) -> None:
        """Release what it holds."""
        ...


Make = Callable[[], tuple[Reads, Loaded]]


class PoolError(Exception):
    """No worker can read films; the message says why."""


@dataclass(frozen=True)
class Died:
    """A worker that died on a film."""

    film: Film
    reason: Reason
    deaths: int


@dataclass(frozen=True)
class OutOfMemory:
    """What a worker says instead of a row, before it ends."""


@dataclass(frozen=True)
class CannotStart:
    """What a worker says that will never read a film."""

    why: str


class Process(Protocol):
    """What a pool asks of the process of a worker."""

    @property
    def exitcode(self) -> int | None:
        """How it ended; None where that is not known."""
        ...

    @property
    def pid(self) -> int | None:
        """None until it was started."""
        ...

    def terminate(self) -> None:
        """Ask it to end."""
        ...

    def kill(self) -> None:
        """End it."""
        ...

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        ...


class Line(Protocol):
    """How a pool and a worker talk."""

    def send(self, film: Film, /) -> None:
        """Hand over a film; raises OSError when the worker has ended."""
        ...

    def recv(self) -> Any:
        """Return what the worker says; raises EOFError or OSError when it has ended."""
        ...

    def close(self) -> None:
        """Let the worker end."""
        ...


@dataclass(eq=False)
class Worker:
    """A worker, as the pool keeps it."""

    process: Process
    connection: Line
    ready: bool = False
    film: Film | None = None
    since: float = 0.0
    reason: Reason = "worker_died"


class Pool:
    """Reads films in `workers` processes of `threads` threads each; an iterator of rows and deaths, as they come."""

    def __init__(self, make: Make, *, workers: int, threads: int, film_limit_s: float) -> None:
        """Take a picklable `make`, which is called in each worker."""
        self._make = make
        self._size = workers
        self._threads = threads
        self._film_limit_s = film_limit_s
        self._workers: list[Worker] = []
        self._failed_starts = 0
        self._loaded_once = False

    def read(self, films: Iterable[Film], deaths: Mapping[str, int]) -> Iterator[Loaded | Row | Died]:
        """Yield what workers loaded, and a row for each film, as they are ready, or the deaths of its workers.

        A film that was the last thing of a worker is tried again after all others, and given up at `MAX_DEATHS`;
        `deaths` holds those of an earlier run. Raises PoolError when workers cannot be started.
        """
        waiting = deque(films)
        counts = dict(deaths)
        try:
            while True:
                unfinished = len(waiting) + sum(worker.film is not None for worker in self._workers)
                if not unfinished and self._loaded_once:
                    break
                self._fill(max(1, unfinished))  # one at least, to see which weights there are
                for worker in self._workers:
                    if worker.ready and worker.film is None and waiting:
                        self._hand_over(worker, waiting)
                for worker in self._heard():
                    outcome = self._outcome(worker)
                    if isinstance(outcome, Film):
                        counts[outcome.name] = counts.get(outcome.name, 0) + 1
                        if counts[outcome.name] < MAX_DEATHS:
                            waiting.append(outcome)
                        yield Died(outcome, worker.reason, counts[outcome.name])
                    elif outcome is not None:
                        yield outcome
        finally:
            self._end()

    def _fill(self, films: int) -> None:
        """Start workers until there are as many as are of use."""
        while len(self._workers) < min(self._size, films):
            self._start_worker()

    def _start_worker(self) -> None:
        """Start one more; raises PoolError. A pool of other workers replaces this and `_wait`."""
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(theirs, self._make), daemon=True)
        self._workers.append(Worker(process, ours))
        try:
            with _threads_in_environment(self._threads), _interrupts_ignored():
                process.start()
        except OSError as exc:
            raise PoolError(f"No worker process can be started: {exc.strerror or exc}.") from exc
        theirs.close()  # so that the end of the worker is the end of the connection

    def _wait(self) -> Collection[Line]:
        """Wait for workers that have something to say or have ended, for `POLL_S` at most."""
        return [cast(Line, line) for line in wait([cast(Connection, w.connection) for w in self._workers], POLL_S)]

    def _hand_over(self, worker: Worker, waiting: deque[Film]) -> None:
        worker.film, worker.since = waiting.popleft(), time.monotonic()
        with suppress(OSError):  # it died while it was idle: its connection has ended, which is noticed next
            worker.connection.send(worker.film)

    def _heard(self) -> list[Worker]:
        """Wait for workers that have something to say or have ended; end those that are over the time limit."""
        heard = self._wait()
        now = time.monotonic()
        for worker in self._workers:
            if worker.film is not None and worker.connection not in heard and now - worker.since > self._film_limit_s:
                worker.reason = "timed_out"
                worker.process.kill()
        return [worker for worker in self._workers if worker.connection in heard]

    def _outcome(self, worker: Worker) -> Loaded | Row | Film | None:
        """Return what a worker loaded, a row, or the film on which it died."""
        try:
            said = worker.connection.recv()
        except (EOFError, OSError):
            return self._bury(worker)
        if isinstance(said, Row):
            worker.film = None
            return said
        if isinstance(said, OutOfMemory):
            worker.reason = "out_of_memory"
            return self._bury(worker)
        if isinstance(said, CannotStart):
            raise PoolError(said.why)
        assert isinstance(said, Loaded)
        worker.ready, self._loaded_once, self._failed_starts = True, True, 0
        return said

    def _bury(self, worker: Worker) -> Film | None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        if not worker.ready:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise PoolError(
                    f"{MAX_FAILED_STARTS} workers in a row ended while they loaded the network (the last with exit "
                    f"code {worker.process.exitcode}). If memory is short, try fewer workers."
                )
        return worker.film

    def _end(self) -> None:
        started = [worker for worker in self._workers if worker.process.pid is not None]
        for worker in started:
            if worker.film is not None or not worker.ready:
                worker.process.terminate()
            worker.connection.close()
        deadline = time.monotonic() + LEAVE_S
        for worker in started:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.join()
        self._workers.clear()


@contextmanager
def _threads_in_environment(threads: int) -> Iterator[None]:
    """Set what the math libraries of a process that is started read when they are loaded."""
    ours = {name: str(threads) for name in THREAD_VARIABLES} | {"OMP_WAIT_POLICY": "PASSIVE"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Let a process that is started ignore Ctrl-C: a terminal sends it to all, and one decides."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _work(connection: Connection, make: Make) -> None:
    """Be a worker: load, say so, then answer each film with its row until the connection ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        read, loaded = make()
    except ConfigurationError as exc:
        connection.send(CannotStart(str(exc)))
        return
    try:
        connection.send(loaded)
        while True:
            connection.send(read(connection.recv()))
    except MemoryError:
        with suppress(OSError, MemoryError):
            connection.send(OutOfMemory())
    except (EOFError, OSError):  # nobody asks any longer
        pass
    finally:
        read.close()


def _end_with(parent: BaseProcess) -> None:
    """End this process when the one that started it has ended, however it did."""
    wait([parent.sentinel])
    os._exit(1)
