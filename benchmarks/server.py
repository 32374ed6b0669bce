"""`python -m benchmarks.server`: the server under load: many clients, too many films, large ones, a hanging reader.

Closed loop: so many clients, each of which sends a film, waits for the answer (after a 503 for as long as `Retry-After`
says, too: that time counts) and sends the next. Open loop: films come at random moments, at a rate, whatever becomes of
the ones before, and a 503 is final. `/health` is asked all the time. The sides of a ratio take turns, round by round.
"""

import argparse
import asyncio
import io
import itertools
import json
import socket
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from benchmarks.load import Load, Outcome, Sender, Shot, closed_loop, open_loop, probing, shot
from benchmarks.measuring import machine, percentile, table
from benchmarks.servers import HOST, running
from modules.pipeline import Pipeline
from modules.settings import PROJECT_ROOT, Settings
from synthetic.phantom import make_film

PACKAGES = (
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "h11",
    "anyio",
    "onnxruntime",
    "numpy",
    "opencv-python-headless",
)
SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
CLIENTS = (1, 2, 4, 8, 16)
RATES = (0.5, 0.8, 1.0, 1.2, 1.5)  # of the best throughput of the closed loop
WARM_UP = 20  # requests
FLOOD = 40  # connections: more than there are places
HANG_LIMIT_S = 10.0
WARM_UP_S = 2.0

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write JSON where asked."""
    args = _arguments(argv)
    film = args.film.read_bytes()
    result: Result = {"machine": machine(PACKAGES)}
    _say("machine", [{"what": key, "value": value} for key, value in result["machine"].items()])
    settings = dict(pair.split("=", 1) for pair in args.set)
    with running(**settings) as server:
        result |= loaded(server.url, film, args.clients, args.rounds, args.seconds)
        result["mixed"] = mixed(server.url, args.seconds)
        result["flood"] = flood(server.url, film, args.seconds)
    result["hanging reader"] = hanging(film, 0.5 * result["best films/s"], args.rounds, args.seconds, settings)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


# ── One kind of film ─────────────────────────────────────────────────────────────────────────────────────────────────


def loaded(url: str, film: bytes, counts: Sequence[int], rounds: int, seconds: float) -> Result:
    """Measure closed loops and the pipeline alone in turn, then open loops at shares of the best rate."""
    one = shot("/analyze", film, "film")
    alone = _Alone(film)
    asyncio.run(closed_loop(url, [Sender(itertools.repeat(one))], requests=WARM_UP))
    loads: dict[int, list[tuple[Load, list[float]]]] = {count: [] for count in counts}
    rates: list[dict[int, float]] = []
    for _ in range(rounds):
        found = {0: alone.rate(seconds)}
        for count in counts:
            load, health = _closed(url, [Sender(itertools.repeat(one)) for _ in range(count)], seconds)
            loads[count].append((load, health))
            found[count] = load.rate
        rates.append(found)
    closed = [{"clients": count} | _figures(runs) for count, runs in loads.items()]
    _say("closed loop", closed)
    best = max(statistics.median(found[count] for found in rates) for count in counts)
    single = percentile([o.seconds for load, _ in loads[counts[0]] for o in load.outcomes if o.answered], 50)
    most = counts[-1]
    crowd = [o.seconds for load, _ in loads[most] for o in load.outcomes if o.answered]
    ratios = {
        f"throughput of {most} clients / the best of any count": [f[most] / max(f[c] for c in counts) for f in rates],
        f"the best throughput / the pipeline alone in {alone.threads} threads": [
            max(f[c] for c in counts) / f[0] for f in rates
        ],
    }
    summed = [
        {"ratio": name, "median": _r(statistics.median(v)), "least": _r(min(v)), "largest": _r(max(v))}
        for name, v in ratios.items()
    ]
    tail = percentile(crowd, 99) / (most * single)
    summed.append(
        {
            "ratio": f"p99 of {most} clients / ({most} x p50 of {counts[0]})",
            "median": _r(tail),
            "least": "",
            "largest": "",
        }
    )
    _say("ratios", summed)
    opened = []
    for share in RATES:
        load, health = asyncio.run(_open(url, one, share * best, seconds))
        opened.append({"share of best": share, "asked/s": _r(share * best)} | _figures([(load, health)]))
    _say("open loop", opened)
    return {"best films/s": _r(best), "closed loop": closed, "ratios": summed, "open loop": opened}


class _Alone:
    """The pipeline in this process, in as many threads as the server analyses films at the same time."""

    def __init__(self, film: bytes) -> None:
        settings = Settings(_env_file=None, medgemma_mode="dummy")
        self.threads = settings.max_concurrent_analyses
        self._pipeline = Pipeline.from_settings(settings)
        self._film = film
        self._pipeline.analyze(film)

    def rate(self, seconds: float) -> float:
        """Return films per second."""
        ends: list[float] = []
        start = time.perf_counter()

        def work() -> None:
            while time.perf_counter() < start + seconds:
                self._pipeline.analyze(self._film).model_dump_json()
                ends.append(time.perf_counter())

        threads = [threading.Thread(target=work) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(end <= start + seconds for end in ends) / seconds


async def _open(url: str, one: Shot, rate: float, seconds: float) -> tuple[Load, list[float]]:
    async with probing(url) as health:
        return await open_loop(url, itertools.repeat(one), rate, seconds), health


def _closed(url: str, senders: Sequence[Sender], seconds: float) -> tuple[Load, list[float]]:
    async def run() -> tuple[Load, list[float]]:
        async with probing(url) as health:
            return await closed_loop(url, senders, seconds=seconds), health

    return asyncio.run(run())


# ── Mixed load ───────────────────────────────────────────────────────────────────────────────────────────────────────


def films() -> dict[str, bytes]:
    """Draw films of several sizes and kinds, and one that the gate refuses."""
    large = cv2.resize(make_film(1, 1024).pixels, (3000, 4000), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    return {
        "256 px PNG": _encoded(".png", make_film(2, 256).pixels),
        "1024 px JPEG": _encoded(".jpg", make_film(3, 1024).pixels),
        "12 megapixel DICOM": _dicom(np.clip(large, 0, 255).astype(np.uint16) * 16),
        "refused": _encoded(".png", noise),
    }


def _encoded(kind: str, pixels: Any) -> bytes:
    return bytes(cv2.imencode(kind, pixels)[1].tobytes())


def _dicom(pixels: Any) -> bytes:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    dataset.Modality, dataset.ViewPosition, dataset.BodyPartExamined = "DX", "PA", "CHEST"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = pixels.tobytes()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()


def mixed(url: str, seconds: float) -> Result:
    """Measure small films beside large ones and previews beside analyses: who waits for whom."""
    drawn = films()
    small, large = drawn["256 px PNG"], drawn["12 megapixel DICOM"]
    crews = [
        (8, shot("/analyze", small, "analyze, 256 px PNG")),
        (2, shot("/analyze", large, "analyze, 12 megapixel DICOM")),
        (2, shot("/render", small, "render, 256 px PNG")),
        (2, shot("/render", large, "render, 12 megapixel DICOM")),
    ]
    senders = [Sender(itertools.repeat(one)) for count, one in crews for _ in range(count)]
    load, health = _closed(url, senders, 3 * seconds)
    rows = [{"kind": one.name, "clients": count} | _of(load.outcomes, one.name) for count, one in crews]
    return _beside("films of all sizes", rows, health)


def flood(url: str, film: bytes, seconds: float) -> Result:
    """Measure one client beside another one with many connections that comes back without waiting, on Linux."""
    if not sys.platform.startswith("linux"):  # elsewhere 127.0.0.2 is no address of this machine
        return {}
    many = shot("/analyze", film, f"{FLOOD} connections, which do not wait as they are told")
    single = shot("/analyze", film, "another client, one request at a time")
    senders = [Sender(itertools.repeat(many), waits=False) for _ in range(FLOOD)]
    load, health = _closed(url, [*senders, Sender(itertools.repeat(single), "127.0.0.2")], 3 * seconds)
    rows = [{"client": one.name} | _of(load.outcomes, one.name) for one in (many, single)]
    return _beside("a client that floods", rows, health)


def _beside(title: str, rows: list[Result], health: Sequence[float]) -> Result:
    _say(f"{title}; /health p50 {_ms(health, 50)} ms, p99 {_ms(health, 99)} ms", rows)
    return {"loads": rows, "/health p50 ms": _ms(health, 50), "/health p99 ms": _ms(health, 99)}


def hanging(film: bytes, rate: float, rounds: int, seconds: float, settings: dict[str, str]) -> list[Result]:
    """Measure when the CNN's findings come on `/analyze/stream`: with the template, and beside a reader that hangs."""
    one = shot("/analyze/stream", film, "film", mark=b"event: cnn")
    loads: dict[str, list[Outcome]] = {"the template": [], f"one that hangs for {HANG_LIMIT_S:.0f} s": []}
    with socket.create_server((HOST, 0)) as silent, ExitStack() as stack:
        reader = {
            "MEDGEMMA_MODE": "openai",
            "OPENAI_BASE_URL": f"http://{HOST}:{silent.getsockname()[1]}/v1",
            "OPENAI_MODEL": "silent",
            "READER_TIMEOUT_S": str(HANG_LIMIT_S),
        }
        servers = [stack.enter_context(running(**settings, **more)) for more in ({}, reader)]
        for number in range(rounds + 1):
            for server, found in zip(servers, loads.values(), strict=True):
                load, _ = asyncio.run(_open(server.url, one, rate, seconds if number else WARM_UP_S))
                found.extend(load.outcomes if number else ())
    rows = []
    for name, outcomes in loads.items():
        marked = [o.marked for o in outcomes if o.marked is not None]
        figures = {"CNN's findings p50 ms": _ms(marked, 50), "p99 ms ": _ms(marked, 99)}
        rows.append({"reader": name} | figures | _of(outcomes))
    _say("the second reader; whole answers beside the CNN's findings", rows)
    return rows


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _figures(runs: Sequence[tuple[Load, list[float]]]) -> Result:
    """Return the figures of one load, measured in several rounds: the rate is their median, times are pooled."""
    outcomes = [o for load, _ in runs for o in load.outcomes]
    health = [seconds for _, found in runs for seconds in found]
    return (
        {"answers/s": _r(statistics.median(load.rate for load, _ in runs))}
        | _of(outcomes)
        | {
            "/health p50 ms": _ms(health, 50),
            "p99 ms ": _ms(health, 99),
            "generator's cores": _r(statistics.median(load.own_cores for load, _ in runs)),
        }
    )


