"""The wheel, the image and the workflow: what is in them, and that what is in them works where there is no clone."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from launcher import services
from modules.pathologies import NAMES
from modules.settings import PROJECT_ROOT, Settings
from modules.version import VERSION
from tests.test_launcher import free_port
from tests.test_structure import OWN, PACKAGES, PROGRAMS, imported

TOOLS = Path(sys.executable).parent  # programs of the environment that runs the tests
CODE = (*PACKAGES, *(f"{name}.py" for name in PROGRAMS))
DATA = ("assets/sample_xray.png", "assets/weights", ".streamlit/config.toml")
BUILD_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
EXTRAS = {
    "": "requirements.txt",
    "test": "requirements-dev.txt",
    "notebook": "requirements-notebook.txt",
    "ray": "requirements-ray.txt",
}
SECRETS_AND_BALLAST = (".env", ".git/config", "runs/films.png", "tests/test_api.py", "assets/screenshots/dashboard.png")
START_LIMIT_S = 90.0


def run(command: list[str], folder: Path, **environment: str) -> str:
    """Run a program without the settings of this machine, and return what it wrote; it must succeed."""
    ours = {name.upper() for name in Settings.model_fields} | {"PYTHONPATH"}
    clean = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    done = subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ── The wheel ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads: building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    for name in (*CODE, *DATA, *BUILD_FILES, *EXTRAS.values()):
        origin, copy = PROJECT_ROOT / name, folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, copy, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, copy)
    screenshots = folder / "assets" / "screenshots"
    screenshots.mkdir()
    (screenshots / "page.png").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(out)], source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, installed without a clone around it; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*pip, "--no-index", "--no-deps", "--no-compile", "--target", str(folder), str(wheel)], folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder, with settings, and with files that happen to be named like ours."""
    (tmp_path / ".env").write_text("MEDGEMMA_MODE=dummy\nMAX_UPLOAD_MB=7\n", "utf-8")
    (tmp_path / "main.py").write_text("raise SystemExit('not this main')\n", "utf-8")
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "__init__.py").touch()
    return tmp_path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else(wheel: Path, source: Path) -> None:
    paths = [source / name for name in (*CODE, *DATA)]
    files = {file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {str(file.relative_to(source)) for file in files}
    assert {"assets/weights/first/card.json", "training/cxr14.toml", "modules/reasoners/base.py"} <= held


def test_the_wheel_says_what_it_is(metadata: Message, wheel: Path) -> None:
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "cxr-assistant = launcher:main" in archive.read(name).decode().splitlines()


def test_the_version_stands_in_one_place() -> None:
    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]


