"""What an engine is: a batch of prepared films in, logits and the last feature map out."""

from dataclasses import dataclass
from typing import Literal, Protocol

from modules.records import FloatArray
from modules.settings import Precision

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

    @property
    def precision(self) -> Precision:
        """In which type its convolutions are computed."""
        ...

    def run(self, batch: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Run a batch (B, 1, S, S): logits (B, 14) and the feature map (B, C, h, w) that enters the pooling."""
        ...

    def close(self) -> None:
        """Release what it holds; nothing is run afterwards."""
        ...


@dataclass(frozen=True)
class GpuOptions:
    """What the settings ask of a GPU alone; on the CPU only a precision of fp32 and no compilation are accepted."""

    precision: Precision = "fp32"
    films_a_pass: int = 1
    compiled: bool = False


NO_GPU_OPTIONS = GpuOptions()
