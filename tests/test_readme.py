"""The README and docs/API.md: their commands are run, their tables are compared with code and measurements."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic_core import PydanticUndefined

from api.problems import STATUS
from benchmarks.servers import free_port
from main import create_app
from modules.answers import Analysis
from modules.events import EVENT_RECORDS
from modules.pathologies import NAMES
from modules.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
API = (ROOT / "docs" / "API.md").read_text("utf-8")
MAKEFILE = (ROOT / "Makefile").read_text("utf-8")

START_LIMIT_S = 120.0
REMARK = "*Not run by a test"  # what stands before a block that is not run
# Why a block is not run; its remark must say one of them.
NEEDS = ("needs a download", "needs a key", "needs films", "needs Docker", "needs a GPU")

FENCES = [  # the line before, the kind, and what is in it
    (README[: fence.start()].rstrip().rsplit("\n", 1)[-1], fence[1], fence[2])
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
]
COMMANDS = [line for _, kind, block in FENCES if kind == "bash" for line in block.splitlines() if line.strip()]
CURLS = [command for command in COMMANDS if command.startswith("curl ")]
MAKES = [command for command in COMMANDS if command.startswith("make ")]
SERVERS = [command for command in COMMANDS if command.startswith(("uvicorn ", "streamlit "))]
SCRIPTS = [command for command in COMMANDS if command.startswith("python tests/")]
MODULES = [command for command in COMMANDS if command.startswith("python -m ")]
PYTHON = [block for _, kind, block in FENCES if kind == "python"]

# `make` is only tried without running anything: what it would start, and the file that tests the same.
STARTED_BY_MAKE = {
    "make run": (r"python launcher\.py", "tests/test_launcher.py"),
    "make test": (r"python -m pytest", "tests/test_pipeline.py"),
    "make check": (r"ruff check \.(.|\n)*mypy", ".ci/run"),
}
# What a user sees when something is wrong, and where it is said.
SAID = {
    "Python 3.11 or newer is needed": "Makefile",
    ", wanted by the ": "launcher.py",
    "is already in use": "launcher.py",
    " ended (": "launcher.py",
    "The server cannot be reached at ": "dashboard/client.py",
    " answered with status ": "dashboard/client.py",
    ", but PyTorch finds no such device here": "modules/engines/pytorch.py",
    "has no test there": "modules/engines/precision.py",
    "start_up_failed": "main.py",
    "No second model read this film": "dashboard/result.py",
    "MedGemma's weights are not on this machine": "modules/reasoners/local_model.py",
    "MedGemma is still loading": "modules/reasoners/local.py",
    "MedGemma could not be loaded (": "modules/reasoners/local.py",
    "MedGemma failed while it read the film (": "modules/reasoners/local.py",
    "MedGemma's process ended while it read the film": "modules/reasoners/local.py",
    "The second reader gave no answer within ": "modules/multimodal_reasoning.py",
}


# ── Blocks of commands ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_command_is_run_or_marked() -> None:
    assert {kind for _, kind, _ in FENCES} == {"bash", "python", "mermaid", "text"}
    kinds = (CURLS, MAKES, SERVERS, SCRIPTS, MODULES)
    assert sorted(COMMANDS) == sorted(command for kind in kinds for command in kind)
    assert len(CURLS) >= 5
    assert len(PYTHON) == 1


@pytest.mark.parametrize("before", [before for before, kind, _ in FENCES if kind == "text"])
def test_a_block_that_is_not_run_says_why(before: str) -> None:
    assert before.startswith(REMARK)
    assert any(need in before for need in NEEDS)


def without_settings() -> dict[str, str]:
    """What a shell of this machine sets must not change what the commands do."""
    ours = {name.upper() for name in Settings.model_fields}
    return {k: v for k, v in os.environ.items() if k.upper() not in ours} | {"MEDGEMMA_MODE": "dummy"}


def serve(command: str, port: int, path: str, *options: str) -> Iterator[str]:
    """Run a command of the README that serves, on a free port; yield host and port once it answers."""
    words = [sys.executable, "-m", *command.split(), *options]
    process = subprocess.Popen(
        words, cwd=ROOT, env=without_settings(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < deadline, f"{command} does not answer"
            try:
                if httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5.0, trust_env=False).is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The server as the README starts it."""
    (command,) = [command for command in SERVERS if command.startswith("uvicorn")]
    assert command.endswith("--port 8000")
    port = free_port()
    yield from serve(command.replace("8000", str(port)), port, "/health")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("command", CURLS)
