"""Bounded concurrency and a bounded queue: beyond both, a request is told when to come back."""

import math
import time
from collections.abc import Callable
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

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread when it is its turn; raises Busy at once when the queue is full."""
        if self._admitted >= self._max_admitted:
            raise Busy("All places are taken. Send the film again a little later.", self._retry_after_s())
        self._admitted += 1
        try:
            return await anyio.to_thread.run_sync(self._timed, work, limiter=self._limiter)
        finally:
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
