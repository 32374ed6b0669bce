"""MedGemma on this machine: `python medgemma.py download` gets its weights, `python medgemma.py check` tries them.

`make medgemma` and `make check-medgemma` call this. The server itself never downloads anything.
"""

import argparse
import platform
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from modules.errors import ReaderUnavailable, WeightsError
from modules.images import open_image
from modules.reasoners.base import READY, Control, ReaderFilm
from modules.reasoners.conversation import clinical_turn, film_turn
from modules.reasoners.local import LocalWriter
from modules.reasoners.local_model import engine_of, model_of
from modules.reasoners.replies import ReplyError, parse_clinical, parse_film
from modules.reasoners.turns import Generation, Turn
from modules.settings import PROJECT_ROOT, Settings, wrong_settings
from modules.weights import sha256_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
TERMS = "https://developers.google.com/health-ai-developer-foundations/terms"
FILES = ("*.safetensors", "*.json", "*.jinja", "*.model")  # neither pickles nor other formats of the same weights
LOAD_LIMIT_S = 3600.0
GIB = 1 << 30


def main() -> int:
    """Run a command; return 0 when it succeeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("download", "check"))
    command = parser.parse_args().command
    try:
        settings = Settings()
    except ValidationError as exc:
        for wrong in wrong_settings(exc):
            _say(wrong)
        return 1
    try:
        return download(settings) if command == "download" else check(settings)
    except (ReaderUnavailable, WeightsError) as exc:
        _say(str(exc))
        return 1


# ── Download ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def download(settings: Settings) -> int:
    """Say the size and the licence of the weights, then get them into the local cache; returns the exit code."""
    name = model_of(settings)
    if Path(name).expanduser().is_dir():
        _say(f"MEDGEMMA_MODEL is a folder of this machine ({name}): there is nothing to download.")
        return 0
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        info = HfApi().model_info(name, files_metadata=True)
        size = sum(file.size or 0 for file in _wanted(info))
        _say(f"{name}, revision {info.sha}: {size / GIB:.1f} GiB, for {engine_of(settings)}.")
        _say(f"Licence: Health AI Developer Foundations terms of use, {TERMS}")
        _say("By downloading you accept them. Medical use is restricted: this assistant is for research and education.")
        free = shutil.disk_usage(Path.home()).free
        if free < size:
            _say(f"Only {free / GIB:.1f} GiB are free on the disk of your home folder. Nothing was downloaded.")
            return 1
        folder = snapshot_download(name, revision=info.sha, allow_patterns=list(FILES))
    except GatedRepoError:
        _say(f"The owner of {name} gives it to people who have accepted the terms. Once:")
        _say(f"  1. Open https://huggingface.co/{name}, log in, and accept the terms shown there.")
        _say("  2. Run: hf auth login   (with a token that may read; https://huggingface.co/settings/tokens)")
        _say("  3. Run this again.")
        return 1
    except (RepositoryNotFoundError, HFValidationError):
        _say(f"There is no model {name} on the hub, or your token may not see it. Check MEDGEMMA_MODEL.")
        return 1
    except Exception as exc:  # the hub's client lets its transport's errors through, of whichever package it uses
        _say(f"The download failed ({type(exc).__name__}). Check the network and run this again: it goes on.")
        return 1
    checked = _check_hashes(Path(folder), info)
    _say(f"{checked} large files have the SHA-256 that the hub says they have.")
    _say(f"Done: {folder}")
    _say("Try it with: make check-medgemma")
    return 0


def _wanted(info: "ModelInfo") -> list["RepoSibling"]:
    """Return the files that will be downloaded."""
    endings = tuple(pattern.removeprefix("*") for pattern in FILES)
    return [file for file in info.siblings or [] if file.rfilename.endswith(endings)]


def _check_hashes(folder: Path, info: "ModelInfo") -> int:
    """Hold files against the hub's hashes, and return of how many it has one: small ones Git holds itself.

    Raises WeightsError for weights that have another hash, or none.
    """
    hashes = {f.rfilename: f.lfs.sha256 if f.lfs else None for f in _wanted(info)}
    hashes = {name: value for name, value in hashes.items() if value or name.endswith(".safetensors")}
    wrong = [(folder / name).resolve() for name, value in hashes.items() if sha256_of(folder / name) != value]
    if wrong:
        raise WeightsError(
            "By their SHA-256 these files are not what the hub lists. Delete them, then run this again: "
            + " ".join(map(str, wrong))
        )
    return len(hashes)


# ── Check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check(settings: Settings) -> int:
    """Load the model, let it read the sample, and say how fast, in how much memory, and whether its replies fit."""
    start = time.perf_counter()
    writer = LocalWriter.from_settings(settings)
    try:
        _say(f"Loading {writer.model} with {engine_of(settings)} on {platform.system()} {platform.machine()} ...")
        state = writer.wait_until_settled(LOAD_LIMIT_S)
        if state is not READY:
            _say(writer.load_detail)  # the library's own words, which an answer never holds
            raise ReaderUnavailable(state.reason or "The model did not load in time.")
        _say(f"Loaded in {time.perf_counter() - start:.1f} s: {writer.engine}.")
        fits = _read_sample(writer, settings)
    finally:
        writer.close()
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
    _say(f"Memory of the model's process at most: {peak / GIB:.1f} GiB (without that of a separate GPU).")
    _say("Both replies have the form that was asked for." if fits else "A reply does not have the form asked for.")
    return 0 if fits else 1


def _read_sample(writer: LocalWriter, settings: Settings) -> bool:
    film = ReaderFilm.of(open_image(SAMPLE.read_bytes()).decode())
    turn = film_turn(settings.reader_max_tokens, plain=writer.plain_schema)
    first = _timed(writer, turn, film)
    turn = clinical_turn(turn, first.text, "Cough for three days.", plain=writer.plain_schema)
    second = _timed(writer, turn, film)
    try:
        said = parse_film(first.text)
        reply = parse_clinical(second.text)
    except ReplyError:
        return False
    for name, statement in said.items():
        _say(f"  {name:20} {statement.status:14} {statement.quote}")
    _say(f"  {reply.clinical_reasoning}")
    return True


def _timed(writer: LocalWriter, turn: Turn, film: ReaderFilm) -> Generation:
    start = time.perf_counter()
    first_word: list[float] = []
    heard = Control(on_words=lambda *_: first_word.append(time.perf_counter() - start) if not first_word else None)
    reply = writer.write(turn, film, heard)
    seconds = time.perf_counter() - start
    waited = first_word[0] if first_word else seconds
    rate = len(reply.tokens) / max(seconds - waited, 1e-9)
    _say(
        f"{turn.name}: {len(reply.tokens)} tokens in {seconds:.1f} s; the first after {waited:.1f} s, "
        f"then {rate:.1f} a second."
    )
    return reply


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