def requirements(file: str) -> list[Requirement]:
    lines = (PROJECT_ROOT / file).read_text("utf-8").splitlines()
    return [Requirement(line.split(" #")[0]) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("extra", EXTRAS)
def test_dependencies_and_extras_are_those_of_the_requirement_files(metadata: Message, extra: str) -> None:
    stated = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    marked = re.compile(rf'(^|and )extra == "{extra}"$')
    of_extra = [
        one
        for one in stated
        if (marked.search(str(one.marker or "")) if extra else "extra" not in str(one.marker or ""))
    ]
    wanted = requirements(EXTRAS[extra])
    assert [f"{one.name}{one.specifier}" for one in of_extra] == [f"{one.name}{one.specifier}" for one in wanted]
    assert metadata.get_all("Provides-Extra") == [name for name in EXTRAS if name]


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (PROJECT_ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    wanted = [one for file in EXTRAS.values() for one in requirements(file) if "darwin" not in str(one.marker)]
    assert {one.name for one in wanted if not one.specifier.contains(pinned[one.name])} == set()


SAMPLE = """
import json, launcher, main, modules.pipeline
from modules.settings import PROJECT_ROOT, Settings
pipeline = modules.pipeline.Pipeline.from_settings(Settings())
analysis = pipeline.analyze((PROJECT_ROOT / "assets" / "sample_xray.png").read_bytes(), "cough")
files = [module.__file__ for module in (launcher, main, modules.pipeline)]
print(json.dumps([files, Settings().max_upload_mb, analysis.reader.mode_requested, list(analysis.visual_findings)]))
"""


def test_the_installed_pipeline_reads_its_sample_with_the_settings_of_the_current_folder(
    site: Path, elsewhere: Path
) -> None:
    said = run([sys.executable, "-P", "-W", "error", "-c", SAMPLE], elsewhere, PYTHONPATH=str(site))
    files, upload_mb, mode, names = json.loads(said)
    assert all(Path(file).is_relative_to(site) for file in files)
    assert (upload_mb, mode) == (7, "dummy")
    assert names == list(NAMES)


@pytest.mark.parametrize("module", ["batch", "evaluation", "scale.batch", "training"])
def test_an_installed_program_says_how_it_is_used(site: Path, tmp_path: Path, module: str) -> None:
    said = run([sys.executable, "-P", "-m", module, "--help"], tmp_path, PYTHONPATH=str(site))
    assert said.startswith(f"usage: python -m {module}")


def test_the_installed_generator_draws_a_film(site: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "synthetic", "--sample", str(tmp_path / "film.png")]
    run(command, tmp_path, PYTHONPATH=str(site))
    assert (tmp_path / "film.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def installed_command(site: Path, elsewhere: Path) -> Iterator[tuple[subprocess.Popen[str], int, int, Path]]:
    ports = free_port(), free_port()
    log = elsewhere / "log"
    environment = {"PYTHONPATH": str(site), "BACKEND_PORT": str(ports[0]), "DASHBOARD_PORT": str(ports[1])}
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", str(site / "bin" / "cxr-assistant")],
            cwd=elsewhere,
            env=os.environ | environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
        yield process, *ports, log
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.skipif(os.name != "posix", reason="signals are sent")
def test_the_installed_command_serves_analyses_and_a_page(
    installed_command: tuple[subprocess.Popen[str], int, int, Path], site: Path
) -> None:
    process, api_port, page_port, log = installed_command
    deadline = time.monotonic() + START_LIMIT_S
    while "Ready." not in log.read_text("utf-8"):
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.2)
    film = {"image": (site / "assets" / "sample_xray.png").read_bytes()}
    answer = httpx.post(f"http://127.0.0.1:{api_port}/analyze", files=film, timeout=60, trust_env=False)
    assert answer.status_code == 200
    assert answer.json()["reader"]["mode_requested"] == "dummy"  # of the .env beside which it was started
    page = httpx.get(f"http://127.0.0.1:{page_port}/reading", trust_env=False)
    assert page.status_code == 200
    assert "<title>Streamlit</title>" in page.text
    # Streamlit says this at its start unless it has read .streamlit/config.toml
    assert "usage statistics" not in log.read_text("utf-8")


# ── The image ────────────────────────────────────────────────────────────────────────────────────────────────────────

DOCKERFILE = re.sub(r"\\\n", " ", (PROJECT_ROOT / "Dockerfile").read_text("utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "compose.yaml").read_text("utf-8"))


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> list[str]:
    return [source for line in instructions("COPY") for source in shlex.split(line)[:-1]]


def ignored(path: str, rules: list[str]) -> bool:
    """Return whether a build leaves a file out; as there, the last rule decides that fits it or a folder above it."""
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    out = False
    for rule in rules:
        pattern = rule.removeprefix("!")
        tail = pattern.removeprefix("**/")
        names = parts if tail != pattern else []
        fits = any(fnmatchcase(name, tail) for name in names) or any(
            fnmatchcase(folder, pattern) and folder.count("/") == pattern.count("/") for folder in above
        )
        out = not rule.startswith("!") if fits else out
    return out


RULES = [
    line
    for line in (PROJECT_ROOT / ".dockerignore").read_text("utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def test_everything_that_the_image_copies_exists_and_is_not_ignored() -> None:
    assert copied()
    for name in copied():
        path = PROJECT_ROOT / name
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        reach_it = [file for file in files if not ignored(str(file.relative_to(PROJECT_ROOT)), RULES)]
        assert reach_it, name
        assert path.is_dir() or reach_it == [path]


def test_the_image_holds_every_module_that_its_programs_import() -> None:
    packages = {name.rstrip("/") for name in copied() if name.rstrip("/") in PACKAGES}
    programs = {name.removesuffix(".py") for name in copied() if name.endswith(".py")}
    files = [PROJECT_ROOT / f"{name}.py" for name in programs]
    files += [file for name in packages for file in (PROJECT_ROOT / name).rglob("*.py")]
    assert not [file for file in files if ignored(str(file.relative_to(PROJECT_ROOT)), RULES)]
    wanted = {module.split(".")[0] for file in files for module in imported(file.read_text("utf-8"))} & OWN
    assert wanted <= packages | programs


@pytest.mark.parametrize("path", SECRETS_AND_BALLAST)
def test_no_film_key_or_test_gets_into_an_image(path: str) -> None:
    assert ignored(path, RULES)


def test_rules_are_read_as_a_build_reads_them() -> None:
    rules = ["*", "!api", "!assets/weights", "assets/weights/first", "**/*.pyc"]
    paths = ["api/logs.py", "assets/weights/card.json"]
    assert not any(ignored(path, rules) for path in paths)
    paths = ["x", "assets/x", "assets/weights/first/card.json", "api/a/b.pyc", "apis/x"]
    assert all(ignored(path, rules) for path in paths)


def test_the_image_is_pinned_runs_as_nobody_special_and_serves_as_the_launcher_does() -> None:
    (base,), (user,), (command,) = instructions("FROM"), instructions("USER"), instructions("CMD")
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    assert user.split(":")[0].isdecimal()
    assert int(user.split(":")[0]) >= 1000
    api, _ = services(Settings(_env_file=None, backend_host="0.0.0.0"))
    assert as_in_a_container(api.command) == json.loads(command)


def as_in_a_container(command: Any) -> list[str]:
    """Return a command of the launcher as the image's own folder and Python make it simpler."""
    words = [str(word).replace(f"{PROJECT_ROOT}{os.sep}", "") for word in command[1:]]
    left_out = {"-P", "--app-dir", str(PROJECT_ROOT)}
    return ["python", *(word for word in words if word not in left_out)]


def test_the_containers_differ_from_the_launcher_in_their_addresses_alone() -> None:
    _, dashboard = services(Settings(_env_file=None))
    said = COMPOSE["services"]["dashboard"]["command"]
    assert [word.replace("0.0.0.0", "127.0.0.1").replace("${MAX_UPLOAD_MB:-50}", "50") for word in said] == (
        as_in_a_container(dashboard.command)
    )
    assert COMPOSE["services"]["dashboard"]["environment"]["BACKEND_URL"] == "http://api:8000"
    assert COMPOSE["services"]["dashboard"]["depends_on"] == {"api": {"condition": "service_healthy"}}


@pytest.mark.parametrize("name", ["api", "dashboard"])
def test_a_container_is_reached_from_this_machine_alone_and_writes_nowhere(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["env_file"] == [{"path": ".env", "required": False}]


def test_keys_stay_with_the_api() -> None:
    keys = {name.upper() for name in Settings.model_fields if name.endswith("api_key")} - {"API_KEY"}
    emptied = {name for name, value in COMPOSE["services"]["dashboard"]["environment"].items() if value == ""}
    assert keys
    assert emptied == keys


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    run([str(TOOLS / "hadolint"), "Dockerfile"], PROJECT_ROOT)


# ── Continuous integration ───────────────────────────────────────────────────────────────────────────────────────────

WORKFLOW_FILE = ".github/workflows/ci.yml"
WORKFLOW: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / WORKFLOW_FILE).read_text("utf-8"))
MAKEFILE = (PROJECT_ROOT / "Makefile").read_text("utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE))


@pytest.mark.parametrize(
    ("schema", "file"), [("compose-spec", "compose.yaml"), ("github-workflows", WORKFLOW_FILE)], ids=str
)
def test_a_file_of_settings_keeps_its_schema(schema: str, file: str) -> None:
    run([str(TOOLS / "check-jsonschema"), "--builtin-schema", f"vendor.{schema}", file], PROJECT_ROOT)


def test_the_workflow_runs_what_one_runs_oneself_and_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}
    jobs = WORKFLOW["jobs"].values()
    assert not any("permissions" in job for job in jobs)
    assert all(job["timeout-minutes"] > 0 for job in jobs)
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert {command.removeprefix("make ") for command in commands} <= TARGETS
    assert {"make check", "make test", "make check-wheel", "make check-locked", "make audit"} == set(commands)


def test_the_workflow_and_the_script_of_continuous_integration_check_the_same() -> None:
    script = (PROJECT_ROOT / ".ci" / "run").read_text("utf-8")
    said = [step["run"] for step in WORKFLOW["jobs"]["test"]["steps"] if "run" in step]
    assert re.findall(r"^make .*$", script, re.MULTILINE) == said


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_names_every_target() -> None:
    said = run(["make", "--no-print-directory", "help"], PROJECT_ROOT)
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert {line.split()[0] for line in said.splitlines()} == set(phony.split()) == TARGETS
    assert all(len(line.split("  ")) > 1 for line in said.splitlines())
