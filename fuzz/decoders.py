"""`python -m fuzz.decoders`: throws changed files at what opens films, and keeps those that break a promise.

The promises: a case ends as a decoded film or as an error of `modules/errors.py`, within 2 s of processor time and 1 GB
of resident memory, decoders' processes included. A case that runs lines in an order not seen before is gone on from.
"""

import argparse
import hashlib
import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from fuzz.corpus import seeds
from fuzz.mutators import mutate
from fuzz.worker import LIMITS, READY, Outcome, work
from modules.images import ImageLimits

LIMIT_S = 2.0  # of processor time: that of the clock says more of the machine than of the file
DEADLINE_S = 30.0  # by the clock; a case that waits for something uses no processor time
START_S = 300.0  # for a process to import what it needs, on a busy machine
LIMIT_BYTES = 1_000_000_000
REPORT_EVERY = 1000
BATCH = 32  # cases that are sent together: what is learnt of them counts from the next ones on
FINDINGS = Path("runs/fuzz")

Case = tuple[str, bytes]


@dataclass
class Tally:
    """What a run has seen."""

    executions: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    findings: Counter[str] = field(default_factory=Counter)
    corpus: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_bytes: int = 0
    crashes: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome."""
        self.executions += 1
        self.ends[outcome.kind] += 1
        self.cpu_s = max(self.cpu_s, outcome.cpu_s)
        self.wall_s = max(self.wall_s, outcome.wall_s)
        self.peak_bytes = max(self.peak_bytes, outcome.peak_bytes)
        self.crashes += outcome.crashes

    def __str__(self) -> str:
        ends = ", ".join(f"{kind} {count}" for kind, count in self.ends.most_common())
        return (
            f"{self.executions} executions, {sum(self.findings.values())} findings {dict(self.findings)}, "
            f"corpus {self.corpus}, at most {self.cpu_s:.2f} s of processor time, {self.wall_s:.2f} s by the clock, "
            f"{self.peak_bytes / 1e6:.0f} MB, {self.crashes} ends of decoders' processes; {ends}"
        )


class Worker:
    """A process that runs cases, and is started anew after one that ended or outlasted it."""

    def __init__(self, limits: ImageLimits = LIMITS) -> None:
        self._limits = limits
        self._start()

    def run(self, name: str, data: bytes) -> Outcome:
        """Return what became of a case."""
        return next(self.run_many([(name, data)]))

    def run_many(self, waiting: Sequence[Case]) -> Iterator[Outcome]:
        """Yield what became of each case: `died` and `hung` are the process's ends, after which another one goes on."""
        while waiting:
            done, ended = 0, None
            try:
                self._connection.send(waiting)
                while done < len(waiting) and ended is None:
                    if self._connection.poll(DEADLINE_S):
                        yield self._connection.recv()
                        done += 1
                    else:
                        ended = Outcome("hung", f"nothing after {DEADLINE_S:g} s", wall_s=DEADLINE_S)
            except (EOFError, OSError):
                self._process.join()
                ended = Outcome("died", f"exit code {self._process.exitcode}")
            if ended is not None:
                self.stop()
                self._start()
                yield ended
                done += 1
            waiting = waiting[done:]

    def stop(self) -> None:
        """End the process, and those that it has forked."""
        self._connection.close()
        if self._process.pid is not None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.join()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._limits), daemon=True)
        self._process.start()
        theirs.close()
        if not self._connection.poll(START_S) or self._connection.recv() != READY:
            raise RuntimeError("the process that runs cases does not start")


def broken_promise(outcome: Outcome) -> str:
    """Return what an outcome is a finding of, or nothing."""
    if outcome.kind in ("unexpected", "died", "hung"):
        return outcome.kind
    if outcome.peak_bytes > LIMIT_BYTES:
        return "large"
    return "slow" if outcome.cpu_s > LIMIT_S else ""


def cases(seed: int, corpus: list[Case]) -> Iterator[Case]:
    """Yield every file of the corpus as it is, then changed ones without end; the corpus may grow meanwhile."""
    yield from tuple(corpus)
    rng = random.Random(seed)
    kinds = sorted({name.partition(" ")[0] for name, _ in corpus})
    while True:
        kind = rng.choice(kinds)
        own = [one for one in corpus if one[0].startswith(kind)]
        name, data = rng.choice(own[-40:] if rng.random() < 0.3 else own)  # what was found lately more often
        yield name, mutate(name, data, rng.choice(corpus)[1], rng)


def fuzz(executions: int, seed: int, out: Path, *, report: bool = True) -> Tally:
    """Run cases and return what was seen; cases that break a promise are kept in `out`."""
    corpus = list(seeds().items())
    tally, worker, start = Tally(corpus=len(corpus)), Worker(), time.monotonic()
    try:
        endless = cases(seed, corpus)
        while tally.executions < executions:
            batch = list(islice(endless, min(BATCH, executions - tally.executions)))
            for (name, data), outcome in zip(batch, worker.run_many(batch), strict=True):
                tally.add(outcome)
                promise = broken_promise(outcome)
                if promise:
                    tally.findings[promise] += 1
                    _keep(out, promise, name, data, outcome)
                elif outcome.fresh and tally.executions > len(seeds()):
                    corpus.append((name, data))
                    tally.corpus = len(corpus)
                if report and tally.executions % REPORT_EVERY == 0:
                    _say(f"{time.monotonic() - start:.0f} s: {tally}")
    finally:
        worker.stop()
    return tally


def _keep(out: Path, promise: str, name: str, data: bytes, outcome: Outcome) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{promise}-{name.partition(' ')[0]}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    _say(f"finding {path}: {outcome}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _replay(path: Path) -> Outcome:
    """Run one kept case again; its name begins with its promise and its kind."""
    worker = Worker()
    try:
        return worker.run(path.name.split("-")[1] if "-" in path.name else path.name, path.read_bytes())
    finally:
        worker.stop()


def main() -> int:
    """Run as the options say; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.decoders", description=__doc__)
    parser.add_argument("--executions", type=int, default=10_000, help="how many cases are run")
    parser.add_argument("--seed", type=int, default=0, help="of the changes; the same one makes much the same run")
    parser.add_argument("--out", type=Path, default=FINDINGS, help="folder for cases that break a promise")
    parser.add_argument(
        "--replay", type=Path, nargs="+", default=[], metavar="CASE", help="run kept cases again instead"
    )
    options = parser.parse_args()
    if options.replay:
        outcomes = [_replay(path) for path in options.replay]
        for path, outcome in zip(options.replay, outcomes, strict=True):
            _say(f"{path}: {outcome}")
        return int(any(map(broken_promise, outcomes)))
    tally = fuzz(options.executions, options.seed, options.out)
    _say(f"seed {options.seed}: {tally}")
    return int(bool(tally.findings))


if __name__ == "__main__":
    sys.exit(main())
