"""The page of the model card: what the network is, and how good; every figure is the server's."""

from collections.abc import Iterator

import streamlit as st

from dashboard.card_values import (
    at,
    counted,
    interval_at,
    number_at,
    percent,
    shown,
    text_at,
)
from dashboard.client import AssistantClient, ClientError
from dashboard.curve_charts import reliability_chart, roc_chart
from dashboard.elements import bullets, plain
from dashboard.failures import show_failure
from dashboard.wording import NOT_MEASURED
from modules.curves import Curves, PathologyCurves
from modules.pathologies import NAMES
from modules.weights import MIN_POSITIVE_PATIENTS, CardOutput, WeightsCard

NO_CURVES = (
    "There are no curves of these weights. `python -m evaluation` measures them and writes `curves.json`, which "
    "belongs into the folder of the weights."
)


def show_model_card(client: AssistantClient) -> None:
    """Show the card of the weights that the server runs, with its curves where they were measured."""
    st.header("Model card")
    try:
        card = client.card()
    except ClientError as exc:
        show_failure(exc)
        st.button("Retry", key="retry_model_card")
        return
    plain(card.name)
    show_summary(card)
    show_facts(card)
    show_table(card)
    show_curves_of(client)
    st.subheader("What these figures do not show")
    bullets(tuple(limits(card)))


# ── In short ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def show_summary(card: WeightsCard) -> None:
    """Show the four figures that matter most, the bad ones too."""
    test = at(card.metrics, "test")
    found = at(test, "discrimination")
    alarms = at(test, "films_without_a_finding", "shares", "any_counted_detection")
    counts = [number_at(test, "counts", kind) for kind in ("films", "patients")]
    figures = (
        ("Mean AUROC, test films", shown(number_at(found, "mean_auroc"), interval_at(found, "mean_auroc_interval"))),
        ("Test films / patients", " / ".join(map(counted, counts))),
        ("Mean calibration error, test", shown(number_at(test, "calibration", "mean", "as_served", "ece"))),
        (
            "False alarms: films without a finding, test",
            percent(number_at(alarms, "share"), interval_at(alarms, "interval")),
        ),
    )
    with st.container(horizontal=True):
        for label, value in figures:
            st.metric(label, value if any(map(str.isdigit, value)) else NOT_MEASURED, border=True, width="content")
    averaged = at(found, "pathologies_in_mean")
    left_out = [name for name in NAMES if isinstance(averaged, list | tuple) and name not in averaged]
    st.caption(
        "AUROC: how often a film with the finding gets a higher score than a film without it; 0.5 is chance. In "
        "brackets: 95 % intervals. " + (f"The mean leaves out {' and '.join(left_out)}." if left_out else "")
    )


# ── In words ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def show_facts(card: WeightsCard) -> None:
    """Show what the network is, which data made it, and how it was measured, in the card's own words."""
    network, measured = st.columns(2, gap="large")
    with network:
        st.subheader("The network")
        show_lines_of(network_facts(card))
    with measured:
        st.subheader("Data and measurement")
        show_lines_of(measurement_facts(card))


def show_lines_of(facts: Iterator[tuple[str, str]]) -> None:
    """Show texts, each below its label."""
    for label, text in facts:
        with st.container(gap=None):
            st.caption(label)
            plain(text)


def network_facts(card: WeightsCard) -> Iterator[tuple[str, str]]:
    """Yield what the network is: labels are constant, texts the card's."""
    recipe = card.preprocessing
    sides = [f"{side} px" for side in (recipe.degrade_to, recipe.reduce_to) if side is not None]
    first = f"every film is brought to {', then to '.join(sides)}, then to " if sides else ""
    yield "Architecture", f"{card.architecture}, one grey channel, {len(card.outputs)} outputs"
    yield "Input", f"{first}{recipe.input_size} × {recipe.input_size} px ({recipe.aspect}); bright = dense"
    yield "Training", card.training
    yield "File", f"{card.file}\nSHA-256 {card.sha256}"
    yield "Licence", card.licence
    yield "Citation", card.citation


