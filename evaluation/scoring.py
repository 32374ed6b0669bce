"""Runs network and gate over films, one line a film in a log that a stopped run goes on from."""

import hashlib
import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from evaluation.films import LabelledFilm, decode, image_files, is_archive
from evaluation.localisation import Area, PlacedMap, placed_map
from evaluation.output import make_folder
from evaluation.robustness import changed_films
from modules.cnn_model import CnnModel, resize_square
from modules.explainability import calibrated_maps
from modules.pathologies import NAMES
from modules.quality import InputGate
from modules.records import Radiograph

LOG_FILE = "films.jsonl"
Vector = tuple[float, ...]


class EvaluationError(ValueError):
    """The evaluation cannot go on; the message says why, and what to change."""


@dataclass(frozen=True)
class ScoredFilm:
    """What network and gate say of one film."""

    image: str
    log_odds: Vector  # 14, as served
    mirrored_log_odds: Vector  # 14, of the mirrored film
    gate_score: float
    refusal: str  # why the gate refuses it, or nothing
    width: int  # pixels of the file
    height: int
    maps: Mapping[str, PlacedMap] = field(default_factory=dict)  # of the findings that have boxes

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Read what `asdict` wrote."""
        maps = {
            finding: PlacedMap(tuple(map(tuple, value["grid"])), Area(**value["area"]))
            for finding, value in entry["maps"].items()
        }
        vectors = {name: tuple(entry[name]) for name in ("log_odds", "mirrored_log_odds")}
        if any(len(v) != len(NAMES) or not all(map(math.isfinite, v)) for v in vectors.values()):
            raise ValueError(f"a film has {len(NAMES)} log-odds")
        return cls(**{**entry, **vectors, "maps": maps})


@dataclass(frozen=True)
class Unreadable:
    """A file that gave no film, with the reason."""

    image: str
    reason: str


@dataclass(frozen=True)
class OtherImage:
    """What the gate says of an image that is no chest film."""

    image: str
    gate_score: float
    refusal: str


@dataclass(frozen=True)
class ChangedFilm:
    """The log-odds (14) of one film under each change of the robustness check."""

    image: str
    log_odds: Mapping[str, Vector]


@dataclass(frozen=True)
class Work:
    """Which films to score, and what to look at on them."""

    sources: tuple[Path, ...]
    wanted: tuple[str, ...]
    reduce_to: int | None = None
    findings_with_boxes: Mapping[str, frozenset[str]] = field(default_factory=dict)


class ScoreLog:
    """What was scored under one set of conditions; each line is complete once it is written."""

    def __init__(self, folder: Path, conditions: Mapping[str, Any]) -> None:
        self._path = folder / LOG_FILE
        self.films: dict[str, ScoredFilm] = {}
        self.unreadable: dict[str, Unreadable] = {}
        self.others: dict[str, OtherImage] = {}
        self.changed: dict[str, ChangedFilm] = {}
        make_folder(folder)
        try:
            lines = self._complete_lines()
            if not lines:
                self._append({"kind": "conditions", **conditions})
                return
            entries = [json.loads(line) for line in lines]
            self._check(entries[0], json.loads(json.dumps(conditions)))
            for entry in entries[1:]:
                self._take(entry)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            if isinstance(exc, EvaluationError):
                raise
            raise EvaluationError(f"{self._path} is damaged: delete it, or choose another --out.") from exc

    def add(self, result: ScoredFilm | Unreadable | OtherImage | ChangedFilm) -> None:
        """Keep a result, in memory and on disk."""
        kinds = {ScoredFilm: "film", Unreadable: "unreadable", OtherImage: "other", ChangedFilm: "changed"}
        kind = kinds[type(result)]
        entry = {"kind": kind, **asdict(result)}
        self._append(entry)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        values = {key: value for key, value in entry.items() if key != "kind"}
        image = values["image"]
        if entry["kind"] == "film":
            self.films[image] = ScoredFilm.from_json(values)
            self.unreadable.pop(image, None)
        elif entry["kind"] == "unreadable":
            self.unreadable[image] = Unreadable(**values)
        elif entry["kind"] == "other":
            self.others[image] = OtherImage(**values)
        elif entry["kind"] == "changed":
            self.changed[image] = ChangedFilm(image, {k: tuple(v) for k, v in values["log_odds"].items()})
        else:
            raise ValueError(f"a line of no known kind: {entry['kind']}")

    def _check(self, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        if found.get("kind") != "conditions":
            raise EvaluationError(f"{self._path} is no log of an evaluation: choose another --out.")
        for name, value in expected.items():
            if found.get(name) != value:
                raise EvaluationError(
                    f"{self._path} was made with {name} {found.get(name)!r}, this run has {value!r}: results of both "
                    "would be mixed. Choose another --out, or delete that file to start again."
                )

    def _complete_lines(self) -> list[str]:
        """Return the lines, and cut off one that a stopped run left unfinished."""
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with self._path.open("r+b") as file:
                file.truncate(end)
        return data[:end].decode("utf-8").splitlines()

    def _append(self, entry: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def conditions(cnn: CnnModel, gate: InputGate, work: Work, split: str | None) -> dict[str, Any]:
    """Return what two runs must share for their films to be put together."""
    return {
        "weights": cnn.info.weights,
        "weights_sha256": cnn.info.sha256,
        "card_sha256": _digest(cnn.card.model_dump_json()),
        "gate_sha256": _digest(gate.card.model_dump_json()),
        "images": [str(source.resolve()) for source in work.sources],
        "split": split,
        "reduce_to": work.reduce_to,
        "boxes_sha256": _digest(json.dumps({k: sorted(v) for k, v in sorted(work.findings_with_boxes.items())})),
        "films_sha256": _digest(json.dumps(sorted(work.wanted))),
    }


def spread(names: Collection[str], count: int | None) -> tuple[str, ...]:
    """Return `count` of the names, spread over all by a hash, so that every machine takes the same; None: all."""
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    return tuple(sorted(ordered[:count]))


def score(cnn: CnnModel, gate: InputGate, work: Work, log: ScoreLog) -> None:
    """Score every wanted film that the log does not have yet; whatever cannot be read is named and kept too."""
    missing = set(work.wanted) - set(log.films)
    seen: set[str] = set()
    closed: list[str] = []  # archives that cannot be opened
    bar = tqdm(total=len(work.wanted), initial=len(work.wanted) - len(missing), desc="films", unit="film")
    with bar:
        for name, data in image_files(work.sources, missing):
            if is_archive(name):
                sys.stderr.write(f"left out: {_shown(str(data))}\n")
                closed.append(Path(name).name)
                continue
            seen.add(name)
            film = decode(data)
            if isinstance(film, str):
                sys.stderr.write(f"unreadable: {_shown(name)}: {film}\n")
                log.add(Unreadable(name, film))
            else:
                log.add(_scored(cnn, gate, work, name, film))
            bar.update()
    reason = "no such file in the images"
    if closed:
        reason += f"; {', '.join(closed)} could not be opened"
    for name in sorted(missing - seen):
        sys.stderr.write(f"not found: {_shown(name)}\n")
        log.add(Unreadable(name, reason))


def score_changes(cnn: CnnModel, work: Work, log: ScoreLog, count: int) -> tuple[ChangedFilm, ...]:
    """Try harmless changes on `count` of the scored films, spread over all of them."""
    chosen = spread(log.films, count)
    missing = set(chosen) - set(log.changed)
    for name, data in tqdm(image_files(work.sources, missing), total=len(missing), desc="changes", unit="film"):
        film = decode(data)
        if isinstance(film, str):
            continue  # no longer readable
        changed = changed_films(_reduced(film, work.reduce_to))
        log.add(ChangedFilm(name, {change: _vector(cnn.predict(other).log_odds) for change, other in changed.items()}))
    return tuple(log.changed[name] for name in chosen if name in log.changed)


def _reduced(film: Radiograph, side: int | None) -> Radiograph:
    return film if side is None else replace(film, pixels=resize_square(film.pixels, side))


def score_others(gate: InputGate, folder: Path, log: ScoreLog) -> None:
    """Ask the gate about every image of a folder of what is no chest film; a file that cannot be read is refused."""
    known, seen = frozenset(log.others), set()
    for name, data in tqdm(image_files([folder]), desc="other images", unit="image"):
        if is_archive(name) or name in seen:
            why = data if is_archive(name) else f"another image is called {name} too"
            sys.stderr.write(f"left out: {_shown(str(why))}\n")
            continue
        seen.add(name)
        if name in known:
            continue
        film = decode(data)
        if isinstance(film, str):
            log.add(OtherImage(name, 0.0, f"cannot be read: {film}"))
        else:
            log.add(OtherImage(name, *_judged(gate, film)))


def _scored(cnn: CnnModel, gate: InputGate, work: Work, name: str, film: Radiograph) -> ScoredFilm:
    height, width = film.pixels.shape
    film = _reduced(film, work.reduce_to)
    gate_score, refusal = _judged(gate, film)
    prediction = cnn.predict(film)
    maps: dict[str, PlacedMap] = {}
    if name in work.findings_with_boxes:
        contributions = calibrated_maps(prediction)
        shape = (film.pixels.shape[0], film.pixels.shape[1])
        maps = {
            finding: placed_map(contributions[NAMES.index(finding)], prediction.grid_to_image, shape)
            for finding in sorted(work.findings_with_boxes[name])
        }
    mirrored = prediction.log_odds if prediction.mirrored_log_odds is None else prediction.mirrored_log_odds
    return ScoredFilm(
        image=name,
        log_odds=_vector(prediction.log_odds),
        mirrored_log_odds=_vector(mirrored),
        gate_score=gate_score,
        refusal=refusal,
        width=width,
        height=height,
        maps=maps,
    )


def _judged(gate: InputGate, film: Radiograph) -> tuple[float, str]:
    quality = gate.assess(film, force=True)
    return quality.gate_score, "" if quality.accepted else quality.reason


def _vector(values: np.ndarray[Any, np.dtype[np.float32]]) -> Vector:
    return tuple(float(value) for value in values)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _shown(name: str) -> str:
    """Return a file name without what would move the cursor of a terminal."""
    return "".join(character if character.isprintable() else "?" for character in name)


def wanted_films(table: Mapping[str, LabelledFilm], split: str | None, limit: int | None) -> tuple[str, ...]:
    """Return the films of a split, at most `limit` of them; raises EvaluationError when there is none."""
    names = [name for name, row in table.items() if split is None or row.split == split]
    if not names:
        splits = ", ".join(sorted({row.split for row in table.values()} - {""})) or "none"
        raise EvaluationError(f"The table of labels has no film of the split {split!r}; its splits: {splits}.")
    return spread(names, limit)