def _of(every: Sequence[Outcome], name: str | None = None) -> Result:
    outcomes = [o for o in every if name in (None, o.name)]
    answered = [o.seconds for o in outcomes if o.answered]
    return {
        "answers": len(answered),
        "p50 ms": _ms(answered, 50),
        "p95 ms": _ms(answered, 95),
        "p99 ms": _ms(answered, 99),
        "503": sum(o.refusals for o in outcomes if o.clean),
        "errors": sum(not (o.answered or o.refused) or not o.clean for o in outcomes),
    }


def _ms(seconds: Sequence[float], percent: int) -> float | str:
    return round(1000 * percentile(seconds, percent), 1) if seconds else "-"


def _r(value: float) -> float:
    return round(value, 3)


def _say(title: str, rows: Sequence[Result]) -> None:
    sys.stdout.write(f"\n{title}\n{table(rows)}")
    sys.stdout.flush()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.server", description=__doc__)
    add = parser.add_argument
    add("--film", type=Path, default=SAMPLE, help="a chest radiograph (default: the synthetic sample)")
    add("--clients", type=int, nargs="+", default=CLIENTS, help="counts of clients, rising (default: 1 2 4 8 16)")
    add("--rounds", type=int, default=3, help="of each closed loop, in turn (default: %(default)s)")
    add("--seconds", type=float, default=10.0, help="of each load (default: %(default)s)")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the server; may be repeated")
    add("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
