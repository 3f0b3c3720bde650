"""`early-decision`: responses cut at fractions of their reasoning, with an answer at each cut."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vapo_verl.cli_options import settings_of
from vapo_verl.evaluation.early_decision import EarlyOptions
from vapo_verl.evaluation.early_decision.decision_summary import (
    COMMAND,
    Cut,
    EarlyDecision,
    load_early_decision,
    summarise,
)
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.probe_options import (
    ProbeOptions,
    add_command_arguments,
    read_command_options,
)
from vapo_verl.evaluation.probing.respond import cut_positions, even_targets, grade, respond
from vapo_verl.evaluation.probing.rows import Row
from vapo_verl.plots.html import Table
from vapo_verl.plots.panel import Panel, Series, numbers

_UPPER_BOUND = (
    "The peak is chosen in these same rows. The recoverable fraction takes the best of many cuts."
    " Both are upper bounds."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every probing command, and those for forced answers."""
    add_command_arguments(parser, EarlyOptions, "forced answers", attention=False)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options, early = read_command_options(arguments, COMMAND, EarlyOptions)
    from vapo_verl.evaluation.probing.job import write_page

    summary = measure_early_decision(options, early)
    page = write_page(
        options.out, "Early decision", _UPPER_BOUND, [_panel(summary)], [_table(summary)]
    )
    print(f"{_headline(summary)}\n{page}")
    return 0


def measure_early_decision(options: ProbeOptions, early: EarlyOptions) -> dict[str, Any]:
    """Probe the rows that are not done; write and return the summary."""
    from vapo_verl.evaluation.probing.job import chosen_rows, measure

    return measure(
        chosen_rows(options),
        options,
        settings_of(early),
        lambda engine, rows: decide_early(engine, rows, options, early),
        lambda _: summarise(_loaded(options.out)),
    )


def _loaded(folder: Path) -> EarlyDecision:
    decision = load_early_decision(folder)
    assert decision is not None
    return decision


def _headline(summary: dict[str, Any]) -> str:
    last, peak = summary["cuts"][-1]["share"]["share"], summary["peak"]
    return (
        f"{summary['num_rows']} rows: correct {summary['response_accuracy']['share']:.3f}, "
        f"forced at 100 % {last:.3f}, "
        f"at the peak ({peak['target']:.0%}) {peak['share']['share']:.3f}"
    )


def _panel(summary: dict[str, Any]) -> Panel:
    cuts = summary["cuts"]
    line = Series(
        name="forced answer",
        x=numbers(100 * cut["target"] for cut in cuts),
        y=numbers(cut["share"]["share"] for cut in cuts),
        low=numbers(cut["share"]["low"] for cut in cuts),
        high=numbers(cut["share"]["high"] for cut in cuts),
    )
    return Panel(
        title="Accuracy by cut",
        x_title="fraction of the reasoning before the forced answer, %",
        y_title="fraction correct",
        series=[line],
        level=summary["response_accuracy"]["share"],
        level_name="the responses themselves",
        note="95 % intervals of Wilson.",
    )


def _table(summary: dict[str, Any]) -> Table:
    from vapo_verl.evaluation.probing.job import shown_paired, shown_rate

    peak, single = summary["peak"], summary["recoverable_single"]
    return Table(
        title="Early decision in numbers",
        header=["", "value"],
        rows=[
            ["responses correct", shown_rate(summary["response_accuracy"])],
            ["responses cut off by --max-tokens", shown_rate(summary["truncated"])],
            [
                "forced answer at 100 % is the response's own",
                shown_rate(summary["forced_agrees_with_response"]),
            ],
            [f"peak, at {peak['target']:.0%}", shown_rate(peak["share"])],
            ["100 % minus the peak", shown_paired(summary["drop_from_peak"])],
            ["errors correct at any cut", shown_rate(summary["recoverable_any"]["of_errors"])],
            [f"errors correct at {single['target']:.0%}", shown_rate(single["of_errors"])],
        ],
        note=_UPPER_BOUND,
    )


def decide_early(
    engine: Engine, rows: Sequence[Row], options: ProbeOptions, early: EarlyOptions
) -> list[dict[str, Any]]:
    """A record for each row: its response, and the answer at every cut.

    Cuts at the same position get one forced answer. A context is the prompt, the response's own
    tokens before the cut, and the suffix: all but its last block is in the KV cache.
    """
    responses = respond(engine, rows, options)
    targets, suffix = even_targets(early.num_cuts), engine.encode_plain(early.suffix)
    cuts = [cut_positions(response.reasoning, targets) for response in responses]
    forced_at = [
        (number, position)
        for number, positions in enumerate(cuts)
        for position in dict.fromkeys(positions)
    ]
    completions = engine.complete(
        [responses[number].before(position).then(suffix) for number, position in forced_at],
        early.answer_tokens,
    )
    forced = {}
    for (number, position), completion in zip(forced_at, completions, strict=True):
        response = responses[number]
        ids = (*response.completion.ids[:position], *suffix, *completion.ids)
        forced[number, position] = grade(engine.decode(ids), response.row)
    records = []
    for number, (response, positions) in enumerate(zip(responses, cuts, strict=True)):
        of_row = [
            Cut(target=target, position=position, **asdict(forced[number, position]))
            for target, position in zip(targets, positions, strict=True)
        ]
        records.append({**response.record(), "cuts": [asdict(cut) for cut in of_row]})
    return records
