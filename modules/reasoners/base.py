"""What every second reader must be, and what it must answer.

A reader answers in two turns: first the film alone, a status for each pathology; then, with the symptoms, its
reasoning. So symptoms cannot echo as findings.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import Field, ValidationError, create_model

from modules.errors import ReaderUnavailable
from modules.pathologies import NAMES
from modules.records import CnnPrediction, Probability, Radiograph, ReaderStatement, Reading, Record, Status
from modules.settings import ReaderMode

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


class Reader(Protocol):
    """A back end. Heavy imports and loading belong into its constructor, which may raise ReaderUnavailable."""

    mode: ReaderMode
    model: str | None
    film_sent_to: str

    @abstractmethod
    def read(self, task: ReaderTask) -> Reading:
        """Read the film; raises ReaderUnavailable with a sentence for the user when it cannot."""
