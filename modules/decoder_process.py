"""Runs a decoder of pydicom in a process of its own.

GDCM, the one permissively licensed decoder of lossless JPEG (which archives like), ends its process on some damaged
streams, pylibjpeg-rle panics, and OpenJPEG takes as much memory as a stream's tiles and precincts ask for. They then
end this process, and not the server. The worker is this very file, run as a script.
"""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0  # 40 million pixels take a few seconds
MAX_MEMORY_BYTES = 2 << 30  # of address space; decoding 40 million pixels of 16 bits takes less than half


class DecoderProcessError(Exception):
    """The process crashed, took too long, or gave back another size than was asked for."""


def decode_elsewhere(data: bytes, syntax: str, options: dict[str, Any], size: int) -> bytes:
    """Decode one frame of encapsulated pixel data into `size` bytes, in the machine's byte order.

    Raises DecoderProcessError, and OSError where no process can be started.
    """
    request = json.dumps({"syntax": syntax, "options": options}).encode() + b"\n"
    command = [sys.executable, "-I", str(Path(__file__).resolve())]
    try:
        done = subprocess.run(
            command,
            input=request + data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread would reserve memory of its own
        )
    except subprocess.SubprocessError as exc:
        raise DecoderProcessError from exc
    if len(done.stdout) != size:
        raise DecoderProcessError
    return done.stdout


def _limit_memory() -> None:
    """Bound the memory of this process, on the systems that can."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limit, macOS may refuse it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))


def _work() -> None:
    """Answer one request: a line of JSON and the data on standard input, the pixels on standard output."""
    _limit_memory()
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # C++ code may print; it must not print into the pixels

    from pydicom.pixels.decoders.base import get_decoder

    request = json.loads(sys.stdin.buffer.readline())
    pixels, _ = get_decoder(request["syntax"]).as_array(
        sys.stdin.buffer.read(), index=0, validate=False, **request["options"]
    )
    with os.fdopen(answer, "wb") as out:
        out.write(pixels.tobytes())


if __name__ == "__main__":
    _work()
