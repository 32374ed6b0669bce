"""The page about the project: what it is for, how to read a result, its limits, privacy, licences."""

from collections.abc import Iterator

import streamlit as st

from dashboard.card_values import at, counted, interval_at, number_at, percent, shown
from dashboard.client import AssistantClient, ClientError
from dashboard.elements import bullets, plain
from modules.pathologies import NAMES
from modules.records import DISCLAIMER
from modules.weights import MIN_POSITIVE_PATIENTS, WeightsCard

STAGES = (
    "1  CNN: a DenseNet-121 gives a probability and a threshold for each pathology.",
    "2  Second reader: where one runs, a language model reads the same film, by default without the CNN's numbers.",
    "3  Fusion: the reader moves the CNN's log-odds within a cap; nothing un-detects what the CNN detected.",
    "4  Uncertainty: how decided each reader is, from what was measured; doubt asks for review.",
    "5  Risk: Low, Moderate or High by rules that can be read; less confidence never lowers the level.",
    "6  Explainability: a Grad-CAM map for each pathology, from the same pass through the network.",
)
READING = (
    "Threshold mark: a finding is detected when the CNN's probability reaches its own threshold. Rare findings have "
    "low probabilities and low thresholds: compare a number with its mark, not with another finding.",
    "Map: log-odds that each cell added to the score. One scale for all films and findings: a pale map means little "
    "evidence. It shows what raised the score, not where disease is.",
    "Fused: the CNN's number after the second reader. The CNN's own stands beside it.",
    "Not measured: there is no number, and none is put in its place.",
    "Needs review: a doubt was found, and the page says which. No review mark is no all-clear.",
    f"Insufficient data: under {MIN_POSITIVE_PATIENTS} positive validation patients, or no threshold. Shown, but it "
    "never drives the risk.",
    "Low risk: no listed finding above its threshold. That does not exclude disease.",
)
PRIVACY = (
    "By default server and dashboard listen on this machine only, and open no connection elsewhere.",
    "A film leaves the server only when its settings name a reader on another machine; a key alone is no consent. Each "
    "result says where its film went.",
    "Such a reader gets re-encoded pixels and the symptoms: no header, no file name.",
    "Of a DICOM header only what describes the film is read, and the age: no name, no date, no id.",
    "Logs hold request ids, routes, status and times: no film, no symptom, no file name.",
    "The server wants a key from other machines. This page asks nobody for one: do not open it to a network that you "
    "do not trust.",
)
SOURCES = (
    "This project: MIT licence, weights included.",
    "Films: Wang X, et al. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR 2017. The NIH "
    "Clinical Center provided them.",
    "Network: Huang G, et al. Densely Connected Convolutional Networks. CVPR 2017.",
    "Maps: Selvaraju RR, et al. Grad-CAM. ICCV 2017.",
    "Negation in reports: Chapman WW, et al. NegEx. J Biomed Inform 2001.",
    "MedGemma, where it runs: Health AI Developer Foundations terms of use, "
    "developers.google.com/health-ai-developer-foundations/terms",
)


def show_about(client: AssistantClient | None = None) -> None:
    """Show what this is for and what it cannot do; figures only where a server gives its card."""
    st.header("About and limits")
    plain(DISCLAIMER)
    purpose, limits = st.columns(2, gap="large")
    with purpose:
        st.subheader("What it is for")
        plain(
            "To study how a network, a second reader, calibration and explanation work together on frontal chest "
            "radiographs of adults, and to measure that on films of your own. Not for a decision about any person."
        )
        st.subheader("Six stages")
        plain("\n".join(STAGES))
        st.subheader("How to read a result")
        bullets(READING)
    with limits:
        st.subheader("Known limits")
        bullets(tuple(known_limits(card_of(client))))
        st.subheader("Privacy")
        bullets(PRIVACY)
        st.subheader("Licences and citations")
        bullets(SOURCES)


def card_of(client: AssistantClient | None) -> WeightsCard | None:
    """Return the card of the server's weights, or None where no server answers: this page does without."""
    try:
        return None if client is None else client.card()
    except ClientError:
        return None


def known_limits(card: WeightsCard | None) -> Iterator[str]:
    """Yield the limits, worst first, with the card's figures where it has them."""
    metrics = {} if card is None else card.metrics
    test = at(metrics, "test")
    alarms = at(test, "films_without_a_finding", "shares", "any_counted_detection")
    share, inside = number_at(alarms, "share"), interval_at(alarms, "interval")
    yield "Most detections are false alarms" + (
        "." if share is None else f": {percent(share, inside)} of test films without a finding show a detection."
    )
    yield "It misses findings. A film without a detection excludes nothing."
    found = at(test, "discrimination")
    mean, interval = number_at(found, "mean_auroc"), interval_at(found, "mean_auroc_interval")
    if mean is not None:
        films, patients = (counted(number_at(test, "counts", kind)) for kind in ("films", "patients"))
        yield f"Mean AUROC {shown(mean, interval)} on {films} test films of {patients} patients; 0.5 is chance."
    weak = [name for name in NAMES if skill_is_missing(metrics, name)]
    if weak:
        yield f"No better than saying the prevalence, on validation films: {', '.join(weak)}."
    worse = [name for name in NAMES if (number_at(found, "pathologies", name, "auroc") or 1.0) < 0.5]
    if worse:
        yield f"Ranked worse than by chance on the test films: {', '.join(worse)}."
    if card is not None:
        thin = [name for name, (_, output) in zip(NAMES, card.served, strict=True) if not output.sufficient_data]
        if thin:
            yield f"Insufficient data: {', '.join(thin)}."
    yield f"It looks for {len(NAMES)} pathologies only: not for fractures, free air, tubes or lines."
    yield "Not for children, lateral films, CT or other parts of the body. A lateral film may pass for frontal."
    yield "Labels of the public films were mined from reports by text, and are noisy."
    yield "Another hospital, scanner or population needs a calibration of its own."
    yield "Confidence says how decided the models are, not how often they are right."


def skill_is_missing(metrics: object, name: str) -> bool:
    """Say whether the validation films showed no Brier skill."""
    skill = number_at(metrics, "validation", "pathologies", name, "brier_skill")
    return skill is not None and skill <= 0.0
