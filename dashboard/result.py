"""The parts of a result: records to Streamlit elements. Labels and headings are constants of this file."""

import streamlit as st

from dashboard import wording
from dashboard.elements import bullets, plain, show_lines
from dashboard.findings import STATUS_WORDS
from modules.answers import Analysis
from modules.records import Finding

HOW_DECIDED = (
    "How decided the models are, from 0 to 1, not how often they are right: high on any film with low probabilities, "
    "also when disease is missed."
)
REPLY_FORMS = {
    "schema": "the form that was asked for",
    "repaired": "the form that was asked for, after one repair",
    "prose": "free text, searched for findings",
    None: "not a model's reply",
}


def show_risk(analysis: Analysis) -> None:
    """Show the level as a colour and a word, and whether a person must look again."""
    review = "review needed" if analysis.needs_review else "a professional must read the film in any case"
    if analysis.risk_level == "Low":
        review = f"this does not exclude disease; {review}"
    words = f"**Risk level: {analysis.risk_level}**, {review}"
    match analysis.risk_level:
        case "High":
            st.error(words, icon=":material/priority_high:")
        case "Moderate":
            st.warning(words, icon=":material/warning:")
        case "Low":  # no green: it does not mean healthy
            st.info(words, icon=":material/info:")


def show_reasons(analysis: Analysis) -> None:
    """Show what drives the level, why a person must look, and what is wrong with the film."""
    factors, review = st.columns(2, gap="medium")
    with factors:
        st.subheader("What drives it")
        bullets(analysis.risk_factors or (wording.NO_FACTOR,))
    with review:
        st.subheader("Review needed" if analysis.needs_review else "Review")
        bullets(analysis.review_reasons or (wording.NO_REVIEW,))
    show_lines("Quality of the film", tuple(warning.message for warning in analysis.quality.warnings))


def show_confidence(analysis: Analysis) -> None:
    """Show the three confidences, and which was not measured."""
    measured = analysis.reader.token_confidence is not None
    cnn, llm, fused = st.columns(3, gap="small")
    cnn.metric("CNN confidence", f"{analysis.confidence_scores.cnn:.2f}", border=True, help=HOW_DECIDED)
    llm.metric(
        "LLM confidence",
        f"{analysis.confidence_scores.llm:.2f}" if measured else wording.NOT_MEASURED,
        border=True,
        help=HOW_DECIDED,
    )
    fused.metric("Fused confidence", f"{analysis.confidence_scores.fused:.2f}", border=True, help=HOW_DECIDED)
    if not analysis.reader.independent:
        plain(f"No second model read this film. Why: {analysis.reader.fallback_reason or 'none was asked for'}")


def show_reader(analysis: Analysis) -> None:
    """Show what the second reader wrote and said of each finding, and how it moved numbers."""
    reasoning, differential = st.columns([3, 2], gap="medium")
    with reasoning:
        st.subheader("Reasoning")
        if not analysis.reader.independent:
            st.caption("Written from a template, not by a model: it is no second opinion and moved no number.")
        if analysis.reader.saw_cnn:
            st.caption(wording.SAW_CNN)
        if analysis.reader.flags:
            st.warning(wording.FLAGGED)
            bullets(analysis.reader.flags)
        plain(analysis.clinical_reasoning or wording.NOTHING_WRITTEN)
        if analysis.recommendation:
            plain(f"Recommendation: {analysis.recommendation}")
    with differential:
        st.subheader(
            "Differential" if analysis.reader.independent else "Detected by the CNN (no differential was made)"
        )
        ranked = enumerate(analysis.differential_diagnosis, start=1)
        plain("\n".join(f"{rank}.  {name}" for rank, name in ranked) or "None was given.")
        show_lines("Its key observations", analysis.key_observations)
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
        plain(wording.NO_SECOND_READER)
    elif not analysis.contradictions:
        plain(wording.NO_CONTRADICTION)
    bullets(wording.contradiction_lines(analysis))
    if analysis.agreement is not None:
        plain(f"Agreement on what the reader states clearly: {analysis.agreement:.0%}")


def show_provenance(analysis: Analysis) -> None:
    """Show what ran, where the film went and how long each stage took."""
    st.subheader("What ran")
    model, reader, quality = analysis.model, analysis.reader, analysis.quality
    stages = ", ".join(f"{stage} {ms:.0f} ms" for stage, ms in analysis.timings_ms.items())
    entries = {
        "CNN": wording.network_words(model),
        "Weights": f"{model.weights}, SHA-256 {model.sha256[:12]}…",
        "Engine, device, precision": f"{model.engine}, {model.device}, {model.precision}",
        "Reader asked for": reader.mode_requested,
        "Reader that ran": reader.mode,
        "Reader's model": reader.model or "none",
        "Fallback": reader.fallback_reason or "none",
        "Film sent to": reader.film_sent_to,
        "Reply understood as": REPLY_FORMS[reader.form],
        "Questions": wording.question_words(reader),
        "Reader took": f"{reader.seconds:.1f} s",
        "Film": wording.size_words(analysis),
        "View": quality.view_position or "not stated",
        "Age": {None: "not stated", True: "under 18", False: "18 or over"}[quality.under_18],
        "Input gate": f"{quality.gate_score:.2f}{', overridden' if quality.forced else ''}. {quality.reason}",
        "Stages": stages or wording.NOT_MEASURED,
        "Program": f"version {analysis.version}",
        "Request": analysis.request_id,
    }
    width = max(map(len, entries))
    st.code("\n".join(f"{key:<{width}}  {value}" for key, value in entries.items()), language=None, wrap_lines=True)
