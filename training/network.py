"""The network in training: built, started, and scored on films."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torchvision.models import DenseNet

from modules.engines.densenet import served_tensors
from modules.engines.pytorch import untrained_network
from modules.errors import WeightsError
from modules.pathologies import NAMES
from modules.records import FloatArray
from modules.weights import Preprocessing, load_weights
from training.config import IMAGENET

SCORING_BATCH = 32
FIRST_CONVOLUTION = "features.conv0.weight"


def make_network(start: Path | Literal["imagenet"] | None) -> DenseNet:
    """Build DenseNet-121 with one input channel and 14 outputs in our order.

    It starts from a weights folder, from torchvision's ImageNet weights (downloaded once), or from random numbers.
    Raises WeightsError for weights that do not fit or cannot be had.
    """
    network = untrained_network(len(NAMES))
    if start is not None:
        tensors = _imagenet_tensors() if start == IMAGENET else _folder_tensors(Path(start))
        own = network.state_dict()
        network.load_state_dict({key: tensors.get(key, own[key]) for key in own})
    return network


def _folder_tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    return {key: torch.from_numpy(tensor) for key, tensor in served_tensors(load_weights(str(folder))).items()}


def _imagenet_tensors() -> Mapping[str, torch.Tensor]:
    """Return all layers but the classifier, whose classes are none of ours.

    A grey film stands for a picture with three equal colours: the first filters are summed over them.
    """
    from torchvision.models import DenseNet121_Weights, densenet121

    try:
        tensors = densenet121(weights=DenseNet121_Weights.IMAGENET1K_V1).state_dict()
    except (OSError, RuntimeError) as exc:  # no network, a proxy that refuses; a file that is not the published one
        raise WeightsError(
            f"torchvision's ImageNet weights (31 MB) could not be downloaded: {exc}. Where there is no network, start "
            "from the shipped weights, or from scratch."
        ) from exc
    kept = {key: value for key, value in tensors.items() if not key.startswith("classifier.")}
    return {**kept, FIRST_CONVOLUTION: kept[FIRST_CONVOLUTION].sum(dim=1, keepdim=True)}


def as_input(films: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8], side: int) -> FloatArray:
    """Return films (N, S, S) of 8 bits at the network's side: (N, side, side) in [0, 1], as preprocessing resizes."""
    interpolation = cv2.INTER_AREA if films[0].shape[0] > side else cv2.INTER_LINEAR
    resized = [cv2.resize(film.astype(np.float32) / 255, (side, side), interpolation=interpolation) for film in films]
    return np.asarray(resized, np.float32)


def normalised(pixels: FloatArray, recipe: Preprocessing, device: torch.device) -> torch.Tensor:
    """Return the network's input (N, 1, side, side) on the device."""
    tensor = torch.from_numpy(pixels)[:, None].to(device, non_blocking=True)
    return ((tensor - recipe.mean) / recipe.std).contiguous(memory_format=torch.channels_last)


def half_precision(device: torch.device) -> torch.dtype | None:
    """Return the type of mixed precision on a device: bfloat16, float16 on GPUs that only imitate it, None on MPS."""
    if device.type == "mps":
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16  # a T4, for one; its gradients are scaled, or small ones would become 0
    return torch.bfloat16


def autocast(device: torch.device) -> torch.autocast:
    """Return the context in which the network runs in the mixed precision of its device."""
    dtype = half_precision(device)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


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
