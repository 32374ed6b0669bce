"""Fits the input gate: `python -m training.gate --train FILMS --val FILMS --not-films IMAGES`.

Films are shown upright, inverted, turned and scrambled; everything else is drawn at random, or taken from images that
are no chest radiographs. Validation patients, those images, and the kinds of drawn images are split into halves: a
gate fitted and chosen with one half is measured on the other, and the other way round. The gate that ships is fitted
on all of them, with its thresholds chosen on all validation films.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.films import LabelsError, check_sources
from evaluation.output import OutputError, check_file, write_text
from modules.quality import GATE_CARD, InputGate
from training.gate_fit import (
    Examples,
    cut_off_examples,
    drawn_examples,
    film_examples,
    fit,
    joined,
    other_examples,
    score,
    with_thresholds,
)
from training.gate_images import Film, NotFilm, read_films, read_not_films
from training.gate_metrics import LATERAL, Half, Tally, held_out, in_halves, measure

CHOSEN_ON_DRAWN = 400  # drawn images of each half's kinds, beside its films, that the regularisation is chosen on


@dataclass(frozen=True, eq=False)
class HalfExamples:
    """What is fitted to one half, and what the regularisation is chosen on."""

    fitted: Examples
    val: Examples


def main(argv: list[str] | None = None) -> None:
    """Fit, measure and write the gate."""
    args = _arguments(argv)
    try:
        check_file(args.out)
    except OutputError as exc:
        sys.exit(str(exc))
    cv2.setNumThreads(1)  # the images are too small to be worth more, and the sums stay the same on every machine
    try:
        train, val, others = _read(args)
    except LabelsError as exc:
        sys.exit(str(exc))
    gate, metrics = fit_and_measure(train, val, others, args.seed)
    metrics["fitted_on"] = {"films": len(train), "every": args.every, "seed": args.seed, "not_films": len(others)}
    card = gate.card.model_copy(update={"metrics": metrics})
    try:
        write_text(args.out, json.dumps(card.model_dump(mode="json"), ensure_ascii=False) + "\n")
    except OutputError as exc:
        sys.exit(str(exc))
    sys.stdout.write(json.dumps({"threshold": card.threshold, **metrics}, indent=1, ensure_ascii=False) + "\n")


def fit_and_measure(
    train: Sequence[Film], val: Sequence[Film], others: Sequence[NotFilm], seed: int
) -> tuple[InputGate, dict[str, Any]]:
    """Return the gate that ships, and what two gates, each without one half, made of that half."""
    rng = np.random.default_rng(seed)
    films, cut_off = film_examples(train, rng), cut_off_examples(train, rng)
    halves = in_halves(val, others, rng)
    examples = [_half_examples(half, len(train), rng) for half in halves]
    tally, chosen = Tally(), []
    for own, fitted, other in zip(halves, examples, halves[::-1], strict=True):
        card, strength = fit(joined(films, fitted.fitted), cut_off, fitted.val)
        half_gate = with_thresholds(card, own.films)
        chosen.append(_chosen(half_gate, strength))
        measure(half_gate, other, tally, rng)
    card, strength = fit(joined(films, *(e.fitted for e in examples)), cut_off, joined(*(e.val for e in examples)))
    gate = with_thresholds(card, val)
    metrics = {
        "held_out": held_out(tally),
        "lateral": LATERAL,
        "halves": {
            "chosen": chosen,
            "validation_patients": [len({film.patient for film in half.films}) for half in halves],
            "not_films": [sorted(image.name for image in half.others) for half in halves],
            "drawn_kinds": [list(half.drawn_kinds) for half in halves],
        },
        "shipped_gate_on_what_it_was_fitted_to_or_chosen_with": _fitted(gate, val, others) | _chosen(gate, strength),
    }
    return gate, metrics


def _half_examples(half: Half, count: int, rng: np.random.Generator) -> HalfExamples:
    fitted = joined(drawn_examples(half.drawn_kinds, count, rng), other_examples(half.others, rng))
    val = joined(film_examples(half.films, rng), drawn_examples(half.drawn_kinds, CHOSEN_ON_DRAWN, rng))
    return HalfExamples(fitted, val)


def _chosen(gate: InputGate, strength: float) -> dict[str, float]:
    return {
        "threshold": gate.card.threshold,
        "cut_off_threshold": gate.card.cut_off.threshold,
        "inverse_regularisation": strength,
    }


def _fitted(gate: InputGate, val: Sequence[Film], others: Sequence[NotFilm]) -> dict[str, Any]:
    threshold = gate.card.threshold
    by_pixels = [image for image in others if image.pixels is not None and score(gate, image.pixels) < threshold]
    return {
        "not_films": len(others),
        "not_films_refused_by_pixels": len(by_pixels),
        "not_films_refused": sum(image in by_pixels or image.plain_reason is not None for image in others),
        "validation_films": len(val),
        "validation_films_refused_by_pixels": sum(score(gate, film.pixels) < threshold for film in val),
    }


def _read(args: argparse.Namespace) -> tuple[list[Film], list[Film], list[NotFilm]]:
    """Read all images; raises LabelsError when some are missing, or when a patient is in both lists of films."""
    check_sources([*args.train, *args.val, *args.not_films])
    train, val, others = read_films(args.train, args.every), read_films(args.val), read_not_films(args.not_films)
    for found, option in ((train, "--train"), (val, "--val"), (others, "--not-films")):
        if len(found) < 2:
            raise LabelsError(f"{option} holds {len(found)} images that can be read; two are the least.")
    for count, what in (
        (len({film.patient for film in val}), "--val holds films of {} patient"),
        (len({image.subject for image in others if image.pixels is not None}), "--not-films holds {} picture"),
    ):
        if count < 2:
            raise LabelsError(f"{what.format(count)}: each half that a gate is measured on needs one of its own.")
    shared = {film.patient for film in train} & {film.patient for film in val}
    if shared:
        raise LabelsError(f"{len(shared)} patients are in both --train and --val, such as {min(shared)}.")
    return train, val, others


def _from(least: int) -> Callable[[str], int]:
    def number(value: str) -> int:
        found = int(value)
        if found < least:
            raise argparse.ArgumentTypeError(f"at least {least} is needed")
        return found

    return number


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.gate", description=__doc__)
    sources: dict[str, Any] = {"type": Path, "required": True, "nargs": "+"}
    parser.add_argument("--train", **sources, help="folders or zips of chest films to fit on")
    parser.add_argument("--val", **sources, help="folders or zips of other patients' films")
    parser.add_argument("--not-films", **sources, help="folders or zips of images that are no chest radiographs")
    parser.add_argument("--every", type=_from(1), default=6, help="take every n-th training film (default: 6)")
    parser.add_argument("--seed", type=_from(0), default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--out", type=Path, default=GATE_CARD, help="where the gate is written")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
