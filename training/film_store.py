"""Training films in memory, small and ready."""

import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.films import LabelledFilm, LabelsError, decode, image_files, is_archive
from modules.cnn_model import centre_square, resize_square
from modules.records import FloatArray

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class FilmStore:
    """Films of one split: as they are served, and reduced further straight from the file; N films, S and s pixels."""

    films: Bytes  # (N, S, S)
    reduced: Bytes  # (N, s, s)
    labels: FloatArray  # (N, 14): 1, 0 or NaN
    rows: tuple[LabelledFilm, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def sha256(self) -> str:
        """Return a hash of everything that is trained on or measured."""
        digest = hashlib.sha256(repr([(row.image, row.patient) for row in self.rows]).encode())
        for array in (self.films, self.reduced, self.labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_stores(
    sources: Sequence[Path],
    table: Mapping[str, LabelledFilm],
    splits: Sequence[str],
    side: int,
    reduced_side: int,
    aspect: Literal["stretch", "crop"] = "stretch",
) -> dict[str, FilmStore]:
    """Decode every film of the splits, made square as preprocessing with this aspect makes it.

    Unreadable films are named on standard error and left out. Raises LabelsError when a split has no film or no label,
    or when a patient is in two splits.
    """
    check_splits(table, splits)
    wanted = {name for name, row in table.items() if row.split in splits}
    kept: dict[str, list[tuple[Bytes, Bytes, LabelledFilm]]] = {split: [] for split in splits}
    unreadable = 0
    for name, data in tqdm(image_files(sources, wanted), total=len(wanted), desc="films", unit="film"):
        film = decode(data)
        if isinstance(film, str):
            unreadable += not is_archive(name)
            sys.stderr.write(f"left out: {film if is_archive(name) else f'{name}: {film}'}\n")
            continue
        pixels = centre_square(film.pixels) if aspect == "crop" else film.pixels
        kept[table[name].split].append((_as_bytes(pixels, side), _as_bytes(pixels, reduced_side), table[name]))
    found = sum(map(len, kept.values()))
    if found + unreadable < len(wanted):
        sys.stderr.write(f"{len(wanted) - found - unreadable} of {len(wanted)} films of the table are in no source.\n")
    empty = [split for split, films in kept.items() if not films]
    if empty:
        raise LabelsError(f"no film of the split {empty[0]!r} was found")
    return {split: _stack(films) for split, films in kept.items()}


def check_splits(table: Mapping[str, LabelledFilm], splits: Sequence[str]) -> None:
    """Raise LabelsError for a split that has no row or no known label, and for a patient who is in two of them."""
    split_of: dict[str, str] = {}
    labelled = set()
    for row in table.values():
        if row.split in splits:
            if split_of.setdefault(row.patient, row.split) != row.split:
                raise LabelsError(
                    f"Patient {row.patient[:40]!r} is in {split_of[row.patient]} and in {row.split}: what is measured "
                    "on films of patients that were trained on is too good. Put each patient in one split."
                )
            if not all(map(math.isnan, row.labels)):
                labelled.add(row.split)
    present = set(split_of.values())
    for split in splits:
        if split not in labelled:
            why = "has no film with a known label" if split in present else "has no film"
            raise LabelsError(f"The split {split!r} of the table {why}.")


def _stack(films: list[tuple[Bytes, Bytes, LabelledFilm]]) -> FilmStore:
    rows = tuple(row for _, _, row in films)
    return FilmStore(
        films=np.stack([film for film, _, _ in films]),
        reduced=np.stack([reduced for _, reduced, _ in films]),
        labels=np.array([row.labels for row in rows], np.float32),
        rows=rows,
    )


def _as_bytes(pixels: FloatArray, side: int) -> Bytes:
    return np.asarray(np.clip(np.rint(resize_square(pixels, side) * 255), 0, 255), np.uint8)
