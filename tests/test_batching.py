"""One owner of the network: shared passes give what lone ones give, and nobody pays for another's film."""

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from modules.cnn_model import CnnModel, preprocess
from modules.engines import choice, reference
from modules.engines.base import Engine, GpuOptions
from modules.engines.batching import BatchingEngine, Result, owned
from modules.engines.densenet import served_tensors
from modules.engines.onnxruntime import OnnxRuntimeEngine
from modules.engines.pytorch import PytorchEngine
from modules.errors import Busy
from modules.pipeline import Pipeline
from modules.records import FloatArray
from modules.settings import Precision, Settings
from modules.weights import load_weights

LIMIT_S = 20.0


class Scripted:
    """An engine of a GPU that takes as long as a test lets it; its logits are the means of the images."""

    name, device = "scripted", "cuda"
    precision: Precision = "fp32"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.began = threading.Event()
        self.passes: list[int] = []
        self.threads: set[int] = set()
        self.closed = False

    def run(self, batch: FloatArray) -> Result:
        self.passes.append(len(batch))
        self.threads.add(threading.get_ident())
        self.began.set()
        assert self.go_on.wait(LIMIT_S)
        if (batch == 13.0).any():
            raise RuntimeError("an image that this engine breaks on")
        return batch.mean(axis=(1, 2, 3), keepdims=True)[:, :, 0, 0], batch.copy()

    def close(self) -> None:
        self.closed = True


def film(value: float, images: int = 1, side: int = 4) -> FloatArray:
    return np.full((images, 1, side, side), value, np.float32)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def batching(scripted: Scripted) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(scripted, 8)
    yield engine
    scripted.go_on.set()
    engine.close()


def busy(scripted: Scripted, batching: BatchingEngine) -> "Future[Result]":
    """Let a first film occupy the engine until the test says go on."""
    scripted.go_on.clear()
    first = batching.submit(film(0.0))
    assert scripted.began.wait(LIMIT_S)
    return first


# ── The same numbers ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def films() -> FloatArray:
    recipe = load_weights("embedded").card.preprocessing
    return np.stack([preprocess(one, recipe) for one in reference.films()])


@pytest.mark.parametrize("make", [OnnxRuntimeEngine, PytorchEngine])
def test_a_shared_pass_gives_what_a_lone_one_gives(make: Callable[..., Engine], films: FloatArray) -> None:
    engine = make(served_tensors(load_weights("embedded")))
    counted: list[int] = []

    class Counting(Scripted):
        def run(self, batch: FloatArray) -> Result:
            scripted = super().run(batch)
            counted.append(len(batch))
            return scripted if batch.shape[2] == film(0.0).shape[2] else engine.run(batch)

    inner = Counting()
    batching = BatchingEngine(inner, 6)
    first = busy(inner, batching)
    requests = [films[:2], films[2:3], films[3:6]]
    answers = [batching.submit(request) for request in requests]
    inner.go_on.set()
    first.result(LIMIT_S)
    for request, answer in zip(requests, answers, strict=True):
        for found, expected in zip(answer.result(LIMIT_S), engine.run(request), strict=True):
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert found.base is None  # no view of what belongs to others
    assert counted == [1, 6]
    batching.close()


def test_callers_in_many_threads_get_their_own_film(scripted: Scripted, batching: BatchingEngine) -> None:
    def ask(number: int) -> float:
        return float(batching.run(film(100.0 + number))[0][0, 0])

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(200))) == [100.0 + number for number in range(200)]
    assert max(scripted.passes) <= 8
    assert len(scripted.threads) == 1  # one owner
    assert scripted.threads != {threading.get_ident()}


# ── What shares a pass ───────────────────────────────────────────────────────────────────────────────────────────────


def test_what_waits_shares_a_pass_up_to_its_size(scripted: Scripted, batching: BatchingEngine) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(float(value), images=3)) for value in range(1, 6)]
    scripted.go_on.set()
    for answer in (first, *answers):
        answer.result(LIMIT_S)
    assert scripted.passes == [1, 6, 6, 3]


def test_a_request_that_is_larger_than_a_pass_has_one_of_its_own(scripted: Scripted, batching: BatchingEngine) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(1.0, images=count)) for count in (2, 20, 2)]
    scripted.go_on.set()
    for answer in (first, *answers):
        answer.result(LIMIT_S)
    assert scripted.passes == [1, 2, 20, 2]


