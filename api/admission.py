"""Bounded concurrency and a bounded queue: beyond both, a request is told when to come back."""

import math
import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.to_thread

from modules.errors import Busy

T = TypeVar("T")

SMOOTHING = 0.2  # weight of the newest duration in the running mean


class Admission:
    """Runs blocking work in threads of its own, so that a full house never delays a health check."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(max_running)  # held from a request's first work to its last
        self._threads = anyio.CapacityLimiter(max_running)
        self._max_running = max_running
        self._max_admitted = max_running + max_waiting
        self._admitted = 0
        self._mean_seconds = 1.0

    def place(self) -> "Place":
        """Return a place, to be left again; raises Busy at once when none is free."""
        if self._admitted >= self._max_admitted:
            raise Busy("All places are taken. Send the film again a little later.", self._retry_after_s())
        self._admitted += 1
        return Place(self)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread when it is its turn; raises Busy when there is no place to wait."""
        with self.place() as place:
            await place.wait_for_turn()
            return await place.run(work)

    async def _begin(self, place: "Place") -> None:
        await self._limiter.acquire_on_behalf_of(place)

    async def _run(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._threads)

    def _end(self, place: "Place", seconds: float) -> None:
        self._limiter.release_on_behalf_of(place)
        self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)

    def _leave(self) -> None:
        self._admitted -= 1

    def _retry_after_s(self) -> int:
        """Guess when a place will be free: the work ahead, shared by those who do it."""
        return max(1, math.ceil(self._mean_seconds * self._admitted / self._max_running))


class Place:
    """A request's place among those admitted, and its turn once it has come; leaving twice is leaving once."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._began: float | None = None
        self._left = False

    async def wait_for_turn(self) -> None:
        """Wait until this request may work; it may then go on until it leaves."""
        await self._admission._begin(self)
        self._began = time.perf_counter()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread, during this request's turn."""
        return await self._admission._run(work)

    def leave(self) -> None:
        """Make room for another request."""
        if self._left:
            return
        self._left = True
        self._admission._leave()
        if self._began is not None:
            self._admission._end(self, time.perf_counter() - self._began)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.leave()
