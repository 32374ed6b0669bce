"""One Settings for server and dashboard, read from the environment and from `.env`."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

PROJECT_ROOT = Path(__file__).resolve().parent.parent
# `.env`, and folders that settings name relative to it, belong to a clone. An installed package has no such folder that
# anyone would look into, so there it is the one in which a command is started: one place or the other, never both.
SETTINGS_FOLDER = PROJECT_ROOT if (PROJECT_ROOT / ".env.example").is_file() else Path()
MEBIBYTE = 1 << 20

ReaderMode = Literal["local", "api", "openai", "dummy"]
Precision = Literal["fp32", "bf16", "fp16"]

# As browsers write them: small letters, no path, no port that goes without saying. An asterisk is none of them, because
# any page could then ask the server on its reader's own machine, which wants no key.
Host = Annotated[str, Field(pattern=r"^(\[[0-9a-f:.]+\]|[a-z0-9._-]+)$")]
Origin = Annotated[str, Field(pattern=r"^https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?$")]
_KEY = re.compile(r"[!-~]{16,256}")

# The two replies of a reader fit into the first with all that they may hold, and into the second with a few words in
# each of their parts (`modules/reasoners/replies.py`).
DEFAULT_REPLY_TOKENS = 4096
MIN_REPLY_TOKENS = 1536


class Colormap(StrEnum):
    """Colours of the Grad-CAM overlay: two perceptually uniform maps and the familiar rainbow."""

    INFERNO = "inferno"
    VIRIDIS = "viridis"
    JET = "jet"


class Settings(BaseSettings):
    """Every setting of the project; unsafe or unknown values are refused when it is made.

    The environment comes first, then one `.env`: a clone reads that of its own folder, wherever a command is started;
    an installed wheel reads that of the folder in which the command is started.
    """

    model_config = SettingsConfigDict(
        env_file=SETTINGS_FOLDER / ".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a key
    )

    medgemma_mode: ReaderMode = Field("local", description="Second reader: local, api, openai or dummy.")
    medgemma_fallback: Annotated[tuple[ReaderMode, ...], NoDecode] = Field(
        ("dummy",), description="Readers tried in this order when the one asked for cannot run, separated by commas."
    )
    medgemma_model: str | None = Field(
        None, description="Local model: a folder, or a name in the Hugging Face cache; by default chosen by platform."
    )
    medgemma_engine: Literal["auto", "mlx", "transformers"] = Field(
        "auto", description="Engine of the local model; auto takes mlx on Apple Silicon, transformers elsewhere."
    )
    medgemma_quantization: Literal["none", "4bit"] = Field(
        "none", description="4bit shrinks the local model on CUDA (transformers with bitsandbytes)."
    )
    gemini_api_key: SecretStr | None = Field(None, description="Key of the Gemini API, for mode api.")
    gemini_model: str = Field("gemini-3.8-flash", min_length=1, description="Gemini model, for mode api.")
    openai_base_url: str | None = Field(
        None, description="Address of an OpenAI-compatible server, such as http://127.0.0.1:11434/v1, for mode openai."
    )
    openai_api_key: SecretStr | None = Field(None, description="Key of that server, where it wants one.")
    openai_model: str | None = Field(None, description="Model that the server is asked for, in its own name.")
    reader_timeout_s: float = Field(
        180.0, gt=0, allow_inf_nan=False, description="How long one second reader may take on one film, in seconds."
    )
    reader_max_tokens: int = Field(
        DEFAULT_REPLY_TOKENS,
        ge=MIN_REPLY_TOKENS,
        le=65536,
        description="Longest reply of a second reader to one of its two questions, in tokens.",
    )
    reader_sees_cnn: bool = Field(
        False, description="Show the CNN's numbers to the second reader; its word is then no evidence beside them."
    )

    cxr_weights: str = Field(
        "embedded",
        min_length=1,
        description="CNN weights: embedded, a TorchXRayVision DenseNet by name, or a folder with card.json.",
    )
    cxr_weights_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Refuse to start unless the weights file has this SHA-256; TorchXRayVision's need it.",
    )
    cnn_device: Literal["auto", "mps", "cuda", "cpu"] = Field(
        "auto", description="Device of the CNN; auto takes MPS, then CUDA, then CPU."
    )
    cnn_engine: Literal["auto", "pytorch", "onnxruntime"] = Field(
        "auto", description="Engine of the CNN; auto takes onnxruntime on the CPU, pytorch on other devices."
    )
    cnn_precision: Precision = Field(
        "fp32", description="Type of the CNN on a GPU: fp32; bf16 or fp16 where the weights card has a passing test."
    )
    cnn_batch: int = Field(
        8, ge=1, le=64, description="Most films in one pass of the CNN on a GPU; on the CPU each film has its own."
    )
    cnn_compile: bool = Field(
        False, description="Compile the CNN for CUDA with torch.compile; the start then takes longer."
    )
    cnn_threads: int = Field(
        0, ge=0, le=1024, description="Threads of the CNN on the CPU, for all films together; 0: one for each core."
    )
    cnn_cache: Path | None = Field(
        None,
        description="Folder that keeps the engine's check between starts; by default in the user's cache folder.",
    )
    cnn_mirror_check: bool = Field(
        True, description="Read each film a second time, mirrored, and ask for review when a finding does not hold."
    )
    heatmap_colormap: Colormap = Field(Colormap.INFERNO, description="Colours of the overlay: inferno, viridis or jet.")

    backend_host: str = Field("127.0.0.1", min_length=1, description="Address on which `make run` serves the API.")
    backend_port: int = Field(8000, ge=1, le=65535, description="Port on which `make run` serves the API.")
    dashboard_port: int = Field(8501, ge=1, le=65535, description="Port on which `make run` serves the dashboard.")
    backend_url: str | None = Field(
        None, description="Where the dashboard finds the API; by default built from host and port."
    )
    dashboard_timeout_s: float = Field(
        600.0, gt=0, allow_inf_nan=False, description="How long the dashboard waits for an analysis, in seconds."
    )

    api_key: SecretStr | None = Field(
        None,
        description="Key that clients on other machines must send, of 16 characters at least; without one, only this "
        "machine is answered.",
    )
    allowed_hosts: Annotated[tuple[Host, ...], NoDecode] = Field(
        (), description="Names of the API besides localhost, 127.0.0.1 and [::1], separated by commas."
    )
    cors_origins: Annotated[tuple[Origin, ...], NoDecode] = Field(
        (),
        description="Sites whose pages may use the API, such as https://films.example, separated by commas.",
    )
    rate_limit_per_minute: int = Field(
        0, ge=0, le=10_000, description="Requests a minute that one address may make; 0: no limit."
    )

    max_upload_mb: int = Field(50, ge=1, le=1024, description="Largest upload, in MiB.")
    max_megapixels: int = Field(40, ge=1, le=400, description="Largest image, in millions of pixels.")
    max_concurrent_analyses: int = Field(2, ge=1, le=64, description="Films analysed at the same time.")
    max_queued_analyses: int = Field(16, ge=0, le=1024, description="Films waiting beyond those; further ones get 503.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")

    @field_validator("allowed_hosts", "cors_origins", "medgemma_fallback", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _cannot_be_guessed(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not _KEY.fullmatch(key.get_secret_value()):
            raise ValueError("must have 16 to 256 characters, ASCII without spaces")
        return key

    @field_validator(
        "api_key",
        "backend_url",
        "cnn_cache",
        "cxr_weights_sha256",
        "gemini_api_key",
        "medgemma_model",
        "openai_api_key",
        "openai_base_url",
        "openai_model",
        mode="before",
    )
    @classmethod
    def _empty_means_unset(cls, value: object) -> object:
        return None if isinstance(value, str) and not value.strip() else value

    @property
    def max_upload_bytes(self) -> int:
        """Largest upload, in bytes."""
        return self.max_upload_mb * MEBIBYTE

    @property
    def max_pixels(self) -> int:
        """Largest image, in pixels."""
        return self.max_megapixels * 1_000_000

    @property
    def api_url(self) -> str:
        """Base address of the API as the dashboard reaches it, without a trailing slash."""
        if self.backend_url:
            return self.backend_url.rstrip("/")
        host = "127.0.0.1" if self.backend_host in ("0.0.0.0", "::") else self.backend_host
        return f"http://[{host}]:{self.backend_port}" if ":" in host else f"http://{host}:{self.backend_port}"


def wrong_settings(exc: ValidationError) -> list[str]:
    """Return for each setting that was refused its name and why, without its value: it may be a key."""
    errors = exc.errors(include_url=False, include_input=False, include_context=False)
    return [f"{'.'.join(map(str, error['loc'])).upper()}: {error['msg']}" for error in errors]
