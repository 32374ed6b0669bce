"""The network in training: built, started, and scored on films."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision.models import DenseNet

from modules.cnn_model import untrained_network
from modules.pathologies import NAMES
from modules.records import FloatArray
from modules.weights import Preprocessing, load_weights

SCORING_BATCH = 32


def make_network(initial_weights: Path | None) -> DenseNet:
    """Build DenseNet-121 with one input channel and 14 outputs in our order: random, or from a weights folder.

    Raises WeightsError for a folder that does not fit.
    """
    network = untrained_network(len(NAMES))
    if initial_weights is not None:
        weights = load_weights(str(initial_weights))
        tensors = dict(weights.tensors)
        rows = [position for position, _ in weights.card.served]
        for key in ("classifier.weight", "classifier.bias"):
            tensors[key] = tensors[key][rows]
        own = network.state_dict()
        network.load_state_dict({key: tensors.get(key, own[key]) for key in own})
    return network


def as_input(films: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8], side: int) -> FloatArray:
    """Return films (N, S, S) of 8 bits at the network's side: (N, side, side) in [0, 1], as preprocessing resizes."""
    interpolation = cv2.INTER_AREA if films[0].shape[0] > side else cv2.INTER_LINEAR
    resized = [cv2.resize(film.astype(np.float32) / 255, (side, side), interpolation=interpolation) for film in films]
    return np.asarray(resized, np.float32)


def normalised(pixels: FloatArray, recipe: Preprocessing, device: torch.device) -> torch.Tensor:
    """Return the network's input (N, 1, side, side) on the device."""
    tensor = torch.from_numpy(pixels)[:, None].to(device, non_blocking=True)
    return ((tensor - recipe.mean) / recipe.std).contiguous(memory_format=torch.channels_last)


def autocast(device: torch.device) -> torch.autocast:
    """Return the mixed precision of a device: bfloat16 on CPU and CUDA, float32 on MPS."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type != "mps")


def score_films(
    network: torch.nn.Module,
    films: npt.NDArray[np.uint8],
    side: int,
    recipe: Preprocessing,
    device: torch.device,
) -> FloatArray:
    """Return logits (N, 14) of films (N, S, S) at a side, without gradients; the network is left in training mode."""
    network.eval()
    found = []
    with torch.inference_mode(), autocast(device):
        for start in range(0, len(films), SCORING_BATCH):
            batch = normalised(as_input(films[start : start + SCORING_BATCH], side), recipe, device)
            found.append(network(batch).float().cpu().numpy())
    network.train()
    return np.concatenate(found) if found else np.zeros((0, len(NAMES)), np.float32)
