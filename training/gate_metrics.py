"""Measures gates on halves that nothing of them was fitted to, in counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from evaluation.metrics import auroc, wilson_interval
from modules.quality import KINDS, SIDES, InputGate, Kind, Side
from modules.records import FloatArray
from synthetic.not_radiographs import KINDS as DRAWN_KINDS
from training.gate_fit import drawn, score
from training.gate_images import CROP_DEPTHS, VARIANTS, Film, NotFilm, cropped, random_cuts, turned

DRAWN_IMAGES = 100  # of each held-out kind
MEASURED_VARIANTS = 200  # films of each half that are shown in every variant and cut off in every way

LATERAL = "not measured: no lateral film was available; only a DICOM header gives one away"


@dataclass(frozen=True, eq=False)
class Half:
    """One half of everything that gates are chosen with or measured on."""

    films: tuple[Film, ...]  # of validation patients
    others: tuple[NotFilm, ...]
    drawn_kinds: tuple[str, ...]


@dataclass(eq=False)
class Tally:
    """What is counted while one gate after another is measured; each count is [of, how many]."""

    counts: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)

    def add(self, table: str, row: str, hits: Iterable[bool]) -> None:
        """Count the hits in a row of a table."""
        known = list(hits)
        cell = self.counts.setdefault(table, {}).setdefault(row, [0, 0])
        cell[0] += len(known)
        cell[1] += sum(known)


def in_halves(films: Sequence[Film], others: Sequence[NotFilm], rng: np.random.Generator) -> tuple[Half, Half]:
    """Split films by patient, images of other things by category, and kinds of drawn images, in two.

    No patient, no picture (though it be there in two formats) and no kind is in both halves.
    """
    patients = [str(p) for p in rng.permutation(sorted({film.patient for film in films}))]
    first = set(patients[::2])
    half_of = _half_of_subjects(others, rng)
    kinds = tuple(DRAWN_KINDS)
    one, two = (
        Half(
            films=tuple(film for film in films if (film.patient in first) == (half == 0)),
            others=tuple(image for image in others if half_of[image.subject] == half),
            drawn_kinds=kinds[half::2],
        )
        for half in (0, 1)
    )
    return one, two


def _half_of_subjects(others: Sequence[NotFilm], rng: np.random.Generator) -> dict[str, int]:
    categories: dict[str, list[str]] = {}
    for image in others:
        categories.setdefault(image.subject, []).append(image.category)
    sizes: dict[str, list[int]] = {category: [0, 0] for names in categories.values() for category in names}
    half_of = {}
    totals = [0, 0]
    for subject in (str(s) for s in rng.permutation(sorted(categories))):
        filled = [(sum(sizes[c][half] for c in categories[subject]), totals[half], half) for half in (0, 1)]
        half = half_of[subject] = min(filled)[2]
        totals[half] += len(categories[subject])
        for category in categories[subject]:
            sizes[category][half] += 1
    return half_of


def measure(gate: InputGate, half: Half, tally: Tally, rng: np.random.Generator) -> None:
    """Count what a gate makes of a half that nothing of it was fitted to or chosen with."""
    threshold = gate.card.threshold
    film_scores = [score(gate, film.pixels) for film in half.films]
    tally.add("films", "refused by pixels", (value < threshold for value in film_scores))
    tally.add("films", "refused by plain rules", (film.plain_reason is not None for film in half.films))
    other_scores = []
    for image in half.others:
        value = 0.0 if image.pixels is None else score(gate, image.pixels)
        other_scores += [] if image.pixels is None else [value]
        refused = value < threshold
        tally.add("others by pixels", image.category, [refused and image.pixels is not None])
        tally.add("others", image.category, [refused or image.plain_reason is not None])
        tally.accepted += [] if refused else [image.name]
    for kind in half.drawn_kinds:
        values = [score(gate, drawn([kind], rng)) for _ in range(DRAWN_IMAGES)]
        other_scores += values
        tally.add("drawn", kind, (value < threshold for value in values))
    labels = np.array([1.0] * len(film_scores) + [0.0] * len(other_scores))
    tally.areas.append(auroc(labels, np.array(film_scores + other_scores)))
    for kind in KINDS[:-1]:
        likeliest = [_likeliest(gate, turned(film.pixels, kind)) for film in half.films]
        tally.add("named rightly", kind.value, (found is kind for found in likeliest))
    some = half.films[:: max(1, len(half.films) // MEASURED_VARIANTS)][:MEASURED_VARIANTS]
    for name, variant in VARIANTS.items():
        tally.add("variants", name, (score(gate, variant(film.pixels, rng)) < threshold for film in some))
    _measure_cut_off(gate, half.films, some, tally, rng)


def _measure_cut_off(
    gate: InputGate, films: Sequence[Film], some: Sequence[Film], tally: Tally, rng: np.random.Generator
) -> None:
    tally.add("false warnings", "whole films", (bool(_sides(gate, film.pixels)) for film in films))
    for side in SIDES:
        for least, most in pairwise(CROP_DEPTHS):
            row = _cut_row(side, least, most)
            parts = [cropped(film.pixels, {side: float(rng.uniform(least, most))}) for film in some]
            warned = [_sides(gate, part) for part in parts]
            tally.add("cut off, warned", row, (bool(sides) for sides in warned))
            tally.add("cut off, side named", row, (side in sides for sides in warned))
    refused = [score(gate, cropped(film.pixels, random_cuts(rng))) < gate.card.threshold for film in some]
    tally.add("variants", "cut off at one or two sides", refused)


def _sides(gate: InputGate, image: FloatArray) -> set[Side]:
    values = gate.cut_off_probabilities(image)
    return {side for side, value in values.items() if value >= gate.card.cut_off.threshold}


def _likeliest(gate: InputGate, image: FloatArray) -> Kind:
    kinds = gate.kind_probabilities(image)
    return max(kinds, key=lambda kind: kinds[kind])


def held_out(tally: Tally) -> dict[str, Any]:
    """Return the counts as the card holds them."""
    films, refused = tally.counts["films"]["refused by pixels"]
    plain = tally.counts["films"]["refused by plain rules"][1]
    interval = wilson_interval(refused, films)
    bounds = [round(interval.low, 4), round(interval.high, 4)]
    share = {"films": films, "refused": refused, "share": round(refused / films, 4), "wilson_95": bounds}
    by_pixels, with_rules = tally.counts["others by pixels"], tally.counts["others"]
    others = {
        category: {"images": of, "refused_by_pixels": hits, "refused_with_plain_rules": with_rules[category][1]}
        for category, (of, hits) in sorted(by_pixels.items())
    }
    return {
        "films": {**share, "refused_by_plain_rules": plain},
        "not_films": {"all": _summed(others.values()), **others, "accepted_by_pixels": sorted(tally.accepted)},
        "drawn": _table(tally, "drawn", "refused"),
        "auroc_film_against_others": [round(area, 5) for area in tally.areas],
        "named_rightly": _table(tally, "named rightly", "named_rightly", total=False),
        "films_as_users_send_them": _table(tally, "variants", "refused", total=False),
        "cut_off": {
            **_table(tally, "false warnings", "warned", total=False),
            **{
                row: {"images": of, "warned": hits, "side_named": tally.counts["cut off, side named"][row][1]}
                for row, (of, hits) in tally.counts["cut off, warned"].items()
            },
            "sides_from_which_a_fifth_or_more_is_missed": _weak_sides(tally),
        },
    }


def _weak_sides(tally: Tally) -> list[str]:
    """Return the sides of which a cut of the middle depth goes unnoticed in a fifth of the films or more."""
    rows = {side: tally.counts["cut off, warned"][_cut_row(side, *CROP_DEPTHS[1:3])] for side in SIDES}
    return [side.value for side, (of, hits) in rows.items() if hits <= 0.8 * of]


def _cut_row(side: Side, least: float, most: float) -> str:
    return f"{side.value}, {least:.0%} to {most:.0%} of the side cut away"


def _table(tally: Tally, table: str, hits_are: str, *, total: bool = True) -> dict[str, dict[str, int]]:
    rows = {row: {"images": of, hits_are: hits} for row, (of, hits) in tally.counts[table].items()}
    return {"all": _summed(rows.values()), **rows} if total else rows


def _summed(rows: Iterable[dict[str, int]]) -> dict[str, int]:
    known = list(rows)
    return {key: sum(row[key] for row in known) for key in known[0]} if known else {}
