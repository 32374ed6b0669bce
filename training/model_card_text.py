"""The model card as Markdown; sections as in Mitchell et al., Model Cards for Model Reporting (FAT* 2019)."""

from collections.abc import Iterator, Mapping
from typing import Any

from modules.pathologies import NAMES, canonical_name
from modules.quality import GateCard
from modules.weights import CardOutput, WeightsCard
from training import model_card_words as words
from training.markdown import NOT_MEASURED, number, percent, share, table, with_interval, wrapped


def render(card: WeightsCard, gate: GateCard) -> str:
    """Return the model card as Markdown; a section without figures is left out."""
    sections = (
        words.head(card),
        words.use(),
        words.data(card),
        _discrimination(card),
        _points(card),
        _calibration(card),
        _subgroups(card),
        _shortcuts(card),
        _localisation(card),
        _robustness(card),
        _confidence(card),
        _gate(card, gate),
        words.limits(card),
    )
    lines = (line for section in sections for line in section)
    return "\n".join(wrapped(lines)).rstrip() + "\n"


# ── Figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _discrimination(card: WeightsCard) -> Iterator[str]:
    test = card.metrics.get("test")
    if not test:
        return
    found = test["discrimination"]
    single = found["one_film_a_patient"]
    yield "## Discrimination on the test films"
    yield ""
    yield (
        f"Mean AUROC over {len(found['pathologies_in_mean'])} pathologies {words.left_out_of_the_mean(card)}: "
        f"**{with_interval(found['mean_auroc'], found['mean_auroc_interval'])}**. Over all "
        f"{len(found['pathologies_measured'])}: "
        f"{with_interval(found['mean_auroc_of_all_measured'], found['mean_auroc_of_all_measured_interval'])}. With "
        f"one film a patient: "
        f"{with_interval(single['mean_auroc'], single['mean_auroc_interval'])}. "
        "Intervals: 95 %, by resampling patients."
    )
    yield ""
    rows = []
    for name in NAMES:
        values = found["pathologies"][name]
        rows.append(
            (
                name,
                f"{values['positive_films']} / {values['positive_patients']}",
                with_interval(values["auroc"], values["auroc_interval"]),
                with_interval(values["auprc"], values["auprc_interval"]),
                number(values["prevalence"]),
            )
        )
    yield from table(("pathology", "positive films / patients", "AUROC", "AUPRC", "prevalence"), rows)


def _points(card: WeightsCard) -> Iterator[str]:
    validation, test = card.metrics.get("validation"), card.metrics.get("test")
    if not validation:
        return
    yield "## Operating points"
    yield ""
    yield f"{card.operating_points}. On validation films, {validation['how']}:"
    yield ""
    rows = []
    for name, output in _served(card):
        values = validation["pathologies"][name]
        measured = test["operating_points"][name] if test else None
        rows.append(
            (
                name + ("" if output.sufficient_data else " (insufficient data)"),
                number(output.threshold),
                with_interval(values["sensitivity"], values["sensitivity_95ci"]),
                with_interval(values["specificity"], values["specificity_95ci"]),
                with_interval(values["ppv_at_5%"], values["ppv_at_5%_95ci"]),
                with_interval(values["npv_at_5%"], values["npv_at_5%_95ci"]),
                with_interval(measured["sensitivity"], measured["sensitivity_interval"]) if measured else NOT_MEASURED,
                with_interval(measured["specificity"], measured["specificity_interval"]) if measured else NOT_MEASURED,
            )
        )
    yield from table(
        (
            "pathology", "threshold", "sensitivity", "specificity", "PPV at 5 %", "NPV at 5 %",
            "sensitivity (test)", "specificity (test)",
        ),
        rows,
    )  # fmt: skip
    yield "PPV and NPV at 1 and 20 % prevalence stand in the weights card, with intervals."
    yield ""
    yield "What films without a finding are told, without a second reader, along the dial (`--alarms`):"
    yield ""
    dial = [_dial_row(f"{row['alarms']:.0%}", row) for row in validation["dial"]]
    yield from table(
        ("dial", "any detection", "rated High", "sent to review", "films with a finding of which one is detected"),
        [*dial, _dial_row("**served**", validation["at_the_served_points"])],
    )
    if test and test["films_without_a_finding"]["shares"]:
        shares = test["films_without_a_finding"]["shares"]
        yield (
            f"On the {test['films_without_a_finding']['films']} test films without a finding: any counted detection "
            f"{share(shares['any_counted_detection'])}, rated High {share(shares['rated_High'])}, sent to review "
            f"{share(shares['sent_to_review'])}."
        )
        yield ""


