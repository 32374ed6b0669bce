"""`make medgemma` and `make check-medgemma`: what is said before a download, and what a check measures."""

import hashlib
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import BlobLfsInfo, RepoSibling

import medgemma
from modules.errors import WeightsError
from modules.settings import Settings

GIB = 1 << 30
WEIGHTS = b"weights"


class Hub:
    """Stands in for the hub: answers with files, or with an error, and keeps what was downloaded."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, folder: Path, error: Exception | None = None, weights: bytes = WEIGHTS
    ) -> None:
        self.error = error
        self.folder = folder / "snapshot"
        self.weights = weights
        self.downloads: list[dict[str, Any]] = []
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: self)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def model_info(self, name: str, **_: Any) -> SimpleNamespace:
        if self.error:
            raise self.error
        sizes = {"model-1.safetensors": 8 * GIB, "config.json": 1000, "model.gguf": 99 * GIB, "README.md": 5 * GIB}
        files = [RepoSibling(file, size, lfs=self.lfs(file)) for file, size in sizes.items()]
        return SimpleNamespace(sha="abc", siblings=files)

    @staticmethod
    def lfs(name: str) -> BlobLfsInfo | None:
        large = name.endswith((".safetensors", ".gguf"))
        return BlobLfsInfo(8, hashlib.sha256(WEIGHTS).hexdigest(), 130) if large else None

    def download(self, name: str, **options: Any) -> str:
        self.downloads.append({"name": name, **options})
        self.folder.mkdir(exist_ok=True)
        (self.folder / "model-1.safetensors").write_bytes(self.weights)
        return str(self.folder)


def response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example"))


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, medgemma_engine="transformers", **values)


def test_size_and_licence_are_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GIB))
    hub = Hub(monkeypatch, tmp_path)
    assert medgemma.download(settings()) == 0
    (asked,) = hub.downloads
    assert (asked["name"], asked["revision"]) == ("google/medgemma-4b-it", "abc")
    assert not any("gguf" in pattern or "bin" in pattern for pattern in asked["allow_patterns"])
    said = capsys.readouterr().out
    assert "8.0 GiB" in said
    assert said.index("Licence: Health AI Developer Foundations") < said.index("SHA-256") < said.index("Done")


def test_weights_that_are_not_the_hubs_are_found_after_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 * GIB))
    Hub(monkeypatch, tmp_path, weights=b"others")
    with pytest.raises(WeightsError, match=r"Delete them, then run this again: .*model-1\.safetensors"):
        medgemma.download(settings())
    assert "Done" not in capsys.readouterr().out


def test_a_full_disk_is_found_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 * GIB))
    hub = Hub(monkeypatch, tmp_path)
    assert medgemma.download(settings()) == 1
    assert hub.downloads == []
    assert "Only 1.0 GiB are free" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GatedRepoError("no", response=response(403)), "accept the terms"),  # type: ignore[arg-type]
        (RepositoryNotFoundError("no", response=response(404)), "MEDGEMMA_MODEL"),  # type: ignore[arg-type]
        (ConnectionError("no"), "Check the network"),
    ],
)
def test_what_stands_in_the_way_is_named_with_the_way_on(
    error: Exception, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(monkeypatch, tmp_path, error)
    assert medgemma.download(settings()) == 1
    assert hub.downloads == []
    assert words in capsys.readouterr().out


def test_a_folder_needs_no_download(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Hub(monkeypatch, tmp_path)
    assert medgemma.download(settings(medgemma_model=str(tiny))) == 0
    assert hub.downloads == []
    assert "nothing to download" in capsys.readouterr().out


def test_a_check_reads_the_sample_and_measures(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert medgemma.check(settings(medgemma_model=str(tiny), reader_max_tokens=1536)) == 0
    said = capsys.readouterr().out
    assert "transformers on cpu, bfloat16" in said
    assert said.count("a second.") == 2
    assert "GiB" in said
    assert "Both replies have the form that was asked for." in said
    assert "Pleural Thickening" in said


def test_a_check_without_weights_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["medgemma.py", "check"])
    monkeypatch.setattr(medgemma, "Settings", lambda: settings(medgemma_model="google/medgemma-that-nobody-has"))
    assert medgemma.main() == 1
    assert "make medgemma" in capsys.readouterr().out
