"""One owner of the network on a GPU: films that arrive together share a pass.

On the CPU nothing is gained and films pass through: ONNX Runtime took 31 ms for one film and 55 to 58 ms for two, on
two cores. On a GPU, where a pass over one film leaves much of the device idle (not measured by this project, which has
had none), a single thread runs the network. It takes what waits, up to a number of images, and only where the pass
before had company does it wait a moment for more: a lone film never does.
"""

import itertools
import threading
import weakref
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from modules.engines.base import Engine
from modules.errors import Busy
from modules.records import FloatArray
from modules.settings import Precision

MAX_WAIT_S = 0.002  # for company; chosen, not measured: a part of what a pass takes
MAX_WAITING = 64  # requests; whoever comes next waits in its own thread for room; chosen
CLOSE_LIMIT_S = 10.0  # for the pass that is under way; chosen
RETRY_AFTER_S = 5  # what clients are told when the server stops; chosen

Result = tuple[FloatArray, FloatArray]


def owned(engine: Engine, max_images: int) -> Engine:
    """Return an engine of a GPU with one owner and at most so many images in a shared pass; one of the CPU as it is."""
    return engine if engine.device == "cpu" else BatchingEngine(engine, max_images)


class BatchingEngine:
    """An engine that one thread alone runs, for callers in any number of threads.

    An error of a shared pass is not shared: each film is then run by itself. A film with a value that is not finite is
    run by itself from the start, so that it gets what it would get alone, and no other film meets it.
    """

    def __init__(
        self, engine: Engine, max_images: int, *, max_wait_s: float = MAX_WAIT_S, max_waiting: int = MAX_WAITING
    ) -> None:
        self._engine = engine
        self._owner = _Owner(engine, max_images, max_wait_s, max_waiting)
        self._thread = threading.Thread(target=self._owner.work, name="cnn", daemon=True)
        # The thread knows the owner and not this object: a model that nobody holds any more ends its thread too.
        self._end = weakref.finalize(self, _end, self._owner, self._thread)
        self._thread.start()

    @property
    def name(self) -> str:
        """What runs the network."""
        return self._engine.name

    @property
    def device(self) -> str:
        """Where it runs."""
        return self._engine.device

    @property
    def precision(self) -> Precision:
        """In which type its convolutions are computed."""
        return self._engine.precision

    def run(self, batch: FloatArray) -> Result:
        """Run a batch as `Engine.run` does, perhaps in one pass with others; raises Busy once it is closed."""
        answer = self.submit(batch)
        try:
            return answer.result()
        except BaseException:
            answer.cancel()  # an interrupted caller needs no pass
            raise

    def submit(self, batch: FloatArray) -> "Future[Result]":
        """Put a batch in line, waiting for room; its future may be cancelled until its pass begins.

        Raises Busy once the engine is closed.
        """
        return self._owner.submit(batch)

    def close(self) -> None:
        """Let the pass that is under way end; whoever still waits gets Busy."""
        self._end()
        self._engine.close()


@dataclass(eq=False)
class _Request:
    images: FloatArray
    answer: "Future[Result]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.alone = not bool(np.isfinite(self.images).all())

    def goes_with(self, other: "_Request") -> bool:
        return not (self.alone or other.alone) and self.images.shape[1:] == other.images.shape[1:]


class _Owner:
    """The line of requests, and the loop of the thread that serves it."""

    def __init__(self, engine: Engine, max_images: int, max_wait_s: float, max_waiting: int) -> None:
        self._engine = engine
        self._max_images = max_images
        self._max_wait_s = max_wait_s
        self._max_waiting = max_waiting
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()  # guards the line and both flags
        self._stopped = False
        self._company = False  # whether the last pass was shared, or left somebody waiting

    def submit(self, images: FloatArray) -> "Future[Result]":
        request = _Request(images)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) < self._max_waiting)
            if self._stopped:
                raise _stopping()
            self._waiting.append(request)
            self._changed.notify_all()
        return request.answer

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            if request.answer.set_running_or_notify_cancel():
                request.answer.set_exception(_stopping())

    def work(self) -> None:
        while (group := self._next()) is not None:
            self._serve(group)
            with self._changed:
                self._company = len(group) > 1 or bool(self._waiting)
            del group  # a film is not kept while the thread waits for the next one

    def _next(self) -> list[_Request] | None:
        """Wait for requests and take those of the next pass, without the cancelled; None: stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._waiting)
            if self._company:
                self._changed.wait_for(lambda: self._stopped or self._is_full(), self._max_wait_s)
            if self._stopped:
                return None
            group = self._taken()
            self._changed.notify_all()  # there is room again
            return group

    def _is_full(self) -> bool:
        return sum(len(request.images) for request in self._waiting) >= self._max_images

    def _taken(self) -> list[_Request]:
        group: list[_Request] = []
        images = 0
        while self._waiting:
            request = self._waiting[0]
            fits = images + len(request.images) <= self._max_images
            if group and not (fits and request.goes_with(group[0])):
                break
            self._waiting.popleft()
            if request.answer.set_running_or_notify_cancel():
                group.append(request)
                images += len(request.images)
        return group

    def _serve(self, group: list[_Request]) -> None:
        if not group:  # all were cancelled
            return
        try:
            results = self._pass([request.images for request in group])
        except BaseException as exc:  # whatever it is, somebody waits for it, and the thread must go on
            if len(group) == 1:
                group[0].answer.set_exception(exc)
                return
            for request in group:
                self._serve([request])
            return
        for request, result in zip(group, results, strict=True):
            request.answer.set_result(result)

    def _pass(self, batches: list[FloatArray]) -> list[Result]:
        if len(batches) == 1:
            return [self._engine.run(batches[0])]
        logits, features = self._engine.run(np.concatenate(batches))
        ends = list(itertools.accumulate(len(batch) for batch in batches))
        # copies: a view would keep the maps of all these films for as long as one of them is looked at
        return [
            (logits[end - len(batch) : end].copy(), features[end - len(batch) : end].copy())
            for batch, end in zip(batches, ends, strict=True)
        ]


def _end(owner: _Owner, thread: threading.Thread) -> None:
    """Stop the owner and wait for its pass: an interpreter that ends in the midst of one would crash."""
    owner.stop()
    if threading.current_thread() is not thread:
        thread.join(CLOSE_LIMIT_S)


def _stopping() -> Busy:
    return Busy("The server is stopping. Send the film again a little later.", RETRY_AFTER_S)