def measurement_facts(card: WeightsCard) -> Iterator[tuple[str, str]]:
    """Yield the data, and how each figure came about; what was not measured says so."""
    validation, test = (at(card.metrics, split) for split in ("validation", "test"))
    bootstrap = at(test, "bootstrap")
    yield "Data", card.data
    yield "Calibration", card.calibration or "none: the outputs are no probabilities"
    yield "Operating points", card.operating_points
    yield "Validation films", cohort_words(validation, validation)
    yield "Test films", cohort_words(test, at(test, "counts"))
    if text_at(bootstrap, "interval"):
        yield (
            "Intervals of the test figures",
            f"{text_at(bootstrap, 'interval')}; bootstrap by {text_at(bootstrap, 'unit') or NOT_MEASURED}, "
            f"{counted(number_at(bootstrap, 'replicates'))} replicates",
        )


def cohort_words(block: object, counts: object) -> str:
    """Say how many films of how many patients were measured, and how."""
    films, patients = number_at(counts, "films"), number_at(counts, "patients")
    if films is None:
        return NOT_MEASURED
    how = text_at(block, "how")
    of = "" if patients is None else f" of {counted(patients)} patients"
    return f"{counted(films)} films{of}{f': {how}' if how else ''}"


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def show_table(card: WeightsCard) -> None:
    """Show the figures of each pathology; those at the operating point are of the test films, or else of validation."""
    st.subheader("The 14 pathologies")
    tested = at(card.metrics, "test", "discrimination", "pathologies") is not None
    films = "test" if tested else "validation"
    text = st.column_config.TextColumn
    config = {
        "Pathology": text(pinned=True, width=135),
        "Test AUROC": text(width=135, help="With its 95 % interval"),
        "Val. AUROC": text(width=85, help="On validation films"),
        "ECE": text(
            width=65,
            help=f"Expected calibration error, {films} films: mean distance between what is said and what is true",
        ),
        "Brier skill": text(
            width=80, help=f"{films.capitalize()} films: at or below 0, the bare prevalence would do as well"
        ),
        "Threshold": text(width=80, help="Operating point on the calibrated probability"),
        "Sensitivity": text(width=125, help=f"At the threshold, {films} films, with its 95 % interval"),
        "Specificity": text(width=125, help=f"At the threshold, {films} films, with its 95 % interval"),
        "Positive patients": text(width=115, help="Validation / test"),
        "Data": text(
            width=120,
            help=f"insufficient data: under {MIN_POSITIVE_PATIENTS} positive validation patients, or no threshold",
        ),
    }
    rows = [table_row(card, name, output, tested) for name, (_, output) in zip(NAMES, card.served, strict=True)]
    st.dataframe(rows, column_config=config, hide_index=True, height="content", alt="Figures of each pathology")
    st.caption(
        f"Sensitivity, specificity, ECE and Brier skill: {films} films. A dash: not measured. A pathology with "
        "insufficient data is shown, and never drives the risk. Many figures stand side by side: some look good or bad "
        "by chance."
    )


def table_row(card: WeightsCard, name: str, output: CardOutput, tested: bool) -> dict[str, str]:
    """Return one line of the table."""
    validation, test = at(card.metrics, "validation", "pathologies", name), at(card.metrics, "test")
    found = at(test, "discrimination", "pathologies", name)
    point = at(test, "operating_points", name) if tested else validation
    calibration = at(test, "calibration", "pathologies", name, "as_served") if tested else validation
    suffix = "interval" if tested else "95ci"
    patients = (output.validation_positive_patients, number_at(found, "positive_patients"))
    return {
        "Pathology": name,
        "Test AUROC": shown(number_at(found, "auroc"), interval_at(found, "auroc_interval")),
        "Val. AUROC": shown(number_at(validation, "auroc")),
        "ECE": shown(number_at(calibration, "ece")),
        "Brier skill": shown(number_at(calibration, "brier_skill")),
        "Threshold": shown(output.threshold),
        "Sensitivity": shown(number_at(point, "sensitivity"), interval_at(point, f"sensitivity_{suffix}"), 2),
        "Specificity": shown(number_at(point, "specificity"), interval_at(point, f"specificity_{suffix}"), 2),
        "Positive patients": " / ".join(map(counted, patients)),
        "Data": "" if output.sufficient_data else "insufficient data",
    }


# ── The curves ───────────────────────────────────────────────────────────────────────────────────────────────────────


