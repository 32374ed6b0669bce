"""The 14 pathologies of ChestX-ray14 (Wang et al., CVPR 2017): the project's domain vocabulary, in one place."""

from dataclasses import dataclass
from enum import IntEnum


class Criticality(IntEnum):
    """How soon a reported finding needs action; the sooner, the larger.

    The three tiers follow the actionable-findings categories of the American College of Radiology
    (Larson et al., J Am Coll Radiol 2014): minutes, hours, days. Which pathology stands in which tier is
    chosen for this project, not fitted.
    """

    IMMEDIATE = 3
    PROMPT = 2
    ROUTINE = 1


@dataclass(frozen=True)
class Pathology:
    """One label of the classifier, with its display name and its clinical urgency."""

    name: str
    criticality: Criticality


PATHOLOGIES: tuple[Pathology, ...] = (
    Pathology("Atelectasis", Criticality.ROUTINE),
    Pathology("Cardiomegaly", Criticality.ROUTINE),
    Pathology("Effusion", Criticality.PROMPT),
    Pathology("Infiltration", Criticality.ROUTINE),
    Pathology("Mass", Criticality.ROUTINE),
    Pathology("Nodule", Criticality.ROUTINE),
    Pathology("Pneumonia", Criticality.PROMPT),
    Pathology("Pneumothorax", Criticality.IMMEDIATE),
    Pathology("Consolidation", Criticality.PROMPT),
    Pathology("Edema", Criticality.IMMEDIATE),
    Pathology("Emphysema", Criticality.ROUTINE),
    Pathology("Fibrosis", Criticality.ROUTINE),
    Pathology("Pleural Thickening", Criticality.ROUTINE),
    Pathology("Hernia", Criticality.ROUTINE),
)

NAMES: tuple[str, ...] = tuple(p.name for p in PATHOLOGIES)

# Names that reports use for one and the same airspace opacity: evidence for one is not new evidence for the others.
OPACITY_GROUP: frozenset[str] = frozenset({"Consolidation", "Infiltration", "Pneumonia"})

_BY_KEY = {name.casefold(): name for name in NAMES}


def canonical_name(label: str) -> str | None:
    """Return the display name for a label as data files write it (`Pleural_Thickening`), or None for any other."""
    return _BY_KEY.get(label.strip().replace("_", " ").casefold())


_CRITICALITY = {p.name: p.criticality for p in PATHOLOGIES}


def criticality(name: str) -> Criticality:
    """Return the urgency of a pathology by its display name; raises KeyError for an unknown one."""
    return _CRITICALITY[name]
