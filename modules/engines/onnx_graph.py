"""DenseNet-121 as an ONNX graph, written from its tensors: no torch, and nothing that lies on a disk is trusted.

It computes what torchvision's network computes, with less to do: batch normalisation behind a convolution is folded
into it, and transitions pool before they convolve, which is the same (both are linear, and the kernel is 1 × 1) on a
quarter of the cells.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from modules.engines.densenet import BLOCKS, CLASSIFIER_BIAS, CLASSIFIER_WEIGHT, EPSILON
from modules.records import FloatArray

INPUT, LOGITS, FEATURES = "images", "logits", "features"
OPERATORS = 17  # version of ONNX's operators; any from 7 on has those below
FORMAT = 8  # version of ONNX's file format that came with it


def densenet_graph(tensors: Mapping[str, FloatArray]) -> bytes:
    """Return the model: `images` (B, 1, S, S) to `logits` (B, 14) and `features` (B, C, h, w)."""
    with np.errstate(all="ignore"):  # weights whose numbers run away give NaN here, as they do in PyTorch
        return _densenet(_Graph(tensors), tensors)


def _densenet(graph: "_Graph", tensors: Mapping[str, FloatArray]) -> bytes:
    flow = graph.folded(INPUT, "features.conv0", "features.norm0", stride=2, padding=3)
    flow = graph.add("MaxPool", flow, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for block, layers in enumerate(BLOCKS, start=1):
        for number in range(1, layers + 1):
            layer = f"features.denseblock{block}.denselayer{number}"
            new = graph.normalised(flow, f"{layer}.norm1")
            new = graph.folded(new, f"{layer}.conv1", f"{layer}.norm2")
            new = graph.convolved(new, tensors[f"{layer}.conv2.weight"], padding=1)
            flow = graph.add("Concat", flow, new, axis=1)
        if block < len(BLOCKS):
            flow = graph.normalised(flow, f"features.transition{block}.norm")
            flow = graph.add("AveragePool", flow, kernel_shape=[2, 2], strides=[2, 2])
            flow = graph.convolved(flow, tensors[f"features.transition{block}.conv.weight"])
    features = graph.normalised(flow, "features.norm5", out=FEATURES)
    pooled = graph.add("Flatten", graph.add("GlobalAveragePool", features))
    weight, bias = (graph.constant(tensors[key]) for key in (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS))
    graph.add("Gemm", pooled, weight, bias, transB=1, out=LOGITS)
    return graph.serialised()


class _Graph:
    """Nodes and constants so far; each value is known by its name."""

    def __init__(self, tensors: Mapping[str, FloatArray]) -> None:
        self._tensors = tensors
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        from onnx import helper

        out = out or f"value{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [out], **attributes))
        return out

    def constant(self, values: npt.NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
        return name

    def convolved(
        self, flow: str, kernel: npt.NDArray[Any], *bias: npt.NDArray[Any], stride: int = 1, padding: int = 0
    ) -> str:
        constants = [self.constant(values) for values in (kernel, *bias)]
        return self.add("Conv", flow, *constants, strides=[stride] * 2, pads=[padding] * 4)

    def normalised(self, flow: str, norm: str, out: str = "") -> str:
        """Batch normalisation and ReLU."""
        constants = [
            self.constant(self._tensors[f"{norm}.{part}"]) for part in ("weight", "bias", "running_mean", "running_var")
        ]
        return self.add("Relu", self.add("BatchNormalization", flow, *constants, epsilon=EPSILON), out=out)

    def folded(self, flow: str, convolution: str, norm: str, *, stride: int = 1, padding: int = 0) -> str:
        """Convolution, batch normalisation and ReLU, the first two as one."""
        weight, bias, mean, variance = (
            self._tensors[f"{norm}.{part}"].astype(np.float64)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + EPSILON)
        kernel = self._tensors[f"{convolution}.weight"] * scale[:, np.newaxis, np.newaxis, np.newaxis]
        folded = self.convolved(flow, kernel, bias - mean * scale, stride=stride, padding=padding)
        return self.add("Relu", folded)

    def serialised(self) -> bytes:
        from onnx import TensorProto, helper

        def value(name: str, axes: list[str | int]) -> Any:
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)

        channels = self._tensors[CLASSIFIER_WEIGHT].shape[1]
        outputs = self._tensors[CLASSIFIER_BIAS].shape[0]
        graph = helper.make_graph(
            self._nodes,
            "densenet121",
            [value(INPUT, ["batch", 1, "side", "side"])],
            [value(LOGITS, ["batch", outputs]), value(FEATURES, ["batch", channels, "rows", "columns"])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPERATORS)], ir_version=FORMAT)
        return bytes(model.SerializeToString())
