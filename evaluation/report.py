"""The report: one HTML file without scripts or anything from elsewhere; whatever comes from files is escaped."""

import html
from collections.abc import Mapping
from typing import Any

from evaluation import plots
from evaluation.cohort import Cohort
from evaluation.decisions import LEVELS, PREVALENCES
from evaluation.localisation import OVERLAPS
from evaluation.page import NONE, figure, interval, note, number, page, table, text
from evaluation.scoring import OtherImage
from modules.pathologies import NAMES
from modules.records import DISCLAIMER


def build(metrics: Mapping[str, Any], cohort: Cohort, others: Mapping[str, OtherImage]) -> str:
    """Return the whole page."""
    sections = (
        _summary(metrics),
        _discrimination(metrics, cohort),
        _operating_points(metrics),
        _normal_films(metrics),
        _calibration(metrics),
        _subgroups(metrics),
        _confidence(metrics),
        _localisation(metrics),
        _gate(metrics, cohort, others),
        _reader(metrics),
        _robustness(metrics),
        _gallery(metrics),
        _unreadable(metrics),
    )
    return page(f"Evaluation of {metrics['weights']}", "\n".join(sections))


def _summary(metrics: Mapping[str, Any]) -> str:
    counts, found = metrics["counts"], metrics["discrimination"]
    single = found["one_film_a_patient"]
    rows = [
        ("Weights", metrics["weights"]),
        ("SHA-256", metrics["weights_sha256"]),
        ("Films / patients", f"{counts['films']} / {counts['patients']}"),
        ("Unreadable files", counts["unreadable"]),
        ("Refused by the gate (scored all the same)", counts["refused_by_the_gate"]),
        ("Mean AUROC without Pneumonia and Hernia", interval(found["mean_auroc"], found["mean_auroc_interval"])),
        (
            f"Mean AUROC of all {len(found['pathologies_measured'])} measured",
            interval(found["mean_auroc_of_all_measured"], found["mean_auroc_of_all_measured_interval"]),
        ),
        (
            "Mean AUROC without both, one film a patient",
            interval(single["mean_auroc"], single["mean_auroc_interval"]),
        ),
        (
            "Mean AUROC of all measured, one film a patient",
            interval(single["mean_auroc_of_all_measured"], single["mean_auroc_of_all_measured_interval"]),
        ),
        *((f"Option {name}", value) for name, value in metrics["options"].items()),
    ]
    boot = metrics["bootstrap"]
    return (
        f"<h1>Evaluation of {text(metrics['weights'])}</h1><p>{html.escape(DISCLAIMER)}</p>"
        + table(("What", "Value"), rows, text_columns=(1,))
        + note(
            f"Intervals are 95 % percentile intervals of {boot['replicates']} bootstrap replicates that draw patients, "
            "not films; there is none where a label has a single patient. A dash stands for what could not be measured."
        )
    )


def _discrimination(metrics: Mapping[str, Any], cohort: Cohort) -> str:
    found, base = metrics["discrimination"], metrics["baselines"]
    single = found["one_film_a_patient"]
    rows = [
        (
            name,
            f"{e['positive_films']} / {e['positive_patients']}",
            interval(e["auroc"], e["auroc_interval"]),
            interval(e["auprc"], e["auprc_interval"]),
            number(e["prevalence"]),
            interval(single["auroc"][name], single["auroc_interval"][name]),
            *(number(score[name]) for score in base.values()),
        )
        for name, e in found["pathologies"].items()
    ]
    head = ("Pathology", "Positive films / patients", "AUROC", "AUPRC", "Prevalence", "AUROC, one film a patient")
    parts = [
        "<h2>Discrimination</h2>",
        table((*head, *(f"AUROC of {name} alone" for name in base)), rows),
        note("The last columns look at no pixel: what they reach, a network can reach without seeing disease."),
    ]
    if found["pathologies_measured"]:
        parts += [
            figure(plots.forest(metrics), "AUROC of each pathology with its interval"),
            "<h3>ROC curves, with the operating points</h3>",
            figure(plots.roc_grid(cohort, metrics), "ROC curve of each pathology"),
            "<h3>Precision-recall curves, with the prevalence</h3>",
            figure(plots.precision_recall_grid(cohort, metrics), "Precision-recall curve of each pathology"),
        ]
    return "".join(parts)


