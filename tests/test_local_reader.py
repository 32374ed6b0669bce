"""The local readers on real stacks: a tiny random Gemma 3, in a process of its own, that can hang and be killed."""

import json
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.errors import ReaderUnavailable
from modules.multimodal_reasoning import SecondReader
from modules.pathologies import NAMES
from modules.reasoners import prompts
from modules.reasoners.base import READY, Control, ReaderFilm, ReaderTask
from modules.reasoners.conversation import ModelReader
from modules.reasoners.dummy import DummyReader
from modules.reasoners.local import LocalWriter
from modules.reasoners.local_model import check_packages, engine_of, find_model, model_of
from modules.reasoners.local_process import CANCEL_GRACE_S
from modules.reasoners.replies import ReplyLimits, clinical_schema, film_schema, parse_film
from modules.reasoners.turns import Generation, Message, Turn
from modules.settings import MIN_REPLY_TOKENS, PROJECT_ROOT, Settings
from tests.stages import predict

LOAD_LIMIT_S = 120.0
# mlx has its own environment on Linux: it brings another build of OpenCV, and `make test` makes it.
MLX_PYTHON = (
    Path(sys.executable)
    if (platform.system(), platform.machine()) == ("Darwin", "arm64")
    else PROJECT_ROOT / ".venv-mlx" / "bin" / "python"
)
needs_mlx = pytest.mark.skipif(not MLX_PYTHON.is_file(), reason="mlx has no environment here: make test makes it")


def ready(engine: str, folder: Path) -> LocalWriter:
    python = str(MLX_PYTHON) if engine == "mlx" else sys.executable
    writer = LocalWriter(engine, folder, f"tiny on {engine}", dtype="float32", python=python)
    assert writer.wait_until_settled(LOAD_LIMIT_S) is READY
    return writer


@pytest.fixture(scope="module")
def writer(tiny: Path) -> Iterator[LocalWriter]:
    started = ready("transformers", tiny)
    yield started
    started.close()


@pytest.fixture(scope="module")
def mlx_writer(tiny: Path) -> Iterator[LocalWriter]:
    started = ready("mlx", tiny)
    yield started
    started.close()


def film_of(seed: int = 0) -> ReaderFilm:
    return ReaderFilm(np.random.default_rng(seed).integers(0, 256, (64, 64), dtype=np.uint8))


def task(limit_s: float = 60.0, seed: int = 0, symptoms: str = "cough") -> ReaderTask:
    return ReaderTask(film_of(seed), symptoms, predict(), control=Control(limit_s))


def first_turn() -> Turn:
    messages = (Message("system", prompts.SYSTEM), Message("user", prompts.film(None), with_film=True))
    return Turn("film", messages, film_schema(ReplyLimits.within(MIN_REPLY_TOKENS), plain=True), MIN_REPLY_TOKENS)


def second_turn(first: Turn, reply: str, symptoms: str = "cough and fever") -> Turn:
    messages = (*first.messages, Message("assistant", reply), Message("user", prompts.clinical(symptoms, None)))
    schema = clinical_schema(ReplyLimits.within(MIN_REPLY_TOKENS), plain=True)
    return Turn("clinical", messages, schema, MIN_REPLY_TOKENS)


def both_turns(writer: LocalWriter, film: ReaderFilm) -> tuple[Generation, Generation]:
    first = first_turn()
    one = writer.write(first, film, Control(60.0))
    return one, writer.write(second_turn(first, one.text), film, Control(60.0))


# ── What a model on this machine writes ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("engine", ["writer", pytest.param("mlx_writer", marks=needs_mlx)])
def test_a_reading_by_a_real_stack_fits_the_schema_and_is_measured(engine: str, request: pytest.FixtureRequest) -> None:
    reader = ModelReader("local", request.getfixturevalue(engine), max_tokens=MIN_REPLY_TOKENS)
    asked = task()
    reading = reader.read(asked)
    assert (reading.form, reading.prompt, reading.independent) == ("schema", prompts.NAME, True)
    assert tuple(reading.statements) == NAMES
    assert reading.token_confidence is not None
    assert 0.0 < reading.token_confidence < 1.0
    confidences = [statement.confidence for statement in reading.statements.values()]
    assert all(value is not None and 0.0 < value <= 1.0 for value in confidences)
    assert min(value for value in confidences if value is not None) < 1.0
    assert asked.control.film_sent_to == "nowhere: read on this machine"


