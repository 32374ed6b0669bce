"""Labelled films from a folder or a zip file, and the CSV that describes them (the layout of `python -m synthetic`)."""

import csv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from modules.errors import ImageError
from modules.images import open_image
from modules.pathologies import NAMES
from modules.records import Radiograph


@dataclass(frozen=True)
class Labels:
    """One row of the CSV: the patient, and 0 or 1 for each of the 14 pathologies, in their order."""

    patient: str
    split: str  # train, val or test
    positive: tuple[bool, ...]


def read_labels(path: Path) -> dict[str, Labels]:
    """Read the CSV; pathologies are found by the name of their column."""
    with path.open(newline="", encoding="utf-8") as file:
        return {
            row["image"]: Labels(
                patient=row["patient"],
                split=row["split"],
                positive=tuple(row[name.replace(" ", "_")] == "1" for name in NAMES),
            )
            for row in csv.DictReader(file)
        }


def read_films(source: Path) -> Iterator[tuple[str, Radiograph]]:
    """Yield (file name, film) for every image of a folder or a zip file, sorted by name."""
    for name, data in _read_files(source):
        try:
            yield name, open_image(data).decode()
        except ImageError as exc:
            raise SystemExit(f"{source}: {name}: {exc}") from exc


def _read_files(source: Path) -> Iterator[tuple[str, bytes]]:
    if source.is_dir():
        for path in sorted(p for p in source.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".dcm"}):
            yield path.name, path.read_bytes()
    elif source.is_file():
        with zipfile.ZipFile(source) as archive:
            for name in sorted(n for n in archive.namelist() if not n.endswith("/")):
                yield PurePosixPath(name).name, archive.read(name)
    else:
        raise SystemExit(f"{source} is neither a folder nor a zip file.")
