"""What every benchmark says of its machine, its ratios and the size of a process."""

import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# Before each measurement: OpenMP's threads spin on for a while after PyTorch's pass, and would slow the other side.
SETTLE_S = 0.05


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """Return the machine, its load, and the versions of what is measured."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load before": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def ratio(numerator: Callable[[], object], denominator: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time both sides in turn; return the median of the ratios, their range, and the median times in ms."""
    for warm_up in (numerator, denominator):
        warm_up()
    pairs = [(seconds(numerator), seconds(denominator)) for _ in range(max(3, rounds))]
    ratios = sorted(a / b for a, b in pairs)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "least": round(ratios[0], 3),
        "largest": round(ratios[-1], 3),
        "numerator_ms": round(1000 * statistics.median(a for a, _ in pairs), 1),
        "denominator_ms": round(1000 * statistics.median(b for _, b in pairs), 1),
    }


def seconds(work: Callable[[], object]) -> float:
    """Time one piece of work, after the threads of the one before have settled."""
    time.sleep(SETTLE_S)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    kib = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True).stdout
    return round(int(kib) / 1024, 1)


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest of the values that so many percent of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Write rows of the same keys as text in columns."""
    cells = [list(map(str, rows[0]))] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "".join("  ".join(map(str.rjust, row, widths)) + "\n" for row in cells)
