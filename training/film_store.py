"""Training films in memory, small and ready."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from evaluation.films import LabelledFilm, LabelsError, decode, image_files
from modules.cnn_model import resize_square
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


def load_stores(
    sources: Sequence[Path], table: Mapping[str, LabelledFilm], splits: Sequence[str], side: int, reduced_side: int
) -> dict[str, FilmStore]:
    """Decode every film of the splits; unreadable ones are named on standard error and left out.

    Raises LabelsError when a split has no film.
    """
    wanted = {name for name, row in table.items() if row.split in splits}
    kept: dict[str, list[tuple[Bytes, Bytes, LabelledFilm]]] = {split: [] for split in splits}
    unreadable = 0
    for name, data in tqdm(image_files(sources, wanted), total=len(wanted), desc="films", unit="film"):
        film = decode(data)
        if isinstance(film, str):
            unreadable += 1
            sys.stderr.write(f"left out: {name}: {film}\n")
            continue
        both = (_as_bytes(film.pixels, side), _as_bytes(film.pixels, reduced_side))
        kept[table[name].split].append((*both, table[name]))
    found = sum(map(len, kept.values()))
    if found + unreadable < len(wanted):
        sys.stderr.write(f"{len(wanted) - found - unreadable} of {len(wanted)} films of the table are in no source.\n")
    empty = [split for split, films in kept.items() if not films]
    if empty:
        raise LabelsError(f"no film of the split {empty[0]!r} was found")
    return {split: _stack(films) for split, films in kept.items()}


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