def test_films_of_different_sizes_share_none(scripted: Scripted, batching: BatchingEngine) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(float(side), side=side)) for side in (4, 4, 8)]
    scripted.go_on.set()
    first.result(LIMIT_S)
    assert [float(answer.result(LIMIT_S)[0][0, 0]) for answer in answers] == [4.0, 4.0, 8.0]
    assert scripted.passes == [1, 2, 1]


def test_a_lone_film_waits_for_nobody_and_one_in_company_does(scripted: Scripted) -> None:
    batching = BatchingEngine(scripted, 8, max_wait_s=0.5)
    start = time.monotonic()
    for _ in range(3):
        batching.run(film(1.0))
    assert time.monotonic() - start < 0.4
    first = busy(scripted, batching)
    together = [batching.submit(film(2.0)), batching.submit(film(3.0))]
    scripted.go_on.set()
    for answer in (first, *together):
        answer.result(LIMIT_S)
    start = time.monotonic()
    batching.run(film(4.0))
    assert time.monotonic() - start >= 0.45
    batching.close()


# ── Whose error it is ────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_engine_that_breaks_on_one_film_breaks_for_that_one_alone(
    scripted: Scripted, batching: BatchingEngine
) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(value)) for value in (1.0, 13.0, 2.0)]
    scripted.go_on.set()
    first.result(LIMIT_S)
    assert [float(answers[i].result(LIMIT_S)[0][0, 0]) for i in (0, 2)] == [1.0, 2.0]
    with pytest.raises(RuntimeError, match="breaks on"):
        answers[1].result(LIMIT_S)
    assert scripted.passes == [1, 3, 1, 1, 1]
    assert float(batching.run(film(5.0))[0][0, 0]) == 5.0  # the owner lives on


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_film_that_is_not_finite_meets_no_other(scripted: Scripted, batching: BatchingEngine, value: float) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(one)) for one in (1.0, value, 2.0)]
    scripted.go_on.set()
    first.result(LIMIT_S)
    found = [float(answer.result(LIMIT_S)[0][0, 0]) for answer in answers]
    assert found[0] == 1.0
    assert found[2] == 2.0
    np.testing.assert_equal(found[1], value)  # what it would get alone
    assert scripted.passes == [1, 1, 1, 1]


def test_even_an_exit_reaches_its_caller_and_leaves_the_owner(scripted: Scripted, batching: BatchingEngine) -> None:
    def leaves(batch: FloatArray) -> Result:
        raise SystemExit(3)

    run, scripted.run = scripted.run, leaves  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        batching.submit(film(1.0)).result(LIMIT_S)
    scripted.run = run  # type: ignore[method-assign]
    assert float(batching.submit(film(2.0)).result(LIMIT_S)[0][0, 0]) == 2.0


# ── Who leaves, and when it ends ─────────────────────────────────────────────────────────────────────────────────────


def test_a_waiter_that_cancels_is_never_run(scripted: Scripted, batching: BatchingEngine) -> None:
    first = busy(scripted, batching)
    answers = [batching.submit(film(value)) for value in (1.0, 2.0, 3.0)]
    assert answers[1].cancel()
    scripted.go_on.set()
    first.result(LIMIT_S)
    assert [float(answers[i].result(LIMIT_S)[0][0, 0]) for i in (0, 2)] == [1.0, 3.0]
    assert scripted.passes == [1, 2]
    with pytest.raises(CancelledError):
        answers[1].result(LIMIT_S)


def test_when_all_that_wait_cancel_the_next_film_is_served(scripted: Scripted, batching: BatchingEngine) -> None:
    first = busy(scripted, batching)
    waiting = [batching.submit(film(1.0)) for _ in range(3)]
    assert all(answer.cancel() for answer in waiting)
    scripted.go_on.set()
    first.result(LIMIT_S)
    assert float(batching.submit(film(7.0)).result(LIMIT_S)[0][0, 0]) == 7.0
    assert scripted.passes == [1, 1]