@needs_mlx
@pytest.mark.parametrize("seed", [0, 1])
def test_both_stacks_write_the_same_words_with_the_same_probabilities(
    seed: int, writer: LocalWriter, mlx_writer: LocalWriter
) -> None:
    for one, other in zip(both_turns(writer, film_of(seed)), both_turns(mlx_writer, film_of(seed)), strict=True):
        assert one.text == other.text
        assert [t.piece for t in one.tokens] == [t.piece for t in other.tokens]
        assert [t.free for t in one.tokens] == [t.free for t in other.tokens]
        pairs = [(a.logprob, b.logprob) for a, b in zip(one.tokens, other.tokens, strict=True)]
        assert max(abs(a - b) for a, b in pairs if a is not None and b is not None) < 1e-3


def test_films_change_what_is_written(writer: LocalWriter) -> None:
    assert both_turns(writer, film_of(0))[0].text != both_turns(writer, film_of(1))[0].text


def test_words_are_heard_while_they_are_written(writer: LocalWriter) -> None:
    heard: list[tuple[str, str]] = []
    written = writer.write(first_turn(), film_of(), Control(60.0, lambda turn, words: heard.append((turn, words))))
    assert "".join(words for _, words in heard) == written.text
    assert {turn for turn, _ in heard} == {"film"}
    assert len(heard) > 50
    parse_film(written.text)


def test_tokens_that_the_grammar_forced_are_not_measured(writer: LocalWriter) -> None:
    tokens = writer.write(first_turn(), film_of(), Control(60.0)).tokens
    assert all((t.logprob is None) == (t.free is False) for t in tokens if t.free is False)
    assert any(t.free is False for t in tokens)
    assert all(t.logprob is not None and t.logprob <= 0.0 for t in tokens if t.free)


# ── When it hangs, ends, or cannot start ─────────────────────────────────────────────────────────────────────────────


def process_of(writer: LocalWriter) -> int:
    assert writer._process is not None
    return writer._process.pid


def test_a_reader_that_is_stopped_leaves_its_model_alive(writer: LocalWriter) -> None:
    before = process_of(writer)
    control = Control(60.0)
    spoken = []

    def stop_soon(_: str, words: str) -> None:
        spoken.append(words)
        if len(spoken) == 20:
            control.stop()

    control._on_words = stop_soon
    with pytest.raises(ReaderUnavailable, match="stopped"):
        writer.write(first_turn(), film_of(), control)
    assert len(spoken) == 20
    assert (process_of(writer), writer.state()) == (before, READY)
    parse_film(writer.write(first_turn(), film_of(), Control(60.0)).text)


def test_a_model_that_hangs_is_killed_at_the_time_limit_and_loaded_anew(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    writer = ready("transformers", tiny)
    reader = ModelReader("local", writer, max_tokens=MIN_REPLY_TOKENS)
    second = SecondReader("local", (reader, DummyReader()), limit_s=1.0)
    hung = process_of(writer)
    os.kill(hung, signal.SIGSTOP)
    start = time.monotonic()
    _, info = second.read(film_of(), "cough", predict())
    assert time.monotonic() - start < 2.0
    assert (info.mode, info.fallback_reason) == ("dummy", "The second reader gave no answer within 1 seconds.")
    wait_for_another(writer, hung)
    parse_film(writer.write(first_turn(), film_of(), Control(60.0)).text)
    loaded = [r for r in caplog.records if r.getMessage() == "[MedGemma] Local model loaded successfully."]
    assert len(loaded) == 2
    second.close()
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)


