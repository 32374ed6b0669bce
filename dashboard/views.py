"""The page around a result: its frame, what the user gives, and what is shown before and without a result."""

import hashlib
from pathlib import Path

import streamlit as st
from pydantic import ValidationError
from streamlit.delta_generator import DeltaGenerator

from dashboard import result
from dashboard.client import AssistantClient, ClientError
from dashboard.elements import plain, show_png
from dashboard.session import Film, Job, Session
from modules.answers import Analysis
from modules.errors import InvertedGreyscale, NotAChestRadiograph, RotatedFilm
from modules.records import DISCLAIMER, MAX_SYMPTOMS
from modules.settings import PROJECT_ROOT, Settings

TITLE = "Chest-radiograph assistant"
SAMPLE_PATH = PROJECT_ROOT / "assets" / "sample_xray.png"
UPLOAD_TYPES = ("png", "jpg", "jpeg", "dcm")
SYMPTOMS_EXAMPLE = "For example: 54-year-old with fever and productive cough for four days; no chest pain."
REFUSAL_CODES = frozenset(error.code for error in (NotAChestRadiograph, InvertedGreyscale, RotatedFilm))
FAILURE_TITLES = {
    "unreachable": "The server cannot be reached",
    "bad_address": "The server's address cannot be used",
    "timeout": "No answer in time",
    "connection_lost": "The connection broke",
    "unexpected_answer": "The answer cannot be understood",
    "version_mismatch": "Server and dashboard do not fit together",
    "busy": "The server is busy",
    "file_too_large": "The file is too large",
    "too_many_pixels": "The image is too large",
    "unsupported_image_type": "This type of file is not read",
    "undecodable_image": "The file cannot be read",
    "multiple_frames": "The file holds several images",
    "invalid_request": "The request was not accepted",
    "internal_error": "The server failed",
} | dict.fromkeys(REFUSAL_CODES, "The film was refused")


# ── The frame of the page ────────────────────────────────────────────────────────────────────────────────────────────


def set_up_page() -> None:
    """Set the title and the layout; the first Streamlit call of a run."""
    st.set_page_config(page_title=TITLE, layout="wide", initial_sidebar_state=350)


def load_settings() -> Settings:
    """Read the settings, or say which of them are wrong and stop."""
    try:
        return Settings()
    except ValidationError as exc:
        st.error("The settings cannot be used. Correct them in the environment or in .env, then restart.")
        for error in exc.errors(include_url=False, include_input=False, include_context=False):
            plain(f"{'.'.join(map(str, error['loc'])).upper()}: {error['msg']}")
        st.stop()


def current_session() -> Session:
    """Return what this browser session holds; other sessions never see it."""
    if "session" not in st.session_state:
        st.session_state["session"] = Session()
    session: Session = st.session_state["session"]
    return session


def show_title() -> None:
    """Show what this page is."""
    st.title(TITLE)


def show_disclaimer() -> None:
    """Pin the disclaimer below the page, where it is seen in every state and at every scroll position."""
    with st.bottom:
        plain(DISCLAIMER)


# ── What the user gives ──────────────────────────────────────────────────────────────────────────────────────────────


def take_film(session: Session, settings: Settings) -> None:
    """Take a film from the uploader, or the synthetic sample."""
    upload = st.file_uploader(
        f"Frontal chest radiograph: PNG, JPEG or DICOM, at most {settings.max_upload_mb} MB",
        type=UPLOAD_TYPES,
        max_upload_size=settings.max_upload_mb,
        key=f"upload_{session.uploads_cleared}",
    )
    if upload is not None:
        session.sample_chosen = False
        if session.film is None or session.film.id != upload.file_id:
            session.choose(Film(upload.file_id, upload.name, upload.getvalue()))
    elif not session.sample_chosen:
        session.choose(None)
    if SAMPLE_PATH.is_file():
        st.button("Use the synthetic sample", on_click=choose_sample, args=(session, SAMPLE_PATH), width="stretch")


def choose_sample(session: Session, path: Path) -> None:
    """Take the drawn film that comes with the project, and empty the uploader."""
    data = path.read_bytes()
    session.sample_chosen = True
    # A widget is emptied by giving it another key.
    session.uploads_cleared += 1
    session.choose(Film(hashlib.sha256(data).hexdigest(), path.name, data, synthetic=True))


def take_symptoms() -> None:
    """Take the symptoms, which only the second reader and the risk rules see."""
    st.text_area(
        "Symptoms and history (optional)",
        key="symptoms",
        max_chars=MAX_SYMPTOMS,
        height=150,
        placeholder=SYMPTOMS_EXAMPLE,
        help="Leave out names, dates of birth and other identifiers.",
    )


def symptoms_now() -> str:
    """Return the symptoms as they stand in the text area."""
    return str(st.session_state.get("symptoms") or "")


def ask(session: Session, *, invert: bool = False, force: bool = False) -> None:
    """Have the film analysed with the symptoms as they stand now."""
    session.ask(symptoms_now(), invert=invert, force=force)


def offer_analysis(session: Session) -> None:
    """Show the button that starts an analysis."""
    st.button(
        "Analyze",
        type="primary",
        key="analyze",
        width="stretch",
        disabled=session.film is None or session.busy,
        on_click=ask,
        args=(session,),
    )


# ── Before and without a result ──────────────────────────────────────────────────────────────────────────────────────


