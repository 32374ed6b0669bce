"""Stage 2: a second reader of the same film, or the reasons why none ran. `modules/reasoners` holds the readers."""

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from modules.answers import ReaderHealth
from modules.errors import ReaderUnavailable
from modules.reasoners.base import Control, OnWords, Reader, ReaderFilm, ReaderState, ReaderTask
from modules.reasoners.conversation import ModelReader, Writer
from modules.reasoners.dummy import DummyReader
from modules.records import CnnPrediction, ReaderInfo, Reading
from modules.settings import ReaderMode, Settings

logger = logging.getLogger(__name__)

NOWHERE = "nowhere: no second reader ran"
NOT_SAID = "not known: the reader did not say where it took the film"
# Readings that are under way, those given up but not yet ended among them; beyond it, films go on without a reader.
MAX_READINGS = 32
_TOO_MANY = "Too many films are being read at the same time."
_NOBODY_WAITS = "Nobody waits for the second reader any longer."
_ENDING = "The server is being stopped."


def _local(settings: Settings) -> Writer:
    from modules.reasoners.local import LocalWriter

    return LocalWriter.from_settings(settings)


def _gemini(settings: Settings) -> Writer:
    from modules.reasoners.gemini import GeminiWriter

    return GeminiWriter(settings.gemini_api_key, settings.gemini_model)


def _openai(settings: Settings) -> Writer:
    from modules.reasoners.openai import OpenAiWriter

    return OpenAiWriter(settings.openai_base_url, settings.openai_api_key, settings.openai_model)


WRITERS: dict[ReaderMode, Callable[[Settings], Writer]] = {"local": _local, "api": _gemini, "openai": _openai}


class MissingReader(Reader):
    """Stands in the chain for a reader that could not be made, and says why."""

    model = None
    looks_at_film = False

    def __init__(self, mode: ReaderMode, why: str) -> None:
        self.mode = mode
        self.why = why

    def read(self, task: ReaderTask) -> Reading:  # noqa: ARG002
        """Raise the reason."""
        raise ReaderUnavailable(self.why)

    def state(self) -> ReaderState:
        """Say that it cannot read, and why."""
        return ReaderState("unavailable", self.why)


