"""The notebook: true to its own form, run from top to bottom in small mode, and as Colab would run it."""

import ast
import importlib
import itertools
import json
import re
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from evaluation.films import read_labels
from evaluation.splits import counts
from modules.settings import PROJECT_ROOT
from modules.weights import load_weights
from synthetic.__main__ import main as draw

PATH = PROJECT_ROOT / "Med_Ai.ipynb"
NOTEBOOK = nbformat.read(PATH, as_version=4)
CODE = [(i, cell.source) for i, cell in enumerate(NOTEBOOK.cells) if cell.cell_type == "code"]
PARAMETERS = next(i for i, cell in enumerate(NOTEBOOK.cells) if "parameters" in cell.metadata.get("tags", ()))
CELL_LIMIT_S = 280


def cell_with(text: str) -> int:
    """Return the position of the one code cell that holds a text."""
    (found,) = [i for i, source in CODE if text in source]
    return found


def run(cells: list[Any], folder: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Run cells in a new kernel whose working directory is the folder; nothing can be downloaded in it."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.from_dict(cell) for cell in cells])
    client = NotebookClient(
        notebook, timeout=CELL_LIMIT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return list(notebook.cells)


def said(cells: list[Any]) -> str:
    """Return everything that the cells wrote to standard output."""
    return "".join(
        output.text
        for cell in cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    )


# ── Its form ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_holds_no_output_and_nothing_of_who_ran_it() -> None:
    raw = json.loads(PATH.read_text("utf-8"))
    for cell in raw["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
        assert set(cell["metadata"]) <= {"tags"}
    assert set(raw["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info"}
    nbformat.validate(NOTEBOOK)


@pytest.mark.parametrize("position", [i for i, _ in CODE])
def test_above_each_cell_stands_what_to_expect(position: int) -> None:
    above = NOTEBOOK.cells[position - 1]
    assert above.cell_type == "markdown"
    for heading in ("**Expect**", "**Takes**", "**Can go wrong:**"):
        assert heading in above.source


def test_it_defines_no_stage_of_its_own() -> None:
    helpers = {"project_folder", "measured", "settings", "show"}
    for _, source in CODE:
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef | ast.AsyncFunctionDef)
            assert not isinstance(node, ast.FunctionDef) or node.name in helpers
            assert not isinstance(node, ast.Attribute) or node.attr not in {"nn", "sigmoid", "backward"}


def test_whatever_it_imports_of_the_project_is_there() -> None:
    imported = 0
    for _, source in CODE:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (PROJECT_ROOT / str(node.module).split(".")[0]).exists():
                module = importlib.import_module(str(node.module))
                for alias in node.names:
                    assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
                    imported += 1
    assert imported > 20


def test_the_choices_of_the_text_are_those_of_the_cell() -> None:
    choices = NOTEBOOK.cells[PARAMETERS - 1].source
    for name in re.findall(r"^([A-Z]+) = .*# @param", NOTEBOOK.cells[PARAMETERS].source, re.MULTILINE):
        assert f"`{name}`" in choices


# ── The whole way, small ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[tuple[Path, str]]:
    """Run the whole notebook in small mode; the folder it wrote to, and what it said."""
    folder = tmp_path_factory.mktemp("notebook")
    small = {
        "MED_AI_SMALL": "1",
        "MED_AI_WORK": str(folder),
        "MEDGEMMA_MODEL": str(tiny),
        "READER_MAX_TOKENS": "1536",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLAB_RELEASE_TAG", raising=False)
        words = said(run(NOTEBOOK.cells, PROJECT_ROOT, small, patch))
    yield folder, words  # the switch is off again: the tests below run as Colab would


def test_it_ends_with_weights_that_the_server_loads(work: tuple[Path, str]) -> None:
    folder, words = work
    card = load_weights(str(folder / "weights")).card
    assert card.calibration is not None
    assert f"sha256='{card.sha256}'" in words
    with zipfile.ZipFile(folder / "weights.zip") as archive:
        assert {card.file, "card.json"} <= set(archive.namelist())


def test_it_measures_test_patients_alone_and_writes_the_report(work: tuple[Path, str]) -> None:
    folder, words = work
    table = read_labels(folder / "labels.csv")
    (tested,) = folder.glob("test-????????")
    metrics = json.loads((tested / "metrics.json").read_text("utf-8"))
    assert metrics["counts"]["films"] == counts(table)["test"][0]
    assert metrics["weights_sha256"] == load_weights(str(folder / "weights")).card.sha256
    report = (tested / "report.html").read_text("utf-8")
    assert "Confusion matrix" in report
    assert "Mean AUROC without Pneumonia and Hernia" in words


def test_both_readers_read_the_film(work: tuple[Path, str]) -> None:
    _, words = work
    assert "Reader asked for: dummy; ran: dummy" in words
    assert "No second reader ran" in words
    assert "Second reader: ready" in words
    assert "Reader asked for: local; ran: local" in words
    assert "Red-flag symptom: chest pain" in words


# ── In Colab ─────────────────────────────────────────────────────────────────────────────────────────────────────────

COLAB_FILES = {
    "google/colab/__init__.py": "",
    "google/colab/userdata.py": "def get(name): return f'secret {name}'\n",
    "google/colab/files.py": "def download(path): print('downloaded', path)\n",
    "kagglehub.py": """
        import os
        def dataset_download(handle, path=None):
            return os.path.join(os.environ["KAGGLE_FILES"], path or "sample")
    """,
    # Python runs this first: what the cells would install is written down instead
    "sitecustomize.py": """
        import subprocess
        run = subprocess.run
        def note(*command, **options):
            if "pip" not in command[0]:
                return run(*command, **options)
            print("command", *command[0])
        subprocess.run = note
    """,
}


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the environment of a session in Colab, with Kaggle's files at hand."""
    for name, source in COLAB_FILES.items():
        path = tmp_path / "colab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    kaggle = tmp_path / "kaggle"
    draw(["--out", str(kaggle / "sample"), "--count", "60", "--size", "64", "--seed", "5"])
    films = list(read_labels(kaggle / "sample" / "labels.csv"))
    (kaggle / "sample" / "labels.csv").unlink()
    for official, patients in (("train_val_list.txt", range(1, 6)), ("test_list.txt", range(6, 100))):
        (kaggle / official).write_text("\n".join(name for name in films if int(name[:8]) in patients))
    found = itertools.cycle(("Effusion|Mass", "No Finding"))
    rows = [f"{name},{next(found)},{int(name[:8])},58,F" for name in [*films, "00099999_000.png"]]
    header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender"
    (kaggle / "Data_Entry_2017.csv").write_text("\n".join([header, *rows]))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "colab"))
    return {"COLAB_RELEASE_TAG": "release", "KAGGLE_FILES": str(kaggle)}


def zipped_project(path: Path) -> None:
    """Zip what a person would upload to Colab, as a folder in the archive."""
    with zipfile.ZipFile(path, "w") as archive:
        for part in ("modules", "training", "evaluation", "synthetic", "assets/weights", "requirements.txt"):
            source = PROJECT_ROOT / part
            for file in [source] if source.is_file() else source.rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    archive.write(file, Path("project-main") / file.relative_to(PROJECT_ROOT))


def test_in_colab_a_zip_of_the_project_and_kaggles_films_are_enough(
    tmp_path: Path, colab: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    session = tmp_path / "session"
    session.mkdir()
    zipped_project(session / "project.zip")
    cells = NOTEBOOK.cells
    set_up, data, last = (
        cell_with("def project_folder"),
        cell_with("kagglehub.dataset_download"),
        cell_with("make_archive"),
    )
    filled = nbformat.from_dict(cells[set_up])
    filled.source = filled.source.replace('PROJECT = ""', 'PROJECT = "project.zip"')
    chosen = nbformat.from_dict(cells[PARAMETERS])
    chosen.source = chosen.source.replace('SOURCE = "drawn"', 'SOURCE = "kaggle"')
    made = nbformat.v4.new_code_cell(
        "from modules.pipeline import Pipeline\nweights = folder / 'assets' / 'weights'\n"
        "settings = lambda reader: Settings(medgemma_mode=reader)\nshown_as = 'weights'\n"
    )
    done = run([filled, chosen, cells[data], made, cells[last]], session, colab, monkeypatch)
    words = said(done)
    installed = re.search(r"command .* -m pip install --quiet (.*)", words)
    assert installed is not None
    packages = installed[1].split()
    assert "-m pip install --quiet kagglehub" in words
    assert any(package.startswith("pydicom>=") for package in packages)
    assert not any(package.startswith("torch") for package in packages)
    table = read_labels(session / "runs" / "notebook-kaggle-shipped-224px" / "labels.csv")
    assert len(table) == 60
    assert {film.patient for film in table.values() if film.split == "train"} == {str(n) for n in range(1, 6)}
    assert "downloaded" in words
    assert "weights.zip" in words


def test_without_a_project_the_set_up_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [nbformat.from_dict(NOTEBOOK.cells[cell_with("def project_folder")])]
    with pytest.raises(CellExecutionError, match="into PROJECT above"):
        run(cells, tmp_path, {}, monkeypatch)
    assert not list(tmp_path.iterdir())
