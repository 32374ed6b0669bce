"""The other pages for people: what they name exists, their tables are true, and their recipes work."""

import ast
import functools
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml  # type: ignore[import-untyped]

from modules import multimodal_reasoning, risk_module, symptoms
from modules.pathologies import Criticality, criticality
from modules.pipeline import Pipeline
from modules.quality import InputGate
from modules.reasoners.base import Control, ReaderFilm
from modules.reasoners.conversation import Writer
from modules.reasoners.turns import Generation, Turn
from modules.settings import ReaderMode, Settings
from modules.version import VERSION
from modules.weights import CARD_FILE, EMBEDDED_WEIGHTS, MIN_POSITIVE_PATIENTS, read_card, write_card
from tests.conftest import MakeClient
from tests.scripted import clinical_text, film_text
from tests.stages import TEMPLATE, good_quality, predict
from tests.test_risk import FOUND, judge
from tests.test_structure import PACKAGES, PROGRAMS, imported

ROOT = Path(__file__).resolve().parent.parent
PAGES = {path.name: path.read_text("utf-8") for path in sorted(ROOT.glob("*.md"))}
CHANGELOG, CONTRIBUTING, THIRD_PARTY = (PAGES[f"{name}.md"] for name in ("CHANGELOG", "CONTRIBUTING", "THIRD_PARTY"))
OURS = (*PACKAGES, "assets", "docs", "tests")

# ── What the pages name ──────────────────────────────────────────────────────────────────────────────────────────────


def in_backticks(text: str) -> list[str]:
    """Return what stands in backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))


def paths_named(text: str) -> list[str]:
    """Return the files and folders of this project that a text names in backticks or in a box of a diagram."""
    boxes = [word for box in re.findall(r'\["([^"\]]+)"\]', text) for word in box.split() if "/" in word]
    words = [word.strip(".,:;()") for part in in_backticks(text) for word in part.split()] + boxes
    inside = re.compile(rf"(?:{'|'.join(OURS)})/[\w./*-]*")
    on_top = re.compile(
        r"[\w-]+\.(?:py|md|toml|ipynb|cff|yaml)|requirements[\w-]*\.txt|constraints\.txt|\.env\.example"
        r"|Makefile|Dockerfile|LICENSE"
    )
    return [word for word in words if inside.fullmatch(word) or on_top.fullmatch(word)]


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page]):
        path, _, anchor = target.partition("#")
        found = ROOT / path if path else ROOT / page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text("utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page: str) -> None:
    assert [path for path in paths_named(PAGES[page]) if not any(ROOT.glob(path.rstrip("/")))] == []


def test_a_file_that_is_missing_would_be_noticed() -> None:
    text = 'Read `modules/nothing.py`, `NOWHERE.md`, `python tests/test_x.py` and `/analyze`.\n a["api/gone.py"]'
    assert paths_named(text) == ["modules/nothing.py", "NOWHERE.md", "tests/test_x.py", "api/gone.py"]
    assert anchors("## The answer of `POST /analyze`\n") == {"the-answer-of-post-analyze"}


@pytest.mark.parametrize("page", PAGES)
def test_every_module_that_is_named_or_run_exists(page: str) -> None:
    ours = "|".join(PACKAGES)
    named = re.findall(rf"python -m ((?:{ours})[\w.]*)", PAGES[page])
    named += [word for word in in_backticks(PAGES[page]) if re.fullmatch(rf"(?:{ours})(?:\.\w+)+", word)]
    assert [name for name in named if importlib.util.find_spec(name.rstrip(".")) is None] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {word.split()[1] for word in in_backticks(PAGES[page]) if re.match(r"make [a-z]", word)}
    assert named <= targets


# ── Names of code ────────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def defined_in(path: Path) -> frozenset[str]:
    """Return the names that a source gives to classes, functions, parameters, constants and fields."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return frozenset(names)


