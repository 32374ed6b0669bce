"""Two turns with any model that can continue a conversation: ask, check, repair once, else read the prose."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from modules.errors import ReaderUnavailable
from modules.mentions import statements as statements_in
from modules.pathologies import NAMES
from modules.reasoners import confidence, prompts, safety
from modules.reasoners.base import READY, Control, Reader, ReaderFilm, ReaderState, ReaderTask
from modules.reasoners.replies import (
    MAX_REASONING,
    MAX_REPLY,
    ClinicalReply,
    ReplyError,
    ReplyLimits,
    StatusReply,
    clinical_schema,
    film_schema,
    looks_like_json,
    parse_clinical,
    parse_film,
    tidied,
    without_thoughts,
)
from modules.reasoners.turns import Generation, Message, Turn
from modules.records import CnnPrediction, ReaderStatement, Reading, ReplyForm
from modules.settings import ReaderMode

R = TypeVar("R")


class Writer(Protocol):
    """A model behind one interface, wherever it runs."""

    model: str
    plain_schema: bool  # the schema bounds texts by patterns, for constrained decoding in a process of our own

    def conversation(self, control: Control) -> AbstractContextManager[None]:  # noqa: ARG002
        """Hold the model for both turns of one film, where it can serve one at a time only."""
        return nullcontext()

    @abstractmethod
    def write(self, turn: Turn, film: ReaderFilm, control: Control) -> Generation:
        """Continue the conversation.

        Words go to `control.say` as they come. Raises ReaderUnavailable, with a sentence for the user, when there is no
        reply, and when `control` was stopped.
        """

    def state(self) -> ReaderState:
        """Say whether it could write now."""
        return READY

    def close(self) -> None:
        """Release what it holds."""
        return


# ── The two questions ────────────────────────────────────────────────────────────────────────────────────────────────


def film_turn(max_tokens: int, *, plain: bool, shown: CnnPrediction | None = None) -> Turn:
    """Return the first question, about the film alone; `plain` is the writer's `plain_schema`."""
    messages = (Message("system", prompts.SYSTEM), Message("user", prompts.film(shown), with_film=True))
    return Turn("film", messages, film_schema(ReplyLimits.within(max_tokens), plain=plain), max_tokens)


def clinical_turn(first: Turn, reply: str, symptoms: str, *, plain: bool, shown: CnnPrediction | None = None) -> Turn:
    """Return the second question, with the symptoms, after the first one and its reply."""
    asked = (Message("assistant", prompts.unmarked(reply)), Message("user", prompts.clinical(symptoms, shown)))
    schema = clinical_schema(ReplyLimits.within(first.max_tokens), plain=plain)
    return Turn("clinical", first.messages + asked, schema, first.max_tokens)


# ── The reader made of it ────────────────────────────────────────────────────────────────────────────────────────────


class ModelReader(Reader):
    """A second reader: a writer, the two questions, and what is made of the replies."""

    looks_at_film = True

    def __init__(self, mode: ReaderMode, writer: Writer, *, max_tokens: int, shows_cnn: bool = False) -> None:
        self.mode = mode
        self.model = writer.model
        self._writer = writer
        self._max_tokens = max_tokens
        self._shows_cnn = shows_cnn

    def read(self, task: ReaderTask) -> Reading:
        """Ask both questions and make the reading."""
        with self._writer.conversation(task.control):
            reading = self._read(task)
        self.model = self._writer.model  # a server may have told its name only now
        return reading

    def _read(self, task: ReaderTask) -> Reading:
        shown, plain = task.prediction if self._shows_cnn else None, self._writer.plain_schema
        first = film_turn(self._max_tokens, plain=plain, shown=shown)
        film = self._ask(first, parse_film, _film_in_prose, task)
        second = clinical_turn(first, film.generation.text, task.symptoms, plain=plain, shown=shown)
        clinical = self._ask(second, parse_clinical, _clinical_in_prose, task)
        return _reading(film, clinical, saw_cnn=self._shows_cnn)

    def _ask(
        self, turn: Turn, parse: Callable[[str], R], in_prose: Callable[[str], R], task: ReaderTask
    ) -> "_Answer[R]":
        first = self._write(turn, task)
        try:
            return _Answer(parse(first.text), first, "schema")
        except ReplyError as exc:
            problem = str(exc)
        again = self._write(_repair(turn, first.text, problem), task)
        try:
            return _Answer(parse(again.text), again, "repaired")
        except ReplyError:
            pass
        for generation in (first, again):
            if not looks_like_json(generation.text):
                return _Answer(in_prose(generation.text), generation, "prose")
        raise ReaderUnavailable("The second reader's reply did not fit the form that was asked for, twice.")

    def _write(self, turn: Turn, task: ReaderTask) -> Generation:
        task.control.check()
        generation = self._writer.write(turn, task.film, task.control)
        text = without_thoughts(generation.text)
        if not tidied(text, MAX_REPLY):
            raise ReaderUnavailable("The second reader's reply was empty.")
        return generation if text == generation.text else replace(generation, text=text)

    def state(self) -> ReaderState:
        """Say whether the model could answer now."""
        return self._writer.state()

    def close(self) -> None:
        """Release the model."""
        self._writer.close()


@dataclass(frozen=True)
class _Answer(Generic[R]):
    reply: R
    generation: Generation
    form: ReplyForm


def _repair(turn: Turn, reply: str, problem: str) -> Turn:
    """Return the same turn, asked again after a reply that did not fit."""
    again = (Message("assistant", prompts.unmarked(reply)), Message("user", prompts.REPAIR.format(problem=problem)))
    return replace(turn, messages=turn.messages + again)


def _reading(film: _Answer[dict[str, StatusReply]], clinical: _Answer[ClinicalReply], *, saw_cnn: bool) -> Reading:
    reply = clinical.reply
    measured = {} if film.form == "prose" else confidence.of_statuses(film.generation)
    quotes = [said.quote for said in film.reply.values()]
    written = (reply.clinical_reasoning, *reply.key_observations, *reply.differential, reply.recommendation, *quotes)
    return Reading(
        reasoning=reply.clinical_reasoning,
        key_observations=reply.key_observations,
        differential=reply.differential,
        recommendation=reply.recommendation,
        statements={
            name: ReaderStatement(status=said.status, quote=said.quote, confidence=measured.get(name))
            for name, said in film.reply.items()
        },
        token_confidence=confidence.of_tokens((film.generation, clinical.generation)),
        form=max(film.form, clinical.form, key=("schema", "repaired", "prose").index),
        flags=safety.flags(written),
        prompt=prompts.NAME,
        saw_cnn=saw_cnn,
    )


def _film_in_prose(text: str) -> dict[str, StatusReply]:
    said = statements_in(text)
    if not said:
        raise ReaderUnavailable("The second reader's reply names nothing that was asked for.")
    return {
        name: StatusReply(status=said[name].status, quote=said[name].quote)
        if name in said
        else StatusReply(status="not_mentioned")
        for name in NAMES
    }


def _clinical_in_prose(text: str) -> ClinicalReply:
    return ClinicalReply(clinical_reasoning=tidied(text, MAX_REASONING))
