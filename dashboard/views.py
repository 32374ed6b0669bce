"""Records to Streamlit elements.

Whatever a model, a user or a file wrote is shown with `plain`, in a code block or in a data grid: nothing else in
Streamlit leaves Markdown, HTML, LaTeX and colour directives alone. Labels and headings are constants of this file.
"""

import base64
import binascii
import functools
import hashlib
import math
from pathlib import Path

import streamlit as st
from pydantic import ValidationError
from streamlit.delta_generator import DeltaGenerator

from dashboard.client import AssistantClient, ClientError
from dashboard.session import Film, Job, Session
from modules.errors import InvertedGreyscale, NotAChestRadiograph, RotatedFilm
from modules.records import DISCLAIMER, Analysis, Finding, HeatmapFinding, Probability, RiskLevel
from modules.settings import PROJECT_ROOT, Settings
from modules.symptoms import MAX_SYMPTOMS

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
STATUS_WORDS = {"present": "present", "absent": "absent", "uncertain": "uncertain", "not_mentioned": "not mentioned"}
NOT_MEASURED = "not measured"
# Odds of certainty are infinite: probabilities are kept this far from 0 and 1 before they are compared.
SMALLEST_PROBABILITY = 1e-6
SMALLEST_REACH = 1.0  # of the margin's bars, in log-odds


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


def plain(text: str) -> None:
    """Show text exactly as it is."""
    st.text(text, width="stretch")


def bullets(lines: tuple[str, ...]) -> None:
    """Show lines of text, each with a dash."""
    plain("\n".join(f"–  {line}" for line in lines))


def show_lines(label: str, lines: tuple[str, ...]) -> None:
    """Show lines below a constant label, or nothing when there are none."""
    if lines:
        st.caption(label)
        bullets(lines)


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
        "The film is read twice: by a neural network that gives a calibrated probability for each of 14 findings, and "
        "by a second reader, a language model that sees the film. Where the two differ, the page says so."
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


def show_png(data: bytes, alt: str) -> None:
    """Show an image, or say that it is damaged."""
    try:
        st.image(data, width="stretch", alt=alt)
    except (OSError, ValueError, SyntaxError):  # Pillow's ways to say that it can't read a file
        plain("The image that the server sent cannot be shown.")


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
    show_risk(analysis)
    show_confidence(analysis)
    show_images(session, client, job, analysis)
    show_findings(analysis.findings)
    show_reader(analysis)
    show_contradictions(analysis)
    show_provenance(analysis)
    offer_download(analysis)


def show_stale_symptoms(job: Job) -> None:
    """Say when the result does not rest on the symptoms that stand in the text area."""
    if job.request.symptoms != symptoms_now():
        st.info("The symptoms were changed after this analysis. Press Analyze to include them.")


def show_risk(analysis: Analysis) -> None:
    """Show the level as a colour and a word, what drives it, and why a person must look."""
    show_level(analysis.risk_level)
    factors, review = st.columns(2, gap="medium")
    with factors:
        st.subheader("What drives it")
        bullets(analysis.risk_factors or ("No factor was given.",))
    with review:
        st.subheader("Review needed" if analysis.needs_review else "Review")
        bullets(analysis.review_reasons or ("No special reason. A professional must read the film in any case.",))
        show_lines("Quality of the film", tuple(warning.message for warning in analysis.quality.warnings))


def show_level(level: RiskLevel) -> None:
    """Show the level; low is no green, because it does not mean healthy."""
    match level:
        case "High":
            st.error("### Risk level: High")
        case "Moderate":
            st.warning("### Risk level: Moderate")
        case "Low":
            st.info("### Risk level: Low")


