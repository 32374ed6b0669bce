"""`python -m benchmarks.gpu`: films a second on a GPU by batch and precision, beside what its matrix units can do.

A film is one image here: the mirror check, on by default when serving, makes two of it. "Films a second" is the whole
way of the engine, from arrays of the host to arrays of the host; "on the device" leaves the transfers out. Operations
are counted as `python -m benchmarks.roofline` counts those of PyTorch. The share is of the best half-precision matrix
rate that PyTorch reaches on the same device, measured in the same run. The half precisions are measured whether or not
the card of the weights lets them serve.

Exit status: 0 measured; 3 PyTorch finds no GPU here; 2 wrong usage. This benchmark has not been run on a GPU yet.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import machine
from benchmarks.roofline import pytorch_flops
from modules.engines.densenet import served_tensors
from modules.engines.pytorch import PytorchEngine, best_device
from modules.settings import Precision
from modules.weights import load_weights

PACKAGES = ("torch", "torchvision", "numpy")
BATCHES = (1, 8, 32, 64)
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
MATRIX_SIDES = (2048, 4096, 8192)
NO_GPU = 3
TERA = 1e12


def main(argv: list[str] | None = None) -> int:
    """Measure, print JSON, and write it where asked; without a GPU say so."""
    args = _arguments(argv)
    device = best_device()
    if device == "cpu":
        sys.stderr.write("python -m benchmarks.gpu: no GPU: PyTorch finds neither CUDA nor MPS here.\n")
        return NO_GPU
    result = {
        "machine": machine(PACKAGES) | {"device": device, "device name": device_name(device)},
        **measure(device, BATCHES, MATRIX_SIDES, args.rounds, compiled=args.compile),
    }
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, "utf-8")
    return 0


def device_name(device: str) -> str:
    """Return what a GPU calls itself."""
    return torch.cuda.get_device_name() if device == "cuda" else "Apple GPU"


def measure(
    device: str, batches: Sequence[int], sides: Sequence[int], rounds: int, *, compiled: bool = False
) -> dict[str, Any]:
    """Return the matrix rates, and a row for each precision and batch; what a device cannot run is named."""
    weights = load_weights("embedded")
    tensors, side = served_tensors(weights), weights.card.preprocessing.input_size
    flops = pytorch_flops(tensors, side)
    rates: dict[str, float] = {}
    refused: dict[str, str] = {}
    for name in ("bf16", "fp16"):
        try:
            rates[name] = max(matrix_rate(device, name, n, rounds) for n in sides)
        except RuntimeError as exc:
            refused[f"matrices in {name}"] = str(exc).splitlines()[0]
    best = max(rates.values(), default=None)
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        engine = PytorchEngine(tensors, device, precision=precision, compiled=compiled)
        for films in batches:
            try:
                rows.append(_row(engine, films, side, rounds, flops, best))
            except RuntimeError as exc:  # out of memory, or a type that the device does not have
                refused[f"{precision}, {films} films"] = str(exc).splitlines()[0]
    return {
        "gigaflop of a film": round(flops / 1e9, 3),
        "compiled": compiled,
        "half-precision matrix rate, best TFLOP/s": {name: round(rate / TERA, 3) for name, rate in rates.items()},
        "rows": rows,
        "could not be run": refused,
    }


def _row(engine: PytorchEngine, films: int, side: int, rounds: int, flops: int, best: float | None) -> dict[str, Any]:
    batch = np.random.default_rng(0).standard_normal((films, 1, side, side), dtype=np.float32)
    with torch.inference_mode():
        images = engine.placed(batch)

        def on_device() -> None:
            engine.forward(images)
            _wait(engine.device)

        whole, inside = (_median_seconds(work, rounds) for work in (lambda: engine.run(batch), on_device))
    rate = films / whole
    return {
        "precision": engine.precision,
        "films in a pass": films,
        "films/s": round(rate, 1),
        "films/s on the device": round(films / inside, 1),
        "share of the half-precision matrix rate": None if best is None else round(flops * rate / best, 4),
    }


def matrix_rate(device: str, name: str, side: int, rounds: int) -> float:
    """Return operations a second of a product of two matrices (side, side) in half precision."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[name]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def work() -> None:
        torch.mm(left, right)
        _wait(device)

    return float(2 * side**3 / _median_seconds(work, rounds))


def _median_seconds(work: Callable[[], object], rounds: int) -> float:
    for _ in range(3):  # the first passes choose kernels, or compile
        work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="of each measurement (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="measure the network as torch.compile makes it")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
