"""Tables and plots of a study, for `docs/study.md`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.study.arms import ALL_ARMS, ARMS, Plan
from benchmarks.study.claims import KINDS, PARTS, ClaimKinds
from benchmarks.study.credit import Credit, read_metrics
from benchmarks.study.figures import MEASURES, Figures
from benchmarks.study.reads import stated_by_step
from benchmarks.study.statistics import Comparison
from benchmarks.study.variants import Variant
from benchmarks.study.workspace import WARM_START, Workspace
from vapo_verl.analysis.statistics import MIN_PAIRS, PairedDifference
from vapo_verl.plots.matplotlib_figure import picture
from vapo_verl.plots.panel import Panel, Series, numbers

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = REPOSITORY / "docs" / "study.md"
RESULTS = REPOSITORY / "docs" / "study"
FIGURES, VARIANTS = "figures", "variants"
"""Parts of the document that :func:`write_tables` replaces, beside those of `forgetful/plan.py`."""
_TABLE = (
    ("accuracy", "accuracy"),
    ("claims early", "claims_early"),
    ("claims middle", "claims_middle"),
    ("claims late", "claims_late"),
    ("attention", "attention"),
    ("late / early", "attention_late_over_early"),
    ("tokens", "tokens"),
    ("peak", "peak"),
    ("recoverable", "recoverable"),
    ("reads", "reads"),
    ("reads correct early", "reads_early"),
    ("reads correct late", "reads_late"),
    ("incorrect, all reads correct", "wrong_but_seen"),
    ("other image", "accuracy_other_image"),
)
"""Column and measure."""


def marks(part: str) -> tuple[str, str]:
    """Marker lines around a part of the document."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def write_tables(document: Path, part: str, text: str) -> None:
    """Put `text` between a part's marks; the rest of the document is unchanged.

    Raises:
        ValueError: the document lacks the marks.
    """
    start, end = marks(part)
    before, found, rest = document.read_text().partition(start)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{document} has no lines {start} and {end}: put them where tables belong")
    document.write_text(f"{before}{start}\n{text}\n{end}{after}")


def figures_table(rows: Sequence[Figures]) -> str:
    """Results of each arm on held-out rows, mean ± standard deviation over seeds."""
    return arms_table(_TABLE, rows)


