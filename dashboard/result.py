"""The parts of a result: records to Streamlit elements. Labels and headings are constants of this file."""

import base64
import binascii
import functools
import math

import streamlit as st

from dashboard.elements import bullets, plain, show_lines, show_png
from modules.answers import Analysis
from modules.records import Finding, HeatmapFinding, Probability, RiskLevel

STATUS_WORDS = {"present": "present", "absent": "absent", "uncertain": "uncertain", "not_mentioned": "not mentioned"}
NOT_MEASURED = "not measured"
REPLY_FORMS = {
    "schema": "the form that was asked for",
    "repaired": "the form that was asked for, after one repair",
    "prose": "free text, searched for findings",
    None: "not a model's reply",
}
# Odds of certainty are infinite: probabilities are kept this far from 0 and 1 before they are compared.
SMALLEST_PROBABILITY = 1e-6
SMALLEST_REACH = 1.0  # of the margin's bars, in log-odds


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
    st.caption(
        "How decided the models are, from 0 to 1, not how often they are right: high on any film with low "
        "probabilities, also when disease is missed."
    )
    if not analysis.reader.independent:
        plain(f"No second model read this film. Why: {analysis.reader.fallback_reason or 'none was asked for'}")


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
    """Show all findings, those on sufficient data first, and of these the one furthest above its threshold."""
    st.subheader("All findings")
    ranked = sorted(findings, key=rank, reverse=True)
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
        "Sorted by margin, insufficient data last: a bar beyond its middle is a detected finding. Rare findings have "
        "low probabilities and low thresholds: compare a probability with its own threshold, not with other findings."
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


def rank(finding: Finding) -> tuple[bool, float]:
    """Return what findings are sorted by, as the server ranks them."""
    return finding.sufficient_data, margin(finding)


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
        if analysis.reader.saw_cnn:
            st.caption("It was shown the CNN's numbers: it is no second opinion and moved no number.")
        if analysis.reader.flags:
            st.warning("Do not rely on this text. It seems to break rules that the reader was given:")
            bullets(analysis.reader.flags)
        plain(analysis.clinical_reasoning or "Nothing was written.")
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
        "Reply understood as": REPLY_FORMS[reader.form],
        "Questions": f"version {reader.prompt}" if reader.prompt else "none were asked",
        "Reader took": f"{reader.seconds:.1f} s",
        "Film": f"{analysis.image.width} × {analysis.image.height} pixels"
        + (", greyscale inverted by request" if quality.inverted_by_request else ""),
        "View": quality.view_position or "not stated",
        "Age": {None: "not stated", True: "under 18", False: "18 or over"}[quality.under_18],
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
