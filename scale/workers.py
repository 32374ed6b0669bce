"""Workers of `python -m scale.batch`: actors of Ray, on this machine or on those of a cluster."""

import os
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from batch.pool import (
    POLL_S,
    THREAD_VARIABLES,
    CannotStart,
    Died,
    Line,
    Make,
    OutOfMemory,
    Pool,
    PoolError,
    Reads,
    Worker,
)
from batch.reading import Loaded
from batch.rows import Row
from batch.sources import Film
from modules.errors import ConfigurationError
from scale import INSTALL
from scale.environment import environment

ROOM_S = 30.0  # chosen: the cores of a run that was killed are free again after seconds
STORE_BYTES = 128 << 20  # chosen: films do not go through Ray's store, their rows are small


class RayPool(Pool):
    """Reads films as `Pool` does, which counts their deaths and tries them again; its workers are Ray's."""

    def read(self, films: Iterable[Film], deaths: Mapping[str, int]) -> Iterator[Loaded | Row | Died]:
        """Yield what `Pool.read` yields, while Ray runs; raises PoolError."""
        with _connected(self._size * self._threads):
            _wait_for_room(self._threads)
            yield from super().read(films, deaths)

    def _start_worker(self) -> None:
        worker = _RayWorker(self._make, self._threads, self._size)
        self._workers.append(Worker(worker, worker))

    def _wait(self) -> Collection[Line]:
        import ray

        waited = {line.said: line for w in self._workers if (line := _of_ray(w)).said is not None}
        if not waited:
            return []
        ready, _ = ray.wait(list(waited), timeout=POLL_S)
        return [waited[said] for said in ready]


class _RayWorker:
    """The process of a worker, and the line to it: what it will say next is `said`."""

    exitcode = None
    pid = 0

    def __init__(self, make: Make, threads: int, workers: int) -> None:
        import ray

        self._ray = ray
        env_vars = dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"OMP_WAIT_POLICY": "PASSIVE"}
        gpus = float(ray.cluster_resources().get("GPU", 0))
        actor = ray.remote(_Reader).options(
            num_cpus=threads,
            num_gpus=min(1.0, int(100 * gpus / workers) / 100),
            max_restarts=0,  # the pool counts deaths, and starts another worker
            runtime_env={"env_vars": env_vars},
        )
        self._actor = actor.remote(make)
        self.said: Any = self._actor.load.remote()
        self._closed: Any = None

    def send(self, film: Film, /) -> None:
        self.said = self._actor.read.remote(film)

    def recv(self) -> Loaded | Row | OutOfMemory | CannotStart:
        said, self.said = self.said, None
        try:
            answer: Loaded | Row | OutOfMemory | CannotStart = self._ray.get(said)
        except self._ray.exceptions.OutOfMemoryError:
            return OutOfMemory()
        except self._ray.exceptions.RayError as exc:
            raise EOFError from exc
        return answer

    def close(self) -> None:
        self._closed = self._actor.close.remote()

    def terminate(self) -> None:
        self.kill()

    def kill(self) -> None:
        self._ray.kill(self._actor)

    def join(self, timeout: float | None = None) -> None:
        if self._closed is not None:
            self._ray.wait([self._closed], timeout=timeout)


class _Reader:
    """What runs in the process of a worker."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._read: Reads | None = None

    def load(self) -> Loaded | CannotStart:
        try:
            self._read, loaded = self._make()
        except ConfigurationError as exc:
            return CannotStart(str(exc))
        return loaded

    def read(self, film: Film) -> Row | OutOfMemory:
        assert self._read is not None
        try:
            return self._read(film)
        except MemoryError:
            return OutOfMemory()

    def close(self) -> None:
        if self._read is not None:
            self._read.close()


def _of_ray(worker: Worker) -> _RayWorker:
    assert isinstance(worker.connection, _RayWorker)
    return worker.connection


def _wait_for_room(cores: int) -> None:
    """Wait a while for the cores of a worker; raises PoolError, for Ray would wait for ever and without a word.

    Cores are counted over all machines, while a worker needs its own on one of them.
    """
    import ray

    deadline = time.monotonic() + ROOM_S
    while (free := ray.available_resources().get("CPU", 0.0)) < cores:
        if time.monotonic() < deadline:
            time.sleep(POLL_S)
            continue
        every = ray.cluster_resources().get("CPU", 0.0)
        fewer = " or ask for more --workers, which want fewer cores each" if cores > 1 else ""
        raise PoolError(
            f"A worker has {cores} cores, and {free:g} of the cluster's {every:g} are free. Stop what has them{fewer}; "
            "the same command goes on."
        )


@contextmanager
def _connected(cores: int) -> Iterator[None]:
    """Run Ray on this machine, or take the cluster that `RAY_ADDRESS` names."""
    os.environ.update(environment())  # Ray reads some of it when it is imported
    try:
        import ray
    except ImportError as exc:
        raise PoolError(INSTALL) from exc
    address = os.environ.get("RAY_ADDRESS") or "local"
    alone = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": STORE_BYTES}
    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        # what workers write is not repeated here: a library's line may name a film
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **(alone if address == "local" else {}))
    except Exception as exc:  # whatever Ray raises that cannot start or be reached
        raise PoolError(f"Ray cannot be started or reached at {address} ({type(exc).__name__}).") from exc
    try:
        if on_main:
            signal.signal(signal.SIGTERM, before)  # Ray's own would end this process before the journal is closed
        yield
    finally:
        ray.shutdown()
