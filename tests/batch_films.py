"""Readers of films that obey what is written in them: for runs that are killed, without a network to load."""

import hashlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from batch.command import Options, run
from batch.reading import Loaded
from batch.rows import Row
from batch.sources import Film
from modules.errors import WeightsError
from modules.records import ModelInfo

DIE, DIE_ONCE, HANG, MEMORY = b"die", b"die once", b"hang", b"memory"


@dataclass(frozen=True)
class Obedient:
    """Makes readers; each writes its process number into `folder`, and one line for each film that it began."""

    folder: Path
    weights: str = "a" * 64
    why_not: str = ""
    dies_at_start: bool = False

    def __call__(self) -> "tuple[ObedientReader, Loaded]":
        if self.why_not:
            raise WeightsError(self.why_not)
        if self.dies_at_start:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"{os.getpid()}.pid").touch()
        model = ModelInfo(weights="w", sha256=self.weights, architecture="a", engine="e", device="cpu", calibrated=True)
        return ObedientReader(self.folder), Loaded(model=model, card_sha256="c" * 64, reader="dummy")


class ObedientReader:
    """Does what the film says, and takes a moment for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, film: Film) -> Row:
        content = Path(film.path).read_bytes()
        with (self._folder / "begun.log").open("a") as log:
            log.write(f"{film.name}\n")
        marker = self._folder / f"{film.name}.once"
        if content == DIE or (content == DIE_ONCE and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if content == MEMORY:
            raise MemoryError
        if content == HANG:
            time.sleep(600)
        time.sleep(0.004)
        return Row(
            file=film.name,
            status="ok",
            sha256=hashlib.sha256(content).hexdigest(),
            message=f"threads {os.environ['OMP_NUM_THREADS']} {os.environ['OMP_WAIT_POLICY']}",
        )

    def close(self) -> None:
        (self._folder / f"{os.getpid()}.closed").touch()


if __name__ == "__main__":
    source, table, notes = map(Path, sys.argv[1:])
    run(Options((source,), table, workers=2), Obedient(notes))
