"""The dashboard as its tests use it: what a user does on the page, and what is to be seen there."""

from collections.abc import Callable
from typing import Any

from streamlit import dataframe_util
from streamlit.testing.v1 import AppTest

from dashboard import findings, views
from dashboard.session import Case, Session
from modules import events
from modules.settings import PROJECT_ROOT
from tests.fake_server import MODEL, all_findings, png

LIMIT_S = 10.0
SOURCES = [PROJECT_ROOT / "app.py", *sorted((PROJECT_ROOT / "dashboard").glob("*.py"))]


def opened() -> AppTest:
    test = AppTest.from_file(str(PROJECT_ROOT / "app.py"), default_timeout=20).run()
    assert_no_exception(test)
    return test


def assert_no_exception(test: AppTest) -> None:
    assert [(e.message, e.stack_trace) for e in test.exception] == []


# ── What a user does ─────────────────────────────────────────────────────────────────────────────────────────────────


def upload(test: AppTest, *names: str) -> AppTest:
    """Put films into the uploader, in place of those that it holds."""
    films = [(name, png(colour), "image/png") for colour, name in enumerate(names or ("Jane Doe.png",), start=128)]
    return test.file_uploader(key="films").set_value(films).run()


def edit_uploads(test: AppTest, edit: Callable[[list[Any]], list[Any]]) -> AppTest:
    """Change what the uploader holds, and leave the other files as they are: with its own methods all become new."""
    uploader = test.file_uploader(key="films")
    held = [(u.file_id, u.name, u.getvalue(), u.type) for u in uploader.value]
    uploader._files = edit(held)
    return test.run()


def session_of(test: AppTest) -> Session:
    session: Session = test.session_state["session"]
    return session


def active(test: AppTest) -> Case:
    case = session_of(test).active
    assert case is not None
    return case


def until_read(test: AppTest) -> AppTest:
    """Wait for all that runs or waits, as the page's own clock does in a browser."""
    cases = session_of(test).cases
    for _ in cases:
        for case in cases:
            assert case.job is None or case.job.wait(LIMIT_S)
        test.run()
    assert not [case.state for case in cases if case.state in ("running", "waiting")]
    return test.run()


def click(test: AppTest, key: str) -> AppTest:
    return until_read(test.button(key=key).click().run())


def analysed(test: AppTest, symptoms: str = "cough") -> AppTest:
    upload(test)
    test.text_area(key="symptoms_1").set_value(symptoms)
    return click(test, "analyze")


def go_to(test: AppTest, title: str) -> AppTest:
    """Open a page by its title in the navigation; AppTest itself switches between pages of files only."""
    (test._page_hash,) = (key for key, page in test._registered_pages.items() if page.get("page_name") == title)
    return test.run()


def pick_row(test: AppTest, row: int) -> AppTest:
    """Click a row of the worklist."""
    selection = {"selection": {"rows": [row], "columns": [], "cells": []}}
    test.session_state[views.worklist_key(session_of(test))] = selection
    return test.run()


def pick_finding(test: AppTest, name: str) -> AppTest:
    """Click a bar of the chart."""
    test.session_state[f"case_{active(test).number}_chart"] = {"selection": {findings.PICK: [{"pathology": name}]}}
    return test.run()


# ── What is to be seen ───────────────────────────────────────────────────────────────────────────────────────────────


def words(test: AppTest) -> str:
    """Return all that can be read on the page but for the grids and the chart."""
    kinds = ("text", "code", "caption", "subheader", "title", "header", "error", "warning", "info", "markdown")
    return "\n".join(str(getattr(element, "value", "")) for kind in kinds for element in test.get(kind))


def grids(test: AppTest, column: str) -> list[list[dict[str, Any]]]:
    """Return the rows of every grid that has a column."""
    values = [grid.value for grid in test.dataframe]
    return [value.to_dict("records") for value in values if column in value.columns]


def worklist(test: AppTest) -> list[dict[str, Any]]:
    (rows,) = grids(test, "Film")
    return rows


def charts(test: AppTest) -> list[Any]:
    return [element.proto for element in test.get("vega_lite_chart")]


def chart_rows(test: AppTest) -> dict[str, dict[str, Any]]:
    """Return the data of the only chart, in its order."""
    (chart,) = charts(test)
    rows = dataframe_util.convert_arrow_bytes_to_pandas_df(chart.data.data).to_dict("records")
    return {row["pathology"]: row for row in rows}


def images(test: AppTest) -> list[str]:
    """Return the alternative texts of all images."""
    return [image.alt for element in test.get("image") for image in element.proto.imgs]


def buttons(test: AppTest) -> list[str]:
    return [button.key for button in test.button if button.key]


def metrics(test: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in test.metric}


def seen() -> events.CnnSeen:
    return events.CnnSeen(findings=all_findings(), confidence=0.6, model=MODEL)
