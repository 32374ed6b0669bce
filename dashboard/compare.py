"""Two films of this visit side by side."""

import streamlit as st

from dashboard import result, views
from dashboard.client import AssistantClient
from dashboard.elements import plain
from dashboard.findings import number_columns, ranked, table_row
from dashboard.session import Case, Session
from dashboard.viewer import choose_first_detected

COLUMNS = ("Finding", "Detected", "CNN", "Threshold", "Fused")  # what fits beside another film


def show_comparison(session: Session, client: AssistantClient) -> None:
    """Let the user choose two analysed films, and show both with their maps and numbers."""
    read = {case.number: case for case in session.cases if case.analysis is not None}
    if len(read) < 2:
        st.subheader("Two films, side by side")
        plain("Analyse at least two films in the reading room; then they can be compared here.")
        return
    numbers = [entry.number for entry in session.entries() if entry.number in read]
    with st.container(key="comparison"):
        columns = st.columns(2, gap="medium")
    for column, side, preset in zip(columns, ("Left", "Right"), (0, 1), strict=True):
        with column:
            number = st.selectbox(side, numbers, preset, format_func=lambda n: f"Film {n}", key=f"compare_{side}")
            _show_side(session, client, read[number], f"compare_{side}_{number}")
    plain("They may be of different patients or dates: nothing here says that a difference is a change.")


def _show_side(session: Session, client: AssistantClient, case: Case, key: str) -> None:
    analysis = case.analysis
    assert analysis is not None
    plain(case.film.name)
    result.show_risk(analysis)
    choose_first_detected(key, analysis.findings, analysis.heatmaps)
    views.show_viewer(session, client, case, analysis, key)
    st.dataframe(
        [
            {name: value for name, value in table_row(finding).items() if name in COLUMNS}
            for finding in ranked(analysis.findings)
        ],
        column_config=number_columns(),
        hide_index=True,
        height="content",
        alt="Findings of this film",
    )
