"""`python -m benchmarks.batch`: what the batch command costs beside the bare network, and whether it survives kills.

The engine's own best films per second is the network alone on films that are decoded already, in the fastest of several
ways to use the cores; the command reads, decodes, gates and concludes too. Both take turns, so that a busy machine
slows both. Then a run is killed at random, again and again, and every file must be there exactly once.
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import cv2

from batch.command import ALL_READ, JOURNAL_SUFFIX
from benchmarks.measuring import machine
from modules.settings import PROJECT_ROOT, Settings
from synthetic.phantom import make_film

PACKAGES = ("torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
WARM_UP_FILMS = 2
DRAWN = 8  # different films; the others are copies, which no part of the program knows of
BATCHES = (1, 4)  # films in one forward pass, each with its mirror image
ROW = b'\n{"row":'


@dataclass(frozen=True)
class Way:
    """A way to use the cores: so many processes of so many threads, so many films in one forward pass."""

    processes: int
    threads: int
    films_a_pass: int


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it where asked."""
    args = _arguments(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        films = draw(Path(folder) / "films", args.films, args.size)
        result: dict[str, Any] = {"machine": machine(PACKAGES), "films": args.films, "size_px": args.size}
        result["speed"] = _speed(films, Path(folder), args.rounds, args.seconds)
        result["kills"] = _kills(films, Path(folder), args.kills, args.seed)
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, "utf-8")


def draw(folder: Path, count: int, size: int) -> Path:
    """Write `count` films as 8-bit PNG; the seeds are those of the first `DRAWN` films."""
    folder.mkdir()
    for seed in range(min(DRAWN, count)):
        _, encoded = cv2.imencode(".png", make_film(seed, size).pixels)
        for number in range(seed, count, DRAWN):
            (folder / f"{number:05}.png").write_bytes(encoded.tobytes())
    return folder


# ── Speed ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _speed(films: Path, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ways = {Way(cores, 1, films) for films in BATCHES} | {Way(1, cores, films) for films in BATCHES}
    engine: dict[Way, list[float]] = {way: [] for way in ways}
    commands = []
    for number in range(rounds):
        for way in ways:
            engine[way].append(engine_rate(way, films, seconds))
        commands.append(_command(films, folder / f"speed{number}.parquet"))
    rates = {way: statistics.median(found) for way, found in engine.items()}
    best = max(rates, key=lambda way: rates[way])
    reading = statistics.median(one["reading"] for one in commands)
    whole = statistics.median(one["whole"] for one in commands)
    return {
        "engine films/s by way": [{**asdict(way), "films/s": round(rate, 2)} for way, rate in rates.items()],
        "engine's best films/s": round(rates[best], 2),
        "command films/s, from the first to the last film": round(reading, 2),
        "command films/s, start and table included": round(whole, 2),
        "command, from the first to the last film / engine's best": round(reading / rates[best], 3),
        "command, start and table included / engine's best": round(whole / rates[best], 3),
        "by round": [
            round(one["reading"] / max(found[i] for found in engine.values()), 3) for i, one in enumerate(commands)
        ],
    }


def _command(films: Path, out: Path) -> dict[str, float]:
    """Run the command as a user does; its films per second while it reads, and over all of it."""
    journal = out.with_name(out.name + JOURNAL_SUFFIX)
    start = time.time()
    process = _start(films, out)
    while process.poll() is None and not _rows(journal):
        time.sleep(0.1)
    first, at_first = time.time(), _rows(journal)
    process.wait()  # nothing is polled: that would take from the cores
    whole = time.time() - start
    if process.returncode != ALL_READ:
        raise RuntimeError(f"the command ended with {process.returncode}")
    count = _rows(journal)
    return {"reading": (count - at_first) / (journal.stat().st_mtime - first), "whole": count / whole}