def test_a_model_that_no_longer_takes_a_film_in_is_replaced_too(tiny: Path) -> None:
    """A large film fills the pipe: the write itself hangs, not the wait for an answer."""
    writer = ready("transformers", tiny)
    second = SecondReader(
        "local", (ModelReader("local", writer, max_tokens=MIN_REPLY_TOKENS), DummyReader()), limit_s=1.0
    )
    large = ReaderFilm(np.random.default_rng(0).integers(0, 256, (896, 896), dtype=np.uint8))
    hung = process_of(writer)
    os.kill(hung, signal.SIGSTOP)
    start = time.monotonic()
    assert second.read(large, "cough", predict())[1].mode == "dummy"
    assert time.monotonic() - start < 2.0
    wait_for_another(writer, hung)
    assert second.read(film_of(), "cough", predict())[1].mode in ("local", "dummy")  # the lock is free again
    with writer.conversation(Control(5.0)):
        parse_film(writer.write(first_turn(), film_of(), Control(60.0)).text)
    writer.close()


def wait_for_another(writer: LocalWriter, before: int) -> None:
    deadline = time.monotonic() + LOAD_LIMIT_S
    while writer.state() is not READY or process_of(writer) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_leaves_costs_no_model_its_life(writer: LocalWriter) -> None:
    """Stopped inside one long step, the model keeps the time that it had; it is not killed for a client's leaving."""
    number, control = process_of(writer), Control(30.0)
    os.kill(number, signal.SIGSTOP)
    timers = [
        threading.Timer(0.2, control.stop),
        threading.Timer(0.2 + 3 * CANCEL_GRACE_S, os.kill, (number, signal.SIGCONT)),
    ]
    for timer in timers:
        timer.start()
    with pytest.raises(ReaderUnavailable, match="stopped"):
        writer.write(first_turn(), film_of(), control)
    assert (process_of(writer), writer.state()) == (number, READY)
    parse_film(writer.write(first_turn(), film_of(), Control(60.0)).text)


def test_a_model_that_ends_while_idle_is_loaded_anew_before_a_film_finds_out(tiny: Path) -> None:
    writer = ready("transformers", tiny)
    before = process_of(writer)
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while writer.state() is READY:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    wait_for_another(writer, before)
    writer.close()


