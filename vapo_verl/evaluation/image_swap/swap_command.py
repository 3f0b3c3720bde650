"""`image-swap`: responses continued from cuts along them with another image."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vapo_verl.analysis.statistics import paired_rates, rate_of
from vapo_verl.evaluation.image_swap import COMMAND, EXCHANGES, ImageSwapOptions
from vapo_verl.evaluation.probing.attention_summary import attention_summary
from vapo_verl.evaluation.probing.probe_options import (
    ProbeOptions,
    add_command_arguments,
    read_command_options,
)
from vapo_verl.plots.panel import Panel, Series, numbers
from vapo_verl.run_folder import RunError

Record = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every probing command, and those for cuts."""
    add_command_arguments(parser, ImageSwapOptions, "cuts", attention=True)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options, swap = read_command_options(arguments, COMMAND, ImageSwapOptions)
    summary = measure_image_swap(options, swap)
    agreement = ", ".join(
        f"{name} {_shown_share(cuts[0])} to {_shown_share(cuts[-1])}"
        for name, cuts in summary["exchanges"].items()
    )
    print(
        f"{summary['num_rows']} rows: correct {summary['accuracy']['share']:.3f}; same answer with"
        f" another image from 0 % and from 100 % on: {agreement}"
    )
    print(_page(options.out, summary))
    return 0


def _shown_share(cut: Mapping[str, Any]) -> str:
    share = cut["agreement"]["share"]
    return "–" if share is None else f"{share:.3f}"


def measure_image_swap(options: ProbeOptions, swap: ImageSwapOptions) -> dict[str, Any]:
    """Probe the rows that are not done; write and return the summary. Rows need images.

    Raises:
        RunError: a temperature above 0, rows that all show the same image, or a row without one.
    """
    if options.temperature:
        raise RunError(
            f"--temperature {options.temperature}: image-swap compares greedy responses, because "
            "sampled ones differ anyway; leave it out"
        )
    from vapo_verl.evaluation.image_swap.swap_probe import ImageSwap
    from vapo_verl.evaluation.probing.job import chosen_rows, measure

    rows = chosen_rows(options)
    if without := [row.number for row in rows if not row.images]:
        raise RunError(f"{options.data} row {without[0]} has no image to exchange; leave it out")
    work = ImageSwap(options, swap, rows)
    return measure(rows, options, swap.settings(), work, summarise, attention=True)


def _page(folder: Path, summary: dict[str, Any]) -> Path:
    from vapo_verl.evaluation.probing.attention_summary import attention_panels
    from vapo_verl.evaluation.probing.job import write_page

    exchanges = summary["exchanges"]
    panels = [
        _rates(exchanges, "agreement", "Same answer"),
        _rates(exchanges, "accuracy", "Accuracy", summary["accuracy"]["share"]),
        _claims(exchanges),
        _means(exchanges, "kl", "KL divergence after the cut", "nats a token, lower bound"),
        _means(exchanges, "logprob_drop", "Drop in log probability", "nats a token"),
        _attention_left(exchanges),
        *attention_panels({"responses": summary["attention"]}),
    ]
    note = (
        "From each cut the response continues greedily with another row's image (swap) or with the"
        " mean colour of its own (blank); its own tokens before the cut are kept."
    )
    tables = [_table(name, cuts) for name, cuts in exchanges.items()]
    return write_page(folder, "Image swap", note, panels, tables)


def _rates(
    exchanges: dict[str, Any], quantity: str, title: str, level: float | None = None
) -> Panel:
    series = [
        _line(name, color, cuts, [cut[quantity] for cut in cuts])
        for color, (name, cuts) in enumerate(exchanges.items())
    ]
    return Panel(
        title=title,
        x_title="cut, % of the reasoning",
        y_title="fraction",
        series=series,
        level=level,
        level_name="" if level is None else "untouched",
        note="95 % intervals of Wilson.",
        y_range=(0.0, 1.0),
    )


def _claims(exchanges: dict[str, Any]) -> Panel:
    cuts = exchanges["swap"]
    probed = bool(cuts[0]["claims"]["own"]["of"])
    series = [_line("own image", 0, cuts, [cut["claims"]["own"] for cut in cuts])] + [
        _line(name, color, each, [cut["claims"]["exchanged"] for cut in each])
        for color, (name, each) in enumerate(exchanges.items(), start=1)
    ]
    return Panel(
        title="Claims answered correctly",
        x_title="cut, % of the reasoning",
        y_title="fraction",
        series=series if probed else [],
        level=0.5,
        level_name="chance",
        note="95 % intervals of Wilson.",
        y_range=(0.0, 1.0),
        missing="" if probed else "No claims were probed.",
    )


def _line(name: str, color: int, cuts: list[dict[str, Any]], rates: list[Any]) -> Series:
    return Series(
        name=name,
        color=color,
        x=_percent(cuts),
        y=numbers(rate["share"] for rate in rates),
        low=numbers(rate["low"] for rate in rates),
        high=numbers(rate["high"] for rate in rates),
    )


