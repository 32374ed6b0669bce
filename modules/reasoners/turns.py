"""What goes to a model and what comes back: plain records, so that a model's own process can import them alone."""

from dataclasses import dataclass
from typing import Any, Literal

TurnName = Literal["film", "clinical"]


@dataclass(frozen=True)
class Message:
    """One message of a conversation. The film belongs to the first message of the user."""

    role: Literal["system", "user", "assistant"]
    text: str
    with_film: bool = False


@dataclass(frozen=True)
class Turn:
    """What a model is asked to continue, the JSON schema of its reply, and its budget in tokens."""

    name: TurnName
    messages: tuple[Message, ...]
    schema: dict[str, Any]
    max_tokens: int


@dataclass(frozen=True)
class Token:
    """One token of a reply, with the natural logarithm of its probability under the unconstrained model.

    `logprob` is None where it was not measured. `free` says whether a grammar left a choice; None when the back end
    does not know. `alternatives` holds tokens that could have stood here, the chosen one among them, with their
    log-probabilities.
    """

    piece: bytes
    logprob: float | None
    free: bool | None = None
    alternatives: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Generation:
    """A model's reply; `tokens` is empty when the back end gives no log-probabilities."""

    text: str
    tokens: tuple[Token, ...] = ()
