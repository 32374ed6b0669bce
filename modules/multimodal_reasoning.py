"""Stage 2: a second reader of the same film, or the reasons why none ran. `modules/reasoners` holds the readers."""

import itertools
import logging
import time
from collections.abc import Callable

from modules.errors import ReaderUnavailable
from modules.reasoners.base import Reader, ReaderTask
from modules.reasoners.dummy import DummyReader
from modules.records import CnnPrediction, Radiograph, ReaderHealth, ReaderInfo, Reading
from modules.settings import ReaderMode, Settings

logger = logging.getLogger(__name__)

# Each back end's heavy imports are in its constructor, so that naming it here costs nothing.
BACK_ENDS: dict[ReaderMode, Callable[[], Reader]] = {"dummy": DummyReader}


class MissingReader(Reader):
    """Stands in the chain for a reader that could not be made, and says why."""

    model = None
    film_sent_to = "nowhere"

    def __init__(self, mode: ReaderMode, why: str) -> None:
        self.mode = mode
        self.why = why

    def read(self, task: ReaderTask) -> Reading:  # noqa: ARG002
        """Raise the reason."""
        raise ReaderUnavailable(self.why)


class SecondReader:
    """The reader asked for, those to fall back on, and the template behind them all."""

    def __init__(self, mode: ReaderMode, chain: tuple[Reader, ...]) -> None:
        """Take the mode asked for and the readers in the order in which they are tried."""
        self._mode = mode
        self._chain = chain

    @classmethod
    def from_settings(cls, settings: Settings) -> "SecondReader":
        """Make the readers that MEDGEMMA_MODE and MEDGEMMA_FALLBACK name; the film goes to no other."""
        modes = dict.fromkeys((settings.medgemma_mode, *settings.medgemma_fallback, "dummy"))
        return cls(settings.medgemma_mode, tuple(_make_or_explain(mode) for mode in modes))

    def read(self, radiograph: Radiograph, symptoms: str, prediction: CnnPrediction) -> tuple[Reading, ReaderInfo]:
        """Let the first reader that can answer read the film; a failure is a reason in the answer, not an error."""
        start = time.perf_counter()
        reasons: list[str] = []
        for reader in self._chain:
            try:
                reading = reader.read(ReaderTask(radiograph, symptoms, prediction, tuple(reasons)))
            except ReaderUnavailable as exc:
                reasons.append(str(exc))
            except Exception as exc:  # whatever a back end raises, the CNN's answer must still come back
                logger.warning("reader_failed", extra={"fields": {"reader": reader.mode, "error": type(exc).__name__}})
                reasons.append(f"The reader {reader.mode!r} failed unexpectedly.")
            else:
                return reading, self._info(reader, reading, reasons, time.perf_counter() - start)
        raise ReaderUnavailable(" ".join(reasons))

    def health(self) -> ReaderHealth:
        """Say which reader answers, and why it is not the one asked for."""
        missing = list(itertools.takewhile(lambda reader: isinstance(reader, MissingReader), self._chain))
        answering = self._chain[len(missing)].mode
        return ReaderHealth(
            mode_requested=self._mode,
            mode=answering,
            state="fallback" if missing else "ready",
            reason=" ".join(reader.why for reader in missing if isinstance(reader, MissingReader)) or None,
        )

    def _info(self, reader: Reader, reading: Reading, reasons: list[str], seconds: float) -> ReaderInfo:
        return ReaderInfo(
            mode_requested=self._mode,
            mode=reader.mode,
            model=reader.model,
            independent=reading.independent,
            fallback_reason=" ".join(reasons) or None,
            film_sent_to=reader.film_sent_to,
            token_confidence=reading.token_confidence,
            seconds=seconds,
        )


def _make_or_explain(mode: ReaderMode) -> Reader:
    try:
        return _make(mode)
    except ReaderUnavailable as exc:
        return MissingReader(mode, str(exc))


def _make(mode: ReaderMode) -> Reader:
    if mode not in BACK_ENDS:
        raise ReaderUnavailable(f"This version of the assistant has no reader {mode!r}.")
    return BACK_ENDS[mode]()
