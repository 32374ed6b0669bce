"""In `local` and `dummy` nothing leaves this machine: proven where there is no way out, and by what is tried at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modules.settings import PROJECT_ROOT

SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
# A namespace of its own holds no network but a loopback that is down.
NO_WAY_OUT = ("unshare", "--map-root-user", "--net")
can_unshare = shutil.which("unshare") is not None and (
    subprocess.run([*NO_WAY_OUT, "true"], capture_output=True, check=False).returncode == 0
)
needs_namespace = pytest.mark.skipif(not can_unshare, reason="this system gives no network namespaces")

# Loaded by every interpreter of the run, the model's own process too: what asks for a name or a connection is noted.
WATCH = """
import os, sys
def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto", "socket.bind"):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{event} {args[-1] if event.startswith('socket.c') else args[0]!r}\\n")
sys.addaudithook(watch)
"""

ANALYSE = """
import json, sys
from modules.pipeline import Pipeline
from modules.settings import Settings
pipeline = Pipeline.from_settings(Settings(_env_file=None))
health = pipeline.reader.wait_until_settled(120)
answer = pipeline.analyze(open(sys.argv[1], "rb").read(), "fever and cough")
pipeline.close()
print(json.dumps({"state": health.state, **answer.reader.model_dump()}))
"""

CONNECT = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"


def run(
    code: str, tmp_path: Path, *, isolated: bool, **environment: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run code in an interpreter whose network calls are noted; return how it ended and what was noted."""
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    noted = tmp_path / "noted.txt"
    noted.write_text("")
    done = subprocess.run(
        [*(NO_WAY_OUT if isolated else ()), sys.executable, "-c", code, str(SAMPLE)],
        cwd=PROJECT_ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(tmp_path), "WATCHED": str(noted)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done, noted.read_text()


@needs_namespace
@pytest.mark.parametrize("mode", ["local", "dummy"])
def test_without_a_network_the_private_modes_answer_and_try_no_connection(
    mode: str, tiny: Path, tmp_path: Path
) -> None:
    done, noted = run(
        ANALYSE,
        tmp_path,
        isolated=True,
        MEDGEMMA_MODE=mode,
        MEDGEMMA_ENGINE="transformers",
        MEDGEMMA_MODEL=str(tiny),
        READER_MAX_TOKENS="1536",
        OPENAI_API_KEY="sk-in-the-environment",
        GEMINI_API_KEY="in-the-environment",
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["state"], answer["mode"], answer["fallback_reason"]) == ("ready", mode, None)
    assert answer["film_sent_to"].startswith("nowhere")
    assert noted == ""


@needs_namespace
def test_a_model_that_is_not_here_is_looked_for_without_a_connection(tmp_path: Path) -> None:
    done, noted = run(
        ANALYSE, tmp_path, isolated=True, MEDGEMMA_MODEL="google/medgemma-that-nobody-has", MEDGEMMA_MODE="local"
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["state"], answer["mode"]) == ("fallback", "dummy")
    assert "make medgemma" in answer["fallback_reason"]
    assert noted == ""


@needs_namespace
def test_a_connection_would_be_noticed_and_fail(tmp_path: Path) -> None:
    done, noted = run(CONNECT, tmp_path, isolated=True)
    assert "unreachable" in done.stderr.lower()
    assert "192.0.2.1" in noted
