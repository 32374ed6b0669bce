"""`python -m benchmarks.readers`: what the second reader costs, and whether both local stacks write the same.

The local stacks run on a tiny random Gemma 3: what they compute is real, how fast a real model would be is not measured
here (`make check-medgemma` does that). Needs the packages of `requirements-dev.txt` and the environment `.venv-mlx`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI

from benchmarks.servers import serving_here
from main import create_app
from modules.cnn_model import CnnModel
from modules.errors import ReaderUnavailable
from modules.multimodal_reasoning import SecondReader
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.base import READY, Control, Reader, ReaderFilm, ReaderTask
from modules.reasoners.conversation import clinical_turn, film_turn
from modules.reasoners.dummy import DummyReader
from modules.reasoners.local import LocalWriter
from modules.reasoners.replies import ReplyError, parse_clinical, parse_film
from modules.reasoners.turns import Generation
from modules.records import Reading
from modules.settings import MIN_REPLY_TOKENS, PROJECT_ROOT, Settings
from modules.weights import load_weights
from tests import tiny_gemma3

SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
MLX_PYTHON = PROJECT_ROOT / ".venv-mlx" / "bin" / "python"
LOAD_LIMIT_S = 120.0
HANG_LIMIT_S = 2.0


def main(argv: list[str] | None = None) -> None:
    """Measure, print JSON, and write it where asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readers", description=__doc__)
    parser.add_argument("--films", type=int, default=25, help="films read by each stack, two replies a film (25)")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of the ratio (default: 15)")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    args = parser.parse_args(argv)
    results = {"stacks": _stacks(args.films), "serving": _serving(SAMPLE.read_bytes(), args.rounds)}
    sys.stdout.write(json.dumps(results, indent=1) + "\n")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")


# ── Both local stacks ────────────────────────────────────────────────────────────────────────────────────────────────


def _stacks(films: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tiny = tiny_gemma3.build(Path(folder))
        pythons = {"transformers": sys.executable, "mlx": str(MLX_PYTHON)}
        writers = {
            engine: LocalWriter(engine, tiny, engine, dtype="float32", python=python)
            for engine, python in pythons.items()
        }
        for writer in writers.values():
            stack.callback(writer.close)
            if writer.wait_until_settled(LOAD_LIMIT_S) is not READY:
                raise SystemExit(f"{writer.model} did not load: {writer.state().reason}")
        written = {engine: [_read(writer, seed) for seed in range(films)] for engine, writer in writers.items()}
    pairs = list(zip(*(sum(replies, ()) for replies in written.values()), strict=True))
    differences = [
        abs(a.logprob - b.logprob)
        for one, other in pairs
        for a, b in zip(one.tokens, other.tokens, strict=False)
        if a.logprob is not None and b.logprob is not None
    ]
    return {
        **{
            f"{engine}: replies that fit the schema": f"{sum(map(_fits, replies))} of {2 * films}"
            for engine, replies in ((e, sum(w, ())) for e, w in written.items())
        },
        "replies that are equal": f"{sum(a.text == b.text for a, b in pairs)} of {len(pairs)}",
        "tokens compared": len(differences),
        "largest difference of a log-probability": max(differences),
    }


def _read(writer: LocalWriter, seed: int) -> tuple[Generation, Generation]:
    film = ReaderFilm(np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8))
    turn = film_turn(MIN_REPLY_TOKENS, plain=True)
    first = writer.write(turn, film, Control())
    turn = clinical_turn(turn, first.text, f"cough for {seed} days", plain=True)
    return first, writer.write(turn, film, Control())


def _fits(reply: Generation) -> bool:
    for parse in (parse_film, parse_clinical):
        try:
            parse(reply.text)
        except ReplyError:
            continue
        return True
    return False


# ── What a reader costs the others ───────────────────────────────────────────────────────────────────────────────────


class Hanging(Reader):
    """A reader that never answers by itself."""

    mode = "local"
    model = "hanging"
    looks_at_film = True

    def read(self, task: ReaderTask) -> Reading:
        """Wait until nobody waits any longer."""
        stopped = threading.Event()
        task.control.when_stopped(stopped.set)
        stopped.wait()
        raise ReaderUnavailable("stopped")


def _serving(film: bytes, rounds: int) -> dict[str, Any]:
    cnn = CnnModel(load_weights("embedded"))
    hanging = SecondReader("local", (Hanging(), DummyReader()), limit_s=HANG_LIMIT_S)
    with ExitStack() as stack:
        plain = stack.enter_context(serving_here(_app(cnn, SecondReader("dummy", (DummyReader(),)))))
        hung = stack.enter_context(serving_here(_app(cnn, hanging)))
        client = stack.enter_context(httpx.Client(timeout=60, trust_env=False))
        for _ in range(3):
            _analyze(client, plain, film)
            _first_findings(client, hung, film)
        pairs = [(_first_findings(client, hung, film), _analyze(client, plain, film)) for _ in range(rounds)]
        ratios = sorted(a / b for a, b in pairs)
        costs = _timed_with_neighbour(client, hung, plain, film)
    return {
        "first CNN event beside a hanging reader / whole answer with the template": {
            "ratio": round(statistics.median(ratios), 3),
            "least": round(ratios[0], 3),
            "largest": round(ratios[-1], 3),
        },
        **costs,
    }


def _timed_with_neighbour(client: httpx.Client, hung: str, plain: str, film: bytes) -> dict[str, float]:
    """Time a request whose reader hangs, and while it hangs another one on the same server."""
    seconds: list[float] = []
    thread = threading.Thread(target=lambda: seconds.append(_analyze(client, hung, film)))
    thread.start()
    time.sleep(HANG_LIMIT_S / 4)
    neighbour = _first_findings(client, hung, film)
    thread.join()
    alone = _analyze(client, plain, film)
    return {
        "a hanging reader's request, beyond its limit, in seconds": round(seconds[0] - HANG_LIMIT_S - alone, 3),
        "first CNN event of another film meanwhile, in seconds": round(neighbour, 3),
    }


def _app(cnn: CnnModel, reader: SecondReader) -> FastAPI:
    return create_app(Settings(_env_file=None), Pipeline(cnn, InputGate.load(), reader))


def _analyze(client: httpx.Client, url: str, film: bytes) -> float:
    start = time.perf_counter()
    client.post(f"{url}/analyze", files={"image": ("film", film)}).raise_for_status()
    return time.perf_counter() - start


def _first_findings(client: httpx.Client, url: str, film: bytes) -> float:
    """Return the seconds until the CNN's findings arrive; then leave."""
    start = time.perf_counter()
    with client.stream("POST", f"{url}/analyze/stream", files={"image": ("film", film)}) as response:
        for line in response.iter_lines():
            if line == "event: cnn":
                return time.perf_counter() - start
    raise SystemExit("The stream ended without the CNN's findings.")


if __name__ == "__main__":
    main()
