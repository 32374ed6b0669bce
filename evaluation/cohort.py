"""Scored films joined with their labels: the arrays that every measure starts from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluation.films import LabelledFilm
from evaluation.metrics import Interval
from evaluation.scoring import ScoredFilm
from modules import fusion, risk_module, uncertainty
from modules.odds import probabilities
from modules.pathologies import NAMES
from modules.records import CnnPrediction, FloatArray, GridToImage, Quality, Reading, Risk, Uncertainty
from modules.weights import CardOutput

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

AGE_BANDS = ((0, 17), (18, 39), (40, 59), (60, 120))  # years, both ends included
SILENT = Reading(reasoning="none", independent=False)
GOOD_FILM = Quality(gate_score=1.0, accepted=True, reason="taken as good")
_NOWHERE = GridToImage(x_scale=1.0, x_offset=0.0, y_scale=1.0, y_offset=0.0)


@dataclass(frozen=True, eq=False)
class Cohort:
    """N films with labels and scores, in one order, and what the weights card says of each output."""

    rows: tuple[LabelledFilm, ...]
    films: tuple[ScoredFilm, ...]
    outputs: tuple[CardOutput, ...]  # 14

    def __post_init__(self) -> None:
        if not self.rows or [row.image for row in self.rows] != [film.image for film in self.films]:
            raise ValueError("a cohort has at least one film, and the labels of each")
        if len(self.outputs) != len(NAMES):
            raise ValueError(f"a card serves {len(NAMES)} outputs, not {len(self.outputs)}")

    @cached_property
    def labels(self) -> Floats:
        """1, 0 or NaN (N, 14)."""
        return np.array([row.labels for row in self.rows])

    @cached_property
    def log_odds(self) -> Floats:
        """As served (N, 14)."""
        return np.array([film.log_odds for film in self.films])

    @cached_property
    def probabilities(self) -> FloatArray:
        """As served (N, 14), in the server's precision."""
        return probabilities(self.log_odds.astype(np.float32))

    @cached_property
    def thresholds(self) -> FloatArray:
        """Operating points (14,); 1 stands for none."""
        return np.array([1.0 if o.threshold is None else o.threshold for o in self.outputs], np.float32)

    @cached_property
    def sufficient(self) -> Bools:
        """Which outputs count (14,)."""
        return np.array([o.sufficient_data for o in self.outputs])

    @cached_property
    def detected(self) -> Bools:
        """Detections (N, 14), compared as the server compares."""
        return np.asarray(self.probabilities >= self.thresholds)

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """The patient of each film."""
        return tuple(row.patient for row in self.rows)

    @cached_property
    def normal(self) -> Bools:
        """Films that are known to show none of the 14 (N,)."""
        return np.array([row.no_finding for row in self.rows])

    @cached_property
    def subgroups(self) -> dict[str, dict[str, Bools]]:
        """Masks (N,) by sex, age band and view; films of unknown group are in none."""
        ages = np.array([row.age for row in self.rows])
        return {
            "sex": self._groups([row.sex for row in self.rows]),
            "age": {
                f"{low}-{high}": (ages >= low) & (ages <= high)
                for low, high in AGE_BANDS
                if ((ages >= low) & (ages <= high)).any()
            },
            "view": self._groups([row.view for row in self.rows]),
        }

    @staticmethod
    def _groups(values: Sequence[str]) -> dict[str, Bools]:
        return {value: np.array([v == value for v in values]) for value in sorted(set(values) - {""})}

    @cached_property
    def outcomes(self) -> "tuple[Outcome, ...]":
        """What the later stages make of each film without a second reader."""
        return tuple(self.outcome(i, SILENT) for i in range(len(self.rows)))

    def outcome(self, i: int, reading: Reading) -> "Outcome":
        """Run fusion, uncertainty and risk on one film, its quality taken as good."""
        film = self.films[i]
        return later_stages(
            np.array(film.log_odds, np.float32),
            np.array(film.mirrored_log_odds, np.float32),
            self.thresholds,
            tuple(self.sufficient.tolist()),
            reading,
        )


@dataclass(frozen=True)
class Outcome:
    """The later stages' view of one film."""

    detected: tuple[bool, ...]  # 14
    uncertainty: Uncertainty
    risk: Risk
    fused_probabilities: tuple[float, ...]  # 14


def later_stages(
    log_odds: FloatArray,
    mirrored: FloatArray,
    thresholds: FloatArray,
    sufficient: tuple[bool, ...],
    reading: Reading = SILENT,
) -> Outcome:
    """Run fusion, uncertainty and risk on calibrated log-odds (14,) of a good film and of its mirror image."""
    prediction = CnnPrediction(
        logits=log_odds,
        log_odds=log_odds,
        thresholds=thresholds,
        sufficient_data=sufficient,
        features=np.zeros((1, 1, 1), np.float32),  # none of these stages looks at them
        classifier_weight=np.zeros((len(NAMES), 1), np.float32),
        calibration_slope=np.ones(len(NAMES), np.float32),
        grid_to_image=_NOWHERE,
        mirrored_log_odds=mirrored,
    )
    fused = fusion.fuse(prediction, reading)
    sureness = uncertainty.assess(prediction, reading, fused, GOOD_FILM)
    risk = risk_module.assess(fused, sureness, GOOD_FILM, "")
    return Outcome(prediction.detected, sureness, risk, tuple(f.fused_probability for f in fused.findings))


def as_json(value: Any) -> Any:
    """Return what JSON can hold: NaN and infinity become null, an Interval [low, high], or null when undefined."""
    if isinstance(value, Interval):
        return None if math.isnan(value.low) else [value.low, value.high]
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