def test_every_curl_call_answers(command: str, address: str, tmp_path: Path) -> None:
    (tmp_path / "assets").symlink_to(ROOT / "assets")
    command = command.replace("127.0.0.1:8000", address).replace(
        "curl ", "curl --fail --silent --show-error --noproxy '*' "
    )
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    written = re.search(r"-o (\S+)", command)
    content = (tmp_path / written[1]).read_bytes() if written else done.stdout
    assert content.startswith((b"{", b"\x89PNG", b"event: accepted"))


def test_the_dashboard_starts() -> None:
    (command,) = [command for command in SERVERS if command.startswith("streamlit")]
    port = free_port()
    started = serve(command, port, "/_stcore/health", "--server.port", str(port), "--server.headless", "true")
    assert next(started).endswith(str(port))
    next(started, None)


def test_the_python_example_runs() -> None:
    done = run([sys.executable, "-W", "error", "-c", PYTHON[0]], ROOT)
    assert len(done.splitlines()) == 14


def run(words: list[str], folder: Path) -> str:
    environment = {**without_settings(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rehearsal_on_drawn_films_goes_through(tmp_path: Path) -> None:
    for command in MODULES:
        run([sys.executable, *command.split()[1:]], tmp_path)
    assert json.loads((tmp_path / "runs/evaluation/metrics.json").read_text("utf-8"))["counts"]["films"] == 12
    for path in re.findall(r"`(runs/[\w./-]+)`", README):
        assert (tmp_path / path).exists()


def test_the_script_of_the_six_stages_says_that_all_passed() -> None:
    assert SCRIPTS == ["python tests/test_pipeline.py"]
    lines = run([sys.executable, "tests/test_pipeline.py"], ROOT).splitlines()
    assert len([line for line in lines if line.startswith("[TEST] ") and " ✓ " in line]) == 6
    assert lines[-1] == "ALL TESTS PASSED"


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("command", MAKES)
def test_make_would_start_it(command: str) -> None:
    started, elsewhere = STARTED_BY_MAKE[command]
    assert re.search(started, run([*command.split(), "--dry-run"], ROOT))
    assert (ROOT / elsewhere).is_file()


@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\bmake ([a-z-]+)(?=`|$| PYTHON| +#)", README, re.MULTILINE)))
)
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


# ── The answer, field by field ───────────────────────────────────────────────────────────────────────────────────────

Schema = dict[str, Any]
SCHEMAS: Schema = create_app(Settings(_env_file=None)).openapi()
SECTIONS = {
    title: dict(re.findall(r"^\| `([^`]+)` \| (.*?) \|$", text, re.MULTILINE))
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", API, re.DOTALL | re.MULTILINE)
}
ROUTES = {
    "The answer of `POST /analyze`": ("/analyze", "post"),
    "`GET /health`": ("/health", "get"),
    "`GET /model`": ("/model", "get"),
    "`GET /model/curves`": ("/model/curves", "get"),
}


def resolved(schema: Schema) -> Schema:
    found: Schema = SCHEMAS["components"]["schemas"][schema["$ref"].split("/")[-1]] if "$ref" in schema else schema
    return found


def fields(schema: Schema, path: str = "") -> dict[str, Schema]:
    """Return every field below a schema by its path, with its own schema."""
    schema = resolved(schema)
    found: dict[str, Schema] = {}
    for part in schema.get("anyOf", ()):
        found |= fields(part, path)
    for name, below in schema.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        found |= {here: below, **fields(below, here)}
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        below = fields(values, f"{path}.*")
        found |= below or {f"{path}.*": values}
    if "items" in schema:
        found |= fields(schema["items"], f"{path}[]")
    return found


def compare(documented: Mapping[str, str], expected: Mapping[str, Schema]) -> None:
    assert documented.keys() == expected.keys()
    for path, schema in expected.items():
        said = documented[path]
        kinds = [resolved(schema), *map(resolved, schema.get("anyOf", ())), resolved(schema.get("items", {}))]
        assert "null" in said or all(kind.get("type") != "null" for kind in kinds), path
        for value in [value for kind in kinds for value in (*kind.get("enum", ()), *filter(None, [kind.get("const")]))]:
            assert f"`{value}`" in said, path


@pytest.mark.parametrize("section", ROUTES)
def test_every_field_of_an_answer_is_explained(section: str) -> None:
    path, method = ROUTES[section]
    answer = SCHEMAS["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    compare(SECTIONS[section], fields(answer))


def test_every_field_of_a_problem_is_explained() -> None:
    compare(
        {name: said for name, said in SECTIONS["Errors"].items() if not name.isdecimal()},
        fields(SCHEMAS["components"]["schemas"]["Problem"]),
    )


@pytest.mark.parametrize("where", [API, README])
def test_every_field_of_the_form_is_explained(where: str) -> None:
    form = SCHEMAS["paths"]["/analyze"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    table = re.search(r"^\| field(?: of the form)? \| meaning \|\n\|---\|---\|\n((?:\|.*\n)*)", where, re.MULTILINE)
    assert table is not None
    documented = re.findall(r"^\| `(\w+)`", table[1], re.MULTILINE)
    assert sorted(documented) == sorted(fields(form))


def test_every_field_of_an_event_is_named() -> None:
    section = API.split("\n## Events")[1].split("\n## ")[0]
    documented = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section, re.MULTILINE)
    expected = [
        (event, name) for event, record in EVENT_RECORDS.items() if event != "done" for name in record.model_fields
    ]
    assert documented == expected
    assert EVENT_RECORDS["done"] is Analysis


def test_every_code_of_a_problem_stands_beside_its_status() -> None:
    rows = re.findall(r"^\| ([\d, ]+) \| (`.*?`) \|", API, re.MULTILINE)
    documented = {
        (status, code)
        for statuses, codes in rows
        for status in statuses.split(", ")
        for code in re.findall(r"`(\w+)`", codes)
    }
    expected = {(str(status), error.code) for error, status in STATUS.items() if status != 500}
    assert expected <= documented
    assert ("500", "internal_error") in documented


def test_the_readme_names_every_key_of_the_answer() -> None:
    table = README.split("\n## The answer\n")[1].split("\n## ")[0]
    keys = [key for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert sorted(keys) == sorted(Analysis.model_fields)


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────

CARD = json.loads((ROOT / "assets" / "weights" / "card.json").read_text("utf-8"))
MEASURED = CARD["metrics"]["test"]["discrimination"]
QUALITY = {
    cells[0].strip("*"): [cell.strip("*") for cell in cells[1:]]
    for cells in (
        row.strip("| ").split(" | ")
        for row in README.split("| pathology | **shipped weights** |")[1].split("\n\n")[0].splitlines()[2:]
    )
}


def with_interval(value: float, interval: list[float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f}–{interval[1]:.3f})"


def test_our_quality_is_what_was_measured() -> None:
    shown = {name: cells[0] for name, cells in QUALITY.items()}
    expected = {name: with_interval(m["auroc"], m["auroc_interval"]) for name, m in MEASURED["pathologies"].items()}
    expected["mean of all 14"] = with_interval(
        MEASURED["mean_auroc_of_all_measured"], MEASURED["mean_auroc_of_all_measured_interval"]
    )
    expected["mean without Pneumonia and Hernia"] = with_interval(
        MEASURED["mean_auroc"], MEASURED["mean_auroc_interval"]
    )
    assert shown == expected


@pytest.mark.parametrize("column", [1, 2, 3])
def test_a_published_mean_is_that_of_its_column(column: int) -> None:
    """The published means stand in other sources than the columns."""
    mean = sum(float(QUALITY[name][column]) for name in NAMES) / len(NAMES)
    assert f"{mean:.3f}" == QUALITY["mean of all 14"][column]


def test_the_figures_in_words_are_those_of_the_card() -> None:
    low, high = MEASURED["mean_auroc_interval"]
    one = MEASURED["one_film_a_patient"]
    counts = CARD["metrics"]["test"]["counts"]
    for words in (
        f"{MEASURED['mean_auroc']:.3f} (95 % interval {low:.3f} to {high:.3f})",
        f"{one['mean_auroc']:.3f} (95 % interval {one['mean_auroc_interval'][0]:.3f} to "
        f"{one['mean_auroc_interval'][1]:.3f})",
        f"{counts['films']:,} films of {counts['patients']} patients",
        f"calibration error is {CARD['metrics']['validation']['calibration']['mean_ece']:.3f} in the mean",
    ):
        assert words in README


# ── Tables and names ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = {
        name: (default, meaning)
        for name, default, meaning in re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    }
    expected = {name.upper(): (shown_default(name), field.description) for name, field in Settings.model_fields.items()}
    assert rows == expected


def shown_default(name: str) -> str:
    default = Settings.model_fields[name].default
    assert default is not PydanticUndefined
    if default is None or default == ():
        return "(unset)"
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


@pytest.mark.parametrize(("words", "path"), SAID.items())
def test_what_a_user_sees_is_what_is_said(words: str, path: str) -> None:
    assert words in README.split("## Troubleshooting")[1]
    assert words in (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:modules|assets|tests|synthetic|training|docs)/[\w./-]+)`", README + API)))
)
def test_every_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


def test_every_file_of_the_diagram_exists() -> None:
    (diagram,) = [block for _, kind, block in FENCES if kind == "mermaid"]
    names = re.findall(r"[\w/]+\.py", diagram)
    assert len(names) >= 10
    assert [name for name in names if not ((ROOT / name).exists() or (ROOT / "modules" / name).exists())] == []


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["README.md", "docs/API.md"])
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text("utf-8")), target
