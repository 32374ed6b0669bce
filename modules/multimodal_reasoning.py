"""Stage 2: a second reader of the same film. What a reader must be, what it must answer, and which one runs.

A reader answers in two turns: first the film alone, a status for each pathology; then, with the symptoms, its
reasoning. So symptoms cannot echo as findings.
"""

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, create_model

from modules.errors import ReaderUnavailable
from modules.pathologies import NAMES
from modules.records import (
    CnnPrediction,
    Probability,
    Radiograph,
    ReaderHealth,
    ReaderInfo,
    ReaderStatement,
    Reading,
    Record,
    Status,
)
from modules.settings import ReaderMode, Settings

logger = logging.getLogger(__name__)

MAX_QUOTE = 200  # characters
MAX_REASONING = 4000
MAX_ITEM = 200
MAX_ITEMS = 8
MAX_REPLY = 64_000  # characters of JSON; more is no answer to these questions


# ── What a reader must answer ────────────────────────────────────────────────────────────────────────────────────────


class StatusReply(Record):
    """First turn, for one pathology: what the film shows, in the words that it rests on."""

    status: Status
    quote: Annotated[str, Field(max_length=MAX_QUOTE)] = ""


# One field a pathology, so that a constrained decoder must answer all 14.
FilmReply = create_model(
    "FilmReply",
    __base__=Record,
    __doc__="First turn: the film alone.",
    **{name.replace(" ", "_"): (StatusReply, ...) for name in NAMES},  # type: ignore[call-overload]
)

Items = Annotated[tuple[Annotated[str, Field(max_length=MAX_ITEM)], ...], Field(max_length=MAX_ITEMS)]


class ClinicalReply(Record):
    """Second turn: the film and the symptoms together."""

    clinical_reasoning: Annotated[str, Field(min_length=1, max_length=MAX_REASONING)]
    differential: Items = Field((), description="The likeliest first")


def reply_schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the JSON schemas of the two turns, for readers whose replies can be constrained."""
    return FilmReply.model_json_schema(), ClinicalReply.model_json_schema()


def parse_replies(
    film: str,
    clinical: str,
    *,
    token_confidence: Probability | None = None,
    status_confidence: Mapping[str, float] | None = None,
) -> Reading:
    """Validate both turns' JSON and make the reading; raises ReaderUnavailable when either does not fit its schema.

    `status_confidence` holds measured confidences by pathology; a pathology without one has none.
    """
    if max(len(film), len(clinical)) > MAX_REPLY:
        raise ReaderUnavailable("The second reader's reply was too long.")
    try:
        statuses = FilmReply.model_validate_json(film)
        reply = ClinicalReply.model_validate_json(clinical)
    except ValidationError as exc:
        raise ReaderUnavailable("The second reader's reply did not fit the form that was asked for.") from exc
    measured = status_confidence or {}
    statements = {
        name: ReaderStatement(status=said.status, quote=said.quote, confidence=measured.get(name))
        for name in NAMES
        for said in [getattr(statuses, name.replace(" ", "_"))]
    }
    return Reading(
        reasoning=reply.clinical_reasoning,
        differential=reply.differential,
        statements=statements,
        token_confidence=token_confidence,
    )


# ── What a reader must be ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, eq=False)
class ReaderTask:
    """What a reader gets. The CNN's prediction is for the template: an independent reader must not look at it."""

    radiograph: Radiograph
    symptoms: str
    prediction: CnnPrediction
    why_not_others: tuple[str, ...] = ()  # sentences: why the readers asked for before this one did not run


class Reader(ABC):
    """A back end. Heavy imports and loading belong into its constructor, which may raise ReaderUnavailable."""

    mode: ReaderMode
    model: str | None
    film_sent_to: str

    @abstractmethod
    def read(self, task: ReaderTask) -> Reading:
        """Read the film; raises ReaderUnavailable with a sentence for the user when it cannot."""


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


# ── Which one runs ───────────────────────────────────────────────────────────────────────────────────────────────────


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
    from modules.reasoners.dummy import DummyReader

    back_ends: dict[ReaderMode, Callable[[], Reader]] = {"dummy": DummyReader}
    if mode not in back_ends:
        raise ReaderUnavailable(f"This version of the assistant has no reader {mode!r} yet.")
    return back_ends[mode]()
