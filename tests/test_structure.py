"""Boundaries: who may import whom, what loads nothing heavy, and how large a module may grow."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.settings import PROJECT_ROOT

PACKAGES = ("api", "batch", "benchmarks", "dashboard", "evaluation", "modules", "scale", "synthetic", "training")
PROGRAMS = ("app", "launcher", "main", "medgemma")
OWN = frozenset((*PACKAGES, *PROGRAMS, "fuzz", "tests"))
MAX_LINES = 400  # a file that one reads in one sitting

HTTP = frozenset({"fastapi", "starlette", "uvicorn"})
HEAVY = frozenset({"torch", "torchvision", "torchxrayvision", "transformers", "mlx", "onnx", "onnxruntime"})

# What a package, or a program, never imports.
FORBIDDEN = {
    "modules": HTTP | (OWN - {"modules"}) | {"streamlit"},
    "api": HEAVY | (OWN - {"api", "modules"}) | {"streamlit"},
    "batch": HTTP | (OWN - {"batch", "main", "modules"}) | {"streamlit"},
    # the servers and the batch know nothing of what may stand around them; Ray is imported inside `scale` alone
    "scale": HEAVY | (OWN - {"api", "batch", "main", "modules", "scale"}) | {"streamlit"},
    "dashboard": HTTP | HEAVY | (OWN - {"dashboard", "modules"}),
    "main": HEAVY | (OWN - {"api", "modules"}) | {"streamlit"},
    "app": HTTP | HEAVY | (OWN - {"dashboard", "modules"}),
    "launcher": HTTP | HEAVY | (OWN - {"modules"}) | {"streamlit"},
}
_LIGHT = (
    "answers",
    "curves",
    "errors",
    "events",
    "odds",
    "pathologies",
    "prevalence",
    "records",
    "settings",
    "weights",
)
VOCABULARY = frozenset(f"modules.{name}" for name in _LIGHT)


def sources(*names: str) -> list[Path]:
    """Return the Python files of packages and programs, those in subfolders too."""
    found = [path for name in names for path in sorted((PROJECT_ROOT / name).rglob("*.py"))]
    return found + [PROJECT_ROOT / f"{name}.py" for name in names if (PROJECT_ROOT / f"{name}.py").is_file()]


def imported(source: str) -> set[str]:
    """Return the modules that a source imports anywhere; of this project's packages, which module of them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names.update(f"{base}.{alias.name}" for alias in node.names) if base in PACKAGES else names.add(base)
    return names


def offences(source: str, forbidden: frozenset[str]) -> set[str]:
    """Return what a source imports although its top-level package is forbidden; a relative import always offends."""
    return {name for name in imported(source) if name.split(".")[0] in forbidden or name.startswith(".")}


def calls_of_print(source: str) -> Iterator[int]:
    """Yield the lines on which a source calls print."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def loaded_by(statement: str, **environment: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return {name.split(".")[0] for name in json.loads(ended.stdout)}


# ── What an import loads ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import modules.records", HEAVY | HTTP | {"streamlit", "cv2", "pydicom"}),
        ("import dashboard.client", HEAVY | HTTP | {"streamlit", "cv2", "pydicom"}),
        ("import main", HEAVY | {"streamlit"}),
        ("import batch.command", HEAVY | HTTP | {"streamlit", "pyarrow", "cv2"}),  # each worker loads its own
    ],
)
def test_an_import_loads_nothing_heavy(statement: str, unwanted: frozenset[str]) -> None:
    assert loaded_by(statement) & unwanted == set()


def test_a_heavy_import_would_be_noticed() -> None:
    assert "torch" in loaded_by("import torch")


ASK_FOR_THE_APP = """
import main
try:
    main.app
except ValueError as exc:
    assert "backend_port" in str(exc)
else:
    raise SystemExit("the settings were not read")
"""


def test_importing_main_reads_no_settings_and_asking_for_the_app_does() -> None:
    loaded_by("import main; assert 'app' not in vars(main)", BACKEND_PORT="none")
    loaded_by(ASK_FOR_THE_APP, BACKEND_PORT="none")


# ── Who imports whom ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", list(FORBIDDEN))
def test_dependencies_point_one_way(name: str) -> None:
    files = sources(name)
    assert files
    # heavy packages are imported inside `modules` alone
    found = {str(path): offences(path.read_text("utf-8"), frozenset(FORBIDDEN[name])) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize("name", ["dashboard", "app"])
def test_the_dashboard_knows_the_records_but_no_stage(name: str) -> None:
    for path in sources(name):
        own = {module for module in imported(path.read_text("utf-8")) if module.split(".")[0] == "modules"}
        assert own <= VOCABULARY, path


def test_the_vocabulary_depends_on_nothing_but_itself() -> None:
    for module in VOCABULARY:
        source = (PROJECT_ROOT / f"{module.replace('.', '/')}.py").read_text("utf-8")
        assert {name for name in imported(source) if name.split(".")[0] in OWN} <= VOCABULARY, module


def test_a_wrong_import_would_be_noticed_wherever_it_stands() -> None:
    hidden = "def f():\n    if True:\n        from fastapi.responses import Response\n"
    assert offences(hidden, HTTP) == {"fastapi.responses"}
    assert offences("import modules.records, torch.nn as nn", HEAVY) == {"torch.nn"}
    assert offences("from . import records", HTTP) == {"."}
    assert imported("from modules import pipeline, records") == {"modules.pipeline", "modules.records"}
    assert imported("from modules.images import open_image") == {"modules.images"}
    assert offences("import fastapix, mytorch", HTTP | HEAVY) == set()


# ── Shape ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_module_is_a_file_that_one_reads_in_one_sitting() -> None:
    lengths = {str(path): len(path.read_text("utf-8").splitlines()) for path in sources(*PACKAGES, *PROGRAMS, "fuzz")}
    assert {path: length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_nothing_is_printed_by_the_server_the_stages_or_the_dashboard() -> None:
    files = sources("api", "batch", "dashboard", "modules", "scale", "main", "app")
    printing = {str(path): list(calls_of_print(path.read_text("utf-8"))) for path in files}
    assert {path: lines for path, lines in printing.items() if lines} == {}
    assert list(calls_of_print("x = 1\nif x:\n    print(x)")) == [3]