def show_confidence(analysis: Analysis) -> None:
    """Show the three confidences, and which was not measured."""
    measured = analysis.reader.token_confidence is not None
    cnn, llm, fused = st.columns(3)
    cnn.metric("Confidence of the CNN", f"{analysis.confidence_scores.cnn:.2f}", border=True)
    llm.metric(
        "Confidence of the second reader",
        f"{analysis.confidence_scores.llm:.2f}" if measured else NOT_MEASURED,
        border=True,
    )
    fused.metric("Fused confidence", f"{analysis.confidence_scores.fused:.2f}", border=True)
    st.caption("How decided the models are, from 0 to 1. It is not how often they are right.")
    if not analysis.reader.independent:
        plain(f"No second model read this film. Why: {analysis.reader.fallback_reason or 'none was asked for'}")


def show_images(session: Session, client: AssistantClient, job: Job, analysis: Analysis) -> None:
    """Show the film, and beside it the overlay with what it shows."""
    film, overlay = st.columns(2, gap="medium")
    with film:
        st.subheader("The film")
        show_film(session, client, job.request.film, job.request.invert)
    with overlay:
        st.subheader("Where the CNN looked")
        show_overlay(analysis)


def show_overlay(analysis: Analysis) -> None:
    """Show the Grad-CAM overlay, or say that there is none."""
    if not analysis.heatmap_available or not analysis.heatmap_base64:
        plain("There is no overlay for this film.")
        return
    try:
        show_png(base64.b64decode(analysis.heatmap_base64, validate=True), "Grad-CAM overlay over the radiograph")
    except binascii.Error:
        plain("The overlay that the server sent cannot be shown.")
    if analysis.heatmap_finding is not None:
        plain(overlay_caption(analysis.heatmap_finding))


def overlay_caption(shown: HeatmapFinding) -> str:
    """Name the finding under the overlay, first of all whether it was detected."""
    detected = "detected" if shown.detected else "NOT detected"
    return f"{shown.pathology}: {detected}, CNN probability {shown.probability:.3f}. {shown.note}"


def show_findings(findings: tuple[Finding, ...]) -> None:
    """Show all findings, the one furthest above its operating threshold first."""
    st.subheader("All findings")
    ranked = sorted(findings, key=margin, reverse=True)
    # Symmetric, so that the middle of each bar is the finding's own threshold.
    reach = max(SMALLEST_REACH, *(abs(margin(finding)) for finding in findings)) if findings else SMALLEST_REACH
    # With two decimals, the probabilities of rare findings would all look alike.
    probability = functools.partial(st.column_config.NumberColumn, format="%.3f", width=74)
    config = {
        "Finding": st.column_config.TextColumn(width=125),
        "Detected": st.column_config.TextColumn(width=80),
        "Margin": st.column_config.ProgressColumn(
            format="%+.2f",
            min_value=-reach,
            max_value=reach,
            width=120,
            help="How far the CNN's probability lies above its threshold, in log-odds; the middle is the threshold",
        ),
        "CNN": probability(help="Calibrated probability of the CNN alone"),
        "Threshold": probability(help="Operating threshold: at or above it, a finding counts as detected"),
        "Fused": probability(help="The CNN's probability, adjusted by the second reader within a cap"),
        "Second reader": st.column_config.TextColumn(width=105),
        "Its words": st.column_config.TextColumn(width=145),
        "Data": st.column_config.TextColumn(
            width=115, help="Too few validation patients: shown, but it never drives the risk"
        ),
    }
    rows = [finding_row(finding) for finding in ranked]
    st.dataframe(rows, column_config=config, hide_index=True, height="content", alt="All findings of this film")
    st.caption(
        "Sorted by margin: a bar beyond its middle is a detected finding. Rare findings have low probabilities and low "
        "thresholds, so compare a probability with its own threshold, not with other findings."
    )


def finding_row(finding: Finding) -> dict[str, str | float]:
    """Return one line of the table."""
    return {
        "Finding": finding.pathology,
        "Detected": "detected" if finding.detected else "–",
        "Margin": margin(finding),
        "CNN": finding.cnn_probability,
        "Threshold": finding.operating_threshold,
        "Fused": finding.fused_probability,
        "Second reader": STATUS_WORDS[finding.reader.status],
        "Its words": finding.reader.quote,
        "Data": "" if finding.sufficient_data else "insufficient data",
    }


