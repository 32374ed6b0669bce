"""Write synthetic films: `python -m synthetic --out FOLDER` for a data set, `python -m synthetic --sample` for one."""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from modules.pathologies import NAMES
from synthetic.findings import SUPPORTED_FINDINGS
from synthetic.phantom import SMALLEST_SIZE, SyntheticFilm, make_film

SAMPLE_PATH = Path("assets/sample_xray.png")
SAMPLE_SEED = 31
SAMPLE_FINDINGS = ("Effusion",)
SAMPLE_SIZE = 1024  # pixels a side

LABEL_COLUMNS = ("image", "patient", "split", "view", "age", "sex", "follow_up", "native_px")
BOX_COLUMNS = ("image", "finding", "x", "y", "width", "height")
SPLITS = {"train": 0.70, "val": 0.15, "test": 0.15}  # by patient
FOLLOW_UP_RATE = 0.3  # of patients with a film, those with one more
SECOND_FINDING_RATE = 0.25  # of films with a finding, those with one more


@dataclass(frozen=True)
class Study:
    """One film to draw, with what a patient's record would say of it."""

    patient: int
    follow_up: int
    split: str
    age: int  # years
    sex: str
    body_seed: int
    film_seed: int
    findings: tuple[str, ...]

    @property
    def image(self) -> str:
        """The file's name, patient and follow-up as ChestX-ray14 writes them."""
        return f"{self.patient:08d}_{self.follow_up:03d}.png"


def plan(count: int, seed: int, findings_rate: float) -> list[Study]:
    """Draw up `count` studies; every patient's films stay in one split."""
    rng = np.random.default_rng(seed)
    studies: list[Study] = []
    patient = 0
    while len(studies) < count:
        patient += 1
        split, sex = str(rng.choice(list(SPLITS), p=list(SPLITS.values()))), str(rng.choice(["F", "M"]))
        age, body_seed = int(rng.integers(20, 90)), int(rng.integers(2**32))
        films = int(rng.geometric(1 - FOLLOW_UP_RATE))
        for follow_up in range(min(films, count - len(studies))):
            findings = choose_findings(rng, findings_rate)
            film_seed = int(rng.integers(2**32))
            studies.append(Study(patient, follow_up, split, age + follow_up, sex, body_seed, film_seed, findings))
    return studies


def choose_findings(rng: np.random.Generator, rate: float) -> tuple[str, ...]:
    """No finding, or one or two that are drawn at random."""
    if rng.random() >= rate:
        return ()
    number = 2 if rng.random() < SECOND_FINDING_RATE else 1
    return tuple(str(name) for name in rng.choice(SUPPORTED_FINDINGS, number, replace=False))


def write_png(film: SyntheticFilm, path: Path) -> None:
    """Write a film's pixels as 8-bit greyscale PNG."""
    _, encoded = cv2.imencode(".png", film.pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    path.write_bytes(encoded.tobytes())


def write_set(folder: Path, studies: Sequence[Study], size: int) -> None:
    """Draw every study into `folder`, with labels.csv and boxes.csv beside the films."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "labels.csv").open("w", newline="", encoding="utf-8") as label_file,
        (folder / "boxes.csv").open("w", newline="", encoding="utf-8") as box_file,
    ):
        labels, boxes = csv.writer(label_file, lineterminator="\n"), csv.writer(box_file, lineterminator="\n")
        labels.writerow([*LABEL_COLUMNS, *(name.replace(" ", "_") for name in NAMES)])
        boxes.writerow(BOX_COLUMNS)
        for s in studies:
            film = make_film(s.film_seed, size, s.findings, patient=s.body_seed)
            write_png(film, folder / s.image)
            present = [int(name in s.findings) for name in NAMES]
            labels.writerow([s.image, s.patient, s.split, "PA", s.age, s.sex, s.follow_up, size, *present])
            for f in film.findings:
                boxes.writerow([s.image, f.pathology.replace(" ", "_"), f.x, f.y, f.width, f.height])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(prog="python -m synthetic", description="Draw synthetic chest radiographs.")
    what = result.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FOLDER", help="write films, labels.csv and boxes.csv here")
    what.add_argument("--sample", type=Path, nargs="?", const=SAMPLE_PATH, metavar="PATH", help="write the one sample")
    result.add_argument("--count", type=int, default=20, help="films (default: %(default)s)")
    result.add_argument("--seed", type=int, default=0, help="the same seed gives the same films (default: %(default)s)")
    result.add_argument("--size", type=int, default=1024, help="pixels a side (default: %(default)s)")
    result.add_argument("--findings-rate", type=float, default=0.5, help="share with a finding (default: %(default)s)")
    return result


def check(arguments: argparse.Namespace, command: argparse.ArgumentParser) -> None:
    """Leave with a message if a value makes no sense."""
    if arguments.count < 1:
        command.error(f"--count must be at least 1, not {arguments.count}")
    if arguments.seed < 0:
        command.error(f"--seed must not be negative, it is {arguments.seed}")
    if arguments.size < SMALLEST_SIZE:
        command.error(f"--size must be at least {SMALLEST_SIZE}, not {arguments.size}")
    if not 0.0 <= arguments.findings_rate <= 1.0:
        command.error(f"--findings-rate must lie in [0, 1], not {arguments.findings_rate}")
    if arguments.out is not None and arguments.out.exists() and not arguments.out.is_dir():
        command.error(f"--out {arguments.out} is a file, not a folder")
    if arguments.out is not None and (arguments.out / "labels.csv").exists():
        command.error(f"--out {arguments.out} already holds a data set; choose another folder")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    command = parser()
    arguments = command.parse_args(argv)
    check(arguments, command)
    if arguments.sample is not None:
        film = make_film(SAMPLE_SEED, SAMPLE_SIZE, SAMPLE_FINDINGS)
        arguments.sample.parent.mkdir(parents=True, exist_ok=True)
        write_png(film, arguments.sample)
        sys.stdout.write(f"Wrote {arguments.sample}: {SAMPLE_SIZE} px, {', '.join(SAMPLE_FINDINGS)}.\n")
        return 0
    studies = plan(arguments.count, arguments.seed, arguments.findings_rate)
    write_set(arguments.out, studies, arguments.size)
    patients, found = len({s.patient for s in studies}), sum(bool(s.findings) for s in studies)
    sys.stdout.write(f"Wrote {len(studies)} films of {patients} patients to {arguments.out}; {found} with a finding.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
