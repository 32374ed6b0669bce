"""Trains weights: `python -m training --data FOLDER --out FOLDER`; stopped and called again, it goes on."""

import argparse
import sys
from pathlib import Path

import torch

from evaluation.films import LabelsError, check_sources, find_table, is_nih_table, read_labels
from evaluation.output import OutputError, check_folder
from modules.errors import ConfigurationError
from training.config import IMAGENET, RECIPE, STARTS, Recipe, RecipeError, read_recipe, starting_from
from training.export import export
from training.film_store import load_stores
from training.provenance import stated
from training.trainer import Run, train


def main(argv: list[str] | None = None) -> None:
    """Train, and write the best averaged weights with a card that is still uncalibrated."""
    args = _arguments(argv)
    try:
        recipe = read_recipe(args.recipe)
        if args.start is not None:
            recipe = starting_from(recipe, args.start)
        sources = args.images or [args.data]
        check_folder(args.out)
        check_sources(sources)
        labels = args.labels or find_table(args.data)
        _refuse_known_patients(recipe, labels)
        table = read_labels(labels)
        reduce_to = recipe.preprocessing.reduce_to or recipe.preprocessing.input_size
        stores = load_stores(
            sources, table, ("train", "val"), reduce_to, recipe.augmentation.reduce_to, recipe.preprocessing.aspect
        )
        device = args.device or best_device()
        processes = args.processes or (recipe.processes if device == "cpu" else 1)
        best = train(Run(recipe, args.out, device, processes), stores)
        provenance = stated(args.data_name, args.licence, args.citation, is_nih=args.nih or is_nih_table(labels))
        card = export(best, recipe, stores, args.out, provenance)
    except (LabelsError, RecipeError, OutputError, ConfigurationError, OSError) as exc:
        raise SystemExit(f"python -m training: {exc}") from exc
    sys.stdout.write(f"Wrote {args.out / card.file} and its card. Next: python -m training.calibration --help\n")


def _refuse_known_patients(recipe: Recipe, labels: Path) -> None:
    """Refuse the full download for a recipe whose initial weights were trained on some of its validation patients."""
    if recipe.initial_weights not in {None, IMAGENET} and is_nih_table(labels):
        raise RecipeError(
            f"{labels}: validation patients are chosen among those of the training list here, and "
            f"{recipe.initial_weights} may have been trained on some of them: every figure would be too good. Write a "
            "table with other ones (python -m evaluation.splits --help), or use --start imagenet or --start scratch."
        )


def best_device() -> str:
    """Return the fastest device that PyTorch finds: cuda, mps or cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with films (folders, zips) and their table")
    parser.add_argument("--images", type=Path, nargs="+", help="folders or zips of films, where they are elsewhere")
    parser.add_argument("--labels", type=Path, help="the table, where it is elsewhere")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints, curves and weights")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="TOML file (default: that of the shipped weights)")
    parser.add_argument(
        "--start",
        choices=STARTS,
        help="weights to start from: the shipped ones, torchvision's, random (default: recipe's)",
    )
    parser.add_argument("--nih", action="store_true", help="the films are those of NIH ChestX-ray14, for the card")
    parser.add_argument("--data-name", help="what other films are, in words for the card (default: not stated)")
    parser.add_argument("--licence", help="of the weights, for the card (default: not stated)")
    parser.add_argument("--citation", help="of the films, for the card (default: none)")
    parser.add_argument("--device", choices=("cpu", "cuda", "mps"), help="default: the fastest one there is")
    parser.add_argument("--processes", type=int, help="default: the recipe's on a CPU, else 1")
    args = parser.parse_args(argv)
    if args.data is None and (args.images is None or args.labels is None):
        parser.error("give --data, or both --images and --labels")
    return args


if __name__ == "__main__":
    main()
