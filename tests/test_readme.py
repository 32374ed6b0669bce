"""The README's commands and tables, run and compared."""

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from pydantic_core import PydanticUndefined

from main import create_app
from modules.pipeline import Pipeline
from modules.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
COMMANDS = [
    line for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL) for line in block.splitlines() if line.strip()
]
CURLS = [command for command in COMMANDS if command.startswith("curl ")]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def address(pipeline: Pipeline) -> Iterator[str]:
    """A real server over a real socket."""
    config = uvicorn.Config(create_app(Settings(_env_file=None), pipeline), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)


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


def test_there_are_curl_calls_and_python_to_try() -> None:
    assert len(CURLS) >= 5
    assert len(PYTHON) == 1


def test_the_python_example_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PYTHON[0]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 14


def test_the_script_of_the_six_stages_says_that_all_passed() -> None:
    assert "python tests/test_pipeline.py" in COMMANDS
    done = subprocess.run(
        [sys.executable, "tests/test_pipeline.py"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len([line for line in lines if line.startswith("[TEST] ") and " ✓ " in line]) == 6
    assert lines[-1] == "ALL TESTS PASSED"


@pytest.mark.parametrize("target", re.findall(r"`?make ([a-z]+)`?", README))
def test_every_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_the_table_of_settings_is_that_of_the_code() -> None:
    rows = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| (.*?) \|", README, re.MULTILINE))
    expected = {name.upper(): shown_default(name) for name in Settings.model_fields}
    assert rows == expected


def shown_default(name: str) -> str:
    default = Settings.model_fields[name].default
    assert default is not PydanticUndefined
    if default is None:
        return "(unset)"
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return f"`{text.lower() if isinstance(default, bool) else text}`"


@pytest.mark.parametrize("path", re.findall(r"`((?:modules|assets|tests|synthetic|training|docs)/[\w./-]+)`", README))
def test_every_file_that_is_named_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
