"""`python -m benchmarks.scale`: Ray's replicas beside uvicorn, and what becomes of requests when one is killed.

Needs Ray (requirements-ray.txt), and port 8000 free: that is where `serve run` listens.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks import clusters
from benchmarks.batch import draw
from benchmarks.load import Client, Outcome, Sender, Shot, closed_loop, fire, open_loop, shot
from benchmarks.measuring import machine, percentile, resident_mib
from benchmarks.servers import HOST, api_server, free_port
from modules.settings import PROJECT_ROOT

PACKAGES = ("ray", "fastapi", "starlette", "uvicorn", "onnxruntime")
SAMPLE = PROJECT_ROOT / "assets" / "sample_xray.png"
URL = f"http://{HOST}:8000"
AT_ONCE = 24  # films
IN_FLIGHT = 8  # requests while Ctrl-C is sent
KILL_AFTER_S = 3.0
TABLE_FILMS = 10
TIMES = ("ms_", "message")  # columns that no two runs share

Result = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it where asked."""
    args = _arguments(argv)
    film = SAMPLE.read_bytes()
    one = shot("/analyze", film, "film", heatmaps="none")
    result: Result = {"machine": machine(PACKAGES)}
    with clusters.cluster(args.cores) as surroundings:
        result["uvicorn"] = _uvicorn(one, args.requests)
        result["ray"] = _replicas(surroundings, one, args)
        result["autoscaling"] = _autoscaling(surroundings, one, args.seconds)
        result["batch"] = _tables(surroundings)
    text = json.dumps(result, indent=1) + "\n"
    sys.stdout.write(text)
    if args.out:
        args.out.write_text(text, "utf-8")


def _uvicorn(one: Shot, requests: int) -> Result:
    server = api_server(free_port())
    start = time.monotonic()
    server.start()
    try:
        server.wait()
        took = time.monotonic() - start
        return {"start s": round(took, 1), **_times(server.url, one, requests), "MiB": resident_mib(server.pid)}
    finally:
        server.kill()


def _replicas(surroundings: dict[str, str], one: Shot, args: argparse.Namespace) -> Result:
    process = clusters.serve(surroundings, "replicas=2", f"cpus={args.cores / 2:g}")
    try:
        found: Result = {"start of two replicas s": round(clusters.wait_for(URL, process, 2), 1)}
        found |= _times(URL, one, args.requests)
        found["MiB of each replica"] = [resident_mib(pid) for pid in clusters.replica_pids()]
        found["MiB of all of Ray"] = round(clusters.ray_mib())
        found["24 films at once"] = _counts(asyncio.run(_at_once(one, AT_ONCE)))
        found["one of two killed"] = asyncio.run(_killed(one, args.rate, args.seconds))
        found["Ctrl-C with requests in flight"] = _counts(asyncio.run(_interrupted(one, process)))
        return found
    finally:
        clusters.end(process, signal.SIGINT)


def _times(url: str, one: Shot, requests: int) -> Result:
    """Return the median times of one client's requests, one after the other."""
    asyncio.run(closed_loop(url, [Sender(itertools.repeat(one))], requests=4))
    films = asyncio.run(closed_loop(url, [Sender(itertools.repeat(one))], requests=requests)).outcomes
    health = []
    with httpx.Client(trust_env=False) as client:
        for _ in range(requests):
            start = time.perf_counter()
            client.get(f"{url}/health", timeout=20)
            health.append(time.perf_counter() - start)
    return {
        "/analyze p50 ms": round(1000 * percentile([o.seconds for o in films if o.answered], 50), 1),
        "/health p50 ms": round(1000 * statistics.median(health), 1),
    }


async def _at_once(one: Shot, count: int) -> list[Outcome]:
    now = time.perf_counter()
    return list(await asyncio.gather(*(fire(Client(URL), one, now, patient=False) for _ in range(count))))