def margin(finding: Finding) -> float:
    """Return how far the CNN's probability lies above the operating threshold, in log-odds."""
    return log_odds(finding.cnn_probability) - log_odds(finding.operating_threshold)


def log_odds(probability: Probability) -> float:
    """Return the log-odds of a probability, finite for 0 and 1 too."""
    inside = min(max(probability, SMALLEST_PROBABILITY), 1.0 - SMALLEST_PROBABILITY)
    return math.log(inside / (1.0 - inside))


def show_reader(analysis: Analysis) -> None:
    """Show what the second reader wrote and said of each finding, and how it moved numbers."""
    reasoning, differential = st.columns([3, 2], gap="medium")
    with reasoning:
        st.subheader("Reasoning")
        if not analysis.reader.independent:
            st.caption("Written from a template, not by a model: it is no second opinion and moved no number.")
        plain(analysis.clinical_reasoning or "Nothing was written.")
    with differential:
        st.subheader("Differential")
        ranked = enumerate(analysis.differential_diagnosis, start=1)
        plain("\n".join(f"{rank}.  {name}" for rank, name in ranked) or "None was given.")
    show_lines("What the second reader says of each finding", reader_lines(analysis.findings))
    show_lines("How it moved the fused probabilities", adjustment_lines(analysis.findings))


def reader_lines(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Return in full what the table has to cut off."""
    return tuple(
        f"{finding.pathology}: {STATUS_WORDS[finding.reader.status]}"
        + (f", in its words: {finding.reader.quote}" if finding.reader.quote else "")
        for finding in findings
        if finding.reader.status != "not_mentioned"
    )


def adjustment_lines(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Return every adjustment with its reason."""
    return tuple(
        f"{finding.pathology}: {adjustment.log_odds:+.2f} log-odds. {adjustment.reason}"
        for finding in findings
        for adjustment in finding.adjustments
    )


def show_contradictions(analysis: Analysis) -> None:
    """Show where the two readers differ."""
    st.subheader("Where the readers differ")
    if not analysis.reader.independent:
        plain("There was no second reader to differ from.")
    elif not analysis.contradictions:
        plain("No contradiction was found.")
    bullets(
        tuple(f"{c.pathology}: {c.note} (CNN probability {c.cnn_probability:.3f})" for c in analysis.contradictions)
    )
    if analysis.agreement is not None:
        plain(f"Agreement on what the reader states clearly: {analysis.agreement:.0%}")


def show_provenance(analysis: Analysis) -> None:
    """Show what ran, where the film went and how long each stage took."""
    st.subheader("What ran")
    model, reader, quality = analysis.model, analysis.reader, analysis.quality
    entries = {
        "CNN": f"{model.architecture}, {'calibrated' if model.calibrated else 'not calibrated'}",
        "Weights": f"{model.weights}, SHA-256 {model.sha256[:12]}…",
        "Engine, device": f"{model.engine}, {model.device}",
        "Reader asked for": reader.mode_requested,
        "Reader that ran": reader.mode,
        "Reader's model": reader.model or "none",
        "Fallback": reader.fallback_reason or "none",
        "Film sent to": reader.film_sent_to,
        "Reader took": f"{reader.seconds:.1f} s",
        "Film": f"{analysis.image.width} × {analysis.image.height} pixels"
        + (", greyscale inverted by request" if quality.inverted_by_request else ""),
        "Input gate": f"{quality.gate_score:.2f}{', overridden' if quality.forced else ''}. {quality.reason}",
        "Stages": ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in analysis.timings_ms.items()) or NOT_MEASURED,
        "Request": analysis.request_id,
    }
    width = max(map(len, entries))
    st.code("\n".join(f"{key:<{width}}  {value}" for key, value in entries.items()), language=None, wrap_lines=True)


def offer_download(analysis: Analysis) -> None:
    """Offer the whole answer as the JSON that the API gives."""
    st.download_button(
        "Download the analysis as JSON",
        analysis.model_dump_json(indent=2),
        file_name="analysis.json",
        mime="application/json",
        on_click="ignore",
    )
