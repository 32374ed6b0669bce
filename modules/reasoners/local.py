"""A model on this machine as a reader: loaded in the background, one film at a time, replaced when it hangs or ends."""

import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modules.errors import ReaderUnavailable
from modules.reasoners.base import READY, Control, ReaderFilm, ReaderState
from modules.reasoners.conversation import Writer
from modules.reasoners.local_model import (
    check_packages,
    check_packages_for_4bit,
    engine_of,
    find_model,
    model_of,
)
from modules.reasoners.local_process import STOPPED, Failed, Lost, ModelProcess
from modules.reasoners.turns import Generation, Token, Turn
from modules.settings import Settings

logger = logging.getLogger(__name__)

# A film waits for the one before it while that one makes progress. After a silence of this many times the longest wait
# for a first word that was seen (at least, or as long as none was seen), it goes on without a reader.
PATIENCE = 3.0
LEAST_PATIENCE_S, FIRST_PATIENCE_S = 5.0, 30.0
MAX_FAILED_STARTS = 3  # in a row, after which no further one is tried
MAX_FAILURES = 3  # films in a row on which the model failed, after which it is loaded anew

_LOADING = ReaderState("loading", "MedGemma is still loading.")
_ENDED = "MedGemma's process ended while it read the film."


class LocalWriter(Writer):
    """Owns the model's process: loads it in the background, asks it one film at a time, replaces it when it is lost."""

    plain_schema = True

    def __init__(
        self,
        engine: str,
        folder: Path,
        model: str,
        *,
        dtype: str = "auto",
        quantization: str = "none",
        python: str = sys.executable,
    ) -> None:
        """Start loading; `python` is another interpreter when the engine's packages live there."""
        self.model = model
        self.engine = ""  # what runs it, on what, in which type; known once it is loaded
        self.load_detail = ""  # why it could not be loaded, in a library's words: for whoever installs it
        self._command = [
            *(python, "-m", "modules.reasoners.worker", "--engine", engine, "--model", str(folder)),
            *("--dtype", dtype, "--quantization", quantization),
        ]
        self._turns = threading.Lock()  # one film at a time
        self._last_sign = -math.inf  # of progress in the film that is being read
        self._longest_silence_s: float | None = None  # before a first word
        self._last_film_s = 0.0  # what the last film took
        self._failures = 0
        self._state = _LOADING
        self._settled = threading.Event()  # neither loading nor about to
        self._owning = threading.RLock()  # of the process and of whether it is still wanted
        self._closed = False
        self._process: ModelProcess | None = None
        self._restart()

    @classmethod
    def from_settings(cls, settings: Settings) -> "LocalWriter":
        """Find the model and start loading it; raises ReaderUnavailable when a package or the weights are missing."""
        engine, model = engine_of(settings), model_of(settings)
        check_packages(engine)
        if settings.medgemma_quantization == "4bit" and engine == "transformers":
            check_packages_for_4bit()
        folder = find_model(model)
        shown = folder.name if Path(model).expanduser().is_dir() else model  # an answer names no path of the server
        return cls(engine, folder, shown, quantization=settings.medgemma_quantization)

    def state(self) -> ReaderState:
        """Say whether the model is loading, ready, or why it is neither."""
        return self._state

    def wait_until_settled(self, limit_s: float) -> ReaderState:
        """Wait until the model is ready or has failed, at most `limit_s` seconds."""
        self._settled.wait(limit_s)
        return self._state

    @contextmanager
    def conversation(self, control: Control) -> Iterator[None]:
        """Hold the model for both turns of one film."""
        control.sends_film_to("nowhere: read on this machine")
        waited = False
        while not self._turns.acquire(timeout=0.05):
            waited = True
            control.check()
            if time.monotonic() - self._last_sign > self._patience_s():
                raise ReaderUnavailable("MedGemma is busy with another film and shows no progress.")
        try:
            if waited and control.remaining_s < self._last_film_s:  # begun now, it would be killed in the middle
                raise ReaderUnavailable("MedGemma was busy with other films for too long to read this one in time.")
            start = self._last_sign = time.monotonic()
            yield
            self._last_film_s = time.monotonic() - start
        finally:
            self._turns.release()

    def _patience_s(self) -> float:
        if self._longest_silence_s is None:
            return FIRST_PATIENCE_S
        return max(LEAST_PATIENCE_S, PATIENCE * self._longest_silence_s)

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Let the model's process continue the conversation."""
        process = self._process
        if process is None or self._state is not READY:
            raise ReaderUnavailable(f"{self._state.reason or _LOADING.reason}")
        start = time.monotonic()
        tokens: list[Token] = []
        try:
            for token in process.ask(turn, film, control):
                self._last_sign = time.monotonic()
                if not tokens:
                    self._longest_silence_s = max(self._longest_silence_s or 0.0, self._last_sign - start)
                control.say(turn.name, token.piece.decode("utf-8", "replace"))
                tokens.append(token)
        except Lost:
            self._replace(process)
            raise ReaderUnavailable(STOPPED if control.stopped else _ENDED) from None
        except Failed as exc:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                self._replace(process)
            raise ReaderUnavailable(f"MedGemma failed while it read the film ({exc}).") from None
        self._failures = 0
        return Generation(b"".join(token.piece for token in tokens).decode("utf-8", "replace"), tuple(tokens))

    def close(self) -> None:
        """End the model's process."""
        with self._owning:
            self._closed = True
            if self._process is not None:
                self._process.kill()

    def _ended(self, process: ModelProcess) -> None:
        """Replace a process that ended while it had nothing to do, so that no film has to find out."""
        if process is self._process and self._state is READY:
            self._replace(process)

    def _replace(self, process: ModelProcess) -> None:
        with self._owning:
            if self._closed or process is not self._process:
                return  # somebody has replaced it already
            self._process = None
            self._state = _LOADING
            self._settled.clear()
        process.kill()
        self._restart()

    def _restart(self) -> None:
        self._failures = 0
        self._settled.clear()
        threading.Thread(target=self._load, daemon=True, name="medgemma-loading").start()

    def _load(self) -> None:
        start = time.monotonic()
        for attempt in range(1, MAX_FAILED_STARTS + 1):
            try:
                with self._owning:
                    if self._closed:
                        break
                    process = self._process = ModelProcess(self._command, self._ended)
                self.engine = process.wait_until_ready()
            except Lost as exc:
                if self._closed:
                    break
                logger.warning(
                    "[MedGemma] Local model could not be loaded.",
                    extra={"fields": {"error": str(exc), "attempt": attempt}},
                )
                self.load_detail = exc.detail
                if exc.final or attempt == MAX_FAILED_STARTS:
                    reason = f"MedGemma could not be loaded ({exc}). See: make check-medgemma"
                    self._state = ReaderState("unavailable", reason)
                    break
                continue
            self._state = READY
            seconds = round(time.monotonic() - start, 1)
            fields = {"model": self.model, "engine": self.engine, "seconds": seconds}
            logger.info("[MedGemma] Local model loaded successfully.", extra={"fields": fields})
            break
        self._settled.set()
