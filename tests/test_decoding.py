"""Constrained decoding: the grammar, the memory between the turns, and what both stacks must agree on."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from modules.reasoners import prompts
from modules.reasoners.decoding import Conversation, Logits
from modules.reasoners.mlx import image_mask, set_image_scale
from modules.reasoners.replies import ReplyLimits, film_schema, parse_film
from modules.reasoners.transformers import TransformersStack
from modules.reasoners.turns import Message, Turn
from modules.reasoners.worker import as_json, from_json
from modules.settings import MIN_REPLY_TOKENS, PROJECT_ROOT
from tests.conftest import as_png

FILM = as_png(np.random.default_rng(0).integers(0, 256, (56, 56), dtype=np.uint8))
OTHER_FILM = as_png(np.random.default_rng(1).integers(0, 256, (56, 56), dtype=np.uint8))
SCHEMA = film_schema(ReplyLimits.within(MIN_REPLY_TOKENS), plain=True)
MESSAGES = (Message("system", prompts.SYSTEM), Message("user", prompts.film(None), with_film=True))
TURN = Turn("film", MESSAGES, SCHEMA, MIN_REPLY_TOKENS)
SMALL = {
    "type": "object",
    "properties": {"status": {"enum": ["present", "absent"]}},
    "required": ["status"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def stack(tiny: Path) -> TransformersStack:
    return TransformersStack.load(str(tiny), dtype="float32")


class Counting:
    """A stack that counts what it is asked to read, and prefers whatever a test wants."""

    def __init__(self, stack: TransformersStack, wanted: str | None = None) -> None:
        self.tokenizer = stack.tokenizer
        self.starts: list[str] = []
        self.fed: list[list[int]] = []
        self._stack = stack
        self._wanted = [] if wanted is None else stack.tokenizer.encode(wanted, add_special_tokens=False)

    def render(self, messages: list[dict[str, Any]]) -> str:
        return self._stack.render(messages)

    def start(self, prompt: str, film_png: bytes) -> Logits:
        self.starts.append(prompt)
        return self._logits()

    def feed(self, ids: list[int]) -> Logits:
        self.fed.append(ids)
        return self._logits()

    def _logits(self) -> Logits:
        logits = np.zeros(960, np.float32)
        logits[self._wanted] = 10.0
        return logits


def never() -> bool:
    return False


def text_of(tokens: Any) -> str:
    return b"".join(token.piece for token in tokens).decode()


# ── The grammar ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_whatever_the_model_prefers_the_reply_fits_the_schema(stack: TransformersStack) -> None:
    for wanted in (None, "the heart is enlarged", "{}", "]}", "\n\t"):
        reply = text_of(Conversation(Counting(stack, wanted)).write(TURN, FILM, never))
        parse_film(reply)
        assert json.dumps(json.loads(reply), separators=(",", ":")) == reply  # no white space to get lost in


def test_the_longest_reply_closes_within_the_budget(stack: TransformersStack) -> None:
    tokens = list(Conversation(Counting(stack, "aaaa")).write(TURN, FILM, never))
    parse_film(text_of(tokens))
    assert len(tokens) <= MIN_REPLY_TOKENS


def test_a_choice_between_words_of_the_schema_keeps_its_alternatives(stack: TransformersStack) -> None:
    turn = Turn("film", MESSAGES, SMALL, 50)
    tokens = list(Conversation(Counting(stack, "absent")).write(turn, FILM, never))
    assert json.loads(text_of(tokens)) == {"status": "absent"}
    (deciding,) = [t for t in tokens if t.free and any(p.strip(b'"')[:1] == b"p" for p, _ in t.alternatives)]
    assert any(piece == deciding.piece for piece, _ in deciding.alternatives)


def test_the_measured_probability_is_that_of_the_unconstrained_model(stack: TransformersStack) -> None:
    turn = Turn("film", MESSAGES, SMALL, 50)
    counting = Counting(stack)  # all tokens alike: one of 960
    token = next(t for t in Conversation(counting).write(turn, FILM, never) if t.free)
    assert token.logprob == pytest.approx(-np.log(960), abs=1e-6)


def test_a_reply_that_is_cut_by_its_budget_or_stopped_ends(stack: TransformersStack) -> None:
    assert len(list(Conversation(Counting(stack)).write(Turn("film", MESSAGES, SCHEMA, 30), FILM, never))) == 30
    assert list(Conversation(Counting(stack)).write(TURN, FILM, lambda: True)) == []


# ── The memory between the turns ─────────────────────────────────────────────────────────────────────────────────────


def next_turn(reply: str) -> Turn:
    return Turn("clinical", (*MESSAGES, Message("assistant", reply), Message("user", "And now?")), SMALL, 50)


def test_the_second_turn_reads_only_what_is_new(stack: TransformersStack) -> None:
    counting = Counting(stack)
    conversation = Conversation(counting)
    reply = text_of(conversation.write(TURN, FILM, never))
    before = len(counting.fed)
    list(conversation.write(next_turn(reply), FILM, never))
    assert len(counting.starts) == 1
    assert stack.tokenizer.decode(counting.fed[before]) == (
        "<end_of_turn>\n<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize("change", ["film", "reply", "stopped", "question"])
def test_anything_else_is_read_from_its_beginning(change: str, stack: TransformersStack) -> None:
    counting = Counting(stack)
    conversation = Conversation(counting)
    count = iter(range(10_000))
    stop = (lambda: next(count) > 50) if change == "stopped" else never
    reply = text_of(conversation.write(TURN, FILM, stop))
    turn = next_turn("{}" if change == "reply" else reply)
    if change == "question":
        turn = Turn("clinical", (Message("user", "Another", with_film=True), *turn.messages[2:]), SMALL, 50)
    list(conversation.write(turn, OTHER_FILM if change == "film" else FILM, never))
    assert len(counting.starts) == 2
    assert counting.starts[0] != counting.starts[1]


@pytest.mark.filterwarnings("ignore")  # of the third-party packages
def test_what_was_remembered_counts_as_what_was_read(stack: TransformersStack) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]}]
    prompt, tail = stack.render(messages), "<end_of_turn>\n<start_of_turn>user\nAnd now?"
    whole = stack.start(prompt + tail, FILM)
    stack.start(prompt, FILM)
    parts = stack.feed(stack.tokenizer.encode(tail, add_special_tokens=False))
    np.testing.assert_allclose(parts, whole, atol=2e-4)
    assert np.abs(stack.start(prompt + tail, OTHER_FILM) - whole).max() > 0.01


# ── What mlx-vlm computes otherwise ──────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_begins_once(stack: TransformersStack) -> None:
    prompt = stack.render([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Look."}]}])
    inputs = stack.processor(text=[prompt], images=[[np.zeros((56, 56, 3), np.uint8)]], add_special_tokens=False)
    assert list(inputs["input_ids"][0]).count(stack.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("top", "needed"), [(2048, True), (2560, False)])
def test_the_image_scale_is_set_only_where_it_is_wrong(top: int, needed: bool) -> None:
    config = SimpleNamespace(hidden_size=top, text_config=SimpleNamespace(hidden_size=2560))
    assert set_image_scale(SimpleNamespace(config=config)) is needed
    assert config.hidden_size == 2560


def test_inside_an_image_tokens_attend_in_both_directions_and_elsewhere_to_the_past() -> None:
    mask = image_mask(np.array([False, True, True, False, True, True, False]))
    expected = np.tril(np.ones((7, 7), bool))
    expected[1, 2] = expected[4, 5] = True
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(image_mask(np.zeros(5, bool)), np.tril(np.ones((5, 5), bool)))


# ── The process ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_token_survives_the_pipe(stack: TransformersStack) -> None:
    for token in Conversation(Counting(stack, "ü")).write(TURN, FILM, never):
        assert from_json(json.loads(json.dumps(as_json(token)))) == token


def test_the_process_imports_neither_the_server_nor_the_cnn() -> None:
    code = "import modules.reasoners.worker, sys; print(sorted(m for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout
    assert not any(f"'{name}'" in loaded for name in ("torch", "cv2", "pydantic", "fastapi", "modules.settings"))