def engine_rate(way: Way, films: Path, seconds: float) -> float:
    """Return films per second of the network alone: all processes begin together, and each counts for `seconds`."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(way.processes), context.SimpleQueue()
    before = dict(os.environ)
    os.environ.update(OMP_NUM_THREADS=str(way.threads), MKL_NUM_THREADS=str(way.threads), OMP_WAIT_POLICY="PASSIVE")
    try:
        running = [
            context.Process(target=_measure, args=(way, films, seconds, barrier, rates)) for _ in range(way.processes)
        ]
        for process in running:
            process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    total = 0.0
    for process in running:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process of the network ended with {process.exitcode}")
    for _ in running:
        total += float(rates.get())
    return total


def _measure(way: Way, films: Path, seconds: float, barrier: Barrier, rates: Any) -> None:
    import numpy as np

    cv2.setNumThreads(way.threads)
    from modules.cnn_model import CnnModel, preprocess
    from modules.images import open_image
    from modules.weights import load_weights

    cnn = CnnModel(load_weights("embedded"), engine="auto", threads=way.threads)
    decoded = [open_image(path.read_bytes()).decode() for path in sorted(films.iterdir())[:DRAWN]]

    def read(number: int) -> None:
        if way.films_a_pass == 1:
            cnn.predict(decoded[number % len(decoded)])
            return
        inputs = [
            preprocess(decoded[(number + i) % len(decoded)], cnn.card.preprocessing) for i in range(way.films_a_pass)
        ]
        cnn.forward(np.stack([image for film in inputs for image in (film, film[:, :, ::-1])]))

    for number in range(WARM_UP_FILMS):
        read(number)
    barrier.wait()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        read(done)
        done += way.films_a_pass
    rates.put(done / (time.perf_counter() - start))


# ── Kills ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _kills(films: Path, folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Kill a run, or one of its workers, at random moments; then let it end, and count."""
    rng = random.Random(seed)
    out, count = folder / "killed.jsonl", len(list(films.iterdir()))
    journal = out.with_name(out.name + JOURNAL_SUFFIX)
    killed: list[dict[str, Any]] = []
    targets = sorted(rng.sample(range(1, count - 1), kills))
    process = _start(films, out)
    for target in targets:
        if process.poll() is not None:
            process = _start(films, out)
        while process.poll() is None and _rows(journal) < target:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.2)
        workers = _children(process.pid)
        victim = rng.choice([process.pid, *workers])
        killed.append({"after films": _rows(journal), "victim": "the run" if victim == process.pid else "a worker"})
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.wait()
    if process.poll() is None:
        process.wait()
    if not out.exists():
        _start(films, out).wait()
    names = [json.loads(line)["file"] for line in out.read_text("utf-8").splitlines()]
    statuses = [json.loads(line)["status"] for line in out.read_text("utf-8").splitlines()]
    return {
        "kills": killed,
        "files": count,
        "rows": len(names),
        "every file exactly once": sorted(names) == sorted(path.name for path in films.iterdir()),
        "read": statuses.count("ok"),
    }


def _children(pid: int) -> list[int]:
    """Return the worker processes of a run: its children but the one that watches over shared resources."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listed.splitlines())
    return [int(row[0]) for row in rows if len(row) == 3 and int(row[1]) == pid and "resource_tracker" not in row[2]]


def _rows(journal: Path) -> int:
    return journal.read_bytes().count(ROW) if journal.exists() else 0


def _start(films: Path, out: Path) -> "subprocess.Popen[bytes]":
    ours = {name.upper() for name in Settings.model_fields}
    environment = {k: v for k, v in os.environ.items() if k.upper() not in ours}
    words = [sys.executable, "-m", "batch", str(films), "--out", str(out)]
    return subprocess.Popen(
        words, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    add = parser.add_argument
    add("--films", type=int, default=200, help="films to draw (default: %(default)s)")
    add("--size", type=int, default=1024, help="pixels a side (default: %(default)s)")
    add("--rounds", type=int, default=3, help="of network and command in turn (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="of each measurement of the network (default: %(default)s)")
    add("--kills", type=int, default=5, help="at random moments of one run (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the kills (default: %(default)s)")
    add("--folder", type=Path, help="where films and tables are put for the time (default: the system's)")
    add("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
