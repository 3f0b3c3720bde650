"""Tables and plots of a study, for `docs/study.md`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.arms import ARMS, Plan
from benchmarks.study.figures import MEASURES, Figures
from benchmarks.study.statistics import Comparison
from benchmarks.study.workspace import WARM_START, Workspace
from vapo_verl.diagnostics.panel import Panel, Series, numbers
from vapo_verl.diagnostics.picture import picture

START, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_TABLE = (
    ("accuracy", "accuracy"),
    ("claims early", "claims_early"),
    ("middle", "claims_middle"),
    ("late", "claims_late"),
    ("attention", "attention"),
    ("late / early", "attention_late_over_early"),
    ("tokens", "tokens"),
    ("peak", "peak"),
    ("recoverable", "recoverable"),
    ("other image", "accuracy_other_image"),
)
"""Column and measure."""


def write_tables(document: Path, text: str) -> None:
    """Put `text` between the marks of a document; the rest of it stays."""
    before, _, rest = document.read_text().partition(START)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{START}\n{text}\n{END}{after}")


def tables(figures: Sequence[Figures], comparisons: Sequence[Comparison]) -> str:
    """The figures of each arm as mean ± standard deviation over seeds, and the paired tests."""
    return f"{_figures_table(figures)}\n\n{_comparison_table(comparisons)}"


def _figures_table(figures: Sequence[Figures]) -> str:
    lines = [
        f"| | {' | '.join(title for title, _ in _TABLE)} |",
        "|---|" + "---|" * len(_TABLE),
    ]
    for arm in dict.fromkeys(row.arm for row in figures):
        rows = [row for row in figures if row.arm == arm]
        cells = [_mean_and_sd([getattr(row, measure) for row in rows]) for _, measure in _TABLE]
        lines.append(f"| {title(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _comparison_table(comparisons: Sequence[Comparison]) -> str:
    lines = [
        "| against GRPO | measure | over rows | p | over seeds | p |",
        "|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        cells = [
            cell
            for pairs in (each.over_rows, each.over_seeds)
            for cell in (
                f"{pairs.difference:+.3f} ({pairs.low:+.3f} to {pairs.high:+.3f}, n = {pairs.n})",
                f"{pairs.p_t:.2g}",
            )
        ]
        measure = each.measure.replace("_", " ")
        lines.append(f"| {title(each.arm)} | {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def title(arm: str) -> str:
    return ARMS[arm].title if arm in ARMS else arm.replace("_", " ")


def _mean_and_sd(values: Sequence[float]) -> str:
    digits = 0 if max(values) > 10 else 3
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def write_plots(work: Workspace, plan: Plan, out: Path) -> None:
    """PNG files of claims, attention and forced answers along the response, and of training."""
    for name, panel in (
        ("claims", _along(work, plan, "Claims judged right", "perception", _claims)),
        ("attention", _along(work, plan, "Visual attention ratio", "perception", _attention)),
        ("early_decision", _along(work, plan, "Answers right", "early-decision", _cuts)),
        ("training", _training(work, plan)),
    ):
        picture(panel).save(out / f"{name}.png", optimize=True)


Curve = tuple[list[float], list[float]]


def _claims(summary: dict[str, Any]) -> Curve:
    bins = [part for part in summary["claims"]["by_progress"] if part["share"]["of"]]
    places = [(part["from"] + part["to"]) / 2 for part in bins]
    return places, [part["share"]["share"] for part in bins]


def _attention(summary: dict[str, Any]) -> Curve:
    curve = summary["attention"]["by_progress"]
    return curve["x"], curve["y"]


def _cuts(summary: dict[str, Any]) -> Curve:
    cuts = summary["cuts"]
    return [cut["target"] for cut in cuts], [cut["share"]["share"] for cut in cuts]


def _along(
    work: Workspace,
    plan: Plan,
    y_title: str,
    command: str,
    read: Callable[[dict[str, Any]], Curve],
) -> Panel:
    """A line for each arm, the mean over its seeds, and one for the warm start."""
    series: list[Series] = []
    for arm in (WARM_START, *plan.arms):
        names = [WARM_START] if arm == WARM_START else [f"{arm}-{seed}" for seed in plan.seeds]
        files = [work.folder(name) / "diagnostics" / command / "summary.json" for name in names]
        curves = [read(json.loads(file.read_text())) for file in files]
        x, y = curves[0][0], np.mean([_at(curves[0][0], curve) for curve in curves], axis=0)
        series.append(_line(arm, len(series), x, y.tolist()))
    return Panel(title=y_title, x_title="progress along the response", y_title="", series=series)


def _at(x: Sequence[float], curve: Curve) -> np.ndarray:
    return np.interp(x, *curve)


def _training(work: Workspace, plan: Plan) -> Panel:
    series: list[Series] = []
    for arm in plan.arms:
        curves = [_accuracy_by_step(work, f"{arm}-{seed}") for seed in plan.seeds]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [float(np.mean([curve[step] for curve in curves])) for step in steps]
        series.append(_line(arm, len(series) + 1, steps, means))
    return Panel(
        title="Accuracy of the training rollouts", x_title="step", y_title="", series=series
    )


def _accuracy_by_step(work: Workspace, name: str) -> dict[int, float]:
    lines = (work.folder(name) / "metrics.jsonl").read_text().splitlines()
    return {
        line["step"]: line["data"]["vapo/reward/accuracy"]
        for line in map(json.loads, lines)
        if "vapo/reward/accuracy" in line["data"]
    }


def _line(arm: str, place: int, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(name=title(arm), color=place, x=numbers(x), y=numbers(y))


def distances(ours: Sequence[Figures], committed: Sequence[Figures]) -> str:
    """How far figures are from earlier ones, in standard deviations over the earlier seeds."""
    before = {(row.arm, row.seed): row for row in committed}
    spread = {arm: [row for row in committed if row.arm == arm] for arm, _ in before}
    lines = ["| run | largest difference | in |", "|---|---|---|"]
    for row in ours:
        other = before.get((row.arm, row.seed))
        if other is None:
            continue
        differences = {name: abs(getattr(row, name) - getattr(other, name)) for name in MEASURES}
        name = max(differences, key=lambda key: differences[key] / _scale(spread[row.arm], key))
        lines.append(f"| {row.arm}-{row.seed} | {differences[name]:.4f} | {name} |")
    return "\n".join(lines)


def _scale(rows: Sequence[Figures], name: str) -> float:
    values = [getattr(row, name) for row in rows]
    return max(float(np.std(values)), 0.01 * abs(float(np.mean(values))), 1e-6)
