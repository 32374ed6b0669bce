"""The worklist: the most urgent film first, and a table that no spreadsheet runs."""

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard.worklist import COLUMNS, RISK_ORDER, Entry, ordered, worklist_csv
from modules.pathologies import NAMES
from modules.records import RiskLevel
from tests.fake_server import analysis, reader
from tests.test_structure import loaded_by

ANALYSES = {
    (level, review): analysis(risk_level=level, needs_review=review) for level in RISK_ORDER for review in (True, False)
}
HOSTILE = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\x00=1", "＝1", '=HYPERLINK("http://evil")')


def rows(*entries: Entry) -> list[dict[str, str]]:
    """Return the table as a strict reader sees it."""
    text = worklist_csv(entries).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text, newline=""), strict=True))


def row(name: str = "film.png", state: str = "done", **other: Any) -> dict[str, str]:
    (only,) = rows(Entry(1, name, analysis(**other), state))
    return only


@st.composite
def worklists(draw: st.DrawFn) -> list[Entry]:
    numbers = draw(st.lists(st.integers(1, 99), unique=True, max_size=12))
    found = st.sampled_from([None, *ANALYSES.values()])
    return [Entry(number, f"{number}.png", draw(found), "done") for number in numbers]


def key(entry: Entry) -> tuple[int, bool, int]:
    assert entry.analysis is not None
    return RISK_ORDER[entry.analysis.risk_level], not entry.analysis.needs_review, entry.number


# ── The order ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_highest_risk_comes_first_then_review_then_the_number() -> None:
    def entry(number: int, level: RiskLevel, review: bool) -> Entry:
        return Entry(number, "", ANALYSES[level, review], "done")

    waiting, failed = Entry(3, "", None, "waiting"), Entry(1, "", None, "failed")
    films = [
        waiting,
        entry(2, "Low", True),
        entry(4, "High", False),
        failed,
        entry(9, "Moderate", True),
        entry(8, "High", True),
        entry(7, "Moderate", False),
        entry(6, "Moderate", True),
    ]
    assert [film.number for film in ordered(films)] == [8, 4, 6, 9, 7, 2, 3, 1]


@given(worklists())
def test_ordering_loses_nothing_and_puts_what_has_no_analysis_last(entries: list[Entry]) -> None:
    result = ordered(entries)
    analysed = [entry for entry in result if entry.analysis is not None]
    assert sorted(entry.number for entry in result) == sorted(entry.number for entry in entries)
    assert list(result) == analysed + [entry for entry in entries if entry.analysis is None]
    assert [key(entry) for entry in analysed] == sorted(key(entry) for entry in analysed)


@given(worklists(), st.randoms())
def test_analysed_films_stand_where_they_stand_however_they_came(entries: list[Entry], random: Any) -> None:
    shuffled = list(entries)
    random.shuffle(shuffled)
    assert [e for e in ordered(shuffled) if e.analysis] == [e for e in ordered(entries) if e.analysis]
    assert ordered(ordered(shuffled)) == ordered(shuffled)


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_row_holds_what_was_found() -> None:
    found = row('a, "b".png', review_reasons=("They differ.", "It is dark."))
    assert tuple(found) == COLUMNS
    expected = {
        "number": "1",
        "file": 'a, "b".png',
        "state": "done",
        "risk_level": "Moderate",
        "needs_review": "yes",
        "review_reasons": "They differ.; It is dark.",
        "detected_findings": "Effusion; Pneumonia",
        "contradictions": "1",
        "reader_mode": "local",
        "cnn_confidence": "0.610000",
        "llm_confidence": "0.700000",
        "fused_confidence": "0.580000",
        "weights_sha256": "0123456789ab" + "f" * 52,
        "request_id": "request-1",
        "Effusion_cnn": "0.620000",
        "Effusion_threshold": "0.280000",
        "Effusion_fused": "0.710000",
        "Effusion_reader": "present",
        "Hernia_reader": "not_mentioned",
    }
    assert {column: found[column] for column in expected} == expected
    assert len(COLUMNS) == 14 + 4 * len(NAMES)


def test_a_confidence_that_was_not_measured_is_empty_and_not_zero() -> None:
    assert row(reader=reader(token_confidence=None))["llm_confidence"] == ""


def test_a_film_without_an_analysis_has_a_row_of_its_own() -> None:
    waiting, failed = rows(Entry(4, "x.png", None, "waiting"), Entry(2, "y.png", None, "failed"))
    assert [waiting["number"], failed["number"]] == ["4", "2"]  # in the order given
    assert {value for column, value in waiting.items() if column not in {"number", "file", "state"}} == {""}


def test_the_file_is_utf_8_with_a_mark_and_the_standards_line_ends() -> None:
    data = worklist_csv([Entry(1, "Übersicht 胸.png", analysis(), "done")])
    assert data.startswith(b"\xef\xbb\xbfnumber,file,state")
    assert data.count(b"\r\n") == 2
    assert data.count(b"\n") == 2
    assert "Übersicht 胸.png" in data.decode("utf-8-sig")
    assert worklist_csv([]).decode("utf-8-sig") == ",".join(COLUMNS) + "\r\n"


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_cell_is_run_by_a_spreadsheet(text: str) -> None:
    found = row(text, text, review_reasons=(text, text), request_id=text)
    for column in ("file", "state", "review_reasons", "request_id"):
        assert found[column].startswith(("'", "; '"))  # a line break at the start has become a semicolon
        assert not any(part.lstrip().startswith(("=", "+", "-", "@", "＝")) for part in found[column].split(";"))


def test_what_looks_like_no_formula_stays_as_it_is() -> None:
    assert row("a=b - c@d+1.png")["file"] == "a=b - c@d+1.png"
    assert row("\ttab.png")["file"] == "'\ttab.png"


def test_a_semicolon_starts_no_formula_where_it_separates_cells() -> None:
    assert row("film;=1+1.png")["file"] == "film;'=1+1.png"


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r", "\u2028"])
def test_a_line_break_in_a_cell_becomes_a_semicolon(line_break: str) -> None:
    assert row(f"one{line_break}two")["file"] == "one; two"


@given(st.text(st.characters(exclude_categories=()), max_size=40), st.text(max_size=40))
def test_any_name_leaves_the_table_a_table(name: str, reason: str) -> None:
    first, second = rows(
        Entry(1, name, analysis(review_reasons=(reason, name)), name), Entry(2, "next.png", None, "new")
    )
    assert tuple(first) == tuple(second) == COLUMNS
    assert first["risk_level"] == "Moderate"
    assert second["file"] == "next.png"
    assert not first["file"].lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))


@given(worklists())
def test_the_table_reads_back(entries: list[Entry]) -> None:
    table = rows(*entries)
    assert [line["number"] for line in table] == [str(entry.number) for entry in entries]
    for line, entry in zip(table, entries, strict=True):
        found = entry.analysis
        assert line["file"] == entry.name
        if found is None:
            continue
        assert line["risk_level"] == found.risk_level
        for finding in found.findings:
            assert float(line[f"{finding.pathology}_cnn"]) == pytest.approx(finding.cnn_probability, abs=5e-7)


def test_it_loads_neither_streamlit_nor_anything_heavy() -> None:
    assert not loaded_by("import dashboard.worklist") & {"torch", "cv2", "streamlit"}
