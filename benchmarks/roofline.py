"""`python -m benchmarks.roofline`: what the network must compute, how fast this CPU can, and how near the engine comes.

The floating-point operations are counted from the convolutions and the classifier of the graph that is served, and
from PyTorch's own operators. The matrix rate is the best that one of the libraries reaches with large float32 matrices.
Operations divided by rate is a bound from arithmetic alone: memory traffic, normalisation and pooling come on top of
it. Rate and engine are timed in turn, in each round, since a shared machine changes from minute to minute.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import machine, seconds
from modules import explainability
from modules.cnn_model import CnnModel, preprocess
from modules.engines.densenet import CLASSIFIER_WEIGHT, served_tensors
from modules.engines.onnx_graph import densenet_graph
from modules.engines.pytorch import PytorchEngine
from modules.images import open_image
from modules.records import FloatArray
from modules.settings import PROJECT_ROOT
from modules.weights import load_weights

PACKAGES = ("torch", "numpy", "onnxruntime", "onnx")
SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
SIDES = (1024, 2048)  # of the matrices whose product is timed; the best counts
GIGA = 1e9


def main(argv: list[str] | None = None) -> None:
    """Count, measure, print JSON, and write it where asked."""
    args = _arguments(argv)
    result = {"machine": machine(PACKAGES) | {"threads": torch.get_num_threads()}, **measure(args.rounds, SIDES)}
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, "utf-8")


def measure(rounds: int, sides: Sequence[int]) -> dict[str, Any]:
    """Return operations, rates, the bound that follows, and the times of the engine and of PyTorch beside it."""
    weights = load_weights("embedded")
    tensors, side = served_tensors(weights), weights.card.preprocessing.input_size
    served, eager = graph_flops(tensors, side), pytorch_flops(tensors, side)
    cnn = CnnModel(weights, "cpu", engine="auto", mirror_check=False)
    film = open_image(SAMPLE.read_bytes()).decode()
    network = PytorchEngine(tensors, "cpu").network.to(memory_format=torch.contiguous_format)
    images = torch.from_numpy(preprocess(film, weights.card.preprocessing)[np.newaxis])
    cells = cnn.predict(film).features.shape[1:]
    maps = 2 * int(np.prod(cells)) * int(np.prod(tensors[CLASSIFIER_WEIGHT].shape))

    def findings_and_maps() -> None:
        prediction = cnn.predict(film)
        _ = prediction.probabilities
        explainability.calibrated_maps(prediction)

    def forward() -> None:
        with torch.inference_mode():
            network(images)

    products = {f"{name} {n}": product for n in sides for name, product in matrix_products(n).items()}
    for warm_up in (findings_and_maps, forward, *products.values()):
        warm_up()
    found: list[dict[str, float]] = []
    best: dict[str, float] = dict.fromkeys(products, 0.0)
    for _ in range(rounds):
        rates = {name: 2 * int(name.split()[1]) ** 3 / seconds(product) for name, product in products.items()}
        best = {name: max(best[name], rate) for name, rate in rates.items()}
        times = {"engine": seconds(findings_and_maps), "eager": seconds(forward)}
        bound = (served + maps) / max(rates.values())
        found.append({**times, "bound": bound, "to bound": times["engine"] / bound})
        found[-1]["to eager"] = times["engine"] / times["eager"]
    rate = max(best.values())
    return {
        "gigaflop of a film": {
            "graph that is served": round(served / GIGA, 3),
            "PyTorch's operators": round(eager / GIGA, 3),
            "14 maps": round(maps / GIGA, 4),
        },
        "float32 matrix rate, best GFLOP/s": {name: round(value / GIGA, 1) for name, value in best.items()},
        "roofline at the best rate of all rounds, ms": round(1000 * (served + maps) / rate, 1),
        "engine": f"findings + 14 maps of one film, served by {cnn.engine.name}",
        "engine ms": _spread([1000 * one["engine"] for one in found]),
        "roofline of the same round, ms": _spread([1000 * one["bound"] for one in found]),
        "PyTorch eager, forward pass alone, ms": _spread([1000 * one["eager"] for one in found]),
        "engine / roofline of the same round": _spread([one["to bound"] for one in found]),
        "engine / PyTorch eager": _spread([one["to eager"] for one in found]),
    }


def graph_flops(tensors: Mapping[str, FloatArray], side: int) -> int:
    """Return the operations of the served graph for one film, a multiplication and an addition counting as two."""
    import onnx

    model = onnx.load_from_string(densenet_graph(tensors))
    for place, value in zip((0, 2, 3), (1, side, side), strict=True):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = value
    for output in model.graph.output:  # their axes have names of their own; the shapes are to be inferred
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    kernels = {constant.name: list(constant.dims) for constant in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type == "Conv":  # each output is a sum over the input channels and the cells of the kernel
            total += 2 * int(np.prod(shapes[node.output[0]])) * int(np.prod(kernels[node.input[1]][1:]))
        elif node.op_type == "Gemm":
            total += 2 * int(np.prod(kernels[node.input[1]]))
    return total


def pytorch_flops(tensors: Mapping[str, FloatArray], side: int) -> int:
    """Return the operations of torchvision's network for one film, as PyTorch counts what it is given."""
    from torch.utils.flop_counter import FlopCounterMode

    network = PytorchEngine(tensors, "cpu").network
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, side, side))
    return int(counter.get_total_flops())


def matrix_products(side: int) -> dict[str, Callable[[], object]]:
    """Return a product of two float32 matrices (side, side) in each library, all with their own number of threads."""
    left, right = np.random.default_rng(0).random((2, side, side), dtype=np.float32)
    return {
        "numpy": functools.partial(np.matmul, left, right),
        "torch": functools.partial(torch.mm, torch.from_numpy(left), torch.from_numpy(right)),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 3),
        "least": round(min(values), 3),
        "largest": round(max(values), 3),
    }


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="of everything in turn (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