def _served(card: WeightsCard) -> Iterator[tuple[str, CardOutput]]:
    """Yield the outputs that are served, in the card's order, under the project's names."""
    for output in card.outputs:
        name = canonical_name(output.label)
        if name is not None:
            yield name, output


def _dial_row(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name,
        percent(row["films_without_a_finding_with_any_detection"]),
        percent(row["films_without_a_finding_rated"]["High"]),
        percent(row["films_without_a_finding_sent_to_review"]),
        percent(row["films_with_a_finding_of_which_one_is_detected"]),
    )


def _calibration(card: WeightsCard) -> Iterator[str]:
    validation, test = card.metrics.get("validation"), card.metrics.get("test")
    if not validation:
        return
    overall = validation["calibration"]
    without = overall["of_those_with_brier_skill_not_above_0"]
    yield "## Calibration"
    yield ""
    yield (
        f"{card.calibration}. Mean expected calibration error on validation films ({overall['ece']}): "
        f"**{number(overall['mean_ece'])}**. Brier skill is above 0 for "
        f"{overall['pathologies_with_sufficient_data'] - len(without)} of the "
        f"{overall['pathologies_with_sufficient_data']} pathologies with sufficient data"
        + (f" (not for {', '.join(without)})." if without else ".")
    )
    if test:
        served, corrected = (test["calibration"]["mean"][kind] for kind in ("as_served", "prior_corrected"))
        yield (
            f"On the test films, whose prevalence differs, it is {number(served['ece'])} as served and "
            f"{number(corrected['ece'])} after correction for their prevalence."
        )
    yield ""
    rows = []
    for name in NAMES:
        values = validation["pathologies"][name]
        row = [
            name, number(values["ece"]), number(values["brier_skill"]), number(values["calibration_slope"]),
        ]  # fmt: skip
        for kind in ("as_served", "prior_corrected"):
            measured = test["calibration"]["pathologies"][name][kind] if test else None
            row += [number(measured[key]) if measured else NOT_MEASURED for key in ("ece", "slope", "intercept")]
        rows.append(tuple(row))
    yield from table(
        (
            "pathology", "ECE (val)", "Brier skill (val)", "slope (val)", "ECE (test)", "slope", "intercept",
            "ECE (test, prior-corrected)", "slope", "intercept",
        ),
        rows,
    )  # fmt: skip


def _subgroups(card: WeightsCard) -> Iterator[str]:
    test = card.metrics.get("test")
    if not test:
        return
    yield "## Subgroups of the test films"
    yield ""
    rows = [
        (
            kind,
            group,
            f"{values['films']} / {values['patients']}",
            with_interval(values["mean_auroc"], values["mean_auroc_interval"]),
        )
        for kind, groups in test["subgroups"].items()
        for group, values in groups.items()
    ]
    yield from table(("by", "group", "films / patients", "mean AUROC of the 12 that can be measured"), rows)


def _shortcuts(card: WeightsCard) -> Iterator[str]:
    test = card.metrics.get("test")
    if not test and not words.trained_on_nih(card):
        return
    yield "## Known shortcuts"
    yield ""
    yield from words.shortcuts(card)
    if not test:
        return
    names = tuple(test["baselines"])
    found = test["discrimination"]["pathologies"]
    rows = [(n, number(found[n]["auroc"]), *(number(test["baselines"][b][n]) for b in names)) for n in NAMES]
    yield from table(("pathology", "the network", *names), rows)
    side = card.preprocessing.degrade_to
    if side is not None:
        yield f"As served, every film is brought to {side} px before all else: the figures above are those of films"
        yield "degraded to that side, and no film can look sharper than another."
        yield ""


