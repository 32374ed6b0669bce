"""Writes trained weights as the server loads them: float16 safetensors and a card."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from modules.pathologies import NAMES
from modules.weights import CardOutput, WeightsCard, sha256_of, write_card
from training.config import Recipe
from training.film_store import FilmStore
from training.provenance import UNSTATED, Provenance, of_start, together


def export(
    best: Path, recipe: Recipe, stores: dict[str, FilmStore], folder: Path, provenance: Provenance = UNSTATED
) -> WeightsCard:
    """Write the averaged weights in half precision beside an uncalibrated card, and return the card.

    What the card says of the films is what `provenance` states, with what is known of the weights it started from.
    """
    tensors = torch.load(best, map_location="cpu", weights_only=True)
    half = {key: value.half().contiguous() for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
    path = folder / f"{recipe.name}.safetensors"
    save_file(half, path)
    train, val = stores["train"], stores["val"]
    patients = [row.patient for row in val.rows]
    films = replace(provenance, data=f"{provenance.data}: {_counts(train, val)}{_without_labels(train)}")
    behind = together(films, of_start(recipe.initial_weights))
    card = WeightsCard(
        name=recipe.name,
        file=path.name,
        sha256=sha256_of(path),
        outputs=tuple(
            CardOutput(
                label=name,
                validation_positive_patients=len(
                    {patient for patient, label in zip(patients, val.labels[:, k], strict=True) if label == 1}
                ),
            )
            for k, name in enumerate(NAMES)
        ),
        preprocessing=recipe.preprocessing,
        calibration=None,
        operating_points="not chosen yet",
        data=behind.data,
        training=_words(recipe),
        licence=behind.licence,
        citation=behind.citation,
    )
    write_card(card, folder)
    return card


def _counts(train: FilmStore, val: FilmStore) -> str:
    if all(row.patient == row.image for store in (train, val) for row in store.rows):
        return f"{len(train):,} training films, {len(val):,} validation films, whose patients were not told apart"
    return (
        f"{len(train):,} training films of {_patients(train):,} patients, "
        f"{len(val):,} validation films of {_patients(val):,} others"
    )


def _without_labels(train: FilmStore) -> str:
    """Say which outputs no film taught anything: they are there, and mean nothing."""
    names = [name for k, name in enumerate(NAMES) if np.isnan(train.labels[:, k]).all()]
    return f"; without any training label, so that these outputs mean nothing: {', '.join(names)}" if names else ""


def _patients(store: FilmStore) -> int:
    return len(np.unique([row.patient for row in store.rows]))


def _words(recipe: Recipe) -> str:
    cycles = (
        ", ".join(f"{phase.epochs} at {phase.side} px" for phase in cycle.phases)
        + f" (peak learning rate {cycle.peak_learning_rate:g})"
        for cycle in recipe.cycles
    )
    start = f"from {recipe.initial_weights}" if recipe.initial_weights else "from scratch"
    epochs = "; then ".join(cycles)
    return f"recipe {recipe.name} (seed {recipe.seed}), {start}; epochs: {epochs}"
