"""The network in PyTorch, on MPS, CUDA or the CPU."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from modules.engines.densenet import CLASSIFIER_BIAS, UNUSED
from modules.errors import ConfigurationError
from modules.records import FloatArray

if TYPE_CHECKING:
    import torch
    from torchvision.models import DenseNet


class PytorchEngine:
    """torchvision's DenseNet-121, read only: `run` needs no lock."""

    name = "pytorch"

    def __init__(self, tensors: Mapping[str, FloatArray], device: str = "auto", threads: int = 0) -> None:
        """Build the network of `served_tensors`; 0 threads leave PyTorch's setting of this process as it is.

        Raises ConfigurationError for a device that is not there.
        """
        _wait_passively()
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._device = _choose_device(device)
        self.network = _build_network(tensors).to(self._device).to(memory_format=torch.channels_last)
        self.device = self._device.type

    def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        import torch
        import torch.nn.functional as F

        with torch.inference_mode():
            images = torch.from_numpy(np.ascontiguousarray(batch)).to(self._device)
            images = images.contiguous(memory_format=torch.channels_last)
            features = F.relu(self.network.features(images), inplace=True)
            logits = self.network.classifier(features.mean(dim=(2, 3)))
            return logits.float().cpu().numpy(), features.float().cpu().numpy()


def best_device() -> str:
    """Return mps, cuda or cpu: the first that PyTorch finds here."""
    _wait_passively()
    return _choose_device("auto").type


def untrained_network(outputs: int) -> "DenseNet":
    """Return torchvision's DenseNet-121 with one input channel and random weights."""
    from torch import nn
    from torchvision.models import densenet121

    network = densenet121(weights=None, num_classes=outputs)
    network.features.conv0 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.features.conv0.weight)
    return network


def _wait_passively() -> None:
    # Without this, OpenMP's waiting threads spin beside other load and one film can take seconds; it is read when torch
    # is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _choose_device(wanted: str) -> "torch.device":
    import torch

    usable = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, available in usable.items() if available))
    if not usable[wanted]:
        raise ConfigurationError(f"CNN_DEVICE={wanted}, but PyTorch finds no such device here; set auto or cpu.")
    return torch.device(wanted)


def _build_network(tensors: Mapping[str, FloatArray]) -> "DenseNet":
    import torch

    with torch.device("meta"):  # no time spent on random values that are about to be replaced
        network = untrained_network(len(tensors[CLASSIFIER_BIAS]))
    state = {key: torch.from_numpy(tensor) for key, tensor in tensors.items()}
    for key in [k for k in network.state_dict() if k.endswith(UNUSED)]:
        state[key] = torch.zeros((), dtype=torch.long)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)
