"""What is shown when something failed: what happened, and what to do."""

import re

import streamlit as st

from dashboard.client import ClientError
from dashboard.elements import plain
from modules.errors import InvertedGreyscale, NotAChestRadiograph, RotatedFilm

# The server ends a refusal with the way on for a client of the API; the page says it for its own buttons.
WAYS_ON = {
    NotAChestRadiograph.code: "If it is a frontal (PA or AP) chest radiograph, analyse it anyway.",
    InvertedGreyscale.code: "Analyse it with the greyscale the other way round, or anyway if bright is dense on it.",
    RotatedFilm.code: "Turn it upright and choose it again, or analyse it anyway if it is upright.",
}
REFUSAL_CODES = frozenset(WAYS_ON)
FAILURE_TITLES = {
    "unreachable": "The server cannot be reached",
    "bad_address": "The server's address cannot be used",
    "timeout": "No answer in time",
    "connection_lost": "The connection broke",
    "unexpected_answer": "The answer cannot be understood",
    "version_mismatch": "Server and dashboard do not fit together",
    "dashboard_error": "The dashboard failed",
    "busy": "The server is busy",
    "out_of_resources": "The server has run out of space or memory",
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
    plain(refusal_words(error) if error.code in REFUSAL_CODES else error.message)
    if error.gate_score is not None:
        plain(f"Input gate: {error.gate_score:.2f} (1 = looks like a frontal chest radiograph)")
    if error.status is not None:
        known = {"status": error.status, "code": error.code, "request": error.request_id}
        st.code(", ".join(f"{k} {v}" for k, v in known.items() if v is not None), language=None, wrap_lines=True)


def refusal_words(error: ClientError) -> str:
    """Return why the gate refused a film, and the page's own way on in place of fields of the API."""
    sentences = re.split(r"(?<=[.!?]) ", error.message)
    return " ".join([*(sentence for sentence in sentences if "=true" not in sentence), WAYS_ON[error.code]])
