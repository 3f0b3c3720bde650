"""`perception`: claims and attention along the responses of a checkpoint."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vapo_verl.analysis.position_curves import EARLY, LATE
from vapo_verl.analysis.statistics import finite, paired_difference, rate, rate_of
from vapo_verl.evaluation.perception import COMMAND, PerceptionOptions
from vapo_verl.evaluation.probing.attention_summary import attention_summary
from vapo_verl.evaluation.probing.probe_options import (
    ProbeOptions,
    add_command_arguments,
    read_command_options,
)
from vapo_verl.plots.panel import Panel, Series, numbers

Record = Mapping[str, Any]
PARTS = ("start", "early", "middle", "late")
"""After the prompt, and the thirds of a response by position / num_tokens."""
NUM_BINS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every probing command, and those for claims."""
    add_command_arguments(parser, PerceptionOptions, "claims", attention=True)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options, perception = read_command_options(arguments, COMMAND, PerceptionOptions)
    summary = measure_perception(options, perception)
    claims = summary["claims"]
    parts = ", ".join(
        f"{part} {claims[part]['share']:.3f}"
        for part in ("start", "early", "middle", "late")
        if claims[part]["share"] is not None
    )
    print(f"{summary['num_rows']} rows: correct {summary['accuracy']['share']:.3f}; claims {parts}")
    print(_page(options, summary))
    return 0


def measure_perception(options: ProbeOptions, perception: PerceptionOptions) -> dict[str, Any]:
    """Probe the rows that are not done; write and return the summary."""
    from vapo_verl.evaluation.perception.perception_probe import perceive
    from vapo_verl.evaluation.probing.job import chosen_rows, measure

    return measure(
        chosen_rows(options),
        options,
        perception.settings(),
        lambda engine, rows: perceive(engine, rows, options, perception),
        summarise,
        attention=True,
    )


def _page(options: ProbeOptions, summary: dict[str, Any]) -> Any:
    from vapo_verl.evaluation.probing.attention_summary import attention_panels
    from vapo_verl.evaluation.probing.job import (
        shown_difference,
        shown_number,
        shown_rate,
        write_page,
    )
    from vapo_verl.plots.html import Table, shown

    claims, attention = summary["claims"], summary["attention"]
    late = claims["late_minus_early"]
    rows = [
        ["responses correct", shown_rate(summary["accuracy"])],
        ["responses cut off by --max-tokens", shown_rate(summary["truncated"])],
        *[
            [f"claims answered correctly, {name}", shown_rate(claims[name])]
            for name in ("all", "start", "early", "middle", "late")
        ],
        ["claims answered yes", shown_rate(claims["yes_rate"])],
        ["claims true", shown_rate(claims["label_rate"])],
        [f"late minus early, over {late['n']} responses", shown_difference(late)],
        ["visual attention, mean", shown_number(attention["mean"])],
        ["slope over a response", shown_number(attention["slope"])],
        ["late third / early third", shown_number(attention["late_over_early"])],
    ]
    table = Table(title="Perception in numbers", header=["", "value"], rows=rows)
    panels = [_claims_panel(claims), *attention_panels({"responses": attention})]
    note = f"{summary['num_rows']} responses, {shown(claims['all']['of'])} predictions on claims."
    return write_page(options.out, "Perception", note, panels, [table])


def _claims_panel(claims: dict[str, Any]) -> Panel:
    bins = [each for each in claims["by_progress"] if each["share"]["share"] is not None]
    progress = [0.0, *((each["from"] + each["to"]) / 2 for each in bins)]
    rates = [claims["start"], *(each["share"] for each in bins)]
    line = Series(
        name="claims answered correctly",
        x=numbers(progress),
        y=numbers(each["share"] for each in rates),
        low=numbers(each["low"] for each in rates),
        high=numbers(each["high"] for each in rates),
        bars=True,
    )
    return Panel(
        title="Claims by position",
        x_title="position / tokens of the response",
        y_title="fraction correct",
        series=[line] if claims["start"]["of"] else [],
        level=0.5,
        level_name="chance",
        note="The first point is directly after the prompt. 95 % intervals of Wilson.",
        missing="" if claims["start"]["of"] else "The rows hold no claims.",
    )


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """The content of `summary.json`, from at least one record.

    `claims` has the fraction of correct predictions in all, by part and by tenth of the response,
    the yes-rate, and `late_minus_early`: the paired difference over responses, each with the mean
    of its own claims. Predictions within a response depend on each other. So the intervals of the
    fractions are somewhat too narrow; that of the paired difference is not.
    """
    anchors = [anchor for record in records for anchor in record["anchors"]]
    early, late = (_of_responses(records, part) for part in ("early", "late"))
    return {
        "num_rows": len(records),
        "accuracy": rate_of([record["right"] for record in records]),
        "format": float(np.mean([record["format"] for record in records])),
        "truncated": rate_of([record["finish"] == "length" for record in records]),
        "mean_tokens": float(np.mean([record["num_tokens"] for record in records])),
        "claims": {
            "all": rate_of([anchor["correct"] for anchor in anchors]),
            **{part: rate_of(_correct(records, part)) for part in PARTS},
            "by_progress": _by_progress(records),
            "yes_rate": rate_of([anchor["answer"] for anchor in anchors]),
            "label_rate": rate_of([anchor["label"] for anchor in anchors]),
            "late_minus_early": finite(asdict(paired_difference("claims", early, late))),
        },
        "attention": attention_summary(record["attention"] for record in records),
        "prefix_cache": rate(
            sum(record["cached_tokens"] for record in records),
            sum(record["probe_tokens"] for record in records),
        ),
    }


def part_of(position: int, num_tokens: int) -> str:
    """One of :data:`PARTS`."""
    progress = position / max(num_tokens, 1)
    if position == 0:
        return "start"
    return "early" if progress <= EARLY else "late" if progress >= LATE else "middle"


def _correct(records: Sequence[Record], part: str) -> list[bool]:
    return [correct for record in records for correct in _of_record(record, part)]


def _of_record(record: Record, part: str) -> list[bool]:
    return [
        anchor["correct"]
        for anchor in record["anchors"]
        if part_of(anchor["position"], record["num_tokens"]) == part
    ]


def _of_responses(records: Sequence[Record], part: str) -> dict[int, float]:
    means = {record["row"]: _of_record(record, part) for record in records}
    return {row: float(np.mean(correct)) for row, correct in means.items() if correct}


def _by_progress(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Tenths of the response; claims directly after the prompt are in none of them."""
    bins: list[list[bool]] = [[] for _ in range(NUM_BINS)]
    for record in records:
        for anchor in record["anchors"]:
            if anchor["position"]:
                progress = anchor["position"] / record["num_tokens"]
                bins[min(int(progress * NUM_BINS), NUM_BINS - 1)].append(anchor["correct"])
    return [
        {"from": number / NUM_BINS, "to": (number + 1) / NUM_BINS, "share": rate_of(correct)}
        for number, correct in enumerate(bins)
    ]
