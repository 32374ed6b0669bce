"""What the C library does with the memory that films have given back.

glibc gives threads heaps of their own, up to eight a core, and keeps in each what once was the largest film there. Two
heaps, and blocks of a film's size that go back to the system at once, left 370 MiB of 784 after 72 seconds of films of
mixed sizes, and cost no films (`python -m benchmarks.soak --minutes 1.2`). Heaps that were there before stay.
"""

import ctypes
import os
import sys

# mallopt's numbers of what can be set, of glibc's malloc.h, and the variable by which a user sets it
_BOUNDS = (
    (-8, "MALLOC_ARENA_MAX", 2),
    (-3, "MALLOC_MMAP_THRESHOLD_", 4 << 20),  # bytes; larger blocks are the system's, one by one
    (-1, "MALLOC_TRIM_THRESHOLD_", 32 << 20),  # bytes; what is kept free at the end of a heap
)


def keep_little() -> None:
    """Bound what is kept, where the C library is glibc; whatever the environment says of it stays."""
    if sys.platform != "linux" or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return
    for number, variable, value in _BOUNDS:
        if variable not in os.environ:
            mallopt(number, value)