def _operating_points(metrics: Mapping[str, Any]) -> str:
    points = {name: p for name, p in metrics["operating_points"].items() if p is not None}
    rows, values, tables = [], [], []
    for name, p in points.items():
        c = p["confusion"]
        rows.append(
            (
                name if p["counted"] else f"{name} (insufficient data)",
                f"{p['threshold']:.4f}",
                *(c[key] for key in ("true_positive", "false_negative", "false_positive", "true_negative")),
                interval(p["sensitivity"], p["sensitivity_interval"], 2),
                interval(p["sensitivity"], p["sensitivity_wilson"], 2),
                interval(p["specificity"], p["specificity_interval"], 2),
                interval(p["specificity"], p["specificity_wilson"], 2),
            )
        )
        cells = [p["at_prevalence"][f"{share:g}"] for share in PREVALENCES]
        both = [interval(cell[kind], cell[f"{kind}_interval"]) for cell in cells for kind in ("ppv", "npv")]
        values.append((name, *both))
    for name, entries in metrics["threshold_tables"].items():
        wanted = [(f"specificity {e['wanted_specificity']:.0%}", e) for e in entries or ()]
        youden = metrics["youden_points"][name]
        tables += [
            (name, rule, f"{e['threshold']:.4f}", number(e["sensitivity"]), number(e["specificity"]))
            for rule, e in (*wanted, *([] if youden is None else [("largest sensitivity + specificity", youden)]))
        ]
    head = ("Pathology", "Threshold", "True pos.", "False neg.", "False pos.", "True neg.")
    rates = ("Sensitivity (by patients)", "(Wilson)", "Specificity (by patients)", "(Wilson)")
    return (
        "<h2>Operating points</h2>"
        + (figure(plots.confusion_grid(metrics), "Confusion matrix of each pathology") if rows else "")
        + table((*head, *rates), rows)
        + note(
            "Wilson's interval takes films as independent; that over patients does not, but has no width at 0 and 1."
        )
        + "<h3>Predictive values by prevalence</h3>"
        + table(("Pathology", *(f"{kind} at {p:.0%}" for p in PREVALENCES for kind in ("PPV", "NPV"))), values)
        + "<h3>Threshold tables</h3>"
        + table(("Pathology", "Wanted", "Threshold", "Sensitivity", "Specificity"), tables, text_columns=(1,))
        + note("These thresholds are read off the very films that they are measured on: too good for new films.")
    )


def _normal_films(metrics: Mapping[str, Any]) -> str:
    entry = metrics["films_without_a_finding"]
    if entry["shares"] is None:
        return "<h2>Films without a finding</h2>" + note("None: no film has all 14 labels known and negative.")
    names = {
        "any_counted_detection": "Any counted detection",
        **{f"rated_{level}": f"Rated {level}" for level in LEVELS},
        "sent_to_review": "Sent to review",
    }
    rows = [
        (names[key], share["count"], interval(share["share"], share["interval"]))
        for key, share in entry["shares"].items()
    ]
    return (
        "<h2>Films without a finding</h2>"
        + note(
            f"{entry['films']} films of {entry['patients']} patients through fusion, uncertainty and risk, without a "
            "second reader, without symptoms, the quality of the film taken as good."
        )
        + table(("What", "Films", "Share"), rows)
    )


