"""The roofline counts operations and not guesses, and the GPU's benchmark runs, on the nearest device there is."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu, roofline
from modules.engines.densenet import BLOCKS, BOTTLENECK, FIRST_CHANNELS, GROWTH, served_tensors
from modules.records import FloatArray
from modules.weights import load_weights

SIDE = 64  # of the network's input: a thirteenth of the work


@pytest.fixture(scope="module")
def tensors() -> dict[str, FloatArray]:
    return served_tensors(load_weights("embedded"))


def by_hand(side: int, *, pooled_first: bool) -> int:
    """Return twice the multiplications of DenseNet-121, from its paper's table of layers."""
    cells, channels = (side // 2) ** 2, FIRST_CHANNELS
    total = cells * channels * 49
    cells //= 4
    for block, layers in enumerate(BLOCKS):
        for _ in range(layers):
            total += cells * BOTTLENECK * (channels + 9 * GROWTH)
            channels += GROWTH
        if block < len(BLOCKS) - 1:
            total += cells // (4 if pooled_first else 1) * channels * channels // 2
            channels //= 2
            cells //= 4
    return 2 * (total + 14 * channels)


@pytest.mark.parametrize("side", [SIDE, 224])
def test_operations_are_those_of_the_layers(tensors: dict[str, FloatArray], side: int) -> None:
    assert roofline.graph_flops(tensors, side) == by_hand(side, pooled_first=True)


def test_pytorch_pools_after_it_convolves(tensors: dict[str, FloatArray]) -> None:
    assert roofline.pytorch_flops(tensors, SIDE) == by_hand(SIDE, pooled_first=False)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_product_is_one(library: str) -> None:
    product: Any = roofline.matrix_products(8)[library]
    found = np.asarray(product())
    np.testing.assert_allclose(
        found, np.matmul(*product.args) if library == "numpy" else product.args[0] @ product.args[1], rtol=1e-5
    )
    assert (found.shape, found.dtype) == ((8, 8), np.float32)


def test_the_roofline_follows_from_what_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "SIDES", (64,))
    roofline.main(["--rounds", "1", "--out", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert json.loads(capsys.readouterr().out) == found
    rate = max(found["float32 matrix rate, best GFLOP/s"].values())
    work = found["gigaflop of a film"]["graph that is served"] + found["gigaflop of a film"]["14 maps"]
    rounding = 0.02 + 0.06 / rate  # beside other work the rate can be a single digit
    assert found["roofline at the best rate of all rounds, ms"] == pytest.approx(1000 * work / rate, rel=rounding)
    ratio = found["engine ms"]["median"] / found["roofline of the same round, ms"]["median"]
    assert found["engine / roofline of the same round"]["median"] == pytest.approx(ratio, rel=0.02, abs=0.001)
    assert {"torch", "numpy", "onnxruntime", "cores", "load before"} <= found["machine"].keys()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "best_device", lambda: "cpu")
    assert gpu.main([]) == gpu.NO_GPU == 3
    said = capsys.readouterr()
    assert "no GPU" in said.err
    assert said.out == ""
    assert "3 PyTorch finds no GPU" in str(gpu.__doc__)


def test_its_rows_are_of_each_precision_and_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "pytorch_flops", lambda tensors, side: 2_000_000_000)
    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32", "bf16"))
    monkeypatch.setattr(gpu, "matrix_rate", lambda device, name, side, rounds: {"bf16": 1e12, "fp16": 4e12}[name])
    found = gpu.measure("cpu", (1, 2), (64,), rounds=1)
    assert [(row["precision"], row["films in a pass"]) for row in found["rows"]] == [
        ("fp32", 1),
        ("fp32", 2),
        ("bf16", 1),
        ("bf16", 2),
    ]
    for row in found["rows"]:
        assert row["share of the half-precision matrix rate"] == pytest.approx(2e9 * row["films/s"] / 4e12, abs=1e-4)
    assert found["could not be run"] == {}


def test_what_a_device_cannot_run_is_named_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(engine: Any, films: int, *_: object) -> dict[str, object]:
        if films == 2:
            raise torch.OutOfMemoryError("out of memory\nmany words")
        return {"films": films}

    def no_type(device: str, name: str, side: int, rounds: int) -> float:
        if name == "bf16":
            raise RuntimeError("no such type")
        return 1e12

    monkeypatch.setattr(gpu, "PRECISIONS", ("fp32",))
    monkeypatch.setattr(gpu, "pytorch_flops", lambda tensors, side: 1)
    monkeypatch.setattr(gpu, "_row", row)
    monkeypatch.setattr(gpu, "matrix_rate", no_type)
    found = gpu.measure("cpu", (1, 2), (64,), rounds=1)
    assert found["rows"] == [{"films": 1}]
    assert found["could not be run"] == {"matrices in bf16": "no such type", "fp32, 2 films": "out of memory"}
    assert found["half-precision matrix rate, best TFLOP/s"] == {"fp16": 1.0}


def test_a_matrix_rate_is_operations_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_median_seconds", lambda work, rounds: work() or 0.5)
    assert gpu.matrix_rate("cpu", "bf16", 16, 1) == 2 * 16**3 / 0.5
