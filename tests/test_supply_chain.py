"""What comes from elsewhere: packages are held against hashes, weights are data, and no repository's code is run."""

import ast
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from modules.settings import PROJECT_ROOT
from tests.test_structure import PACKAGES, PROGRAMS

LOCK = (PROJECT_ROOT / "requirements-locked.txt").read_text("utf-8")
ENTRIES = re.findall(r"^([^\s#][^\\\n]*?) *\\\n((?: +--hash=.*\n?)+)", LOCK, re.MULTILINE)
SOURCES = [
    *(path for package in PACKAGES for path in sorted((PROJECT_ROOT / package).rglob("*.py"))),
    *(PROJECT_ROOT / f"{name}.py" for name in PROGRAMS),
]
# What runs code that stands in its input: pickles of any kind, and code as text.
UNSAFE = {"pickle", "cPickle", "dill", "shelve", "marshal", "joblib"}


def requirements(file: str) -> list[Requirement]:
    lines = (PROJECT_ROOT / file).read_text("utf-8").splitlines()
    return [Requirement(line) for text in lines if (line := text.partition("#")[0].strip())]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Return the calls in a source file with the dotted names of what is called."""
    tree = ast.parse(path.read_text("utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> object:
    """Return the constant that a call passes by name; None where it passes none."""
    found = [word.value for word in call.keywords if word.arg == name]
    return found[0].value if found and isinstance(found[0], ast.Constant) else None


def test_every_locked_package_has_one_version_and_a_hash_of_each_file() -> None:
    assert len(ENTRIES) > 100
    assert len(ENTRIES) == len(re.findall(r"^[^\s#]", LOCK, re.MULTILINE)), "a line without a hash"
    for text, hashes in ENTRIES:
        (specifier,) = Requirement(text).specifier
        assert specifier.operator == "=="
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes.replace("\\", "").split())


def test_what_is_locked_is_what_the_tests_passed_with() -> None:
    locked = {canonicalize_name(r.name): r for r in map(Requirement, (text for text, _ in ENTRIES))}
    pins = {canonicalize_name(r.name): r.specifier for r in requirements("constraints.txt")}
    assert {canonicalize_name(r.name) for r in requirements("requirements.txt")} <= set(locked)
    assert {name for name, r in locked.items() if name in pins and r.specifier != pins[name]} == set()
    untested = {name: str(r.marker) for name, r in locked.items() if name not in pins}
    assert all("darwin" in marker or "win32" in marker or "emscripten" in marker for marker in untested.values())


def test_nothing_unpickles_or_runs_text() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text("utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.partition(".")[0] for name in imported} & UNSAFE, path
        assert not {name for name, _ in calls(path)} & {"eval", "exec", "compile", "__import__", "yaml.load"}, path


@pytest.mark.parametrize(
    ("name", "word", "value"), [("torch.load", "weights_only", True), ("np.load", "allow_pickle", False)]
)
def test_files_of_tensors_are_read_as_data_alone(name: str, word: str, value: bool) -> None:
    found = [(path, call) for path in SOURCES for called, call in calls(path) if called == name]
    assert found
    for path, call in found:
        assert keyword(call, word) is value, f"{path}:{call.lineno}"


def test_no_model_repository_brings_code() -> None:
    every = [(path, called, call) for path in SOURCES for called, call in calls(path)]
    loads = [(path, call) for path, called, call in every if called.endswith(".from_pretrained")]
    assert loads
    for path, call in loads:
        starred = any(word.arg is None for word in call.keywords)  # a dictionary of options, looked at below
        assert starred or keyword(call, "trust_remote_code") is False, f"{path}:{call.lineno}"
    for path in SOURCES:
        text = path.read_text("utf-8")
        said = re.findall(r"trust_remote_code\"?\s*[=:]\s*(\w+)", text)
        assert set(said) <= {"False"}, path
        if re.search(r"\*\*\w*options", text) and ".from_pretrained(" in text:
            assert '"use_safetensors": True' in text, path
