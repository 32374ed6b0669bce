"""The prevalence dial: what a finding's number means where the finding is rarer or more common."""

import streamlit as st

from dashboard.client import AssistantClient, ClientError
from dashboard.elements import plain
from dashboard.failures import show_failure
from dashboard.findings import ranked
from modules.pathologies import NAMES
from modules.prevalence import AtPrevalence, at_prevalence
from modules.records import Finding
from modules.weights import CardOutput, WeightsCard

# Per hundred films; finer where findings are rare.
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0)


@st.fragment
def show_dial(key: str, findings: tuple[Finding, ...], sha256: str, client: AssistantClient) -> None:
    """Let the user say how common a finding is at their site, and read its number for that.

    `sha256` is that of the weights which made the findings: the card of others would shift them wrongly.
    """
    try:
        card = cached_card(client, sha256)
    except ClientError as exc:
        show_failure(exc)
        st.button("Retry", key=f"{key}_retry_card")
        return
    if card.sha256 != sha256:
        plain("The server runs other weights now than those that read this film. Analyze it again to use the dial.")
        return
    by_name = {finding.pathology: finding for finding in ranked(findings) if finding.pathology in NAMES}
    if not by_name:
        plain("The answer holds no finding whose prevalence is known.")
        return
    chooser, dial = st.columns([2, 3], gap="medium")
    with chooser:
        name = st.selectbox("Finding", list(by_name), key=f"{key}_dial_finding")
    finding, output = by_name[name], output_of(card, name)
    calibrated_at = output.validation_prevalence
    if card.calibration is None or calibrated_at is None:
        plain(
            "The card of these weights does not say for which prevalence their numbers hold: there is nothing to turn."
        )
        return
    nearest = min(STEPS, key=lambda step: abs(step - 100 * calibrated_at))
    with dial:
        per_hundred = st.select_slider(
            "At this site, of 100 films about so many show it",
            STEPS,
            nearest,
            format_func=lambda value: f"{value:g}",
            key=f"{key}_dial_{name}",
        )
    read = at_prevalence(
        name, finding.cnn_probability, calibrated_at, per_hundred / 100, output.sensitivity, output.specificity
    )
    show_reading(finding, read, calibrated_at)


def show_reading(finding: Finding, read: AtPrevalence, calibrated_at: float) -> None:
    """Show the number as served beside the number at the site, and the predictive values."""
    served, shifted, ppv, npv = st.columns(4)
    served.metric(f"As served (for {100 * calibrated_at:.1f} in 100)", f"{read.unshifted:.3f}", border=True)
    shifted.metric(f"At {100 * read.prevalence:g} in 100", f"{read.shifted:.3f}", border=True)
    ppv.metric("PPV of a detection", _share(read.ppv), border=True, help="Share of detections that are right")
    npv.metric("NPV of no detection", _share(read.npv), border=True, help="Share of non-detections that are right")
    plain(read.sentence)
    state = "was detected" if finding.detected else "was not detected"
    plain(
        f"{finding.pathology} {state} on this film, by the CNN's own number at its threshold; the dial changes neither."
    )
    st.caption(
        "By Bayes' rule, if films with and without the finding look alike at your site. Sensitivity and specificity "
        "are those of the validation patients; the Model card has their intervals."
    )


def _share(value: float | None) -> str:
    return "not known" if value is None else f"{100 * value:.1f} %"


def output_of(card: WeightsCard, name: str) -> CardOutput:
    """Return what the card says of a pathology."""
    return card.served[NAMES.index(name)][1]


def cached_card(client: AssistantClient, sha256: str) -> WeightsCard:
    """Return the server's weights card; asked for once in a browser session, and again when its weights changed."""
    held: WeightsCard | None = st.session_state.get("card")
    if held is None or held.sha256 != sha256:
        held = st.session_state["card"] = client.card()
    return held
