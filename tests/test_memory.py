"""How much memory the C library keeps of what films have given back."""

import ctypes
import os
import re
import subprocess
import sys

import pytest

from modules.settings import PROJECT_ROOT

THREADS = 12
PROBE = f"""
import ctypes, sys, threading
from api.memory import keep_little
if sys.argv[1] == "bounded":
    keep_little()
together = threading.Barrier({THREADS})
def work():
    together.wait()
    for _ in range(200):
        bytearray(100_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range({THREADS})]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def heaps(way: str, **environment: str) -> int:
    """Return how many heaps a process has after threads have worked in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, way], cwd=PROJECT_ROOT, env=kept | environment, capture_output=True, check=True
    )
    return len(re.findall(rb"<heap nr=", done.stdout))


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone has such heaps")
def test_threads_share_two_heaps_unless_the_environment_says_otherwise() -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("another C library than glibc")
    assert heaps("as it is") > 2, "nothing to bound"
    assert heaps("bounded") == 2
    assert heaps("bounded", MALLOC_ARENA_MAX="4") == 4
    assert heaps("bounded", GLIBC_TUNABLES="glibc.malloc.arena_max=4") == 4
