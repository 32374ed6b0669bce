"""Writes MODEL_CARD.md from a weights card: `python -m training.model_card`.

With `--evaluation metrics.json` the figures of an evaluation are first put into the card, under a name such as test.
The card also takes down which input gate it stands beside.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation.measure import SCHEMA_VERSION
from modules.errors import ConfigurationError
from modules.quality import GATE_CARD, InputGate
from modules.settings import PROJECT_ROOT
from modules.weights import EMBEDDED_WEIGHTS, WeightsCard, read_card, sha256_of, write_card
from training.card_summary import summary
from training.model_card_text import render

MODEL_CARD = PROJECT_ROOT / "MODEL_CARD.md"


def main(argv: list[str] | None = None) -> None:
    """Take up an evaluation where one is given, and write the model card."""
    args = _arguments(argv)
    try:
        card = read_card(args.weights)
        gate = InputGate.load(args.gate).card
    except ConfigurationError as exc:
        raise SystemExit(str(exc)) from exc
    if args.evaluation is not None:
        card = with_evaluation(card, _read(args.evaluation), args.name, args.how)
    card = card.model_copy(update={"gate_sha256": sha256_of(args.gate)})
    write_card(card, args.weights)
    args.out.write_text(render(card, gate), "utf-8")
    sys.stdout.write(f"Wrote {args.out}\n")


def with_evaluation(card: WeightsCard, metrics: Mapping[str, Any], name: str, how: str) -> WeightsCard:
    """Return the card with the figures of an evaluation of these very weights; leaves with a sentence otherwise."""
    if metrics["weights_sha256"] != card.sha256:
        raise SystemExit(
            f"The evaluation is of weights {metrics['weights_sha256']}, the card of {card.sha256}: evaluate the card's."
        )
    return card.model_copy(update={"metrics": {**card.metrics, name: {**summary(metrics), "how": how}}})


def _read(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise SystemExit(f"{path} is no metrics.json of python -m evaluation: {exc}") from exc
    if not isinstance(metrics, dict) or metrics.get("schema_version") != SCHEMA_VERSION:
        raise SystemExit(f"{path} is no metrics.json of this version of python -m evaluation: evaluate again.")
    return metrics


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.model_card", description=__doc__)
    parser.add_argument("--weights", type=Path, default=EMBEDDED_WEIGHTS, help="weights folder (default: the embedded)")
    parser.add_argument("--gate", type=Path, default=GATE_CARD, help="card of the input gate (default: the embedded)")
    parser.add_argument("--evaluation", type=Path, help="metrics.json of these weights, put into the weights card")
    parser.add_argument("--name", default="test", help="under which name the card keeps it (default: test)")
    parser.add_argument(
        "--how", default="", help="a remark on it: what was chosen on which films, how often it was opened"
    )
    parser.add_argument("--out", type=Path, default=MODEL_CARD, help="(default: MODEL_CARD.md)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
