"""Bounded concurrency and a bounded queue: beyond both, a request is told when to come back.

The network and everything else that works on films is run by whoever has a turn, and `Admission` alone gives turns: in
the order in which films came, whatever is asked of them.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.to_thread

from modules.errors import Busy

T = TypeVar("T")

SMOOTHING = 0.2  # weight of the newest duration in the running mean
KEPT_FOR_OTHERS = 8  # of so many places one is kept from a client that has all the others; chosen


class Shares:
    """A number of places; a client who opens many connections never has the last ones, if there are enough of them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._one_client = total - total // KEPT_FOR_OTHERS
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return self._taken.total()

    def take(self, client: str) -> bool:
        """Take a place for the client of this address, if there is one."""
        if self.taken >= self._total or self._taken[client] >= self._one_client:
            return False
        self._taken[client] += 1
        return True

    def give_back(self, client: str) -> None:
        """Give back a place that was taken."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]  # else an address would be kept for every client that ever came


class Admission:
    """Runs blocking work in threads of its own, so that a full house never delays a health check."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(max_running)  # held from a request's first work to its last
        self._threads = anyio.CapacityLimiter(max_running)
        self._max_running = max_running
        self._places = Shares(max_running + max_waiting)
        self._mean_seconds = 1.0

    def place(self, client: str = "") -> "Place":
        """Return a place for the client of an address, to be left again; raises Busy at once when none is free."""
        if not self._places.take(client):
            raise Busy("All places are taken. Send the film again a little later.", self._retry_after_s())
        return Place(self, client)

    async def _begin(self, place: "Place") -> None:
        await self._limiter.acquire_on_behalf_of(place)

    async def _run(self, work: Callable[[], T]) -> T:
        running = asyncio.ensure_future(anyio.to_thread.run_sync(work, limiter=self._threads))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # no thread can be stopped: the request keeps its turn until its own has ended
            with anyio.CancelScope(shield=True):
                await asyncio.wait([running])
            raise

    def _end(self, place: "Place", seconds: float) -> None:
        self._limiter.release_on_behalf_of(place)
        self._mean_seconds += SMOOTHING * (seconds - self._mean_seconds)

    def _leave(self, client: str) -> None:
        self._places.give_back(client)

    def _retry_after_s(self) -> int:
        """Guess when a place will be free: the work ahead, shared by those who do it."""
        return max(1, math.ceil(self._mean_seconds * self._places.taken / self._max_running))


class Place:
    """A request's place among those admitted, and its turn once it has come; leaving twice is leaving once."""

    def __init__(self, admission: Admission, client: str) -> None:
        self._admission = admission
        self._client = client
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
        self._admission._leave(self._client)
        if self._began is not None:
            self._admission._end(self, time.perf_counter() - self._began)

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.leave()
