"""The process in which a local model lives, so that it can be killed: JSON lines in, JSON lines out.

Started by `local_process.py`. It opens no socket (its environment forces the hub libraries offline), writes nothing
but the protocol to standard output, and ends with the process that started it.
"""

import argparse
import base64
import json
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TextIO

from modules.reasoners.decoding import Conversation
from modules.reasoners.turns import Message, Token, Turn

Say = Callable[[dict[str, Any]], None]


def main() -> None:
    """Load the model, then answer requests until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("mlx", "transformers"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto")
    parser.add_argument("--quantization", choices=("none", "4bit"), default="none")
    options = parser.parse_args()
    say = _protocol()
    inbox = _Inbox()
    lines = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a library that asks a question must get no answer
    threading.Thread(target=inbox.listen, args=(lines,), daemon=True).start()
    try:
        stack = _load(options)
    except Exception as exc:
        say({"failed": type(exc).__name__, "detail": str(exc)[:300]})
        return
    conversation = Conversation(stack)
    say({"ready": stack.description})
    while True:
        request = inbox.requests.get()
        try:
            _answer(conversation, request, inbox, say)
        except Exception as exc:
            say({"id": request["id"], "error": type(exc).__name__})


def _protocol() -> Say:
    """Keep standard output for the protocol; whatever a library prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return say


def _load(options: argparse.Namespace) -> Any:
    if options.engine == "mlx":
        from modules.reasoners.mlx import MlxStack

        return MlxStack.load(options.model, dtype=options.dtype)
    from modules.reasoners.transformers import TransformersStack

    return TransformersStack.load(options.model, dtype=options.dtype, quantization=options.quantization)


class _Inbox:
    """What was asked for, and which request nobody waits for any longer."""

    def __init__(self) -> None:
        self.requests: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self.cancelled = 0  # requests up to this number

    def listen(self, lines: TextIO) -> None:
        for line in lines:
            message = json.loads(line)
            if "cancel" in message:
                self.cancelled = max(self.cancelled, message["cancel"])
            else:
                self.requests.put(message)
        os._exit(0)  # whoever asked has ended: so does this process, whatever it computes


def _answer(conversation: Conversation, request: dict[str, Any], inbox: _Inbox, say: Say) -> None:
    number = request["id"]
    turn = Turn(
        request["name"],
        tuple(Message(**message) for message in request["messages"]),
        request["schema"],
        request["max_tokens"],
    )
    film = base64.b64decode(request["film"])
    for token in conversation.write(turn, film, lambda: inbox.cancelled >= number):
        say({"id": number, "token": as_json(token)})
    say({"id": number, "ended": True})


def as_json(token: Token) -> dict[str, Any]:
    """Return a token as JSON can hold it; bytes become Latin-1 text."""
    return {
        "piece": token.piece.decode("latin-1"),
        "logprob": token.logprob,
        "free": token.free,
        "alternatives": [[piece.decode("latin-1"), logprob] for piece, logprob in token.alternatives],
    }


def from_json(token: dict[str, Any]) -> Token:
    """Undo `as_json`."""
    return Token(
        token["piece"].encode("latin-1"),
        token["logprob"],
        token["free"],
        tuple((piece.encode("latin-1"), logprob) for piece, logprob in token["alternatives"]),
    )


if __name__ == "__main__":
    main()
