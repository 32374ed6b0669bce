"""The command: `python -m batch FILMS --out TABLE.parquet`."""

import argparse
import hashlib
import os
import platform
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from batch.journal import Begun, Journal, JournalError
from batch.pool import MAX_DEATHS, Died, Make, Pool, PoolError
from batch.reading import Loaded, Recipe
from batch.rows import Row, Status, model_columns
from batch.sources import Film, Listing, SourceError, list_films, with_symptoms
from batch.tables import TableError, suffixes, write_table
from modules.settings import Settings, wrong_settings
from modules.version import VERSION

ALL_READ, COULD_NOT_RUN, SOME_NOT_READ, STOPPED = 0, 1, 3, 130
FILM_LIMIT_S = 300.0  # chosen, not fitted: a film takes a second, and a decoder in a process of its own at most 20
GPU_WORKERS = 4  # chosen, not fitted: each holds a copy of the network on the device
JOURNAL_SUFFIX = ".journal"
PROGRAM = "python -m batch"
TERMINAL_BAR_S = 0.5
QUIET_BAR_S = 30.0  # between two lines of progress where there is no terminal
# Settings that change what is in the table, beyond weights and options.
KEPT_SETTINGS = ("cnn_mirror_check", "cnn_precision", "max_upload_mb", "max_megapixels")
READER_SETTINGS = ("medgemma_model", "gemini_model", "openai_model", "reader_sees_cnn", "reader_max_tokens")

