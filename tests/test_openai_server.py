"""Mode `openai` against a real server of another project: that of mlx-vlm, with the tiny Gemma 3, on loopback."""

import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modules.multimodal_reasoning import SecondReader
from modules.reasoners.base import Control
from modules.reasoners.openai import OpenAiWriter
from modules.reasoners.turns import Turn
from modules.settings import Settings
from tests.stages import predict
from tests.test_local_reader import MLX_PYTHON, film_of, first_turn, needs_mlx

START_LIMIT_S = 90.0

pytestmark = needs_mlx


@pytest.fixture(scope="module")
def address(tiny: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(MLX_PYTHON), "-m", "mlx_vlm", "server", "--model", str(tiny), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tiny
    )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            assert server.poll() is None
            assert time.monotonic() < deadline
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v1/models", trust_env=False).is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def test_its_words_arrive_and_the_film_stays_on_this_machine(address: str) -> None:
    heard: list[str] = []
    control = Control(60.0, lambda _, words: heard.append(words))
    turn = first_turn()
    short = Turn(turn.name, turn.messages, turn.schema, 40)
    written = OpenAiWriter(address, None, None).write(short, film_of(), control)
    assert written.text
    assert len(heard) > 1
    assert control.film_sent_to is not None
    assert control.film_sent_to.startswith("nowhere else: to a server on this machine (127.0.0.1:")


def test_another_film_gives_other_words(address: str) -> None:
    turn = first_turn()
    short = Turn(turn.name, turn.messages, turn.schema, 40)
    writer = OpenAiWriter(address, None, None)
    assert writer.write(short, film_of(0), Control(60.0)).text == writer.write(short, film_of(0), Control(60.0)).text
    assert writer.write(short, film_of(0), Control(60.0)).text != writer.write(short, film_of(1), Control(60.0)).text


def test_the_words_of_a_random_model_make_no_finding_out_of_nothing(address: str) -> None:
    """A model that ignores the schema writes nonsense: the reading is prose without findings, or none at all."""
    settings = Settings(
        _env_file=None, medgemma_mode="openai", openai_base_url=address, reader_max_tokens=1536, reader_timeout_s=60
    )
    reading, info = SecondReader.from_settings(settings).read(film_of(), "cough", predict())
    assert info.film_sent_to.startswith("nowhere else: to a server on this machine")
    if info.mode == "openai":
        assert info.form == "prose"
        assert all(statement.confidence is None for statement in reading.statements.values())
    else:
        assert info.fallback_reason
