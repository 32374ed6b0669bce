"""Which local model, by which engine, and where it lies on this machine; nothing is downloaded and nothing loaded."""

import importlib.util
import json
import platform
from pathlib import Path

from modules.errors import ReaderUnavailable
from modules.reasoners import mlx, transformers
from modules.settings import Settings

PACKAGES = {"mlx": ("mlx_vlm", "llguidance"), "transformers": ("transformers", "accelerate", "llguidance")}
# With these in a configuration a library would run Python that lies in the model's folder.
CODE_KEYS = ("auto_map", "model_file")


def engine_of(settings: Settings) -> str:
    """Return mlx on Apple Silicon and transformers elsewhere, unless the settings name one."""
    if settings.medgemma_engine != "auto":
        return settings.medgemma_engine
    return "mlx" if (platform.system(), platform.machine()) == ("Darwin", "arm64") else "transformers"


def model_of(settings: Settings) -> str:
    """Return the folder or name of the local model."""
    default = mlx.DEFAULT_MODEL if engine_of(settings) == "mlx" else transformers.DEFAULT_MODEL
    return settings.medgemma_model or default


def find_model(name: str) -> Path:
    """Return the folder that holds a model, from a path or from the local cache; nothing is downloaded."""
    folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        folder = _in_cache(name)
    _refuse_code(folder)
    index = folder / "model.safetensors.index.json"
    try:
        wanted = set(json.loads(index.read_text("utf-8"))["weight_map"].values()) if index.is_file() else set()
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        wanted = {"a readable index"}  # no file has this name: the weights count as incomplete
    wanted |= {"config.json"}
    missing = sorted(name for name in wanted if not (folder / str(name)).is_file())
    if missing or not (index.is_file() or (folder / "model.safetensors").is_file()):
        raise ReaderUnavailable("MedGemma's weights on this machine are incomplete. Get them again with: make medgemma")
    return folder


def _refuse_code(folder: Path) -> None:
    """Raise ReaderUnavailable for a folder whose configuration names code to run: weights are data."""
    for path in sorted(folder.glob("*.json")):
        if path.name.startswith(("tokenizer.json", "model.safetensors.index")):
            continue  # large, and read by no library for code
        try:
            held = json.loads(path.read_text("utf-8"))
        except (ValueError, OSError, RecursionError):
            continue  # whoever needs it will say so
        if isinstance(held, dict) and any(key in held for key in CODE_KEYS):
            raise ReaderUnavailable(
                "The folder of the model wants to run code of its own, which is refused. Use the published MedGemma, "
                "or a conversion of it that holds weights and configuration alone."
            )


def _in_cache(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ReaderUnavailable(_missing_package("huggingface_hub")) from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ReaderUnavailable("MedGemma's weights are not on this machine. Get them with: make medgemma") from None
    except HFValidationError:
        raise ReaderUnavailable("MEDGEMMA_MODEL is neither a folder nor a name such as owner/model.") from None


def check_packages(engine: str) -> None:
    """Raise ReaderUnavailable, with the command that installs it, when a package of the engine is missing."""
    for package in PACKAGES[engine]:
        if importlib.util.find_spec(package) is None:
            raise ReaderUnavailable(_missing_package(package))


def _missing_package(package: str) -> str:
    name = package.replace("_", "-")
    return f"The package {name} is not installed. Install it with: pip install {name}"


def check_packages_for_4bit() -> None:
    """Raise ReaderUnavailable when the package that 4-bit weights need is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ReaderUnavailable(_missing_package("bitsandbytes"))
