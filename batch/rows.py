"""The row of a film, and the columns of the table that is made of rows."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from modules.answers import Analysis
from modules.pathologies import NAMES
from modules.records import ModelInfo, Number, Probability, Record, RiskLevel
from modules.settings import ReaderMode

Status = Literal["ok", "refused", "undecodable", "failed"]
Kind = Literal["text", "texts", "whole", "number", "flag"]
STAGES = ("decode", "gate", "cnn", "explainability", "reader", "fusion", "uncertainty", "risk")
MAX_MESSAGE = 500  # characters; the project's own sentences are shorter


class RowFinding(Record):
    """One pathology on one film."""

    pathology: str
    cnn: Probability
    threshold: Probability
    detected: bool
    fused: Probability


class Row(Record):
    """Everything that is kept of one film; what is not known is null."""

    file: str
    status: Status
    code: str | None = None
    message: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    gate_score: Probability | None = None
    warnings: tuple[str, ...] | None = None
    risk_level: RiskLevel | None = None
    risk_factors: tuple[str, ...] | None = None
    needs_review: bool | None = None
    review_reasons: tuple[str, ...] | None = None
    findings: tuple[RowFinding, ...] = ()
    insufficient_data: tuple[str, ...] | None = None
    contradictions: tuple[str, ...] | None = None
    cnn_confidence: Probability | None = None
    llm_confidence: Probability | None = None
    fused_confidence: Probability | None = None
    reader_mode: ReaderMode | None = None
    reader_fallback: str | None = None
    film_sent_to: str | None = None
    weights: str | None = None
    weights_sha256: str | None = None
    engine: str | None = None
    device: str | None = None
    precision: str | None = None
    version: str | None = None
    ms: dict[str, Number] = Field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A column of the table: its name, what it holds, and what that means."""

    name: str
    kind: Kind
    meaning: str


def _prefix(pathology: str) -> str:
    return pathology.replace(" ", "_")


# What each pathology has: the end of the column's name, the field of `RowFinding`, kind and meaning.
FINDING_COLUMNS: tuple[tuple[str, Kind, str], ...] = (
    ("cnn", "number", "the CNN's calibrated probability of this pathology"),
    ("threshold", "number", "its operating threshold; 1 when it has none"),
    ("detected", "flag", "whether the probability reaches the threshold"),
    ("fused", "number", "the probability after a second reader's bounded adjustment; without one, the CNN's"),
)
COLUMNS: tuple[Column, ...] = (
    Column("file", "text", "path relative to the source; `archive.zip/inner/name.png` for a member of an archive"),
    Column("status", "text", "`ok`, `refused`, `undecodable` or `failed`"),
    Column("code", "text", "stable code of the error; null when ok"),
    Column("message", "text", "what is wrong, in a sentence; null when ok"),
    Column("sha256", "text", "hash of the file; null when it could not be read or is larger than the limit"),
    Column("width", "whole", "pixels, by the file's header"),
    Column("height", "whole", "pixels, by the file's header"),
    Column("gate_score", "number", "how much the film looks like those that the input gate was fitted on, 0 to 1"),
    Column("warnings", "texts", "of the input gate, about the quality of the film"),
    Column("risk_level", "text", "`Low`, `Moderate` or `High`"),
    Column("risk_factors", "texts", "why"),
    Column("needs_review", "flag", "whether a person must look"),
    Column("review_reasons", "texts", "why"),
    *(
        Column(f"{_prefix(name)}_{end}", kind, f"{name}: {meaning}")
        for name in NAMES
        for end, kind, meaning in FINDING_COLUMNS
    ),
    Column("insufficient_data", "texts", "pathologies with too few validation patients: shown, never driving the risk"),
    Column("contradictions", "texts", "where a second reader and the CNN differ"),
    Column("cnn_confidence", "number", "how decided the CNN is, not how often it is right"),
    Column("llm_confidence", "number", "the second reader's measured token confidence; null when not measured"),
    Column("fused_confidence", "number", "over what was measured"),
    Column("reader_mode", "text", "the reader that answered; `dummy` is a template and reads nothing"),
    Column("reader_fallback", "text", "why the reader asked for did not answer; null when it did"),
    Column("film_sent_to", "text", "where the film went, in words"),
    Column("weights", "text", "name of the CNN's weights"),
    Column("weights_sha256", "text", "their hash"),
    Column("engine", "text", "inference engine of the CNN"),
    Column("device", "text", "device of the CNN"),
    Column("precision", "text", "in which type the CNN was computed"),
    Column("version", "text", "of this program"),
    Column("ms_read", "number", "milliseconds to read the file, or to unpack it"),
    *(Column(f"ms_{stage}", "number", f"milliseconds of the stage {stage}") for stage in STAGES),
    Column("ms_total", "number", "milliseconds from reading the file to the finished row"),
)


def model_columns(model: ModelInfo, version: str) -> dict[str, str]:
    """Return the fields of a row that say which network and program made it."""
    return {
        "weights": model.weights,
        "weights_sha256": model.sha256,
        "engine": model.engine,
        "device": model.device,
        "precision": model.precision,
        "version": version,
    }


def findings_of(analysis: Analysis) -> dict[str, Any]:
    """Return the fields of a row that an analysis fills."""
    quality, scores, reader = analysis.quality, analysis.confidence_scores, analysis.reader
    return {
        "status": "ok",
        "width": analysis.image.width,
        "height": analysis.image.height,
        "gate_score": quality.gate_score,
        "warnings": tuple(warning.message for warning in quality.warnings),
        "risk_level": analysis.risk_level,
        "risk_factors": analysis.risk_factors,
        "needs_review": analysis.needs_review,
        "review_reasons": analysis.review_reasons,
        "findings": tuple(
            RowFinding(
                pathology=finding.pathology,
                cnn=finding.cnn_probability,
                threshold=finding.operating_threshold,
                detected=finding.detected,
                fused=finding.fused_probability,
            )
            for finding in analysis.findings
        ),
        "insufficient_data": tuple(f.pathology for f in analysis.findings if not f.sufficient_data),
        "contradictions": tuple(f"{one.pathology}: {one.note}" for one in analysis.contradictions),
        "cnn_confidence": scores.cnn,
        "llm_confidence": reader.token_confidence,
        "fused_confidence": scores.fused,
        "reader_mode": reader.mode,
        "reader_fallback": reader.fallback_reason,
        "film_sent_to": reader.film_sent_to,
    }


def flat(row: Row) -> dict[str, Any]:
    """Return a row as a value for each column, in their order."""
    values = row.model_dump(mode="json")
    of_finding = {
        f"{_prefix(finding['pathology'])}_{end}": finding[end]
        for finding in values.pop("findings")
        for end, _, _ in FINDING_COLUMNS
    }
    of_stage = {f"ms_{stage}": time for stage, time in values.pop("ms").items()}
    known = values | of_finding | of_stage
    return {column.name: known.get(column.name) for column in COLUMNS}