def _calibration(metrics: Mapping[str, Any]) -> str:
    entry = metrics["calibration"]
    keys = ("ece", "brier", "brier_skill", "slope", "intercept")

    def cells(found: Mapping[str, Any] | None) -> list[str]:
        return [NONE if found is None else number(found[key]) for key in keys]

    rows = [(name, *cells(e["as_served"]), *cells(e["prior_corrected"])) for name, e in entry["pathologies"].items()]
    head = ("ECE", "Brier", "Brier skill", "Slope", "Intercept")
    diagrams = ""
    if metrics["discrimination"]["pathologies_measured"]:
        diagrams = figure(plots.reliability_grid(metrics), "Reliability diagrams: said against observed")
        diagrams += note("Blue: as served. Red: prior corrected.")
    return (
        "<h2>Calibration</h2>"
        + note(f"Of {entry['of']}. Prior correction shifts the log-odds from the validation prevalence to the films'.")
        + table(("Pathology", *head, *(f"{name}, prior corrected" for name in head)), rows)
        + note(
            "ECE over ten equal-mass bins. Brier skill is 1 less the Brier score over that of the films' own "
            "prevalence: below 0 the constant would do better. A slope of 1 and an intercept of 0 are perfect."
        )
        + diagrams
    )


def _subgroups(metrics: Mapping[str, Any]) -> str:
    parts = ["<h2>Subgroups</h2>"]
    for kind, groups in metrics["subgroups"].items():
        if not groups:
            continue
        rows = [
            (
                "Mean without Pneumonia and Hernia",
                *(interval(g["mean_auroc"], g["mean_auroc_interval"], 2) for g in groups.values()),
            )
        ]
        for name in NAMES:
            entries = [g["pathologies"][name] for g in groups.values()]
            rows.append(
                (name, *(f"{interval(e['auroc'], e['auroc_interval'], 2)}, {e['positive_films']}+" for e in entries))
            )
        heads = [f"{name}: {g['films']} films, {g['patients']} patients" for name, g in groups.items()]
        parts += [f"<h3>By {html.escape(kind)}</h3>", table(("AUROC, positive films", *heads), rows)]
    return "".join(parts)


def _confidence(metrics: Mapping[str, Any]) -> str:
    parts = ["<h2>Does confidence rank errors?</h2>"]
    for kind, entry in metrics["confidence"].items():
        rows = []
        for name, e in entry["errors"].items():
            if e is None:
                continue
            verdict = {True: "yes", False: "not shown", None: NONE}[e["ranks_errors"]]
            rows.append(
                (
                    name.replace("_", " "),
                    *(number(e[key], 4) for key in ("aurc", "aurc_random_order", "aurc_perfect_order")),
                    interval(e["difference_from_random"], e["difference_from_random_interval"], 4),
                    verdict,
                )
            )
        parts += [
            f"<h3>Fused confidence {html.escape(kind.replace('_', ' '))}</h3>",
            table(
                ("Error of a film", "AURC", "Random order", "Perfect order", "Difference from random", "Ranks errors"),
                rows,
            ),
            figure(plots.risk_coverage_plot(entry), "Risk-coverage curves"),
        ]
    parts.append(
        note(
            "AURC: area under the risk-coverage curve, lower is better. A film with more disease on it gives more "
            "occasion to err, so part of the ranking is of disease and not of doubt."
        )
    )
    return "".join(parts)


def _localisation(metrics: Mapping[str, Any]) -> str:
    entry = metrics["localisation"]
    if entry is None:
        return ""

    def row(name: str, c: Mapping[str, Any]) -> tuple[object, ...]:
        overlaps = [c["overlap_at_least"][f"{level:g}"] for level in OVERLAPS]
        return (
            name,
            *(c[key] for key in ("boxes", "detected", "pointed", "pointed_and_detected")),
            *(c[key] for key in ("centre_guess_pointed", "mean_box_guess_pointed")),
            *(f"{o['map']} / {o['map_and_detected']} / {o['mean_box_guess']}" for o in overlaps),
            number(c["mean_overlap"], 2),
        )

    rows = [row("All", entry["all"]), *(row(name, c) for name, c in entry["by_finding"].items())]
    head = (
        "Finding",
        "Boxes",
        "Detected",
        "Peak in box",
        "… and detected",
        "Centre guess in box",
        "Mean-box guess in box",
    )
    levels = [f"IoU ≥ {level:g}: map / and detected / mean box" for level in OVERLAPS]
    return (
        "<h2>Localisation</h2>"
        + table((*head, *levels, "Mean IoU"), rows)
        + note(
            f"Counts, not percentages. The map is cut at half of its peak. The mean box is that of other films. "
            f"{entry['boxes_without_a_film']} boxes are on films that were not scored."
        )
    )


