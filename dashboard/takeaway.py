"""What can be taken away: the JSON, a PDF of one film, a CSV of the worklist."""

import base64
import binascii
from datetime import UTC, datetime

import streamlit as st

from dashboard.client import AssistantClient
from dashboard.elements import plain
from dashboard.report import report_pdf
from dashboard.session import Case, Session
from dashboard.worklist import worklist_csv
from modules.answers import Analysis


def offer_downloads(session: Session, client: AssistantClient, case: Case, analysis: Analysis) -> None:
    """Offer the files; their names hold no name of a patient or of a file."""
    name = f"analysis-{analysis.request_id[:12]}"
    as_json, as_pdf, as_csv = st.columns(3, gap="small")
    with as_json:
        st.download_button(
            "Download the answer (JSON)",
            analysis.model_dump_json(indent=1).encode(),
            f"{name}.json",
            "application/json",
            key="json",
            width="stretch",
            on_click="ignore",
        )
    with as_pdf:
        st.download_button(
            "Download the report (PDF)",
            lambda: make_report(session, client, case, analysis),
            f"{name}.pdf",
            "application/pdf",
            key="pdf",
            width="stretch",
            on_click="ignore",
        )
    with as_csv:
        st.download_button(
            "Download the worklist (CSV)",
            worklist_csv(session.entries()),
            "worklist.csv",
            "text/csv",
            key="csv",
            width="stretch",
            on_click="ignore",
        )
    plain(
        "The CSV names the files as they were uploaded. JSON and PDF hold no file name, no header field and not the "
        "text of the symptoms, but what was made of it: red flags, and a second reader's words."
    )


def make_report(session: Session, client: AssistantClient, case: Case, analysis: Analysis) -> bytes:
    """Make the PDF when it is asked for."""
    assert case.job is not None
    film = session.preview(client, case.film, case.job.request.invert)
    return report_pdf(
        analysis,
        film if isinstance(film, bytes) else b"",
        overlay_of(analysis),
        made_at=datetime.now(UTC),
        symptoms_given=bool(case.job.request.symptoms.strip()),
    )


def overlay_of(analysis: Analysis) -> bytes | None:
    """Return the server's overlay of the top finding, or None."""
    if not analysis.heatmap_available:
        return None
    try:
        return base64.b64decode(analysis.heatmap_base64, validate=True)
    except binascii.Error:
        return None