async def _killed(one: Shot, rate: float, seconds: float) -> Result:
    """Kill a replica in the middle of a load; return what became of the requests, and when the replica was back."""
    victims: list[float] = []

    async def kill() -> float:
        await asyncio.sleep(KILL_AFTER_S)
        victim = clusters.replica_pids()[0]
        os.kill(victim, signal.SIGKILL)
        start = time.perf_counter()
        while len(pids := clusters.replica_pids()) < 2 or victim in pids:
            await asyncio.sleep(clusters.POLL_S)
        return time.perf_counter() - start

    killing = asyncio.create_task(kill())
    load = await open_loop(URL, itertools.repeat(one), rate, seconds)
    victims.append(await asyncio.wait_for(killing, clusters.START_LIMIT_S))
    return _counts(load.outcomes) | {"replica back after s": round(victims[0], 1)}


async def _interrupted(one: Shot, process: "subprocess.Popen[bytes]") -> list[Outcome]:
    now = time.perf_counter()
    asked = [asyncio.create_task(fire(Client(URL), one, now, patient=False)) for _ in range(IN_FLIGHT)]
    await asyncio.sleep(0.3)
    process.send_signal(signal.SIGINT)
    outcomes = list(await asyncio.gather(*asked))
    await asyncio.to_thread(process.wait, clusters.END_LIMIT_S)  # a second signal would break off its end
    return outcomes


def _counts(outcomes: Sequence[Outcome]) -> Result:
    read, refused = sum(o.answered for o in outcomes), sum(o.refused for o in outcomes)
    return {"sent": len(outcomes), "read": read, "clean 503": refused, "other": len(outcomes) - read - refused}


def _autoscaling(surroundings: dict[str, str], one: Shot, seconds: float) -> Result:
    """Return how long a second replica takes to serve under load."""
    process = clusters.serve(surroundings, "replicas=1", "max_replicas=2", "cpus=0.5")
    try:
        clusters.wait_for(URL, process, 1)
        before = len(clusters.replica_pids())
        start, limit = time.monotonic(), clusters.START_LIMIT_S / 2
        while len(clusters.replica_pids()) < 2 and time.monotonic() - start < limit:
            senders = [Sender(itertools.repeat(one)) for _ in range(IN_FLIGHT)]
            asyncio.run(closed_loop(URL, senders, seconds=min(seconds, 3.0)))
        after = len(clusters.replica_pids())
        return {"replicas before": before, "replicas after": after, "s": round(time.monotonic() - start, 1)}
    finally:
        clusters.end(process, signal.SIGINT)


def _tables(surroundings: dict[str, str]) -> Result:
    """Compare the tables of both commands, but for the times in them."""
    with tempfile.TemporaryDirectory() as folder:
        films = draw(Path(folder) / "films", TABLE_FILMS, 512)
        tables, took = [], {}
        for module in ("batch", "scale.batch"):
            out, start = Path(folder) / f"{module}.jsonl", time.monotonic()
            command = [sys.executable, "-m", module, str(films), "--out", str(out), "--workers", "1"]
            subprocess.run(command, cwd=PROJECT_ROOT, env=surroundings, capture_output=True, check=True)
            took[f"{module} s"] = round(time.monotonic() - start, 1)
            rows = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
            tables.append([{k: v for k, v in row.items() if not k.startswith(TIMES)} for row in rows])
        return {"films": TABLE_FILMS, "rows": len(tables[1]), "tables equal": tables[0] == tables[1], **took}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    add = parser.add_argument
    add("--cores", type=int, default=os.cpu_count() or 1, help="of the cluster, shared by two replicas (default: all)")
    add("--requests", type=int, default=20, help="of each median (default: %(default)s)")
    add("--rate", type=float, default=3.0, help="films a second while a replica is killed (default: %(default)s)")
    add("--seconds", type=float, default=12.0, help="of that load (default: %(default)s)")
    add("--out", type=Path, help="also write the result as JSON")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