@functools.cache
def defined() -> frozenset[str]:
    """Return every name that this project defines, and its settings as the environment spells them."""
    files = [path for name in (*PACKAGES, "tests") for path in (ROOT / name).rglob("*.py")]
    files += [ROOT / f"{name}.py" for name in PROGRAMS]
    return frozenset().union(*map(defined_in, files)) | {name.upper() for name in Settings.model_fields}


def symbols(text: str) -> set[str]:
    """Return the names in backticks that look like code: of classes, of constants, and calls of functions."""
    quoted = [word for word in in_backticks(text) if not (ROOT / word).exists()]
    written = {word for word in quoted if re.fullmatch(r"_?[A-Z]\w*[a-z]\w*|_?[A-Z][A-Z_0-9]{4,}|_[a-z_]+", word)}
    pairs = [match for word in quoted if (match := re.fullmatch(r"([A-Z][A-Za-z]+)\.(\w+)(?:\(.*\))?", word))]
    called = {match[1] for word in quoted if (match := re.fullmatch(r"([a-z_]+)\(.*\)", word))}
    return written | called | {part for match in pairs for part in match.groups()}


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_every_class_function_and_constant_that_is_named_exists(page: str) -> None:
    assert len(symbols(PAGES[page])) > 5
    assert symbols(PAGES[page]) - defined() == set()


@pytest.mark.parametrize("page", ["ARCHITECTURE.md", "CONTRIBUTING.md"])
def test_a_name_stands_in_the_file_that_is_named_beside_it(page: str) -> None:
    beside = re.findall(r"`([\w.]+)`(?: in|,? to|,)?\s+\(?(?:in )?`([\w/]+\.py)`", PAGES[page])
    assert beside
    wrong = [(name, path) for name, path in beside if not set(name.split(".")) <= defined_in(ROOT / path)]
    assert wrong == []


def test_a_wrong_name_would_be_noticed() -> None:
    assert symbols("`Writer`, `_level`, `MAX_THINGS`, `write(a, b)`, `Control.say`, `the words`") == {
        "Writer", "_level", "MAX_THINGS", "write", "Control", "say",
    }  # fmt: skip
    assert "NoSuchThing" not in defined()


def test_dependencies_run_as_the_architecture_draws_them() -> None:
    def packages_of(name: str) -> set[str]:
        found = {module for path in (ROOT / name).rglob("*.py") for module in imported(path.read_text("utf-8"))}
        return {module.split(".")[0] for module in found} & set(PACKAGES) - {name}

    assert {name: packages_of(name) for name in ("batch", "evaluation", "scale", "training", "synthetic")} == {
        "batch": {"modules"},
        "evaluation": {"modules"},
        "scale": {"api", "batch", "modules"},
        "training": {"evaluation", "modules", "synthetic"},
        "synthetic": {"modules"},
    }


# ── Changelog ────────────────────────────────────────────────────────────────────────────────────────────────────────

KINDS = ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")


def faults(changelog: str) -> list[str]:
    """Return what is not as Keep a Changelog has it."""
    releases = re.split(r"^## ", changelog, flags=re.MULTILINE)
    found = [] if releases[0].startswith("# Changelog\n") else ["title"]
    heads = [release.partition("\n")[0] for release in releases[1:]]
    if heads[:1] != ["[Unreleased]"]:
        found.append("the first release is not Unreleased")
    dated = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})", head) for head in heads[1:]]
    found += [head for head, match in zip(heads[1:], dated, strict=True) if match is None]
    found += ["order of releases" for a, b in pairwise(m for m in dated if m) if _number(a[1]) <= _number(b[1])]
    for head, release in zip(heads, releases[1:], strict=True):
        kinds = re.findall(r"^### (.+)$", release, re.MULTILINE)
        parts = re.split(r"^### .+$", release, flags=re.MULTILINE)[1:]
        if any(kind not in KINDS for kind in kinds) or kinds != sorted(set(kinds), key=KINDS.index):
            found.append(f"kinds of {head}")
        found += [f"nothing {kind.lower()} in {head}" for kind, p in zip(kinds, parts, strict=True) if "\n- " not in p]
    return found