class SecondReader:
    """The reader asked for, those to fall back on, and the template behind them all."""

    def __init__(self, mode: ReaderMode, chain: tuple[Reader, ...], *, limit_s: float = 180.0) -> None:
        """Take the mode asked for, the readers in the order in which they are tried, and the time limit of each."""
        self._mode = mode
        self._chain = chain
        self._limit_s = limit_s
        self._places = threading.BoundedSemaphore(MAX_READINGS)
        self._under_way: set[Control] = set()
        self._watching = threading.Lock()  # of the readings under way
        self._ending = False

    @classmethod
    def from_settings(cls, settings: Settings) -> "SecondReader":
        """Make the readers that MEDGEMMA_MODE and MEDGEMMA_FALLBACK name; the film goes to no other."""
        modes = dict.fromkeys((settings.medgemma_mode, *settings.medgemma_fallback, "dummy"))
        chain = tuple(_make_or_explain(mode, settings) for mode in modes)
        return cls(settings.medgemma_mode, chain, limit_s=settings.reader_timeout_s)

    @property
    def looks_at_film(self) -> bool:
        """Whether any reader of the chain looks at the film, rather than at the CNN's numbers alone."""
        return any(reader.looks_at_film for reader in self._chain)

    def read(
        self,
        film: ReaderFilm,
        symptoms: str,
        prediction: CnnPrediction,
        *,
        watch: Control | None = None,
        on_words: Callable[[ReaderMode], OnWords] | None = None,
    ) -> tuple[Reading, ReaderInfo]:
        """Let the first reader that can answer read the film; a failure is a reason in the answer, not an error.

        Stopping `watch` stops the reader, after which the template answers. `on_words` takes the mode of a reader and
        returns what listens to its draft.
        """
        watch = watch or Control()
        with self._watching:
            self._under_way.add(watch)
        try:
            return self._read(film, symptoms, prediction, watch, on_words)
        finally:
            with self._watching:
                self._under_way.discard(watch)

    def _read(
        self,
        film: ReaderFilm,
        symptoms: str,
        prediction: CnnPrediction,
        watch: Control,
        on_words: Callable[[ReaderMode], OnWords] | None,
    ) -> tuple[Reading, ReaderInfo]:
        start = time.perf_counter()
        reasons: list[str] = []
        places: list[str] = []
        for reader in self._chain:
            control = Control(self._limit_s, None if on_words is None else on_words(reader.mode))
            try:
                reading = self._attempt(reader, ReaderTask(film, symptoms, prediction, tuple(reasons), control), watch)
            except ReaderUnavailable as exc:
                reasons.append(str(exc))
            except Exception as exc:  # whatever a back end raises, the CNN's answer must still come back
                logger.warning("reader_failed", extra={"fields": {"reader": reader.mode, "error": type(exc).__name__}})
                reasons.append(f"The reader {reader.mode!r} failed unexpectedly.")
            else:
                places.append(control.film_sent_to or (NOT_SAID if reader.looks_at_film else NOWHERE))
                return reading, self._info(reader, reading, reasons, _where(places), time.perf_counter() - start)
            if control.film_sent_to is not None:
                places.append(control.film_sent_to)
        raise ReaderUnavailable(" ".join(reasons))

    def _attempt(self, reader: Reader, task: ReaderTask, watch: Control) -> Reading:
        """Let a reader read in a thread of its own, and leave it there at the time limit."""
        if not reader.looks_at_film:
            return reader.read(task)
        self._check(watch)
        done = self._start(reader, task)
        watch.when_stopped(task.control.stop)
        task.control.when_stopped(lambda: done.put(None))
        try:
            outcome = done.get(timeout=min(task.control.remaining_s, threading.TIMEOUT_MAX))
        except queue.Empty:
            outcome = None
        except BaseException:  # an interrupt of whoever waits
            task.control.stop()
            raise
        if isinstance(outcome, Reading):
            return outcome
        self._check(watch)
        late = task.control.stopped
        task.control.stop()
        if outcome is None or (late and isinstance(outcome, Exception)):  # it may have noticed the limit itself
            raise ReaderUnavailable(f"The second reader gave no answer within {self._limit_s:g} seconds.")
        raise outcome

    def _check(self, watch: Control) -> None:
        if self._ending:
            raise ReaderUnavailable(_ENDING)
        if watch.stopped:
            raise ReaderUnavailable(_NOBODY_WAITS)

    def _start(self, reader: Reader, task: ReaderTask) -> "queue.SimpleQueue[Reading | BaseException | None]":
        """Start a thread that lets a reader read; what comes of it arrives in the queue."""
        if not self._places.acquire(blocking=False):
            raise ReaderUnavailable(_TOO_MANY)
        done: queue.SimpleQueue[Reading | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            outcome: Reading | BaseException
            try:
                outcome = reader.read(task)
            except BaseException as exc:  # handed to whoever waits
                outcome = exc
            self._places.release()  # first: whoever waits may start the next reading at once
            done.put(outcome)

        try:
            threading.Thread(target=work, daemon=True, name=f"reader-{reader.mode}").start()
        except BaseException:  # no thread to be had
            self._places.release()
            raise
        return done

    def stop_reading(self) -> None:
        """End all readings, those to come too: the template answers at once, and says why."""
        self._ending = True
        with self._watching:
            under_way = tuple(self._under_way)
        for watch in under_way:
            watch.stop()

    def health(self) -> ReaderHealth:
        """Say which reader would answer now, and why it is not the one asked for."""
        states = [reader.state() for reader in self._chain]
        behind = list(itertools.takewhile(lambda state: state.state != "ready", states))
        answering = self._chain[min(len(behind), len(self._chain) - 1)]
        return ReaderHealth(
            mode_requested=self._mode,
            mode=answering.mode,
            model=answering.model,
            state="loading" if states[0].state == "loading" else "fallback" if behind else "ready",
            reason=" ".join(state.reason for state in behind if state.reason) or None,
        )

    def wait_until_settled(self, limit_s: float) -> ReaderHealth:
        """Wait until no reader is loading any longer, at most `limit_s` seconds; for notebooks and scripts."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline and any(reader.state().state == "loading" for reader in self._chain):
            time.sleep(0.05)
        return self.health()

    def close(self) -> None:
        """Release what the readers hold, each of them even when another one fails to."""
        with ExitStack() as stack:
            for reader in self._chain:
                stack.callback(reader.close)

    def _info(self, reader: Reader, reading: Reading, reasons: list[str], where: str, seconds: float) -> ReaderInfo:
        return ReaderInfo(
            mode_requested=self._mode,
            mode=reader.mode,
            model=reader.model,
            independent=reading.independent,
            fallback_reason=" ".join(reasons) or None,
            film_sent_to=where,
            token_confidence=reading.token_confidence,
            form=reading.form,
            flags=reading.flags,
            prompt=reading.prompt,
            saw_cnn=reading.saw_cnn,
            seconds=seconds,
        )


def _where(places: list[str]) -> str:
    """Say where the film went: a reader elsewhere is named even when another one answered after it."""
    elsewhere = [place for place in dict.fromkeys(places) if not place.startswith("nowhere:")]
    return "; ".join(elsewhere) or places[-1]


def _make_or_explain(mode: ReaderMode, settings: Settings) -> Reader:
    if mode == "dummy":
        return DummyReader()
    try:
        writer = WRITERS[mode](settings)
    except ReaderUnavailable as exc:
        return MissingReader(mode, str(exc))
    return ModelReader(mode, writer, max_tokens=settings.reader_max_tokens, shows_cnn=settings.reader_sees_cnn)
