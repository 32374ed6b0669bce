"""`python -m benchmarks.soak`: half an hour of everything at once, and whether the server kept its promises.

Patient clients send films of all kinds to all routes; beside them one sends what is no film, one sends so slowly that
its film takes seconds, and one leaves at any moment. Every request must end in its right answer or in a clean 503 that
ends in it later; memory must not grow with the requests. Ends with 1 when a promise was broken.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.load import Client, Outcome, Shot, fire, probing, shot
from benchmarks.measuring import machine, percentile, resident_mib, table
from benchmarks.server import PACKAGES, films
from benchmarks.servers import running

PATIENT = 4  # clients
SLOW_PIECES = 8
SLOW_S = 2.0  # that a slow upload takes at least
LEAVES_WITHIN_S = 0.4  # a request of the sample takes less on an idle server
SAMPLE_S = 1.0  # between two looks at the memory
STRETCHES = 60  # of a soak: of each the least memory counts, for films on their way come on top of it
SETTLED = 0.25  # of a soak: before that the server has not had all sizes of films at once
MOST_MIB = 1.0  # per 1,000 requests

Result = dict[str, Any]


@dataclass
class Tally:
    """What became of every request, by the kind of client."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    left: int = 0  # requests whose client went away on purpose
    until: float = 0.0  # of time.monotonic()
    most: int = 0  # requests; 0: no bound

    @property
    def sent(self) -> int:
        """How many requests were begun and have ended."""
        return self.left + sum(map(len, self.outcomes.values()))

    @property
    def over(self) -> bool:
        """Nobody begins another request."""
        return (bool(self.most) and self.sent >= self.most) or time.monotonic() >= self.until

    def note(self, kind: str, outcome: Outcome) -> None:
        """Count a request that ended."""
        self.outcomes.setdefault(kind, []).append(outcome)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak, print what it found, and write JSON where asked."""
    args = _arguments(argv)
    result: Result = {"machine": machine(PACKAGES)}
    with running() as server:
        result |= asyncio.run(soak(server.url, server.pid, 60 * args.minutes, args.requests, args.seed))
    for key, value in result.items():
        if key == "memory":
            continue  # a curve, for the file
        rows = value if isinstance(value, list) else [{"what": k, "": v} for k, v in value.items()]
        sys.stdout.write(f"\n{key}\n{table(rows)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return 0 if all(result["kept"].values()) else 1


async def soak(url: str, pid: int, seconds: float, requests: int, seed: int) -> Result:
    """Let all clients send for a time, or until so many requests were sent; the server is process `pid`."""
    tally = Tally(until=time.monotonic() + seconds, most=requests)
    drawn = films()
    rng = random.Random(seed)
    memory: list[tuple[int, float]] = []

    async def watch() -> None:
        while True:
            memory.append((tally.sent, await asyncio.to_thread(resident_mib, pid)))
            await asyncio.sleep(SAMPLE_S)

    async with probing(url) as health:
        watching = asyncio.create_task(watch())
        start = time.monotonic()
        good = itertools.cycle(_good(drawn))
        await asyncio.gather(
            *(_patient(url, "films", good, tally) for _ in range(PATIENT)),
            _patient(url, "no films", itertools.cycle(_bad(drawn)), tally),
            _slow(url, drawn["1024 px JPEG"], tally),
            _leaving(url, shot("/analyze/stream", drawn["256 px PNG"], "left"), tally, rng),
        )
        lasted = time.monotonic() - start
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching
    memory.append((tally.sent, resident_mib(pid)))
    return _found(tally, memory, health, lasted)


def _found(tally: Tally, memory: Sequence[tuple[int, float]], health: Sequence[float], lasted: float) -> Result:
    every = [outcome for outcomes in tally.outcomes.values() for outcome in outcomes]
    wrong = Counter(f"{o.name}: {o.status or 'no answer'}" for o in every if not o.answered or not o.clean)
    settled = [(sent, mib) for sent, mib in _floor(memory) if sent > SETTLED * tally.sent]
    if len(settled) < 2:
        raise SystemExit("python -m benchmarks.soak: too short to say anything of the memory; give more --minutes.")
    slope = statistics.linear_regression([s / 1000 for s, _ in settled], [m for _, m in settled]).slope
    rows = [
        {
            "clients": kind,
            "requests": len(outcomes),
            "answered": sum(o.answered for o in outcomes),
            "503 before": sum(o.refusals for o in outcomes),
            "lost": sum(o.status == 0 for o in outcomes),
            "p50 ms": round(1000 * percentile([o.seconds for o in outcomes], 50), 1),
            "p99 ms": round(1000 * percentile([o.seconds for o in outcomes], 99), 1),
        }
        for kind, outcomes in tally.outcomes.items()
    ]
    return {
        "memory": [{"sent": sent, "MiB": mib} for sent, mib in memory],
        "clients": rows,
        "soak": {
            "minutes": round(lasted / 60, 1),
            "sent": tally.sent,
            "right answers": sum(o.answered for o in every),
            "left by their client": tally.left,
            "wrong": dict(wrong),
            "MiB at most": max(mib for _, mib in memory),
            "MiB at least, after the first quarter": settled[0][1],
            "MiB at least, at the end": settled[-1][1],
            "MiB per 1,000 requests": round(slope, 3),
            "/health p99 ms": round(1000 * percentile(health, 99), 1),
            "/health unanswered": sum(value == float("inf") for value in health),
        },
        "kept": {
            "sent = answered + left": tally.sent == tally.left + sum(o.answered for o in every),
            "no wrong answer": not wrong,
            "memory is flat": slope < MOST_MIB,
            "/health always answered": float("inf") not in health,
        },
    }


def _floor(memory: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the moment of least memory of each stretch: what was kept, with as few films on their way as may be."""
    length = max(1, len(memory) // STRETCHES)
    return [min(memory[at : at + length], key=lambda sample: sample[1]) for at in range(0, len(memory), length)]


# ── Clients ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _good(drawn: dict[str, bytes]) -> list[Shot]:
    usual = [
        shot(path, drawn[name], f"{path} {name}")
        for path in ("/analyze", "/render", "/analyze/stream")
        for name in ("256 px PNG", "1024 px JPEG")
    ]
    large = drawn["12 megapixel DICOM"]
    rare = [
        shot("/analyze", large, "/analyze 12 megapixel DICOM"),
        shot("/render", large, "/render 12 megapixel DICOM"),
        shot("/analyze", drawn["refused"], "/analyze forced", force="true", heatmaps="all"),
    ]
    return [one for other in rare for one in (*usual, other)]


def _bad(drawn: dict[str, bytes]) -> list[Shot]:
    film = drawn["256 px PNG"]
    return [
        shot("/analyze", drawn["refused"], "noise", expected=422),
        shot("/analyze", b"no film", "text", expected=415),
        shot("/render", film[: len(film) // 2], "half a PNG", expected=400),
        shot("/analyze/stream", b"\xff\xd8\xff" + bytes(5000), "zeros as JPEG", expected=400),
        shot("/analyze", bytes(128) + b"DICM" + bytes(5000), "zeros as DICOM", expected=400),
        shot("/analyze", film, "long symptoms", expected=422, symptoms="x" * 5000),
        shot("/nowhere", film, "unknown path", expected=404),
    ]


async def _patient(url: str, kind: str, shots: Iterator[Shot], tally: Tally) -> None:
    client = Client(url)
    while not tally.over:
        tally.note(kind, await fire(client, next(shots), time.perf_counter(), patient=True))
    client.close()


async def _slow(url: str, film: bytes, tally: Tally) -> None:
    """Send films in pieces, with pauses between them."""
    one = shot("/analyze", film, "slow upload")
    step = len(one.request) // SLOW_PIECES + 1
    pieces = [one.request[at : at + step] for at in range(0, len(one.request), step)]
    client = Client(url)
    while not tally.over:
        due = time.perf_counter()
        for piece in pieces[:-1]:
            await client.send(piece)
            await asyncio.sleep(SLOW_S / SLOW_PIECES)
        outcome = await fire(client, Shot(one.name, pieces[-1], one.expected), due, patient=False)
        if outcome.refused:  # a clean 503: sent anew, in pieces too
            await asyncio.sleep(1.0)
            continue
        tally.note("slow", outcome)
    client.close()


async def _leaving(url: str, one: Shot, tally: Tally, rng: random.Random) -> None:
    """Leave at any moment: in the middle of the upload, before the answer, in its middle."""
    while not tally.over:
        client = Client(url)
        with suppress(OSError):
            await client.send(one.request[: rng.choice((1, rng.randrange(len(one.request)), len(one.request)))])
            await asyncio.sleep(rng.uniform(0.0, LEAVES_WITHIN_S))
        client.close()
        tally.left += 1


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    add = parser.add_argument
    add("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    add("--requests", type=int, default=0, help="end after so many requests, if that is earlier")
    add("--seed", type=int, default=0, help="of the moments at which a client leaves (default: %(default)s)")
    add("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