def _number(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_the_changelog_has_its_form() -> None:
    assert faults(CHANGELOG) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("## [Unreleased]\n", "title"),
        ("# Changelog\n\n## [1.0.0] - 2026-01-01\n", "the first release is not Unreleased"),
        ("# Changelog\n\n## [Unreleased]\n\n## 1.0.0\n", "1.0.0"),
        ("# Changelog\n\n## [Unreleased]\n\n### Added\n", "nothing added in [Unreleased]"),
        (
            "# Changelog\n\n## [Unreleased]\n## [0.9.0] - 2026-01-01\n## [0.10.0] - 2026-01-02\n",
            "order of releases",
        ),
    ],
)
def test_a_fault_of_the_changelog_would_be_noticed(text: str, fault: str) -> None:
    assert fault in faults(text)


def test_kinds_that_are_unknown_or_twice_would_be_noticed() -> None:
    begin = "# Changelog\n\n## [Unreleased]\n"
    for kinds in (("Improved",), ("Added", "Added"), ("Fixed", "Added")):
        text = begin + "".join(f"\n### {kind}\n\n- Something.\n" for kind in kinds)
        assert any(fault.startswith("kinds of") for fault in faults(text)), kinds


# ── Third parties, citation, licence ─────────────────────────────────────────────────────────────────────────────────


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def required(file: str, sign: str) -> dict[str, str]:
    """Return the packages of a requirements file, each with the version behind `sign`."""
    lines = (re.split(r"[#;]", line)[0].strip() for line in (ROOT / file).read_text("utf-8").splitlines())
    found = (re.fullmatch(rf"([\w.-]+)(?:\[\w+(?:,\w+)*\])?{sign}([\w.]+)", line) for line in lines)
    return {_name(match[1]): match[2] for match in found if match}


def licence(package: str) -> str:
    """Return the licence that an installed package declares, in its own words."""
    declared: Any = metadata.metadata(package)
    classes = [entry.split(" :: ")[-1] for entry in declared.get_all("Classifier", []) if entry.startswith("License")]
    return str(declared.get("License-Expression") or "; ".join(classes) or declared.get("License") or "").strip()


PINS = required("constraints.txt", "==")
TABLE = {
    row[0]: row[1:]
    for row in re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \| ([^|]+?) \| [^|]+ \|$", THIRD_PARTY, re.MULTILINE)
}
# On some machines alone: Apple Silicon. Its exact version stands where the tests of other machines install it.
OPTIONAL = required("requirements-ray.txt", ">=")
ELSEWHERE = {"mlx-vlm": required("requirements-mlx.txt", "==")["mlx-vlm"]}


def test_the_table_holds_every_direct_dependency_with_its_versions() -> None:
    wanted = required("requirements.txt", ">=") | OPTIONAL
    assert len(wanted) > 20
    assert {name: row[0] for name, row in TABLE.items()} == wanted
    assert {name: row[1] for name, row in TABLE.items()} == {name: PINS.get(name) or ELSEWHERE[name] for name in wanted}


@pytest.mark.parametrize("package", TABLE)
def test_the_licence_is_what_the_installed_package_declares(package: str) -> None:
    try:
        found = licence(package)
    except metadata.PackageNotFoundError:
        assert package in ELSEWHERE | OPTIONAL
        pytest.skip(f"{package} is not installed on this machine")
    assert TABLE[package][2] == found


