"""Whose films weights were trained on, and on what terms: for their card, which says nothing that nobody stated."""

from dataclasses import dataclass

from modules.errors import WeightsError
from modules.settings import PROJECT_ROOT
from modules.weights import read_card
from training.config import IMAGENET


@dataclass(frozen=True)
class Provenance:
    """What a card says of the films behind weights; words of whoever trains, without a full stop."""

    data: str
    licence: str
    citation: str


UNSTATED = Provenance(
    data="Films of a table of labels that whoever trained did not name",
    licence="not stated by whoever trained the weights",
    citation="none was given",
)
NIH = Provenance(
    data="NIH ChestX-ray14",
    licence=UNSTATED.licence,
    citation="Wang X, et al. ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks. CVPR 2017. "
    "The NIH Clinical Center provides the data.",
)
PHOTOGRAPHS = Provenance(
    data="ImageNet, photographs and no films",
    licence="torchvision's, and the terms of ImageNet",
    citation="Russakovsky O, et al. ImageNet Large Scale Visual Recognition Challenge. IJCV 2015.",
)


def stated(
    data: str | None = None, licence: str | None = None, citation: str | None = None, *, is_nih: bool = False
) -> Provenance:
    """Return what was stated, in place of the rest what is known of the NIH's films, or that nobody stated it."""
    known = NIH if is_nih else UNSTATED
    return Provenance(data or known.data, licence or known.licence, citation or known.citation)


def of_start(initial_weights: str | None) -> Provenance | None:
    """Return what stands behind the weights that a recipe starts from; None for random ones."""
    if initial_weights is None:
        return None
    if initial_weights == IMAGENET:
        return PHOTOGRAPHS
    try:
        card = read_card(PROJECT_ROOT / initial_weights)
    except WeightsError:  # trained elsewhere, or the folder is gone since
        return UNSTATED
    return Provenance(card.data, card.licence, card.citation)


def together(films: Provenance, start: Provenance | None) -> Provenance:
    """Return what a card says of weights that were trained on films from a start: its data and its terms count too."""
    if start is None:
        return films
    return Provenance(
        data=f"{films.data}. The weights that the training started from are of other training, whose data count too: "
        f"{start.data}",
        licence=_both(films.licence, start.licence),
        citation=_both(films.citation, start.citation),
    )


def _both(own: str, start: str) -> str:
    return own if own == start else f"{own.rstrip('.')}; of the weights it started from: {start}"
