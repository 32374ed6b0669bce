"""Who is trained on and who is measured: `python -m evaluation.splits --labels TABLE --out labels.csv`.

Writes a table with a split for every patient, as every other command reads it. A patient is in one split only, taken
there by a hash, so that every machine takes the same.
"""

import argparse
import csv
import hashlib
import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.films import LabelledFilm, LabelsError, image_names, is_nih_table, read_labels
from modules.pathologies import NAMES
from modules.weights import EMBEDDED_WEIGHTS, read_card

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the patients; chosen, not fitted
HALVES = {"val": 0.5, "test": 0.5}
COLUMNS = ("image", "patient", "split", "view", "sex", "age", "native_px")


def main(argv: list[str] | None = None) -> None:
    """Read a table, split it, and write it; leaves with a sentence when that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.splits", description=__doc__)
    parser.add_argument("--labels", type=Path, required=True, help="labels.csv or Data_Entry_2017.csv")
    parser.add_argument("--images", type=Path, nargs="+", help="folders or zips: keep only the films that are there")
    parser.add_argument("--out", type=Path, required=True, help="the new table")
    args = parser.parse_args(argv)
    try:
        table = read_split(args.labels, args.images)
        write_labels(table.values(), args.out)
    except (LabelsError, OSError) as exc:
        raise SystemExit(f"python -m evaluation.splits: {exc}") from exc
    for split, (films, patients) in counts(table).items():
        sys.stdout.write(f"{split or 'in no split'}: {films} films of {patients} patients\n")


def read_split(labels: Path, images: Sequence[Path] | None = None) -> dict[str, LabelledFilm]:
    """Read a table (only the films that are there, where `images` says where to look), and give each patient a split.

    Raises LabelsError with what is wrong.
    """
    table = read_labels(labels)
    if images is not None:
        found = image_names(images, table)
        table = {name: film for name, film in table.items() if name in found}
        if not table:
            raise LabelsError(f"No film of {labels} is in {', '.join(map(str, images))}: are these the file names?")
    return split_test_list(table) if is_nih_table(labels) else split_by_patient(table)


def split_by_patient(table: Mapping[str, LabelledFilm]) -> dict[str, LabelledFilm]:
    """Divide a table that names no split; one that names train, val and test keeps them.

    One without val gets it from the patients of train. Raises LabelsError when train or test alone is missing, for
    other names, and for a patient in two splits.
    """
    named = {film.split for film in table.values()} - {""}
    if unknown := sorted(named - SHARES.keys()):
        raise LabelsError(f"The table has a split {unknown[0]!r}: the names are {', '.join(SHARES)}.")
    if not named:
        return _with_split(table, {film.patient: _drawn(film.patient, SHARES) for film in table.values()})
    if not {"train", "test"} <= named:
        raise LabelsError(f"The table has the splits {', '.join(sorted(named))}: it needs train and test, or none.")
    split_of: dict[str, str] = {}
    for film in table.values():
        if split_of.setdefault(film.patient, film.split) != film.split:
            raise LabelsError(f"The patient of {film.image} is in two splits of the table, or one film is in none.")
    if "val" not in named:
        shares = {"val": SHARES["val"], "train": 1.0 - SHARES["val"]}
        split_of |= {patient: _drawn(patient, shares) for patient, split in split_of.items() if split == "train"}
    return _with_split(table, split_of)


def split_test_list(table: Mapping[str, LabelledFilm]) -> dict[str, LabelledFilm]:
    """Divide ChestX-ray14 so that val and test are halves of the official test list, by patient; the rest is train.

    The shipped weights were trained on patients of its training list, so no figure may rest on those. Raises
    LabelsError when fewer than two patients are of the test list.
    """
    tested = {film.patient for film in table.values() if film.split == "test"}
    halves = {patient: _drawn(patient, HALVES) for patient in tested}
    if len(set(halves.values())) < len(HALVES):
        raise LabelsError("Too few of these patients are of the official test list for validation and test.")
    others = {film.patient: "train" for film in table.values() if film.split in {"train", "val"}}
    return _with_split(table, {**others, **halves})


def check_unseen(sha256: str, labels: Path, split: str | None) -> None:
    """Raise LabelsError for the project's own weights on films of ChestX-ray14 beyond its official test list.

    They were trained on patients of the training list: every figure would be too good.
    """
    own = (EMBEDDED_WEIGHTS, EMBEDDED_WEIGHTS / "first")
    if split != "test" and is_nih_table(labels) and sha256 in {read_card(folder).sha256 for folder in own}:
        raise LabelsError(
            f"The shipped weights were trained on patients of the training list of {labels}: use --split test, or a "
            "table that python -m evaluation.splits wrote."
        )


def write_labels(films: Iterable[LabelledFilm], path: Path) -> None:
    """Write a table as `read_labels` reads it: labels 1 and 0, empty where not known."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *NAMES))
        for film in films:
            age = "" if math.isnan(film.age) else f"{film.age:g}"
            about = (film.image, film.patient, film.split, film.view, film.sex, age, film.native_px)
            writer.writerow((*about, *("" if math.isnan(label) else f"{label:g}" for label in film.labels)))


def counts(table: Mapping[str, LabelledFilm]) -> dict[str, tuple[int, int]]:
    """Return (films, patients) of each split that has any."""
    found = {}
    for split in dict.fromkeys([*SHARES, *(film.split for film in table.values())]):
        films = [film for film in table.values() if film.split == split]
        if films:
            found[split] = (len(films), len({film.patient for film in films}))
    return found


def _with_split(table: Mapping[str, LabelledFilm], split_of: Mapping[str, str]) -> dict[str, LabelledFilm]:
    return {name: replace(film, split=split_of.get(film.patient, "")) for name, film in table.items()}


def _drawn(patient: str, shares: Mapping[str, float]) -> str:
    """Return the split of a patient: the part of [0, 1) into which a hash of the number falls."""
    place = int(hashlib.sha256(f"split of {patient}".encode()).hexdigest()[:8], 16) / 16**8
    ends = itertools.accumulate(shares.values())
    return next((split for split, end in zip(shares, ends, strict=True) if place < end), list(shares)[-1])


if __name__ == "__main__":
    main()