DIED = {
    "worker_died": f"{MAX_DEATHS} workers ended while they read it.",
    "out_of_memory": f"Reading it took more memory than a worker may have, {MAX_DEATHS} times.",
    "timed_out": f"Reading it took longer than the limit, {MAX_DEATHS} times.",
}
DESCRIPTION = (
    "Read many chest films into one table, on all cores. Research and education only: not a medical device. A run that "
    "was stopped, or killed, goes on when the same command is started again: TABLE.journal holds every finished film."
)
EPILOG = (
    "Exit status: 0 all films were read, 3 some were refused or failed (their rows say why), 1 the run could not be "
    "made or finished, 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM. docs/BATCH.md explains each column."
)
READER_HELP = (
    "let the second reader of MEDGEMMA_MODE and MEDGEMMA_FALLBACK read the films too. Privacy: without this option no "
    "film leaves this machine, whatever the settings say. With it, every film goes wherever those settings name: api "
    "sends it to Google, openai to OPENAI_BASE_URL, local keeps it here; the column film_sent_to says where each went"
)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM."""


class CannotRun(Exception):
    """The run cannot be made; the message says why."""


@dataclass(frozen=True)
class Options:
    """What the command was asked to do."""

    sources: tuple[Path, ...]
    out: Path
    paths_in: Path | None = None
    symptoms: Path | None = None
    force: bool = False
    invert: bool = False
    reader: bool = False
    workers: int | None = None
    restart: bool = False

    @property
    def journal(self) -> Path:
        """Where the journal is."""
        return self.out.with_name(self.out.name + JOURNAL_SUFFIX)


@dataclass
class Summary:
    """How many films ended how; of all of them, those of earlier runs too."""

    statuses: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def films(self) -> int:
        """How many rows the table has."""
        return self.statuses.total()


def main(argv: Sequence[str] | None = None, *, program: str = PROGRAM, pool: type[Pool] = Pool) -> int:
    """Run the command; returns the exit status. Another `program` may bring workers of another kind."""
    parser = _parser(program)
    args = parser.parse_args(argv)
    options = Options(**{**vars(args), "sources": tuple(args.sources)})
    if not options.sources and options.paths_in is None:
        parser.error("name a folder, a zip archive or films, or a --list of them")
    try:
        with _terminated_as_interrupted():
            summary = run(options, pool=pool)
    except (CannotRun, SourceError, JournalError, PoolError, TableError) as exc:
        return _leave(COULD_NOT_RUN, program, str(exc))
    except KeyboardInterrupt:
        done = f"Finished films are in {options.journal}." if options.journal.exists() else "No film was read yet."
        return _leave(STOPPED, program, f"stopped. {done} The same command goes on where it stopped.")
    sys.stdout.write(_in_words(summary, options) + "\n")
    return ALL_READ if summary.statuses["ok"] == summary.films else SOME_NOT_READ


def run(options: Options, make: Make | None = None, pool: type[Pool] = Pool) -> Summary:
    """Read what is still to be read, and write the table; `make` replaces what reads films in a worker of `pool`."""
    _check_out(options)
    settings = _settings(reader=options.reader)
    listing = list_films(options.sources, options.paths_in)
    films = with_symptoms(listing.films, options.symptoms) if options.symptoms else listing.films
    version = VERSION
    begun = _begun(options, settings, listing, version)
    workers, threads = workers_and_threads(options, settings)
    with Journal(options.journal, begun, restart=options.restart) as journal:
        if journal.dropped_lines:
            _say(f"{journal.dropped_lines} cut lines of the journal were dropped; their films are read again.")
        reading = pool(
            make or Recipe(settings, version, threads, options.force, options.invert),
            workers=workers,
            threads=threads,
            film_limit_s=FILM_LIMIT_S + (4 * settings.reader_timeout_s if options.reader else 0.0),
        )
        _read(films, journal, reading, version)
        summary = Summary(left_out=listing.left_out)
        write_table(options.out, _counted(journal.rows(), summary.statuses))
    return summary


def workers_and_threads(options: Options, settings: Settings) -> tuple[int, int]:
    """Return how many workers there are, and how many threads each has: together one for each core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    local = options.reader and "local" in (settings.medgemma_mode, *settings.medgemma_fallback)
    if local and (options.workers or 1) > 1:
        raise CannotRun("each worker would load the local second reader of its own: with it, use --workers 1.")
    most = 1 if local else cores if _on_cpu(settings) else min(cores, GPU_WORKERS)
    workers = options.workers or most
    return workers, max(1, cores // workers)


def _on_cpu(settings: Settings) -> bool:
    """Whether the CNN will run on the CPU, by signs that cost nothing: only workers load PyTorch."""
    if settings.cnn_device != "auto":
        return settings.cnn_device == "cpu"
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return not (apple or Path("/dev/nvidiactl").exists())


def _read(films: Sequence[Film], journal: Journal, pool: Pool, version: str) -> None:
    """Bring every film into the journal."""
    left = [film for film in films if film.name not in journal.places]
    # A film that killed its workers has no row when the run ended between the last death and the row.
    given_up = {film.name for film in left if journal.deaths.get(film.name, 0) >= MAX_DEATHS}
    readable = [film for film in left if film.trouble is None and film.name not in given_up]
    _say(f"{len(films)} films, {len(films) - len(left)} of them read before. Loading the network …")
    stamp: dict[str, str] = {}
    with ExitStack() as stack:
        bar: Any = None
        for outcome in pool.read(readable, journal.deaths):
            if isinstance(outcome, Loaded):
                journal.check_weights(outcome)
                if bar is None:  # the clock starts when films are read, not while the network is loaded
                    stamp.update(model_columns(outcome.model, version))
                    _say(f"{outcome.model.weights} on {outcome.model.device}; second reader: {outcome.reader}.")
                    bar = stack.enter_context(_bar(len(films), len(films) - len(readable)))
                continue
            if isinstance(outcome, Died):
                journal.note_death(outcome.film.name, outcome.reason, outcome.deaths)
                if outcome.deaths < MAX_DEATHS:
                    continue
                journal.append(_row_of(outcome.film, "failed", outcome.reason, DIED[outcome.reason], stamp))
            else:
                journal.append(outcome)
            bar.update()
    for film in left:
        if film.trouble is not None:
            journal.append(_row_of(film, film.trouble.status, film.trouble.code, film.trouble.message, stamp))
        elif film.name in given_up:
            journal.append(_row_of(film, "failed", "worker_died", DIED["worker_died"], stamp))


def _bar(films: int, done: int) -> Any:
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own lock would be shared between processes, and outlive a kill
    interval = TERMINAL_BAR_S if sys.stderr.isatty() else QUIET_BAR_S
    return tqdm(total=films, initial=done, unit="film", mininterval=interval, file=sys.stderr)


def _row_of(film: Film, status: Status, code: str, message: str, stamp: dict[str, str]) -> Row:
    """Return the row of a film that no worker has a row of."""
    return Row(file=film.name, status=status, code=code, message=message, **stamp)


def _counted(rows: Iterator[Row], statuses: Counter[str]) -> Iterator[Row]:
    for row in rows:
        statuses[row.status] += 1
        yield row


def _check_out(options: Options) -> None:
    out = options.out
    if out.suffix.lower() not in suffixes():
        raise CannotRun(f"--out {out}: the name must end in {', '.join(suffixes())}.")
    if out.is_dir():
        raise CannotRun(f"--out {out} is a folder: name the file that is to be written.")
    if out.exists() and not options.journal.exists() and not options.restart:
        raise CannotRun(f"--out {out} is there already: choose another name, or replace it with --restart.")


def _settings(*, reader: bool) -> Settings:
    """Return the settings; without a second reader being asked for, those of the template."""
    only_template: dict[str, Any] = {} if reader else {"medgemma_mode": "dummy", "medgemma_fallback": ("dummy",)}
    try:
        return Settings(**only_template)
    except ValidationError as exc:
        raise CannotRun(f"the setting {wrong_settings(exc)[0]}.") from exc


def _begun(options: Options, settings: Settings, listing: Listing, version: str) -> Begun:
    kept = KEPT_SETTINGS + (READER_SETTINGS if options.reader else ())
    readers = (settings.medgemma_mode, *settings.medgemma_fallback)
    symptoms = options.symptoms.read_bytes() if options.symptoms else None
    return Begun(
        version=version,
        films=len(listing.films),
        films_sha256=listing.sha256(),
        symptoms_sha256=None if symptoms is None else hashlib.sha256(symptoms).hexdigest(),
        force=options.force,
        invert=options.invert,
        reader=",".join(dict.fromkeys(readers)),
        settings={name.upper(): getattr(settings, name) for name in kept},
    )


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM stop the run as Ctrl-C does."""

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_words(summary: Summary, options: Options) -> str:
    counts = ", ".join(f"{summary.statuses[name]} {name}" for name in ("ok", "refused", "undecodable", "failed"))
    others = ""
    if summary.left_out:
        kinds = ", ".join(f"{count} {suffix or 'hidden'}" for suffix, count in sorted(summary.left_out.items()))
        others = f" Other files, left out: {_harmless(kinds)}."
    return f"{summary.films} films: {counts}. {options.out}{others} For research and education only."


def _harmless(text: str) -> str:
    """Return text of hostile file names as a terminal may show it."""
    return "".join(char if char.isprintable() else "?" for char in text)[:300]


def _leave(status: int, program: str, sentence: str) -> int:
    _say(f"{program}: {_harmless(sentence)}")
    return status


def _say(sentence: str) -> None:
    sys.stderr.write(sentence + "\n")


def _at_least_one(value: str) -> int:
    number = int(value)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return number


def _parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program, description=DESCRIPTION, epilog=EPILOG)
    add = parser.add_argument
    add("sources", type=Path, nargs="*", metavar="FILMS", help="folders (with what is below), zip archives, films")
    add("--out", type=Path, required=True, metavar="TABLE", help=f"the table to write: {', '.join(suffixes())}")
    add("--list", type=Path, dest="paths_in", metavar="FILE", help="a text file of further films, one path a line")
    add("--symptoms", type=Path, metavar="CSV", help="a table with the columns file (as in TABLE) and symptoms")
    add("--force", action="store_true", help="analyse films that the input gate refuses too; they always need review")
    add("--invert", action="store_true", help="exchange black and white of every film")
    add("--reader", action="store_true", help=READER_HELP)
    add("--workers", type=_at_least_one, metavar="N", help="processes, each with its own network (default: all cores)")
    add("--restart", action="store_true", help="throw the journal away, and begin anew")
    return parser