def arms_table(
    columns: Sequence[tuple[str, str]],
    rows: Sequence[Any],
    label: Callable[[Any], str] = lambda row: title(row.arm),
) -> str:
    """Mean ± standard deviation of measures over the seeds of each arm.

    Args:
        columns: title and field.
        rows: results of runs, which have an `arm`.
        label: label of a run; runs with the same label share a line of the table.
    """
    lines = [
        f"| | {' | '.join(title for title, _ in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for name in dict.fromkeys(map(label, rows)):
        of_arm = [row for row in rows if label(row) == name]
        cells = [_mean_and_sd([getattr(row, measure) for row in of_arm]) for _, measure in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
    """The paired tests."""
    lines = [
        "| against GRPO | measure | over rows | p | over seeds | p |",
        "|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        cells = [
            cell for pairs in (each.over_rows, each.over_seeds) for cell in paired_cells(pairs)
        ]
        measure = each.measure.replace("_", " ")
        lines.append(f"| {title(each.arm)} | {measure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def paired_cells(pairs: PairedDifference) -> tuple[str, str]:
    """Difference with its interval, and p; neither if all pairs differ by the same amount."""
    known = bool(np.isfinite(pairs.p_t))
    interval = f"{pairs.low:+.3f} to {pairs.high:+.3f}" if known else "–"
    return (
        f"{pairs.difference:+.3f} ({interval}, n = {pairs.n})",
        f"{pairs.p_t:.2g}" if known else "–",
    )


def title(arm: str) -> str:
    return ALL_ARMS[arm].title if arm in ALL_ARMS else arm.replace("_", " ")


_CREDIT_TABLE = (
    ("accuracy, first quarter", "accuracy_first"),
    ("last quarter", "accuracy_last"),
    ("responses probed", "probed"),
    ("claims correct", "claims"),
    ("predictions alike", "agreement"),
    ("spread of R_perc", "spread"),
    ("without late emphasis", "spread_flat"),
    ("groups all correct", "groups_right"),
    ("mixed", "groups_mixed"),
    ("advantage by perception alone", "perception_only"),
    ("KL", "kl"),
)


def credit_table(rows: Sequence[Credit]) -> str:
    """Training metrics of each arm, mean ± standard deviation over seeds."""
    return arms_table(_CREDIT_TABLE, rows)


_KINDS_TABLE = tuple((f"{kind}, {part}", f"{kind}_{part}") for kind in KINDS for part in PARTS)


def kinds_table(rows: Sequence[ClaimKinds]) -> str:
    """Accuracy on claims by kind, early and late in the response."""
    return arms_table(_KINDS_TABLE, rows)


_VARIANTS_TABLE = (
    ("accuracy", "accuracy"),
    ("claims late", "claims_late"),
    ("reads", "reads"),
    ("tokens", "tokens"),
    ("training, last quarter", "accuracy_last"),
    ("predictions alike", "agreement"),
    ("spread of R_perc", "spread"),
    ("mixed groups", "groups_mixed"),
    ("advantage by perception alone", "perception_only"),
    ("KL", "kl"),
)


def variants_table(rows: Sequence[Variant]) -> str:
    """Results of each run on validation rows, with its training metrics."""
    return arms_table(_VARIANTS_TABLE, rows)


def variants_comparison_table(
    differences: Mapping[str, Mapping[str, PairedDifference]],
) -> str:
    """Each variant minus the arm it is compared with."""
    lines = ["| | against | accuracy | p | claims late | p |", "|---|---|---|---|---|---|"]
    for arm, by_measure in differences.items():
        cells = [cell for pairs in by_measure.values() for cell in paired_cells(pairs)]
        against = title(ALL_ARMS[arm].against)
        lines.append(f"| {title(arm)} | {against} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean_and_sd(values: Sequence[float]) -> str:
    if not np.isfinite(values).all():
        return "–"
    digits = 1 if max(values) >= 10 else 3
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def write_plots(work: Workspace, plan: Plan, out: Path) -> None:
    """PNG files of claims, attention and forced answers along the response, and of training.

    Raises:
        StudyError: a run has no saved rollouts.
    """
    for name, panel in (
        ("claims", _along(work, plan, "Claims judged correctly", "perception", _claims)),
        ("attention", _along(work, plan, "Visual attention ratio", "perception", _attention)),
        (
            "early_decision",
            _along(work, plan, "Forced answers correct", "early-decision", _cuts),
        ),
        ("training", _training(work, plan, "Accuracy of the training rollouts", _accuracy)),
        ("stated", _training(work, plan, "Cells stated in the training rollouts", stated_by_step)),
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


def _training(
    work: Workspace, plan: Plan, panel: str, read: Callable[[Workspace, str], dict[int, float]]
) -> Panel:
    """A line for each arm over the steps that all its runs have, the mean over its seeds."""
    series: list[Series] = []
    for arm in plan.arms:
        curves = [read(work, f"{arm}-{seed}") for seed in plan.seeds]
        steps = sorted(set.intersection(*(set(curve) for curve in curves)))
        means = [float(np.mean([curve[step] for curve in curves])) for step in steps]
        series.append(_line(arm, len(series) + 1, steps, means))
    return Panel(title=panel, x_title="step", y_title="", series=series)


def _accuracy(work: Workspace, name: str) -> dict[int, float]:
    metric = "vapo/reward/accuracy"
    steps = read_metrics(work, name)
    return {step: data[metric] for step, data in steps.items() if metric in data}


def _line(arm: str, place: int, x: Sequence[float], y: Sequence[float]) -> Series:
    return Series(name=title(arm), color=place, x=numbers(x), y=numbers(y))


def agreement(ours: Sequence[Figures], committed: Sequence[Figures]) -> str:
    """The distance of an arm's means from earlier ones, with the error bars of both.

    The error bar of a mean is its 95 % interval by Student's t over the seeds; that of a difference
    of two means, the root of the sum of their squares.
    """
    lines = [
        "| arm | measures within the error bars | farthest | difference | error bar |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        pairs = [[row for row in rows if row.arm == arm] for rows in (ours, committed)]
        if min(map(len, pairs)) < MIN_PAIRS:
            continue
        differences = {name: _difference(*pairs, name) for name in MEASURES}
        compared = {name: pair for name, pair in differences.items() if np.isfinite(pair).all()}
        within = sum(off <= bar for off, bar in compared.values())
        name = max(compared, key=lambda key: compared[key][0] / max(compared[key][1], 1e-9))
        off, bar = compared[name]
        cells = (f"{within} of {len(compared)}", name.replace("_", " "), f"{off:.4f}", f"{bar:.4f}")
        lines.append(f"| {title(arm)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(
    ours: Sequence[Figures], committed: Sequence[Figures], name: str
) -> tuple[float, float]:
    """Difference of the means, and its error bar."""
    values = [np.array([getattr(row, name) for row in rows]) for rows in (ours, committed)]
    off = abs(float(values[0].mean() - values[1].mean()))
    return off, float(np.hypot(*map(_error_bar, values)))


def _error_bar(values: np.ndarray) -> float:
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n))
