"""The reading room: what the user gives, the worklist, and the film that is open, whatever its state."""

import hashlib
from pathlib import Path
from typing import Any

import streamlit as st

from dashboard import film as painter
from dashboard import findings, progress, result, takeaway, viewer
from dashboard.client import AssistantClient, ClientError
from dashboard.dial import show_dial
from dashboard.elements import plain, show_png
from dashboard.failures import REFUSAL_CODES, show_failure
from dashboard.session import Case, Film, Session
from modules.answers import Analysis
from modules.records import MAX_SYMPTOMS
from modules.settings import PROJECT_ROOT, Settings

SAMPLE_PATH = PROJECT_ROOT / "assets" / "sample_xray.png"
UPLOADER = "films"
UPLOAD_TYPES = ("png", "jpg", "jpeg", "dcm")
SYMPTOMS_EXAMPLE = "For example: 54-year-old with fever and productive cough for four days; no chest pain."
WORKLIST_WIDTHS = {"Film": 46, "Risk": 84, "Review": 66, "File": 150}  # pixels: the first three fit beside the mark
STATE_WORDS = {"new": "not analysed", "waiting": "waiting", "running": "being read", "failed": "failed"}


# ── What the user gives ──────────────────────────────────────────────────────────────────────────────────────────────


def take_films(session: Session, settings: Settings) -> None:
    """Take films from the uploader, or the synthetic sample.

    The films are held by the session: the uploader itself forgets them when another page is opened.
    """
    uploads = st.file_uploader(
        f"Frontal chest radiographs: PNG, JPEG or DICOM, at most {settings.max_upload_mb} MB each",
        type=UPLOAD_TYPES,
        accept_multiple_files=True,
        max_upload_size=settings.max_upload_mb,
        key=UPLOADER,
        on_change=take_uploads,
        args=(session,),
    )
    session.in_uploader = {upload.file_id for upload in uploads}
    if SAMPLE_PATH.is_file():
        st.button("Try the synthetic sample", on_click=choose_sample, args=(session, SAMPLE_PATH), width="stretch")


def take_uploads(session: Session) -> None:
    """Add the films that the uploader has got, and drop those that were taken out of it."""
    keep_typed(session)
    uploads = {upload.file_id: upload for upload in st.session_state[UPLOADER]}
    for case in [c for c in session.cases if c.film.id in session.in_uploader - uploads.keys()]:
        session.drop(case)
    known = {case.film.id for case in session.cases}
    session.add([Film(u.file_id, u.name, u.getvalue()) for u in uploads.values() if u.file_id not in known])


def choose_sample(session: Session, path: Path) -> None:
    """Take the drawn film that comes with the project."""
    keep_typed(session)
    data = path.read_bytes()
    session.add_sample(Film(hashlib.sha256(data).hexdigest(), path.name, data, synthetic=True))


def take_symptoms(session: Session) -> None:
    """Take the symptoms of the open film, which only the second reader and the risk rules see."""
    case = session.active
    typed = st.text_area(
        "Symptoms and history (optional)" if len(session.cases) < 2 else "Symptoms and history of this film (optional)",
        value=case.symptoms if case else session.draft_symptoms,
        key=symptoms_key(case),
        max_chars=MAX_SYMPTOMS,
        height=110,
        placeholder=SYMPTOMS_EXAMPLE,
        help="Leave out names, dates of birth and other identifiers.",
    )
    if case:
        case.symptoms = typed
    else:
        session.draft_symptoms = typed


def keep_typed(session: Session) -> None:
    """Keep symptoms that arrive together with a click: a callback runs before the page reads its widgets."""
    if session.active:
        session.active.symptoms = typed_about(session.active)
    else:
        session.draft_symptoms = str(st.session_state.get(symptoms_key(None), session.draft_symptoms))


def typed_about(case: Case) -> str:
    """Return the symptoms of a film as its text area holds them, or as they were when it was last open."""
    return str(st.session_state.get(symptoms_key(case), case.symptoms))


def symptoms_key(case: Case | None) -> str:
    """Return the key of the text area of a film's symptoms."""
    return f"symptoms_{case.number if case else 0}"