def run_job(session: Session, client: AssistantClient, slot: DeltaGenerator) -> None:
    """Send the request that a button left behind, show that it runs, and draw the page again.

    The spinner takes the place of the old result in `slot` at once. Drawn anywhere else, it would leave the old result
    on the page, dimmed, until the new one came: on one page the numbers of two requests.
    """
    job = session.job
    if job is None or job.finished:
        return
    with st.columns([3, 2], gap="medium")[0]:
        show_film_beside(session, client, job)
    with slot, st.spinner("Reading the film. A second reader without a GPU can take minutes.", show_time=True):
        job.run(client)
    st.rerun()


def show_session(session: Session, client: AssistantClient) -> None:
    """Show the result, or why there is none, or else the film, or else what to do first."""
    job = session.job
    if job is not None and job.failure is not None:
        show_failed_analysis(session, client, job, job.failure)
    elif job is not None and job.analysis is not None:
        show_result(session, client, job, job.analysis)
    elif session.film is not None:
        show_preview(session, client, session.film)
    else:
        show_welcome(client)


def show_welcome(client: AssistantClient) -> None:
    """Say what to do first, and whether the server is ready for it."""
    st.subheader("Choose a film in the panel on the left")
    plain(
        "A neural network gives a calibrated probability for each of 14 findings. Where a second reader runs, a "
        "language model that sees the film, it reads the film too, and the page says where the two differ."
    )
    try:
        health = client.health()
    except ClientError as exc:
        show_failure(exc)
        st.button("Retry", key="retry")
        return
    st.caption("Server")
    lines = [
        "Ready." if health.cnn_ready else "Started, but still loading its weights.",
        f"CNN: {health.model.weights} on {health.model.device}",
        f"Second reader: {health.reader.mode}, {health.reader.state}"
        + (f" ({health.reader.reason})" if health.reader.reason else ""),
    ]
    if health.reader.mode != health.reader.mode_requested:
        lines.append(f"Asked for: {health.reader.mode_requested}")
    plain("\n".join(lines))


def show_preview(session: Session, client: AssistantClient, film: Film) -> None:
    """Show the chosen film before it is analysed."""
    picture, hint = st.columns([3, 2], gap="medium")
    with picture:
        shown = show_film(session, client, film, invert=False)
    if shown:
        with hint:
            st.subheader("Ready to analyse")
            plain("Bone should look white and air black, and the patient should stand upright. Then press Analyze.")


def show_film(session: Session, client: AssistantClient, film: Film, invert: bool) -> bool:
    """Show a film as the server renders it, or say why it can't; return whether it could."""
    preview = session.preview(client, film, invert)
    if isinstance(preview, ClientError):
        show_failure(preview)
        st.button("Retry the preview", key="retry_preview", on_click=session.forget_failed_previews)
        return False
    show_png(preview, "The radiograph")
    st.caption(film_caption(film, invert))
    return True


def show_film_beside(session: Session, client: AssistantClient, job: Job) -> None:
    """Show the film of a request that has its own message: one about the preview would be one too many."""
    request = job.request
    if isinstance(session.preview(client, request.film, request.invert), bytes):
        show_film(session, client, request.film, request.invert)


def film_caption(film: Film, invert: bool) -> str:
    """Say what kind of film is shown, in constant words."""
    kind = "Synthetic sample: drawn, not a patient" if film.synthetic else "The film as it was uploaded"
    return f"{kind}, greyscale inverted" if invert else kind


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


def show_failed_analysis(session: Session, client: AssistantClient, job: Job, error: ClientError) -> None:
    """Show why there is no result, with the film beside it, and offer what can be done with the same film."""
    words, film = st.columns([3, 2], gap="medium")
    with words:
        show_failure(error)
        if error.code in REFUSAL_CODES:
            offer_override(session, job)
        else:
            st.button("Retry", key="retry", type="primary", on_click=retry, args=(session, job))
    with film:
        show_film_beside(session, client, job)


def retry(session: Session, job: Job) -> None:
    """Ask the same again, with the symptoms as they stand now; for the preview too."""
    session.forget_failed_previews()
    ask(session, invert=job.request.invert, force=job.request.force)


def offer_override(session: Session, job: Job) -> None:
    """Offer to analyse a refused film after all: inverted, or as it is."""
    inverted = job.request.invert
    st.caption("You can override the refusal. The result is then marked for review: do not rely on it.")
    with st.container(horizontal=True):
        if not inverted:
            st.button(
                "Analyse with inverted greyscale", key="invert", on_click=ask, args=(session,), kwargs={"invert": True}
            )
        # What was inverted by request stays inverted when it is forced as well.
        st.button(
            "Analyse anyway", key="force", on_click=ask, args=(session,), kwargs={"force": True, "invert": inverted}
        )


# ── The result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show_result(session: Session, client: AssistantClient, job: Job, analysis: Analysis) -> None:
    """Show a whole analysis, what matters most first."""
    show_stale_symptoms(job)
    result.show_risk(analysis)
    result.show_confidence(analysis)
    show_images(session, client, job, analysis)
    result.show_findings(analysis.findings)
    result.show_reader(analysis)
    result.show_contradictions(analysis)
    result.show_provenance(analysis)
    result.offer_download(analysis)


def show_stale_symptoms(job: Job) -> None:
    """Say when the result does not rest on the symptoms that stand in the text area."""
    if job.request.symptoms != symptoms_now():
        st.info("The symptoms were changed after this analysis. Press Analyze to include them.")


def show_images(session: Session, client: AssistantClient, job: Job, analysis: Analysis) -> None:
    """Show the film, and beside it the overlay with what it shows."""
    film, overlay = st.columns(2, gap="medium")
    with film:
        st.subheader("The film")
        show_film(session, client, job.request.film, job.request.invert)
    with overlay:
        st.subheader("What raised the CNN's score")
        result.show_overlay(analysis)
