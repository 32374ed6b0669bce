"""The worklist: which film to read first, and all films as one table for a spreadsheet."""

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modules.answers import Analysis
from modules.pathologies import NAMES
from modules.records import Finding, Probability, RiskLevel

RISK_ORDER: dict[RiskLevel, int] = {"High": 0, "Moderate": 1, "Low": 2}
SEPARATOR = "; "
COLUMNS = (
    "number",
    "file",
    "state",
    "risk_level",
    "needs_review",
    "review_reasons",
    "detected_findings",
    "contradictions",
    "reader_mode",
    "cnn_confidence",
    "llm_confidence",
    "fused_confidence",
    "weights_sha256",
    "request_id",
    *(f"{name}_{value}" for name in NAMES for value in ("cnn", "threshold", "fused", "reader")),
)

_LINE_BREAKS = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# A spreadsheet runs a cell that starts with one of these. Where its list separator is a semicolon, what follows a
# semicolon is a cell as well; full-width signs count as their plain ones.
_RUNNABLE = re.compile(r"(^|;)(?=\s*[=+\-@＝＋－＠]|[\t\r])")


@dataclass(frozen=True)
class Entry:
    """One film of the list; it has no analysis while it waits, and none when it failed."""

    number: int
    name: str
    analysis: Analysis | None
    state: str


def ordered(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the highest risk first, then what needs review, then by number; what has no analysis stays last."""
    listed = tuple(entries)
    analysed = [(_urgency(entry.analysis, entry.number), entry) for entry in listed if entry.analysis is not None]
    analysed.sort(key=lambda pair: pair[0])
    return (*(entry for _, entry in analysed), *(entry for entry in listed if entry.analysis is None))


def _urgency(analysis: Analysis, number: int) -> tuple[int, bool, int]:
    return RISK_ORDER[analysis.risk_level], not analysis.needs_review, number


def worklist_csv(entries: Iterable[Entry]) -> bytes:
    """Return the entries, in the order given, as a CSV file (RFC 4180) that opens safely in a spreadsheet."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\r\n")
    writer.writeheader()
    for entry in entries:
        row = {"number": str(entry.number), "file": _cell(entry.name), "state": _cell(entry.state)}
        writer.writerow(row | (dict(_values(entry.analysis)) if entry.analysis is not None else {}))
    # The byte order mark tells a spreadsheet that this is UTF-8; a lone surrogate has no UTF-8.
    return text.getvalue().encode("utf-8-sig", errors="replace")


def _values(analysis: Analysis) -> Iterator[tuple[str, str]]:
    scores = analysis.confidence_scores
    yield "risk_level", analysis.risk_level
    yield "needs_review", "yes" if analysis.needs_review else "no"
    yield "review_reasons", _cell(SEPARATOR.join(analysis.review_reasons))
    yield "detected_findings", _cell(SEPARATOR.join(f.pathology for f in analysis.findings if f.detected))
    yield "contradictions", str(len(analysis.contradictions))
    yield "reader_mode", analysis.reader.mode
    yield "cnn_confidence", _number(scores.cnn)
    yield "llm_confidence", "" if analysis.reader.token_confidence is None else _number(scores.llm)
    yield "fused_confidence", _number(scores.fused)
    yield "weights_sha256", _cell(analysis.model.sha256)
    yield "request_id", _cell(analysis.request_id)
    for finding in analysis.findings:
        if finding.pathology in NAMES:
            yield from _finding_values(finding)


def _finding_values(finding: Finding) -> Iterator[tuple[str, str]]:
    yield f"{finding.pathology}_cnn", _number(finding.cnn_probability)
    yield f"{finding.pathology}_threshold", _number(finding.operating_threshold)
    yield f"{finding.pathology}_fused", _number(finding.fused_probability)
    yield f"{finding.pathology}_reader", finding.reader.status


def _number(value: Probability) -> str:
    return f"{value:.6f}"


def _cell(text: str) -> str:
    """Return text as one line that no spreadsheet runs."""
    if _RUNNABLE.match(text):  # before a line break at the start becomes something else
        text = f"'{text}"
    line = _LINE_BREAKS.sub(SEPARATOR, text)
    visible = "".join(char for char in line if char == "\t" or unicodedata.category(char) != "Cc")
    return _RUNNABLE.sub(r"\1'", visible)
