"""What is shown when something failed: what happened, and what to do."""

import streamlit as st

from dashboard.client import ClientError
from dashboard.elements import plain
from modules.errors import InvertedGreyscale, NotAChestRadiograph, RotatedFilm

REFUSAL_CODES = frozenset(error.code for error in (NotAChestRadiograph, InvertedGreyscale, RotatedFilm))
FAILURE_TITLES = {
    "unreachable": "The server cannot be reached",
    "bad_address": "The server's address cannot be used",
    "timeout": "No answer in time",
    "connection_lost": "The connection broke",
    "unexpected_answer": "The answer cannot be understood",
    "version_mismatch": "Server and dashboard do not fit together",
    "dashboard_error": "The dashboard failed",
    "busy": "The server is busy",
    "file_too_large": "The file is too large",
    "too_many_pixels": "The image is too large",
    "unsupported_image_type": "This type of file is not read",
    "undecodable_image": "The file cannot be read",
    "multiple_frames": "The file holds several images",
    "invalid_request": "The request was not accepted",
    "internal_error": "The server failed",
} | dict.fromkeys(REFUSAL_CODES, "The film was refused")


def show_failure(error: ClientError) -> None:
    """Say what happened and what to do."""
    box = st.warning if error.code in REFUSAL_CODES else st.error
    box(f"**{FAILURE_TITLES.get(error.code, 'The request failed')}**")
    plain(error.message)
    if error.gate_score is not None:
        plain(f"Input gate: {error.gate_score:.2f} (1 = looks like a frontal chest radiograph)")
    if error.status is not None:
        known = {"status": error.status, "code": error.code, "request": error.request_id}
        st.code(", ".join(f"{k} {v}" for k, v in known.items() if v is not None), language=None, wrap_lines=True)