def test_an_interrupted_caller_takes_its_film_back(
    scripted: Scripted, batching: BatchingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = busy(scripted, batching)
    kept: list[Future[Result]] = []
    submit = batching.submit

    class Interrupted(Future[Result]):
        def result(self, timeout: float | None = None) -> Result:
            raise KeyboardInterrupt

    def remember(batch: FloatArray) -> "Future[Result]":
        kept.append(submit(batch))
        kept[-1].__class__ = Interrupted
        return kept[-1]

    monkeypatch.setattr(batching, "submit", remember)
    with pytest.raises(KeyboardInterrupt):
        batching.run(film(9.0))
    scripted.go_on.set()
    first.result(LIMIT_S)
    assert kept[0].cancelled()


def test_the_line_is_bounded_and_whoever_finds_it_full_waits_for_room(scripted: Scripted) -> None:
    batching = BatchingEngine(scripted, 1, max_waiting=2)
    first = busy(scripted, batching)
    answers = [batching.submit(film(1.0)), batching.submit(film(2.0))]
    late: list[Result] = []
    thread = threading.Thread(target=lambda: late.append(batching.run(film(3.0))))
    thread.start()
    time.sleep(0.1)
    assert len(batching._owner._waiting) == 2
    scripted.go_on.set()
    thread.join(LIMIT_S)
    assert [float(result[0][0, 0]) for result in late] == [3.0]
    for answer in (first, *answers):
        answer.result(LIMIT_S)
    batching.close()


def test_closing_ends_the_pass_and_tells_everybody_else(scripted: Scripted) -> None:
    batching = BatchingEngine(scripted, 1, max_waiting=2)
    first = busy(scripted, batching)
    waiting = [batching.submit(film(1.0)), batching.submit(film(2.0))]
    refused: list[BaseException] = []

    def without_room() -> None:
        with pytest.raises(Busy, match="stopping") as caught:
            batching.run(film(3.0))
        refused.append(caught.value)

    thread = threading.Thread(target=without_room)
    thread.start()
    time.sleep(0.05)
    closing = threading.Thread(target=batching.close)
    closing.start()
    for answer in waiting:  # at once, though the pass goes on
        with pytest.raises(Busy, match="stopping"):
            answer.result(LIMIT_S)
    thread.join(LIMIT_S)
    assert len(refused) == 1
    assert not first.done()
    scripted.go_on.set()
    closing.join(LIMIT_S)
    assert float(first.result(LIMIT_S)[0][0, 0]) == 0.0
    assert scripted.closed
    assert scripted.passes == [1]
    with pytest.raises(Busy):
        batching.run(film(1.0))
    batching.close()  # twice is once


def test_a_model_that_nobody_holds_ends_its_thread(scripted: Scripted) -> None:
    batching = BatchingEngine(scripted, 8)
    batching.run(film(1.0))
    thread = batching._thread
    del batching
    gc.collect()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_a_film_is_not_kept_once_it_was_run(batching: BatchingEngine) -> None:
    images = film(1.0)
    kept = weakref.ref(images)
    batching.run(images)
    del images
    wait_until(lambda: kept() is None)


# ── Where it is used ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_on_the_cpu_films_pass_through(pipeline: Pipeline) -> None:
    assert isinstance(pipeline.cnn.engine, OnnxRuntimeEngine)
    engine = PytorchEngine(served_tensors(load_weights("embedded")), "cpu")
    assert owned(engine, 16) is engine


@pytest.mark.parametrize(("mirror", "images"), [(True, 6), (False, 3)])
def test_on_a_gpu_the_setting_counts_films(monkeypatch: pytest.MonkeyPatch, mirror: bool, images: int) -> None:
    class OnGpu(PytorchEngine):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(args[0], "cpu")
            self.device = "mps"

        def fetched(self, *results: Any) -> Any:
            return tuple(result.numpy() for result in results)

    monkeypatch.setattr(choice, "PytorchEngine", OnGpu)
    monkeypatch.setattr(choice, "_runs_on_cpu", lambda device: False)
    monkeypatch.setattr(choice, "best_device", lambda: "mps")
    settings = Settings(_env_file=None, medgemma_mode="dummy", cnn_batch=3, cnn_mirror_check=mirror)
    loaded = Pipeline.from_settings(settings)
    engine = loaded.cnn.engine
    assert isinstance(engine, BatchingEngine)
    assert engine._owner._max_images == images
    info = loaded.cnn.info
    assert (info.engine, info.device, info.precision) == ("pytorch", "mps", "fp32")
    loaded.close()
    with pytest.raises(Busy):
        engine.run(film(0.0, side=224))


def test_a_model_can_be_told_to_share_nothing() -> None:
    assert GpuOptions().films_a_pass == 1
    CnnModel(load_weights("embedded"), "cpu").close()
