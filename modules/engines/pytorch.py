"""The network in PyTorch, on MPS, CUDA or the CPU.

In half precision the convolutions of the body are computed in bfloat16 or float16. The constants of its normalisations
stay in float32; so does all that follows the last dense block (normalisation, pooling, classifier), which costs nothing
and makes the logits and the maps.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from modules.engines.densenet import CLASSIFIER_BIAS, UNUSED
from modules.errors import ConfigurationError
from modules.records import FloatArray
from modules.settings import Precision

if TYPE_CHECKING:
    import torch
    from torchvision.models import DenseNet


class PytorchEngine:
    """torchvision's DenseNet-121, read only: `run` needs no lock."""

    name = "pytorch"

    def __init__(
        self,
        tensors: Mapping[str, FloatArray],
        device: str = "auto",
        threads: int = 0,
        *,
        precision: Precision = "fp32",
        compiled: bool = False,
    ) -> None:
        """Build the network of `served_tensors`; 0 threads leave PyTorch's setting of this process as it is.

        Whether the weights may serve in half precision is not asked here. Raises ConfigurationError for a device that
        is not there.
        """
        _wait_passively()
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._device = _choose_device(device)
        self.device = self._device.type
        self.precision = precision
        self._dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        if self.device == "cuda":
            # cuDNN's default for float32 is TF32, with a mantissa of 10 bits: that would be no fp32
            cudnn: Any = torch.backends.cudnn
            cudnn.conv.fp32_precision = "ieee"
        self.network = _build_network(tensors).to(self._device).to(memory_format=torch.channels_last)
        for module in self.network.features.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.to(self._dtype)
        self._body, self._last_norm = self.network.features[:-1], self.network.features.norm5
        self._forward = torch.compile(self._eager, dynamic=True) if compiled else self._eager

    def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        import torch

        with torch.inference_mode():
            logits, features = self.fetched(*self.forward(self.placed(batch)))
        return logits, features

    def placed(self, batch: FloatArray) -> "torch.Tensor":
        """Bring a batch (B, 1, S, S) to the device, in the network's type; the copy may still be under way."""
        import torch

        images = torch.from_numpy(np.ascontiguousarray(batch, np.float32))
        if self.device == "cuda":
            images = images.pin_memory().to(self._device, non_blocking=True)
        return images.to(self._device, self._dtype).contiguous(memory_format=torch.channels_last)

    def forward(self, images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        """Run what `placed` returned: logits (B, 14) and features (B, C, h, w) in float32, on the device."""
        logits, features = self._forward(images)
        return logits, features

    def fetched(self, *results: "torch.Tensor") -> tuple[FloatArray, ...]:
        """Return results of the device as arrays, once they are there."""
        import torch

        if self.device != "cuda":
            return tuple(result.cpu().numpy() for result in results)
        pinned = [torch.empty_like(result, device="cpu", pin_memory=True) for result in results]
        for target, result in zip(pinned, results, strict=True):
            target.copy_(result, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        return tuple(target.numpy().copy() for target in pinned)  # pinned memory is scarce: it goes back at once

    def close(self) -> None:
        """Hold nothing that must be released."""

    def _eager(self, images: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
        import torch.nn.functional as F

        features = F.relu(self._last_norm(self._body(images).float()), inplace=True)
        return self.network.classifier(features.mean(dim=(2, 3))), features


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
