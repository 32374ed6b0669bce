"""The network in ONNX Runtime, on the CPU.

Measured beside OpenVINO 2026.4 (its latency hint, the same graph) on two cores of an x86-64 server, as shares of
PyTorch eager's pass, medians of interleaved rounds. Quiet: one film 0.31 (OpenVINO 0.26), two films 0.37 (0.35),
two threads of two films 0.58 (0.55). Beside other load: 0.53 (0.86), 0.64 (0.76), 0.53 (0.68). With `onnx` it takes 109
MB where OpenVINO takes 180, its sessions take several threads at once, and its reports home have a documented switch;
OpenVINO's package sends one when it is imported.
"""

import os
from collections.abc import Mapping

import numpy as np

from modules.engines.onnx_graph import FEATURES, INPUT, LOGITS, densenet_graph
from modules.records import FloatArray
from modules.settings import Precision

INSTALL = "pip install onnxruntime onnx"


class OnnxRuntimeEngine:
    """DenseNet-121 as one ONNX Runtime session, whose `run` is made for several threads at once."""

    name = "onnxruntime"
    device = "cpu"
    precision: Precision = "fp32"

    def __init__(self, tensors: Mapping[str, FloatArray], threads: int = 0) -> None:
        """Build the network of `served_tensors`; 0 threads are as many as there are cores to use.

        Raises ImportError when a package is missing.
        """
        # Its published builds report their use to Microsoft unless this is set before they are imported. Nothing of
        # this project reports anything to anyone, so it is no setting.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()  # shared by all films that are under way
        options.inter_op_num_threads = 1
        # Threads that wait by spinning take the core from whatever else runs here; it is slower beside other load.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            densenet_graph(tensors), options, providers=["CPUExecutionProvider"]
        )

    def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        logits, features = self._session.run([LOGITS, FEATURES], {INPUT: np.ascontiguousarray(batch, np.float32)})
        return np.asarray(logits), np.asarray(features)

    def close(self) -> None:
        """Hold nothing that must be released."""


def usable_cores() -> int:
    """Return how many cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