def test_every_licence_that_is_not_permissive_is_said() -> None:
    section = THIRD_PARTY.partition("## Not permissive")[2]
    strict = []
    for package in {*PINS, *TABLE}:
        try:
            if re.search(r"GPL|MPL|Mozilla|Proprietary|non-?commercial", licence(package), re.IGNORECASE):
                strict.append(package)
        except metadata.PackageNotFoundError:
            continue
    assert "tqdm" in strict
    said = set(re.findall(r"`([\w-]+)`", section)) | {name for name in strict if name.startswith("nvidia-")}
    assert "`nvidia-*`" in section
    assert set(strict) - {"fqdn"} <= said  # fqdn: an option of jsonschema, which the notebook's editor brings


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert str(citation["version"]) == VERSION
    assert citation["license"] == "MIT"
    assert citation["title"] == PAGES["README.md"].partition("\n")[0].removeprefix("# ")
    checker = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.citation-file-format"]
    done = subprocess.run(
        [*checker, str(ROOT / "CITATION.cff")], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_licence_says_what_it_covers() -> None:
    text = " ".join((ROOT / "LICENSE").read_text("utf-8").split())
    assert text.startswith("MIT License Copyright (c) 2026 ")
    assert "weights in assets/weights" in text
    assert "It covers no radiograph" in text
    for card in (EMBEDDED_WEIGHTS, EMBEDDED_WEIGHTS / "first"):
        assert read_card(card).licence == "MIT"


# ── How to add … ─────────────────────────────────────────────────────────────────────────────────────────────────────


class FileWriter(Writer):
    """A second reader as CONTRIBUTING says: its replies stand in a file."""

    plain_schema = False

    def __init__(self, path: Path) -> None:
        self.model = path.name
        self._replies = json.loads(path.read_text("utf-8"))

    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Return the reply to a turn."""
        control.sends_film_to("nowhere: a file answers")
        control.say(turn.name, self._replies[turn.name])
        return Generation(self._replies[turn.name])


def test_a_reader_that_is_added_answers_over_http(
    pipeline: Pipeline, film_png: bytes, make_client: MakeClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = tmp_path / "replies.json"
    replies.write_text(json.dumps({"film": film_text(Mass="present"), "clinical": clinical_text()}), "utf-8")
    monkeypatch.setitem(multimodal_reasoning.WRITERS, "openai", lambda _: FileWriter(replies))
    settings = Settings(_env_file=None, medgemma_mode="openai")
    reader = multimodal_reasoning.SecondReader.from_settings(settings)
    client = make_client(Pipeline(pipeline.cnn, InputGate.load(), reader))
    form: dict[str, Any] = {"files": {"image": film_png}, "data": {"heatmaps": "none", "force": "true"}}
    answer = client.post("/analyze", **form).json()
    mass = next(finding for finding in answer["findings"] if finding["pathology"] == "Mass")
    assert (answer["reader"]["mode"], answer["reader"]["model"]) == ("openai", "replies.json")
    assert answer["reader"]["film_sent_to"] == "nowhere: a file answers"
    assert mass["reader"]["status"] == "present"
    assert mass["fused_probability"] > mass["cnn_probability"]
    assert "event: reader_words" in client.post("/analyze/stream", **form).text
    assert client.get("/health").json()["reader"]["state"] == "ready"


def test_a_mode_is_added_in_two_places() -> None:
    assert set(get_args(ReaderMode)) == {*multimodal_reasoning.WRITERS, "dummy"}


def test_a_weight_set_that_is_added_is_served(make_client: MakeClient, tmp_path: Path, film_png: bytes) -> None:
    card = read_card(EMBEDDED_WEIGHTS)
    outputs = [output.model_copy(update={"threshold": 0.9}) for output in card.outputs]
    (tmp_path / card.file).symlink_to(EMBEDDED_WEIGHTS / card.file)
    write_card(card.model_copy(update={"name": "of-a-site", "outputs": tuple(outputs)}), tmp_path)
    shutil.copy(EMBEDDED_WEIGHTS / "curves.json", tmp_path)
    settings: dict[str, Any] = {"cxr_weights": str(tmp_path), "medgemma_mode": "dummy"}
    client = make_client(Pipeline.from_settings(Settings(_env_file=None, **settings)), **settings)
    answer = client.post("/analyze", files={"image": film_png}, data={"heatmaps": "none", "force": "true"}).json()
    assert client.get("/model").json()["name"] == answer["model"]["weights"] == "of-a-site"
    assert {finding["operating_threshold"] for finding in answer["findings"]} == {0.9}
    assert client.get("/model/curves").status_code == 404  # they are of other thresholds
    assert f"fewer than {MIN_POSITIVE_PATIENTS} positive patients" in CONTRIBUTING


ADDED = """    Pathology("Hernia", Criticality.ROUTINE),
    Pathology("Fracture", Criticality.PROMPT),
"""
WITH_ONE_MORE = """
import sys
from pathlib import Path
from modules.mentions import statements
from modules.pipeline import Pipeline
from modules.reasoners.replies import FIELDS
from modules.settings import Settings
from modules.errors import WeightsError

try:
    Pipeline.from_settings(Settings(_env_file=None, medgemma_mode="dummy"))
except WeightsError as exc:
    assert "no output for Fracture" in str(exc), exc
else:
    raise SystemExit("weights that do not know it were served")
pipeline = Pipeline.from_settings(Settings(_env_file=None, medgemma_mode="dummy", cxr_weights=sys.argv[1]))
answer = pipeline.analyze(Path("assets/sample_xray.png").read_bytes(), heatmaps="all")
assert len(answer.findings) == len(answer.heatmaps) == len(FIELDS) == 15
fracture = answer.findings[-1]
assert (fracture.pathology, fracture.detected) == ("Fracture", True)
assert answer.risk_level in {"Moderate", "High"} and any("Fracture" in factor for factor in answer.risk_factors)
assert statements("There is a rib fracture.") == {}, "its words are in TERMS by now"
"""


def test_a_pathology_needs_weights_and_one_line(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from modules.weights import sha256_of

    shutil.copytree(ROOT / "modules", tmp_path / "modules", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    source = tmp_path / "modules" / "pathologies.py"
    text = source.read_text("utf-8")
    assert text.count(ADDED.splitlines()[0]) == 1
    source.write_text(text.replace(ADDED.splitlines()[0] + "\n", ADDED), "utf-8")

    card = json.loads((EMBEDDED_WEIGHTS / CARD_FILE).read_text("utf-8"))
    tensors = load_file(EMBEDDED_WEIGHTS / card["file"])
    for key in ("classifier.weight", "classifier.bias"):
        tensors[key] = torch.cat([tensors[key], tensors[key][:1]])
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tensors, folder / card["file"])
    card["outputs"].append({"label": "Fracture", "threshold": 1e-6, "validation_positive_patients": 30})
    card["sha256"] = sha256_of(folder / card["file"])
    (folder / CARD_FILE).write_text(json.dumps(card), "utf-8")

    ended = subprocess.run(
        [sys.executable, "-c", WITH_ONE_MORE, str(folder)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_a_red_flag_that_is_added_moves_the_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The left calf is purple since today."
    assert judge(predict(), symptoms=text).level == "Low"
    added = ("purple calf", re.compile(r"\b(?:purple calf|calf is purple)\b", re.IGNORECASE))
    monkeypatch.setattr(symptoms, "_FLAG_PATTERNS", (*symptoms._FLAG_PATTERNS, added))
    assert judge(predict(), symptoms=text).level == "Moderate"
    assert judge(predict({"Effusion": FOUND}), symptoms=text).level == "High"  # acute, unless it is listed as slow
    assert judge(predict(), symptoms="No purple calf.").level == "Low"
    monkeypatch.setattr(risk_module, "IMMEDIATE_FLAGS", frozenset({"purple calf"}))
    assert judge(predict(), symptoms=text).level == "High"


def test_the_urgency_of_a_pathology_moves_the_risk(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge(predict({"Hernia": FOUND}), TEMPLATE, "", good_quality()).level == "Moderate"
    raised = {"Hernia": Criticality.IMMEDIATE}
    monkeypatch.setattr(risk_module, "criticality", lambda name: raised.get(name) or criticality(name))
    risk = judge(predict({"Hernia": FOUND}), TEMPLATE, "", good_quality())
    assert (risk.level, risk.needs_review) == ("High", True)
    assert any("within minutes" in factor for factor in risk.factors)
