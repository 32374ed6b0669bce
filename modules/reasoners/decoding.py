"""Constrained greedy decoding, shared by both local stacks: llguidance masks what the JSON schema does not allow.

A stack computes logits; everything else (prompt, cache of the first turn, grammar, measured probabilities) is here, so
that both stacks write the same text from the same weights.
"""

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from modules.reasoners.turns import Message, Token, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Logits = npt.NDArray[np.float32]

# With fewer choices than this, a step decides between words of the schema and its alternatives are kept.
MAX_ALTERNATIVES = 256
END_OF_TURN = "<end_of_turn>"
_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


class Stack(Protocol):
    """A loaded model with its cache of keys and values; one conversation at a time."""

    tokenizer: "PreTrainedTokenizerFast"

    def render(self, messages: list[dict[str, Any]]) -> str:
        """Return a conversation as the model's chat template writes it, with the start of the model's next turn."""

    def start(self, prompt: str, film_png: bytes) -> Logits:
        """Empty the cache, read a prompt with its film, and return the logits (V,) of the next token."""

    def feed(self, ids: list[int]) -> Logits:
        """Read further tokens after what the cache holds, and return the logits (V,) of the next one."""


class Conversation:
    """Both turns about one film on one stack; the second goes on where the first ended, without reading it again."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._read: tuple[Message, ...] = ()  # what the cache holds
        self._film_png = b""
        self._grammar_tokens: Any = None

    def write(self, turn: Turn, film_png: bytes, stopped: Callable[[], bool]) -> Iterator[Token]:
        """Yield the tokens of the reply; ends early once `stopped` says so."""
        logits = self._open(turn.messages, film_png)
        self._read = ()  # until the reply is whole, nothing can go on from here
        pieces = []
        for token in self._decode(logits, turn, stopped):
            pieces.append(token.piece)
            yield token
        if not stopped():
            reply = b"".join(pieces).decode("utf-8", "replace")
            self._read, self._film_png = (*turn.messages, Message("assistant", reply)), film_png

    def _open(self, messages: tuple[Message, ...], film_png: bytes) -> Logits:
        prompt = self._stack.render([_as_dict(message) for message in messages])
        held = len(self._read)
        if held and film_png == self._film_png and messages[:held] == self._read and len(messages) == held + 1:
            reply = self._read[-1].text
            # its first place: a user may have typed the same words after it
            tail = prompt[prompt.index(reply) + len(reply) :]
            return self._stack.feed(self._stack.tokenizer.encode(tail, add_special_tokens=False))
        return self._stack.start(prompt, film_png)

    def _decode(self, logits: Logits, turn: Turn, stopped: Callable[[], bool]) -> Iterator[Token]:
        matcher = self._matcher(turn.schema, len(logits))
        written = 0
        while written < turn.max_tokens and not stopped():
            forced = matcher.compute_ff_tokens()[: turn.max_tokens - written]
            if forced:
                self._consume(matcher, forced)
                yield from (Token(self._piece(token_id), None, free=False) for token_id in forced)
                written += len(forced)
                logits = self._stack.feed(forced)
                continue
            allowed = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
            choices = np.flatnonzero(allowed[: len(logits)])
            scores = logits[choices].astype(np.float64)
            chosen = int(choices[scores.argmax()])
            if chosen in self._grammar_tokens.eos_tokens or matcher.is_stopped():
                return
            logprobs = scores - _log_sum_exp(logits)
            self._consume(matcher, [chosen])
            yield Token(
                self._piece(chosen),
                float(logprobs[scores.argmax()]),
                free=len(choices) > 1,
                alternatives=self._alternatives(choices, logprobs),
            )
            written += 1
            logits = self._stack.feed([chosen])

    def _alternatives(self, choices: npt.NDArray[np.intp], logprobs: npt.NDArray[np.float64]) -> Any:
        if not 1 < len(choices) <= MAX_ALTERNATIVES:
            return ()
        return tuple((self._piece(int(i)), float(p)) for i, p in zip(choices, logprobs, strict=True))

    def _matcher(self, schema: dict[str, Any], vocabulary: int) -> Any:
        import llguidance
        import llguidance.hf

        tokenizer = self._stack.tokenizer
        if self._grammar_tokens is None:
            ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TURN)]
            # the network's vocabulary is padded beyond the tokenizer's
            self._grammar_tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=ends)
        grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_COMPACT)
        matcher = llguidance.LLMatcher(self._grammar_tokens, grammar)
        if matcher.is_error():
            raise RuntimeError(f"the grammar could not be made: {matcher.get_error()}")
        return matcher

    def _consume(self, matcher: Any, ids: list[int]) -> None:
        if not matcher.consume_tokens(ids):
            raise RuntimeError(f"the grammar refused its own choice: {matcher.get_error()}")

    def _piece(self, token_id: int) -> bytes:
        piece: bytes = self._grammar_tokens.decode_bytes([token_id])
        return piece


def _log_sum_exp(logits: Logits) -> float:
    wide = logits.astype(np.float64)
    top = wide.max()
    return float(top + np.log(np.exp(wide - top).sum()))


def _as_dict(message: Message) -> dict[str, Any]:
    """Return a message as chat templates take it, the film before the words."""
    text = {"type": "text", "text": message.text}
    return {"role": message.role, "content": [{"type": "image"}, text] if message.with_film else [text]}
