"""The model card's sentences: what is said of every set of weights, and what is said of ChestX-ray14 alone."""

from collections.abc import Iterator, Mapping
from typing import Any

from modules.weights import MIN_POSITIVE_PATIENTS, WeightsCard
from training.markdown import table
from training.provenance import NIH


def trained_on_nih(card: WeightsCard) -> bool:
    """Whether the card says that the weights were trained on ChestX-ray14."""
    return card.data.startswith(NIH.data)


def all_nih(card: WeightsCard) -> bool:
    """Whether the weights were trained on ChestX-ray14, and no figure of the card is said to be of other films.

    Figures that were taken up before evaluations named their films are of ChestX-ray14, where the weights are.
    """
    parts = [part for part in card.metrics.values() if isinstance(part, Mapping)]
    return trained_on_nih(card) and all(str(part.get("cohort", NIH.data)).startswith(NIH.data) for part in parts)


def head(card: WeightsCard) -> Iterator[str]:
    """Yield the title, and what the weights are."""
    yield f"# Model card: {card.name}"
    yield ""
    yield "<!-- Written by `python -m training.model_card` from the weights card; edit neither by hand. -->"
    yield ""
    recipe = card.preprocessing
    first = "" if recipe.degrade_to is None else f"every film is brought to {recipe.degrade_to} px first, then "
    first += "" if recipe.reduce_to is None else f"to {recipe.reduce_to} px, then "
    yield from table(
        ("", ""),
        (
            ("network", f"{card.architecture}, one grey channel, 14 sigmoid outputs; Huang et al., CVPR 2017"),
            ("input", f"{first}{recipe.input_size} × {recipe.input_size} px ({recipe.aspect}); bright = dense"),
            ("file", f"`{card.file}`, SHA-256 `{card.sha256}`"),
            ("training", card.training),
            ("calibration", card.calibration or "none: the outputs are no probabilities"),
            ("operating points", card.operating_points),
            ("licence", card.licence),
            ("citation", card.citation),
        ),
    )


def use() -> Iterator[str]:
    """Yield what the weights are for, and what they are not for."""
    yield "## Intended use"
    yield ""
    yield "Research and education: to study how a classifier, a second reader, calibration and explanation"
    yield "work together on"
    yield "frontal chest radiographs of adults, and to measure that on films of one's own."
    yield ""
    yield "Not for diagnosis, treatment, triage or screening, and not for a decision about any person. It is"
    yield "no medical device."
    yield "Not for lateral films, children, CT, or films of other body parts. It looks for 14 pathologies"
    yield "only: not for"
    yield "fractures, free air, tubes or lines. A qualified professional must read the film."
    yield ""


def data(card: WeightsCard) -> Iterator[str]:
    """Yield what the weights were trained and measured on."""
    yield "## Data"
    yield ""
    if trained_on_nih(card):
        yield f"{card.data}. No patient is in two splits. The labels were mined from reports by text (Wang et al."
        yield "2017) and are noisy:"
        yield "a part of what is counted as an error here is an error of the labels."
    else:
        yield f"{card.data}. How their labels came about is not stated: a part of what is counted as an error here may"
        yield "be an error of the labels."
    yield ""
    test = card.metrics.get("test")
    if test:
        counts = test["counts"]
        yield f"Test: {counts['films']:,} films of {counts['patients']} patients{_which(card, test)}{_how(test)}."
        yield ""


def _which(card: WeightsCard, test: Mapping[str, Any]) -> str:
    if "cohort" in test:
        return f" ({test['cohort']})"
    return " from the official test list" if trained_on_nih(card) else ""


def _how(test: Mapping[str, Any]) -> str:
    return f", {test['how'].rstrip('.')}" if test["how"] else ""


def shortcuts(card: WeightsCard) -> Iterator[str]:
    """Yield what a network could read instead of the findings."""
    if trained_on_nih(card):
        yield "Almost all films with Pneumonia come from a source of higher resolution: how sharp a film is tells"
        yield "the label. In training, films"
        yield "are reduced to 64 px at random; see under *input* what is done to every film that is served."
        yield "Portable films (AP) are those of sicker"
        yield "patients: part of every figure is the view. What scores that look at no pixel reach on the test"
        yield "films (AUROC):"
    else:
        yield "What scores that look at no pixel reach on the test films (AUROC); a network can read the same off its"
        yield "films instead of the findings:"
    yield ""


def left_out_of_the_mean(card: WeightsCard) -> str:
    """Return why two pathologies are not in the mean AUROC."""
    if all_nih(card):
        return "(without Pneumonia, which is confounded, and Hernia, which is too rare)"
    return "(without Pneumonia and Hernia, as for the weights that this project ships)"


def limits(card: WeightsCard) -> Iterator[str]:
    """Yield what the figures do not say."""
    yield "## Limits"
    yield ""
    yield "- Most detections are false alarms wherever findings are rare, and a film without a detection"
    yield "excludes nothing."
    yield "- Calibrated means: for films like the validation films, at their prevalence. Another scanner,"
    yield "clinic or population"
    yield "  needs a calibration of its own (`python -m training.calibration`), another prevalence at least the dial"
    yield "  (`modules/prevalence.py`)."
    yield f"- A pathology with fewer than {MIN_POSITIVE_PATIENTS} positive validation patients is marked, and"
    yield "never drives the risk."
    yield "- A Grad-CAM map says what raised the score, not where a finding is."
    if all_nih(card):
        yield "- All films are from one hospital, at 128 px or less. No other hospital was tried."
        yield "- Not measured: lateral films, children as a group, films after 2015, CUDA and MPS devices."
    else:
        yield "- Nothing was measured but what stands above; on films of other hospitals, scanners and years all"
        yield "  figures may differ. Lateral films were not measured."