def offer_analysis(session: Session, client: AssistantClient) -> None:
    """Show the buttons that start an analysis."""
    case = session.active
    busy = any(c.state == "running" for c in session.cases)
    st.button(
        "Analyze",
        type="primary",
        key="analyze",
        width="stretch",
        disabled=case is None or busy,
        on_click=ask,
        args=(case, client),
    )
    unread = [c for c in session.cases if c.state == "new"]
    if len(unread) > 1:
        st.button(
            f"Analyze all {len(unread)} films", key="analyze_all", width="stretch", on_click=ask_for_all, args=(unread,)
        )


def offer_removal(session: Session) -> None:
    """Let the user take out the open film where the uploader cannot: the sample, and what it forgot with its page."""
    case = session.active
    if case is not None and case.film.id not in session.in_uploader:
        st.button(f"Remove film {case.number}", key="remove", width="stretch", on_click=session.drop, args=(case,))


def ask(case: Case, client: AssistantClient, *, invert: bool = False, force: bool = False) -> None:
    """Have a film analysed with its symptoms as they stand now."""
    case.symptoms = typed_about(case)
    st.session_state.pop(viewer.chooser_key(f"case_{case.number}"), None)  # it was chosen for the old answer
    case.ask(client, invert=invert, force=force)


def ask_for_all(cases: list[Case]) -> None:
    """Have films analysed one after the other."""
    for case in cases:
        case.symptoms = typed_about(case)
        case.waiting = True


def show_worklist(session: Session, client: AssistantClient) -> None:
    """Show this visit's films, the most urgent first; a click opens one."""
    if len(session.cases) < 2:
        return
    st.subheader("Worklist")
    if session.busy:
        progress.keep_going(session, client)
    entries = session.entries()
    rows = [
        {
            "Film": f"{'▸ ' if session.active and entry.number == session.active.number else ''}{entry.number}",
            "Risk": entry.analysis.risk_level if entry.analysis else STATE_WORDS.get(entry.state, entry.state),
            "Review": ("needed" if entry.analysis.needs_review else "–") if entry.analysis else "",
            "File": entry.name,
        }
        for entry in entries
    ]
    if session.active:
        plain(f"Open: film {session.active.number}, {session.active.film.name}")
    with st.container(key="worklist"):
        event: Any = st.dataframe(
            rows,
            hide_index=True,
            height="content" if len(rows) <= 8 else 320,
            key=worklist_key(session),
            on_select="rerun",
            selection_mode="single-row",
            column_config={name: st.column_config.TextColumn(width=width) for name, width in WORKLIST_WIDTHS.items()},
            alt="This visit's films by risk",
        )
    picked = event.selection.rows
    opened = session.case(entries[picked[0]].number) if picked else None
    if opened is not None and opened is not session.active:
        session.active = opened
        st.rerun()


def worklist_key(session: Session) -> str:
    """Return a key that lives as long as the order and the open film: a selection is a row's place, not a film."""
    order = "_".join(str(entry.number) for entry in session.entries())
    return f"worklist_{order}_at_{session.active.number if session.active else 0}"


# ── The open film ────────────────────────────────────────────────────────────────────────────────────────────────────


def show_case(session: Session, client: AssistantClient) -> None:
    """Show the open film in whatever state it is, or what to do first."""
    case = session.active
    if case is None:
        show_welcome(client)
    elif case.state in ("running", "waiting"):
        progress.show_progress(session, client, case)
    elif case.job is not None and case.job.failure is not None:
        show_failed(session, client, case, case.job.failure)
    elif case.analysis is not None:
        show_result(session, client, case, case.analysis)
    else:
        show_preview(session, client, case)


