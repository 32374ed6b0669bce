"""What is known of a film while it is being read: each stage as it ends, the reader's words as they are written."""

import time

import streamlit as st

from dashboard import findings
from dashboard.client import AssistantClient
from dashboard.elements import plain, show_png
from dashboard.session import Case, Job, Session

POLL_S = 0.4


def show_progress(session: Session, client: AssistantClient, case: Case) -> None:
    """Show how far the reading is, and look again and again until it has ended."""
    film, evidence = st.columns([1, 1], gap="medium")
    with film:
        invert = case.job.request.invert if case.job is not None else False
        preview = session.preview(client, case.film, invert)
        if isinstance(preview, bytes):
            show_png(preview, "The radiograph")
    with evidence:
        _watch(session, client, case)


@st.fragment(run_every=POLL_S)
def _watch(session: Session, client: AssistantClient, case: Case) -> None:
    session.advance(client)
    if case.state not in ("running", "waiting"):
        session.forget_failed_previews()  # a server that answered now can show the film, too
        st.rerun()
    if case.job is None or case.state == "waiting":
        st.info("Waiting for the films before it.")
        return
    job = case.job
    st.info(f"{stage_of(job)} {time.monotonic() - job.started:.0f} s", icon=":material/hourglass_top:")
    if job.cnn is None:
        return
    st.caption("The CNN's findings; the second reader has not been heard yet.")
    findings.show_chart(job.cnn.findings, f"case_{case.number}_progress")
    if job.draft:
        st.caption("The second reader's draft: not checked yet, and may be withdrawn.")
        with st.container(height=170):
            plain(job.draft)


def stage_of(job: Job) -> str:
    """Say what is being done now."""
    if job.quality is None:
        return "Sending and decoding the film ..."
    if job.cnn is None:
        return "The network reads the film ..."
    if job.drawn is None:
        return "Drawing the maps ..."
    if not job.draft:
        return "The second reader looks at the film. Without a GPU it can take minutes ..."
    return "The second reader writes ..."


@st.fragment(run_every=POLL_S)
def keep_going(session: Session, client: AssistantClient) -> None:
    """Start the films that wait, and draw the page anew when one of them has ended."""
    before = [case.state for case in session.cases]
    session.advance(client)
    now = [case.state for case in session.cases]
    if now != before or now != st.session_state.get("states_seen", now):
        st.session_state["states_seen"] = now
        st.rerun()
    st.session_state["states_seen"] = now