def show_curves_of(client: AssistantClient) -> None:
    """Show the curves, or why there are none."""
    st.subheader("Curves")
    try:
        curves = client.curves()
    except ClientError as exc:
        if exc.code == "not_found":
            st.markdown(NO_CURVES)
        else:
            show_failure(exc)
            st.button("Retry", key="retry_curves")
        return
    if not curves.pathologies:
        plain("No film of this evaluation has the labels that a curve needs.")
        return
    show_curves(curves)


@st.fragment
def show_curves(curves: Curves) -> None:
    """Show both curves of one pathology, which the user chooses."""
    names = [name for name in NAMES if name in curves.pathologies]
    most = max(names, key=lambda name: (curves.pathologies[name].films, curves.pathologies[name].positive_films))
    name = st.selectbox("Pathology", names, index=names.index(most), key="curve_pathology", width=260)
    found = curves.pathologies[name]
    ranking, reliability = st.columns(2, gap="large")
    with ranking:
        st.markdown("**ROC curve**")
        st.altair_chart(roc_chart(found), width="stretch", alt="ROC curve with its operating point")
        st.caption(roc_caption(found))
    with reliability:
        st.markdown("**Reliability**")
        st.altair_chart(
            reliability_chart(found), width="stretch", alt="Reliability diagram: predicted against observed"
        )
        st.caption(
            f"{len(found.reliability)} bins with about as many films each; on the dashed line, what is said is true. "
            + ("" if curves.calibrated else "These weights are not calibrated: their outputs are no probabilities.")
        )
    plain(f"{curves.cohort}: {counted(curves.films)} films of {counted(curves.patients)} patients. {curves.made_by}")


def roc_caption(found: PathologyCurves) -> str:
    """Say what stands behind a ROC curve; numbers and constant words only."""
    point = found.operating_point
    return (
        f"AUROC {shown(found.auroc, found.auroc_interval)}; {counted(found.positive_films)} positive films of "
        f"{counted(found.positive_patients)} patients among {counted(found.films)} films. Dashed: chance. "
        + (
            "These weights have no operating point for it."
            if point is None
            else f"Orange: the operating point, a threshold of {point.threshold:.4f}."
        )
    )


# ── The limits ───────────────────────────────────────────────────────────────────────────────────────────────────────


def limits(card: WeightsCard) -> Iterator[str]:
    """Yield what the figures leave open, with the card's own numbers where it has them."""
    yield "Other hospitals, scanners and patients: each figure holds for films like those that were measured."
    yield "Your prevalence: a probability holds where a finding is as frequent as among the validation films."
    yield "Wrong labels: they were not read again, so a part of what counts as an error may be one of the labels."
    yield "The second reader: all figures are the network's alone."
    blind = [name for name in NAMES if better_without_pixels(card, name)]
    if blind:
        yield (
            "Seeing: a score that looks at no pixel (size of the source, view) ranks the test films as well or better, "
            f"in one direction or the other, for {', '.join(blind)}."
        )
    boxes = at(card.metrics, "boxes", "localisation", "all") or at(card.metrics, "test", "localisation", "all")
    counts = [number_at(boxes, key) for key in ("pointed", "boxes", "centre_guess_pointed")]
    if None in counts:
        yield "Where a finding is: whether the maps point at findings was not measured."
    else:
        inside, of, centre = map(counted, counts)
        yield (
            f"Where a finding is: the peak of the map lies in {inside} of {of} boxes that radiologists drew, the "
            f"centre of the film in {centre}. A map says what raised a score."
        )
    children = number_at(card.metrics, "test", "subgroups", "age", "0-17", "films")
    yield "Children: " + (f"only {counted(children)} of the test films." if children else "not measured.")


def better_without_pixels(card: WeightsCard, name: str) -> bool:
    """Say whether a score that sees no pixel, taken in its better direction, ranks the test films as well."""
    test = card.metrics.get("test")
    own = number_at(test, "discrimination", "pathologies", name, "auroc")
    baselines = at(test, "baselines")
    scores = [number_at(baselines, key, name) for key in baselines] if isinstance(baselines, dict) else []
    return own is not None and any(max(score, 1.0 - score) >= own for score in scores if score is not None)
