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
from evaluation.output import OutputError, check_file, check_folder, write_text
from modules.curves import served_digest
from modules.errors import ConfigurationError
from modules.quality import GATE_CARD, GateCard, InputGate
from modules.settings import PROJECT_ROOT
from modules.weights import CARD_FILE, EMBEDDED_WEIGHTS, WeightsCard, card_text, read_card, sha256_of
from training.card_summary import summary
from training.model_card_text import render

MODEL_CARD = PROJECT_ROOT / "MODEL_CARD.md"


def main(argv: list[str] | None = None) -> None:
    """Take up an evaluation where one is given, and write the model card."""
    args = _arguments(argv)
    try:
        check_folder(args.weights)
        check_file(args.out)
        card = read_card(args.weights)
        gate, gate_sha256 = InputGate.load(args.gate).card, sha256_of(args.gate)
        if args.evaluation is not None:
            card = with_evaluation(card, _read(args.evaluation), args.name, args.how, gate_sha256)
        card = card.model_copy(update={"gate_sha256": gate_sha256})
        text = _rendered(card, gate)
        write_text(args.weights / CARD_FILE, card_text(card))
        write_text(args.out, text)
    except (ConfigurationError, OutputError) as exc:
        raise SystemExit(str(exc)) from exc
    sys.stdout.write(f"Wrote {args.out}\n")


def with_evaluation(
    card: WeightsCard, metrics: Mapping[str, Any], name: str, how: str, gate_sha256: str | None = None
) -> WeightsCard:
    """Return the card with the figures of an evaluation of what it serves; leaves with a sentence otherwise.

    The evaluation has to be of these weights with this calibration, these operating points and this preprocessing,
    and beside this gate, where one is given.
    """
    if metrics.get("weights_sha256") != card.sha256:
        raise SystemExit(
            f"The evaluation is of weights {metrics.get('weights_sha256')}, the card of {card.sha256}: evaluate the "
            "card's."
        )
    if metrics.get("served_sha256") != served_digest(card):
        raise SystemExit(
            f"The evaluation is of {card.name} with another calibration, other operating points or another "
            "preprocessing than the card's, or does not say with which: evaluate again with these weights."
        )
    if gate_sha256 is not None and metrics.get("gate_sha256") != gate_sha256:
        raise SystemExit("The evaluation was made beside another input gate, or does not say which: evaluate again.")
    try:
        figures = {**summary(metrics), "how": how}
    except (KeyError, TypeError, AttributeError) as exc:
        raise SystemExit(f"The evaluation lacks figures, or has them in another form ({exc}): evaluate again.") from exc
    return card.model_copy(update={"metrics": {**card.metrics, name: figures}})


def _rendered(card: WeightsCard, gate: GateCard) -> str:
    try:
        return render(card, gate)
    except (KeyError, TypeError, AttributeError, ValueError) as exc:
        raise SystemExit(
            f"The figures on the card of {card.name}, or of the gate, are not as training.calibration, evaluation and "
            f"training.gate write them ({exc!r}): calibrate and evaluate again."
        ) from exc


def _read(path: Path) -> dict[str, Any]:
    try:
        metrics = json.loads(path.read_text("utf-8"), parse_constant=_refused)
    except (OSError, ValueError, RecursionError) as exc:
        raise SystemExit(f"{path} is no metrics.json of python -m evaluation: {exc}") from exc
    if not isinstance(metrics, dict) or metrics.get("schema_version") != SCHEMA_VERSION:
        raise SystemExit(f"{path} is no metrics.json of this version of python -m evaluation: evaluate again.")
    return metrics


def _refused(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no JSON")


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
    args = parser.parse_args(argv)
    if not args.name or args.name == "validation":
        parser.error("--name is any name but validation, under which the card keeps what training.calibration measured")
    return args


if __name__ == "__main__":
    main()