def test_a_model_that_fails_on_every_film_is_loaded_anew(writer: LocalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    before = process_of(writer)
    broken = Turn("film", first_turn().messages, {"type": "no such type"}, 100)
    for _ in range(3):
        with pytest.raises(ReaderUnavailable, match="failed while it read"):
            writer.write(broken, film_of(), Control(60.0))
    wait_for_another(writer, before)


def test_a_film_that_waited_too_long_is_not_begun(writer: LocalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_patience_s", lambda: 60.0)
    entered, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with writer.conversation(Control()):
            entered.set()
            assert go_on.wait(20)
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(20)
    go_on.set()
    with pytest.raises(ReaderUnavailable, match="too long"), writer.conversation(Control(0.9)):  # 0.4 s left of 0.5
        pass
    thread.join()
    with writer.conversation(Control(0.1)):  # nobody was before it: it may try
        pass


def test_a_model_whose_process_is_killed_is_a_reason_and_comes_back(tiny: Path) -> None:
    writer = ready("transformers", tiny)
    os.kill(process_of(writer), signal.SIGKILL)
    with pytest.raises(ReaderUnavailable, match="process ended|still loading"):
        writer.write(first_turn(), film_of(), Control(60.0))
    with pytest.raises(ReaderUnavailable, match="still loading"):
        writer.write(first_turn(), film_of(), Control(60.0))
    assert writer.wait_until_settled(LOAD_LIMIT_S) is READY
    writer.close()


def test_a_film_does_not_wait_for_one_that_makes_no_progress(
    writer: LocalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_patience_s", lambda: 0.3)
    with writer.conversation(Control()):
        start = time.monotonic()
        with pytest.raises(ReaderUnavailable, match="busy with another film"), writer.conversation(Control(60.0)):
            pass
        assert time.monotonic() - start < 2.0
        with pytest.raises(ReaderUnavailable), writer.conversation(Control(0.0)):
            pass
    with writer.conversation(Control()):
        pass


def test_weights_that_cannot_be_loaded_are_a_reason_and_are_not_tried_again(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for file in tiny.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    writer = LocalWriter("transformers", tmp_path, "broken")
    state = writer.wait_until_settled(LOAD_LIMIT_S)
    assert state.state == "unavailable"
    assert state.reason is not None
    assert "could not be loaded" in state.reason
    assert str(tmp_path) not in state.reason
    assert len([r for r in caplog.records if "could not be loaded" in r.getMessage()]) == 1
    with pytest.raises(ReaderUnavailable, match="could not be loaded"):
        writer.write(first_turn(), film_of(), Control(1.0))
    writer.close()


def test_a_writer_that_is_closed_leaves_no_process(tiny: Path) -> None:
    writer = ready("transformers", tiny)
    number = process_of(writer)
    writer.close()
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


# ── Which model, and where it is ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("system", "machine", "engine", "model"),
    [
        ("Darwin", "arm64", "mlx", "mlx-community/medgemma-4b-it-8bit"),
        ("Darwin", "x86_64", "transformers", "google/medgemma-4b-it"),
        ("Linux", "x86_64", "transformers", "google/medgemma-4b-it"),
        ("Linux", "arm64", "transformers", "google/medgemma-4b-it"),
    ],
)
def test_the_platform_chooses_engine_and_model(
    monkeypatch: pytest.MonkeyPatch, system: str, machine: str, engine: str, model: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    settings = Settings(_env_file=None)
    assert (engine_of(settings), model_of(settings)) == (engine, model)
    own = Settings(_env_file=None, medgemma_engine="transformers", medgemma_model="my/model")
    assert (engine_of(own), model_of(own)) == ("transformers", "my/model")


def test_a_model_that_was_not_downloaded_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(ReaderUnavailable, match="make medgemma"):
        find_model("google/medgemma-that-nobody-has")
    with pytest.raises(ReaderUnavailable, match="MEDGEMMA_MODEL"):
        find_model("neither a folder nor a name")


def test_an_incomplete_model_is_told_from_a_whole_one(tiny: Path, tmp_path: Path) -> None:
    assert find_model(str(tiny)) == tiny
    with pytest.raises(ReaderUnavailable, match="incomplete"):
        find_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model-1.safetensors").write_bytes(b"1")
    (tmp_path / "pytorch_model.bin").write_bytes(b"1")
    with pytest.raises(ReaderUnavailable, match="incomplete"):  # a pickle is no model
        find_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert find_model(str(tmp_path)) == tmp_path
    for index in ({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}, {}, []):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ReaderUnavailable, match="incomplete"):
            find_model(str(tmp_path))


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ReaderUnavailable, match="pip install mlx-vlm"):
        check_packages("mlx")


@pytest.mark.parametrize(
    ("file", "content"),
    [("config.json", {"model_file": "evil.py"}), ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.P"}})],
)
def test_a_folder_that_wants_to_run_code_is_refused(
    file: str, content: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    held = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(held | content))
    with pytest.raises(ReaderUnavailable, match="run code"):
        find_model(str(tmp_path))


def test_a_relative_folder_is_that_of_the_server(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    assert find_model(tiny.name) == tiny.resolve()


def test_a_process_that_cannot_be_started_is_a_reason(tiny: Path) -> None:
    writer = LocalWriter("transformers", tiny, "tiny", python="/nowhere/python")
    assert writer.wait_until_settled(10.0).state == "unavailable"
    assert "could not be started" in str(writer.state().reason)
    assert "nowhere" not in str(writer.state().reason)
    assert "nowhere" in writer.load_detail
    writer.close()


def test_no_key_reaches_the_models_process(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("gemini_api_key", "sk-secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sk-secret")
    writer = ready("transformers", tiny)
    environ = Path(f"/proc/{process_of(writer)}/environ")
    held = environ.read_bytes() if environ.exists() else b"HF_HUB_OFFLINE=1"
    writer.close()
    assert b"sk-secret" not in held
    assert b"HF_HUB_OFFLINE=1" in held
