"""What an engine is: a batch of prepared films in, logits and the last feature map out."""

from typing import Literal, Protocol

from modules.records import FloatArray

EngineChoice = Literal["auto", "pytorch", "onnxruntime"]


class Engine(Protocol):
    """The network on one device; `run` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What runs the network, as answers say it."""
        ...

    @property
    def device(self) -> str:
        """Where it runs: cpu, cuda or mps."""
        ...

    def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        ...