def _gate(metrics: Mapping[str, Any], cohort: Cohort, others: Mapping[str, OtherImage]) -> str:
    entry = metrics["gate"]
    parts = [
        "<h2>Input gate</h2>",
        f"<p>{entry['films_accepted']} of {entry['films']} films accepted at a score of {entry['threshold']:.3f}.</p>",
    ]
    if entry["films_refused"]:
        rows = [(e["image"], number(e["score"]), e["reason"]) for e in entry["films_refused"]]
        parts.append(table(("Refused film", "Score", "Reason"), rows, text_columns=(0, 2)))
    if entry["others"] is not None:
        o = entry["others"]
        parts += [
            f"<p>{o['refused']} of {o['images']} other images refused; AUROC of the score {number(o['auroc'])}.</p>",
            table(
                ("Category", "Images", "Refused"), [(n, c["images"], c["refused"]) for n, c in o["by_category"].items()]
            ),
            figure(
                plots.gate_roc((f.gate_score for f in cohort.films), (x.gate_score for x in others.values())),
                "Gate ROC",
            ),
        ]
        if o["let_in"]:
            parts.append(table(("Let in", "Score"), [(e["image"], number(e["score"])) for e in o["let_in"]]))
    return "".join(parts)


def _reader(metrics: Mapping[str, Any]) -> str:
    entry = metrics["likelihood_ratios"]
    if entry is None:
        return ""
    if entry["ratios"] is None:
        return "<h2>Second reader</h2>" + note("None of the readings is of a film that was scored.")
    rows = [(name, r["statements"], interval(r["ratio"], r["interval"], 2)) for name, r in entry["ratios"].items()]
    return (
        "<h2>Second reader: fitted likelihood ratios</h2>"
        + table(("Status", "Statements", "Likelihood ratio"), rows)
        + note(f"{entry['films']} films. {entry['meaning']}. Prior: {entry['prior']}.")
    )


def _robustness(metrics: Mapping[str, Any]) -> str:
    entry = metrics["robustness"]
    if entry is None:
        return ""
    rows = [
        (
            name,
            e["films"],
            number(e["median"], 4),
            number(e["largest"]),
            e["largest_on"]["pathology"],
            e["largest_on"]["image"],
        )
        for name, e in entry.items()
    ]
    head = ("Change", "Films", "Median change of probability", "Largest", "Pathology", "File")
    return "<h2>Robustness</h2>" + table(head, rows, text_columns=(4, 5))


def _gallery(metrics: Mapping[str, Any]) -> str:
    rows = []
    for name, entry in metrics["worst_errors"].items():
        for kind, words in (("false_positive", "detected, labelled negative"), ("false_negative", "missed")):
            rows += [(name, words, f"{e['probability']:.4f}", e["image"]) for e in entry[kind]]
    return (
        "<h2>Worst errors</h2>"
        + note(
            "Wrong decisions at the operating points, the surest first; names of files only. Labels were mined from "
            "reports in many data sets: some of these errors are theirs."
        )
        + table(("Pathology", "Error", "Probability", "File"), rows, text_columns=(1, 3))
    )


def _unreadable(metrics: Mapping[str, Any]) -> str:
    entries = metrics["unreadable"]
    if not entries:
        return "<h2>Unreadable files</h2><p>None.</p>"
    rows = [(entry["image"], entry["reason"]) for entry in entries]
    return f"<h2>Unreadable files</h2><p>{len(rows)}</p>" + table(("File", "Reason"), rows, text_columns=(0, 1))