def _means(exchanges: dict[str, Any], quantity: str, title: str, y_title: str) -> Panel:
    series = [
        Series(name=name, color=color, x=_percent(cuts), y=numbers(c[quantity] for c in cuts))
        for color, (name, cuts) in enumerate(exchanges.items())
    ]
    note = "Mean over responses of the mean over their tokens after the cut, teacher-forced."
    return Panel(
        title=title, x_title="cut, % of the reasoning", y_title=y_title, series=series, note=note
    )


def _attention_left(exchanges: dict[str, Any]) -> Panel:
    cuts = exchanges["swap"]
    line = Series(name="attention", x=_percent(cuts), y=numbers(cut["attention"] for cut in cuts))
    return Panel(
        title="Visual attention after the cut",
        x_title="cut, % of the reasoning",
        y_title="visual attention ratio",
        series=[line],
        note="Mean over untouched responses of the mean over their tokens after the cut.",
    )


def _table(name: str, cuts: list[dict[str, Any]]) -> Any:
    from vapo_verl.evaluation.probing.job import shown_number, shown_paired, shown_rate
    from vapo_verl.plots.html import Table

    return Table(
        title=f"Exchange: {name}",
        header=["cut", "same answer", "correct", "change", "KL", "attention left"],
        rows=[
            [
                f"{cut['target']:.0%}",
                shown_rate(cut["agreement"]),
                shown_rate(cut["accuracy"]),
                shown_paired(cut["drop"]),
                shown_number(cut["kl"]),
                shown_number(cut["attention"]),
            ]
            for cut in cuts
        ],
        note="p of McNemar's exact test.",
    )


def _percent(cuts: list[dict[str, Any]]) -> Any:
    return numbers(100 * cut["target"] for cut in cuts)


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """The content of `summary.json`, from at least one record.

    For each exchange and cut: `accuracy` of the responses continued with the exchanged image,
    `drop`, the paired difference from the untouched responses, and `agreement`, the fraction with
    the untouched answer. Means over responses of the tokens after the cut: `kl` and `logprob_drop`
    in nats a token, and `attention` of the untouched response. `claims` has the claims probed at
    the cut: correct with the own image and with the exchanged one.
    """
    return {
        "num_rows": len(records),
        "accuracy": rate_of([record["right"] for record in records]),
        "truncated": rate_of([record["finish"] == "length" for record in records]),
        "same_size": rate_of([record["same_size"] for record in records]),
        "mean_tokens": float(np.mean([record["num_tokens"] for record in records])),
        "exchanges": {
            exchange: [
                _at_cut(records, exchange, number)
                for number in range(len(records[0]["exchanges"][exchange]["cuts"]))
            ]
            for exchange in EXCHANGES
        },
        "attention": attention_summary(record["attention"] for record in records),
    }


def _at_cut(records: Sequence[Record], exchange: str, number: int) -> dict[str, Any]:
    exchanged = [record["exchanges"][exchange] for record in records]
    cuts = [each["cuts"][number] for each in exchanged]
    positions = [cut["position"] for cut in cuts]
    own = np.array([record["right"] for record in records])
    now = np.array([cut["right"] for cut in cuts])
    pairs = list(zip(records, cuts, strict=True))
    return {
        "target": cuts[0]["target"],
        "accuracy": rate_of(now),
        "drop": paired_rates(own, now),
        "agreement": rate_of(
            [
                record["answer"] == cut["answer"]
                for record, cut in pairs
                if record["answer"] is not None
            ]
        ),
        "kl": _mean_behind([each["kl"] for each in exchanged], positions),
        "logprob_drop": _mean_behind([each["logprob_drop"] for each in exchanged], positions),
        "attention": _mean_behind([record["attention"] for record in records], positions),
        "claims": _claim_summary(records, exchange, positions),
    }


def _claim_summary(
    records: Sequence[Record], exchange: str, positions: Sequence[int]
) -> dict[str, Any]:
    pairs = [
        (own, other)
        for record, position in zip(records, positions, strict=True)
        for own, other in zip(
            record["claims"], record["exchanges"][exchange]["claims"], strict=True
        )
        if own["position"] == position
    ]
    return {
        "own": rate_of([own["correct"] for own, _ in pairs]),
        "exchanged": rate_of([other["correct"] for _, other in pairs]),
        "agreement": rate_of([own["answer"] == other["answer"] for own, other in pairs]),
    }


def _mean_behind(
    values: Sequence[Sequence[float | None]], positions: Sequence[int]
) -> float | None:
    """Mean over responses of the mean over their tokens from a position on; None without one."""
    means = []
    for of_response, position in zip(values, positions, strict=True):
        behind = [value for value in of_response[position:] if value is not None]
        if behind:
            means.append(float(np.mean(behind)))
    return float(np.mean(means)) if means else None