def _localisation(card: WeightsCard) -> Iterator[str]:
    test = card.metrics.get("boxes") or card.metrics.get("test")
    if not test or not test.get("localisation"):
        return
    found = test["localisation"]
    everything = found["all"]
    yield "## Localisation"
    yield ""
    boxes = "boxes of radiologists" if words.all_nih(card) else "boxes"
    yield (
        f"Of {everything['boxes']} {boxes}, the peak of the Grad-CAM map lies inside "
        f"{everything['pointed']} "
        f"({everything['pointed_and_detected']} of them with the finding detected, of "
        f"{everything['detected']} detected). The centre of the "
        f"film lies inside {everything['centre_guess_pointed']}, the centre of the mean of the other boxes of "
        f"the same finding inside "
        f"{everything['mean_box_guess_pointed']}. Counts, not rates: there are too few."
    )
    yield ""
    rows = [
        (name, values["boxes"], values["pointed"], values["centre_guess_pointed"], values["mean_box_guess_pointed"])
        for name, values in {**found["by_finding"], "all": everything}.items()
    ]
    yield from table(("finding", "boxes", "map", "centre", "mean box"), rows)


def _robustness(card: WeightsCard) -> Iterator[str]:
    rows = [
        (name, change, values["films"], number(values["median"]), number(values["largest"]))
        for name in ("test", "originals")
        for change, values in ((card.metrics.get(name) or {}).get("robustness") or {}).items()
    ]
    if not rows:
        return
    yield "## Robustness"
    yield ""
    if card.metrics.get("originals"):
        yield "How far a probability moves when the film is changed in a way that changes no finding; originals are"
        yield "films of 1024 px, some of them training films:"
    else:
        yield "How far a probability moves when the film is changed in a way that changes no finding:"
    yield ""
    yield from table(("films", "change", "how many", "median", "largest"), rows)


def _confidence(card: WeightsCard) -> Iterator[str]:
    test = card.metrics.get("test")
    if not test:
        return
    yield "## Does the confidence rank errors?"
    yield ""
    for kind, values in test["confidence"]["without_a_reader"]["errors"].items():
        if values is None:
            continue
        answer = {True: "yes", False: "no", None: "not measured"}[values["ranks_errors"]]
        yield (
            f"- {kind.replace('_', ' ')}: {answer}; area under the risk-coverage curve "
            f"{number(values['aurc'])}, in random order "
            f"{number(values['aurc_random_order'])}, in perfect order {number(values['aurc_perfect_order'])}."
        )
    yield ""


def _gate(card: WeightsCard, gate: GateCard) -> Iterator[str]:
    yield "## Input gate"
    yield ""
    yield f"{gate.data}. Least score of an accepted film: {gate.threshold}. Lateral films: {gate.metrics['lateral']}."
    yield ""
    held_out = gate.metrics["held_out"]
    films = held_out["films"]
    low, high = films["wilson_95"]
    yield f"Measured on halves that nothing was fitted to, all files re-encoded alike: of {films['films']:,} validation"
    yield f"films {films['refused']} are refused ({films['share']:.1%}; 95 % interval {low:.1%}–{high:.1%})."
    yield ""
    if "remark" in gate.metrics:
        yield gate.metrics["remark"]
        yield ""
    test = card.metrics.get("test")
    if test:
        counts = test["gate"]
        low, high = counts["films_accepted_wilson"]
        yield f"Of the {counts['films']:,} test films {counts['films_refused']} are refused"
        yield f"({counts['films_refused'] / counts['films']:.1%}; 95 % interval {1 - high:.1%}–{1 - low:.1%})."
        yield ""
    rows = [
        (name, values["images"], values["refused_by_pixels"], values["refused_with_plain_rules"])
        for name, values in held_out["not_films"].items()
        if isinstance(values, Mapping)
    ]
    yield from table(("images of other things", "images", "refused by pixels", "and by shape or colour"), rows)
    for title, kind, column in (
        ("drawn images of kinds not fitted on", "drawn", "refused"),
        ("films turned or inverted", "named_rightly", "named_rightly"),
        ("films as users send them", "films_as_users_send_them", "refused"),
        ("lungs cut off at random", "cut_off", "warned"),
    ):
        tallies = [
            (name, values["images"], values[column])
            for name, values in held_out[kind].items()
            if isinstance(values, Mapping)
        ]
        yield from table((title, "images", column.replace("_", " ")), tallies)
