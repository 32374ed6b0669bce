"""Runs a decoder of pydicom in a process of its own.

GDCM, the one permissively licensed decoder of lossless JPEG (which archives like), ends its process on some damaged
streams, pylibjpeg-rle panics, and OpenJPEG takes as much memory as a stream's tiles and precincts ask for. They then
end this process, and not the server. The worker is this very file, run as a script.
"""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

TIMEOUT_S = 20.0  # 40 million pixels take a few seconds
# What a stream may take goes with the size of its film, so that a film of a few pixels is no way to take a machine.
# Both come beside what the imports took; 40 million pixels of 16 bits get 9 s and more, and 1.2 GiB.
CPU_S, CPU_S_PER_BYTE = 1.0, 1e-7
CPU_S_PER_PACKED_BYTE = 5e-7  # noise in lossless JPEG 2000, the slowest, took 3e-7 of a server core
MEMORY_BYTES, MEMORY_PER_BYTE = 256 << 20, 12  # of address space
MAX_MEMORY_BYTES = 2 << 30
IMPORTED_BYTES = 512 << 20  # where the system does not say how much is mapped
SLAB_PIXELS = 1 << 20  # colours are converted in slabs of about as many: pydicom makes copies, in float


class DecoderProcessError(Exception):
    """The process crashed, took too long, or gave back another size than was asked for."""


def decode_elsewhere(data: bytes, syntax: str, options: dict[str, Any], size: int) -> bytes:
    """Decode one frame of encapsulated pixel data into `size` bytes, in the machine's byte order.

    Raises DecoderProcessError, and OSError where no process can be started.
    """
    request = json.dumps({"syntax": syntax, "options": options, "size": size}).encode() + b"\n"
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


def decode_here(data: bytes, syntax: str, options: dict[str, Any]) -> Any:
    """Let pydicom decode one frame in this process into (H, W) or (H, W, 3), and turn YBR into RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.processing import convert_color_space

    # pydicom's own validation warns; what it looks for has been checked by now.
    pixels, found = get_decoder(syntax).as_array(data, index=0, validate=False, raw=True, **options)
    if found["photometric_interpretation"] in ("YBR_FULL", "YBR_FULL_422"):
        rows = max(1, SLAB_PIXELS // pixels.shape[1])
        for top in range(0, pixels.shape[0], rows):
            slab = pixels[top : top + rows]
            slab[:] = convert_color_space(slab, "YBR_FULL", "RGB")
    return pixels


def limit(size: int, packed: int) -> None:
    """Bound time and memory of this process for a film of `size` bytes from `packed` ones, on the systems that can."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such limits, macOS may refuse that of the memory
        import resource

        cpu_s = math.ceil(time.process_time() + CPU_S + size * CPU_S_PER_BYTE + packed * CPU_S_PER_PACKED_BYTE)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        memory = _mapped() + min(MEMORY_BYTES + MEMORY_PER_BYTE * size, MAX_MEMORY_BYTES)
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _mapped() -> int:
    """Return the address space of this process, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return IMPORTED_BYTES


def _work() -> None:
    """Answer one request: a line of JSON and the data on standard input, the pixels on standard output."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # C++ code may print; it must not print into the pixels

    import numpy as np
    import pydicom.pixels  # noqa: F401  imports the decoders: what that takes is not limited

    request = json.loads(sys.stdin.buffer.readline())
    data = sys.stdin.buffer.read()
    limit(request["size"], len(data))
    pixels = decode_here(data, request["syntax"], request["options"])
    with os.fdopen(answer, "wb") as out:
        out.write(np.ascontiguousarray(pixels).data.cast("B"))


if __name__ == "__main__":
    _work()
