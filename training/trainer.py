"""The training loop: one process a core or a device, checkpoints, and a log of curves."""

import csv
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import distributed
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from evaluation.metrics import auroc
from modules.pathologies import NAMES
from modules.records import FloatArray
from modules.settings import PROJECT_ROOT
from training.augmentation import augment, enlarge
from training.config import IMAGENET, Cycle, Recipe
from training.film_store import FilmStore
from training.network import autocast, half_precision, make_network, normalised, score_films

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
LOG = "log.csv"
STEPS_BETWEEN_CHECKPOINTS = 300
LOG_COLUMNS = (
    "epoch", "side", "learning_rate", "train_loss", "val_loss", "val_auroc", "val_auroc_reduced", "seconds"
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where one run works, and on what."""

    recipe: Recipe
    folder: Path
    device: str
    processes: int


@dataclass
class Progress:
    """How far a run has come; what a checkpoint holds beside the tensors."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished steps of the epoch under way
    cycle: int = 0
    best: float = -math.inf
    since_best: int = 0  # epochs at the serving size
    log: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    seconds: float = 0.0


def train(run: Run, stores: dict[str, FilmStore]) -> Path:
    """Train, or go on where a checkpoint stands; returns the file with the best averaged weights."""
    run.folder.mkdir(parents=True, exist_ok=True)
    if run.processes == 1:
        _work(0, run, stores)
    else:
        # glibc hands large tensors back to the system after every step, and fetching them anew costs a tenth of it;
        # read when a process starts, hence set here for the processes that are about to
        os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(8 << 30))
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(16 << 30))
        meeting_place = run.folder / "processes"
        meeting_place.unlink(missing_ok=True)
        spawn(_work, (run, stores), nprocs=run.processes)  # type: ignore[no-untyped-call]
        meeting_place.unlink(missing_ok=True)
    return run.folder / BEST


def learning_rate(cycle: Cycle, done: float) -> float:
    """Return the rate after a share of the cycle's steps: a linear rise, then half a cosine down to 0."""
    peak, warm_up = cycle.peak_learning_rate, cycle.warm_up
    if done < warm_up:
        return peak * max(done / warm_up, 0.02)
    return peak * 0.5 * (1.0 + math.cos(math.pi * (done - warm_up) / (1.0 - warm_up)))


