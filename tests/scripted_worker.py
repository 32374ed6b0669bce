"""Stands in for the process of a local model: does with each film what the next word of a file says.

It is started as Python is, with the arguments of the true worker; the folder that they name as the model's holds
`plan`, a word for each time that it is asked about one, `starts`, a word for each start, and the replies. Without a
word left, all goes well.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

NONSENSE = {"not JSON": "Segmentation fault", "no message": "42", "deep": "[" * 200_000}
PROSE = "lorem ipsum " * 20


def installed(folder: Path, film: str, clinical: str) -> str:
    """Write this file into a folder as a program, with the replies to both turns; returns its path."""
    program = folder / "python"
    program.write_text(f"#!{sys.executable} -IS\n{Path(__file__).read_text('utf-8')}", "utf-8")
    program.chmod(0o755)
    (folder / "film").write_text(film, "utf-8")
    (folder / "clinical").write_text(clinical, "utf-8")
    planned(folder)
    return str(program)


def planned(folder: Path, *films: str, starts: tuple[str, ...] = ()) -> None:
    """Say what becomes of the next questions about a film, and of the next starts."""
    for name, words in (("plan", films), ("starts", starts)):
        (folder / name).write_text("".join(f"{word}\n" for word in words), "utf-8")


def main() -> None:
    """Be the process."""
    folder = Path(sys.argv[sys.argv.index("--model") + 1])
    _fail(_next(folder / "starts"), None)
    _say({"ready": "by script"})
    for line in sys.stdin:
        request = json.loads(line)
        if "cancel" in request:
            continue
        number, turn = request["id"], request["name"]
        bad = _next(folder / "plan") if turn == "film" else ""
        _fail(bad, number)
        _write(number, PROSE if bad == "prose" else (folder / turn).read_text("utf-8"))
        _say({"id": number, "ended": True})


def _next(path: Path) -> str:
    words = path.read_text("utf-8").splitlines()
    path.write_text("".join(f"{word}\n" for word in words[1:]), "utf-8")
    return words[0] if words else ""


def _fail(word: str, number: int | None) -> None:
    """Do what a word says; without a number, at the start."""
    if word in ("", "prose"):
        return
    if number is not None and word == "die":
        _write(number, "{")
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "half a token":
        _say({"id": number, "token": {"piece": "{"}})
    elif word != "hang":
        sys.stdout.write(NONSENSE[word] + "\n")
        sys.stdout.flush()
    time.sleep(600)


def _write(number: int, text: str) -> None:
    _say({"id": number, "token": {"piece": text, "logprob": -0.1, "free": True, "alternatives": []}})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