def show_welcome(client: AssistantClient) -> None:
    """Say what to do first, and whether the server is ready for it."""
    st.title("Chest-radiograph assistant")
    plain(
        "Choose a film in the panel on the left, or try the synthetic sample. A neural network gives a calibrated "
        "probability for each of 14 findings. Where a second reader runs, a language model that sees the film, it "
        "reads the film too, and the page says where the two differ."
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
    if not health.cnn_ready or health.reader.state == "loading":
        plain("What is still loading takes a minute or two. A film that is analysed before goes without it.")
        st.button("Look again", key="retry")


def show_preview(session: Session, client: AssistantClient, case: Case) -> None:
    """Show a film before it is analysed."""
    picture, hint = st.columns(2, gap="medium")
    with picture:
        shown = show_film(session, client, case.film, invert=False)
    if shown:
        with hint:
            st.subheader("Ready to analyse")
            plain("Bone should look white and air black, and the patient should stand upright. Then press Analyze.")
            findings.load_chart()


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


def film_caption(film: Film, invert: bool) -> str:
    """Say what kind of film is shown, in constant words."""
    kind = "Synthetic sample: drawn, not a patient" if film.synthetic else viewer.AS_UPLOADED
    return f"{kind}, greyscale inverted" if invert else kind


def show_failed(session: Session, client: AssistantClient, case: Case, error: ClientError) -> None:
    """Show why there is no result, with the film beside it, and offer what can be done with the same film."""
    assert case.job is not None
    request = case.job.request
    words, film = st.columns([3, 2], gap="medium")
    with words:
        show_failure(error)
        if error.code in REFUSAL_CODES:
            offer_override(case, client, inverted=request.invert)
        else:
            st.button("Retry", key="retry", type="primary", on_click=retry, args=(session, case, client))
    with film:  # a second message about the same film would be one too many
        if isinstance(session.preview(client, request.film, request.invert), bytes):
            show_film(session, client, request.film, request.invert)


def retry(session: Session, case: Case, client: AssistantClient) -> None:
    """Ask the same again, with the symptoms as they stand now; for the preview too."""
    assert case.job is not None
    session.forget_failed_previews()
    ask(case, client, invert=case.job.request.invert, force=case.job.request.force)


def offer_override(case: Case, client: AssistantClient, *, inverted: bool) -> None:
    """Offer to analyse a refused film after all: inverted, or as it is."""
    st.caption("You can override the refusal. The result is then marked for review: do not rely on it.")
    with st.container(horizontal=True):
        if not inverted:
            st.button(
                "Analyse with inverted greyscale",
                key="invert",
                on_click=ask,
                args=(case, client),
                kwargs={"invert": True},
            )
        # What was inverted by request stays inverted when it is forced as well.
        st.button(
            "Analyse anyway",
            key="force",
            on_click=ask,
            args=(case, client),
            kwargs={"force": True, "invert": inverted},
        )


# ── The result ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show_result(session: Session, client: AssistantClient, case: Case, analysis: Analysis) -> None:
    """Show a whole analysis: film and evidence side by side, the rest one look away."""
    key = f"case_{case.number}"
    if case.stale:
        st.info("The symptoms were changed after this analysis. Press Analyze to include them.")
    film, evidence = st.columns([1, 1], gap="medium")
    with evidence:
        result.show_risk(analysis)
        result.show_confidence(analysis)
        viewer.choose_first_detected(key, analysis.findings, analysis.heatmaps)
        picked = findings.show_chart(analysis.findings, f"{key}_chart")
        if picked in analysis.heatmaps and picked != st.session_state.get(f"{key}_picked"):
            st.session_state[viewer.chooser_key(key)] = picked
        st.session_state[f"{key}_picked"] = picked
    with film:
        show_viewer(session, client, case, analysis, key)
    show_details(session, client, case, analysis, key)


def show_viewer(session: Session, client: AssistantClient, case: Case, analysis: Analysis, key: str) -> None:
    """Show the film with its maps, or why it can't be shown."""
    assert case.job is not None
    invert = case.job.request.invert
    preview = session.preview(client, case.film, invert)
    if isinstance(preview, ClientError):
        show_failure(preview)
        st.button("Retry the preview", key=f"{key}_retry_preview", on_click=session.forget_failed_previews)
        return
    try:
        picture = painter.decoded(preview)
    except ValueError:
        plain("The image that the server sent cannot be shown.")
        return
    viewer.show_viewer(
        key, picture, analysis.image, analysis.findings, analysis.heatmaps, film_caption(case.film, invert)
    )


def show_details(session: Session, client: AssistantClient, case: Case, analysis: Analysis, key: str) -> None:
    """Show the whole reasoning, one look away."""
    why, reader, differ, dial, table, ran, away = st.tabs(
        ("Why this risk", "Second reader", "Where they differ", "At your prevalence", "Table", "What ran", "Take away")
    )
    with why:
        result.show_reasons(analysis)
    with reader:
        result.show_reader(analysis)
    with differ:
        result.show_contradictions(analysis)
    with dial:
        show_dial(key, analysis.findings, analysis.model.sha256, client)
    with table:
        findings.show_table(analysis.findings)
    with ran:
        result.show_provenance(analysis)
    with away:
        takeaway.offer_downloads(session, client, case, analysis)
