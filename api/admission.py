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
        self._limiter = anyio.CapacityLimiter(max_running)
        self._max_running = max_running
        self._max_admitted = max_running + max_waiting
        self._admitted = 0
        self._mean_seconds = 1.0

    def place(self) -> "Place":
        """Return a place, to be left again; raises Busy at once when none is free."""
        if self._admitted >= self._max_admitted:
            raise Busy("All places are taken. Send the film again a little later.", self._retry_after_s())
        self._admitted += 1
        return Place(self._leave)

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread when it is its turn; raises Busy when there is no place to wait."""
        with self.place():
            return await self.run_placed(work)

    async def run_placed(self, work: Callable[[], T]) -> T:
        """Run `work`, for a request that has a place, in a thread when it is its turn."""
        return await anyio.to_thread.run_sync(self._timed, work, limiter=self._limiter)

    def _leave(self) -> None:
        self._admitted -= 1

    def _timed(self, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        try:
            return work()
        finally:
            seconds = time.perf_counter() - start
            self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)

    def _retry_after_s(self) -> int:
        """Guess when a place will be free: the work ahead, shared by those who do it."""
        return max(1, math.ceil(self._mean_seconds * self._admitted / self._max_running))


class Place:
    """A request's place among those admitted; leaving it twice is leaving it once."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        """Make room for another request."""
        if self._leave is not None:
            self._leave()
            self._leave = None

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.leave()
