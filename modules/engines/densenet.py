"""DenseNet-121 (Huang et al., CVPR 2017) with one input channel, as torchvision names its tensors; no torch here."""

from collections.abc import Iterator

import numpy as np

from modules.errors import WeightsError
from modules.records import FloatArray
from modules.weights import Weights

BLOCKS = (6, 12, 24, 16)  # dense layers of each block
FIRST_CHANNELS = 64
GROWTH = 32  # channels that each dense layer adds
BOTTLENECK = 4 * GROWTH  # channels between its two convolutions
EPSILON = 1e-5  # of batch normalisation
CLASSIFIER_WEIGHT, CLASSIFIER_BIAS = "classifier.weight", "classifier.bias"
UNUSED = "num_batches_tracked"  # counters of batch normalisation, for training alone


def shapes(outputs: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that inference needs."""
    return dict(_shapes(outputs))


def served_tensors(weights: Weights) -> dict[str, FloatArray]:
    """Return the tensors with the card's 14 outputs in our order; raises WeightsError when one does not fit."""
    name, tensors = weights.card.name, {k: v for k, v in weights.tensors.items() if not k.endswith(UNUSED)}
    rows = [position for position, _ in weights.card.served]
    expected = len(weights.card.outputs)
    for key in (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS):
        if key not in tensors or tensors[key].shape[:1] != (expected,):
            found = list(tensors[key].shape) if key in tensors else "no such tensor"
            raise WeightsError(f"The card of {name} lists {expected} outputs, but {key} has {found}.")
        tensors[key] = tensors[key][rows]
    wanted = shapes(len(rows))
    for key, shape in wanted.items():
        if key not in tensors:
            raise WeightsError(f"The weights {name} lack {key}, which DenseNet-121 has with shape {list(shape)}.")
        if tensors[key].shape != shape:
            found = list(tensors[key].shape)
            raise WeightsError(f"{key} has shape {found} in the weights {name}; DenseNet-121 has {list(shape)}.")
    surplus = sorted(key for key in tensors if key not in wanted)
    if surplus:
        raise WeightsError(f"The weights {name} hold {surplus[0]}, which DenseNet-121 does not have.")
    return {key: np.asarray(tensors[key], np.float32) for key in wanted}


def _shapes(outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield "features.conv0.weight", (FIRST_CHANNELS, 1, 7, 7)
    yield from _norm("features.norm0", FIRST_CHANNELS)
    channels = FIRST_CHANNELS
    for block, layers in enumerate(BLOCKS, start=1):
        for number in range(1, layers + 1):
            layer = f"features.denseblock{block}.denselayer{number}"
            yield from _norm(f"{layer}.norm1", channels)
            yield f"{layer}.conv1.weight", (BOTTLENECK, channels, 1, 1)
            yield from _norm(f"{layer}.norm2", BOTTLENECK)
            yield f"{layer}.conv2.weight", (GROWTH, BOTTLENECK, 3, 3)
            channels += GROWTH
        if block < len(BLOCKS):
            yield from _norm(f"features.transition{block}.norm", channels)
            yield f"features.transition{block}.conv.weight", (channels // 2, channels, 1, 1)
            channels //= 2
    yield from _norm("features.norm5", channels)
    yield CLASSIFIER_WEIGHT, (outputs, channels)
    yield CLASSIFIER_BIAS, (outputs,)


def _norm(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (channels,)