def masked_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean binary cross-entropy over the labels that are known; NaN marks the others."""
    known = ~torch.isnan(labels)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.float(), torch.nan_to_num(labels), reduction="none"
    )
    return (losses * known).sum() / known.sum().clamp(min=1)


def mean_auroc(labels: FloatArray, logits: FloatArray, left_out: tuple[str, ...]) -> float:
    """Return the mean AUROC over the pathologies that choose between epochs; NaN when none can be measured."""
    values = [auroc(labels[:, k], logits[:, k]) for k, name in enumerate(NAMES) if name not in left_out]
    measured = [value for value in values if not math.isnan(value)]
    return float(np.mean(measured)) if measured else math.nan


def _work(rank: int, run: Run, stores: dict[str, FilmStore]) -> None:
    if run.device == "cuda":
        torch.cuda.set_device(rank)
    if run.processes > 1:  # a process of its own: what is set here for all of it reaches nobody else
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // run.processes))
        torch.set_flush_denormal(True)
        distributed.init_process_group(
            "nccl" if run.device == "cuda" else "gloo",
            init_method=f"file://{(run.folder / 'processes').resolve()}",
            rank=rank,
            world_size=run.processes,
        )
    try:
        _Worker(rank, run, stores).work()
    finally:
        if run.processes > 1:
            distributed.destroy_process_group()


@dataclass(frozen=True)
class _Epoch:
    """Which cycle an epoch belongs to, and its input size."""

    cycle: int
    side: int


class _Worker:
    """One process of a run."""

    def __init__(self, rank: int, run: Run, stores: dict[str, FilmStore]) -> None:
        self._rank, self._run, self._recipe = rank, run, run.recipe
        self._train, self._val = stores["train"], stores["val"]
        self._films = {split: store.sha256() for split, store in stores.items()}
        self._device = torch.device(f"cuda:{rank}" if run.device == "cuda" else run.device)
        torch.manual_seed(self._recipe.seed)
        network = make_network(_start(self._recipe.initial_weights))
        self._network = network.to(self._device).to(memory_format=torch.channels_last)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=half_precision(self._device) is torch.float16)
        self._progress = Progress()
        batch = self._recipe.optimisation.batch
        self._steps_per_epoch = len(self._train) // batch
        if self._steps_per_epoch == 0:
            raise SystemExit(f"{len(self._train)} training films are fewer than one batch of {batch}.")
        self._epochs = [
            _Epoch(number, phase.side)
            for number, cycle in enumerate(self._recipe.cycles)
            for phase in cycle.phases
            for _ in range(phase.epochs)
        ]
        self._enter_cycle(0)
        self._resume()
        self._parallel: torch.nn.Module = self._network
        if run.processes > 1:
            self._parallel = DistributedDataParallel(self._network)

    def work(self) -> None:
        """Go through the epochs that are left."""
        self._network.train()
        serving_side = self._recipe.preprocessing.input_size
        while self._progress.epoch < len(self._epochs):
            if self._progress.since_best >= self._recipe.optimisation.patience:
                break
            epoch = self._epochs[self._progress.epoch]
            if epoch.cycle != self._progress.cycle:
                self._network.load_state_dict(self._average.module.state_dict())
                self._enter_cycle(epoch.cycle)
                self._progress.since_best = 0
            self._train_epoch(epoch.side)
            self._finish_epoch(epoch.side, is_serving=epoch.side == serving_side)

    def _enter_cycle(self, number: int) -> None:
        """Start a new average and a new optimiser from the network as it is."""
        self._progress.cycle = number
        self._average = AveragedModel(
            self._network,
            multi_avg_fn=get_ema_multi_avg_fn(  # type: ignore[no-untyped-call]
                self._recipe.cycles[number].average_decay
            ),
            use_buffers=True,
        )
        decay = self._recipe.optimisation.weight_decay
        self._optimiser = torch.optim.AdamW(self._network.parameters(), lr=0.0, weight_decay=decay, fused=True)

    def _rate(self, epoch: int, step: int) -> float:
        """Return the learning rate after some steps of an epoch, both counted from 0."""
        number = self._epochs[epoch].cycle
        first = [e.cycle for e in self._epochs].index(number)
        length = sum(e.cycle == number for e in self._epochs)
        return learning_rate(self._recipe.cycles[number], (epoch - first + step / self._steps_per_epoch) / length)

    def _train_epoch(self, side: int) -> None:
        progress = self._progress
        order = np.random.default_rng((self._recipe.seed, progress.epoch)).permutation(len(self._train))
        bar = tqdm(
            total=self._steps_per_epoch,
            initial=progress.step,
            desc=f"epoch {progress.epoch + 1}/{len(self._epochs)}, {side} px",
            unit="step",
            disable=self._rank > 0,
            mininterval=5.0,
        )
        with bar:
            started = time.monotonic()
            for films, labels in self._batches(order, side):
                progress.loss_sum += self._step(films, labels, self._rate(progress.epoch, progress.step))
                progress.step += 1
                bar.update()
                bar.set_postfix(loss=f"{progress.loss_sum / progress.step:.4f}", refresh=False)
                if progress.step % STEPS_BETWEEN_CHECKPOINTS == 0:
                    progress.seconds += time.monotonic() - started
                    started = time.monotonic()
                    self._save()
            progress.seconds += time.monotonic() - started

    def _step(self, films: FloatArray, labels: FloatArray, rate: float) -> float:
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        images = normalised(films, self._recipe.preprocessing, self._device)
        with autocast(self._device):
            logits = self._parallel(images)
        loss = masked_loss(logits, torch.from_numpy(labels).to(self._device))
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._recipe.optimisation.largest_gradient)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        self._optimiser.zero_grad(set_to_none=True)
        self._average.update_parameters(self._network)
        return float(loss.detach())

    def _batches(self, order: Any, side: int) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield this process's share of each batch that is left; the next one is made while one is used."""
        steps = range(self._progress.step, self._steps_per_epoch)
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(self._batch, order, step, side) for step in steps[:2]]
            for step in steps:
                if step + 2 < self._steps_per_epoch:
                    waiting.append(pool.submit(self._batch, order, step + 2, side))
                yield waiting.pop(0).result()

    def _batch(self, order: Any, step: int, side: int) -> tuple[FloatArray, FloatArray]:
        recipe, epoch = self._recipe, self._progress.epoch
        batch = recipe.optimisation.batch
        chosen = order[step * batch : (step + 1) * batch][self._rank :: self._run.processes]
        films = np.stack([self._augmented(int(i), side, epoch) for i in chosen])
        labels = self._train.labels[chosen]
        rng = np.random.default_rng((recipe.seed, epoch, step, self._rank))
        if rng.random() < recipe.augmentation.mixed:
            share = rng.beta(recipe.augmentation.mixing, recipe.augmentation.mixing, len(chosen)).astype(np.float32)
            other = rng.permutation(len(chosen))
            films = films * share[:, None, None] + films[other] * (1 - share[:, None, None])
            labels = labels * share[:, None] + labels[other] * (1 - share[:, None])
        return films, labels

    def _augmented(self, index: int, side: int, epoch: int) -> FloatArray:
        """Change one film at random, in the same way whatever the number of processes."""
        recipe = self._recipe.augmentation
        rng = np.random.default_rng((self._recipe.seed, epoch, index))
        film = self._train.films[index]
        if rng.random() < recipe.reduced:
            film = enlarge(self._train.reduced[index], film.shape[0])
        return augment(film, side, recipe, rng)

    def _finish_epoch(self, side: int, *, is_serving: bool) -> None:
        progress, recipe = self._progress, self._recipe
        started = time.monotonic()
        films = self._val.films[self._rank :: self._run.processes]
        reduced = self._val.reduced[self._rank :: self._run.processes]
        scored = self._score(films, side), self._score(np.stack([enlarge(f, films.shape[1]) for f in reduced]), side)
        full, low = (mean_auroc(self._val.labels, logits, recipe.left_out_of_mean) for logits in scored)
        loss = float(masked_loss(torch.from_numpy(scored[0]), torch.from_numpy(self._val.labels)))
        rate = self._rate(progress.epoch, progress.step)
        row = (
            progress.epoch + 1, side, rate, progress.loss_sum / progress.step, loss, full, low,
            progress.seconds + time.monotonic() - started,
        )  # fmt: skip
        progress.log.append(dict(zip(LOG_COLUMNS, row, strict=True)))
        progress.epoch, progress.step, progress.loss_sum, progress.seconds = progress.epoch + 1, 0, 0.0, 0.0
        if is_serving:
            figure = (full + low) / 2
            better = not figure <= progress.best  # true for NaN too: without a figure, the latest is kept
            progress.since_best = 0 if better else progress.since_best + 1
            if better:
                progress.best = figure
                if self._rank == 0:
                    _write(self._average.module.state_dict(), self._run.folder / BEST)
        if self._rank == 0:
            write_log(progress.log, self._run.folder / LOG)
        self._save()

    def _score(self, films: Any, side: int) -> FloatArray:
        """Score this process's share of the validation films, and put all shares together."""
        mine = score_films(self._average.module, films, side, self._recipe.preprocessing, self._device)
        if self._run.processes == 1:
            return mine
        shares: list[Any] = [None] * self._run.processes
        distributed.all_gather_object(shares, mine)
        logits = np.empty((len(self._val), len(NAMES)), np.float32)
        for rank, share in enumerate(shares):
            logits[rank :: self._run.processes] = share
        return logits

    def _save(self) -> None:
        if self._rank == 0:
            state = {
                "network": self._network.state_dict(),
                "average": self._average.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
                "progress": vars(self._progress),
                "recipe": self._recipe.model_dump_json(),
                "films": self._films,
            }
            _write(state, self._run.folder / CHECKPOINT)

    def _resume(self) -> None:
        path = self._run.folder / CHECKPOINT
        if not path.is_file():
            return
        state = torch.load(path, map_location=self._device, weights_only=True)
        if state["recipe"] != self._recipe.model_dump_json():
            raise SystemExit(f"{path} is of another recipe: choose another --out, or delete the file to start anew.")
        if state.get("films") != self._films:
            raise SystemExit(f"{path} is of other films: choose another --out, or delete the file to start anew.")
        self._progress = Progress(**state["progress"])
        self._network.load_state_dict(state["network"])
        self._enter_cycle(self._progress.cycle)
        self._average.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._scaler.load_state_dict(state.get("scaler", {}))


def _start(initial_weights: str | None) -> Path | Literal["imagenet"] | None:
    """Return where the network of a recipe starts; folders are named from the project's."""
    if initial_weights == IMAGENET or initial_weights is None:
        return IMAGENET if initial_weights else None
    return PROJECT_ROOT / initial_weights


def write_log(rows: list[dict[str, float]], path: Path) -> None:
    """Write the curves, one row an epoch."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.6g}" for key, value in row.items()})


def _write(state: Any, path: Path) -> None:
    """Write in one piece: a run that is stopped while writing leaves the file before it."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)
