"""Where results go: checked before the work that makes them, and written in one piece."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class OutputError(ValueError):
    """Results cannot be written; the message says where, and why."""


def check_folder(path: Path) -> None:
    """Raise OutputError unless a folder is there and can be written to, or can be made; makes nothing."""
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise OutputError(f"{path} cannot be the folder of the results: {there} is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be the folder of the results: nothing may be written to {there}.")


def check_file(path: Path) -> None:
    """Raise OutputError unless a file can be written, its folder being made where it is missing; makes nothing."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: name the file that is to be written.")
    check_folder(path.absolute().parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; raises OutputError."""
    with _explained(path):
        path.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 in one piece: what stood there before stays until all is written; raises OutputError.

    A file name on Linux may hold bytes that are no UTF-8: they are written as escapes.
    """
    write(path, lambda unfinished: unfinished.write_bytes(text.encode("utf-8", "backslashreplace")))


def write(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write a file beside the path, then put it in its place; raises OutputError, and leaves no part."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(unfinished)
            unfinished.replace(path)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise OutputError(f"{path} cannot be written: {exc.strerror or exc}.") from exc
