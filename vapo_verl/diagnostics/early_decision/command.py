"""`early-decision`: responses cut at shares of their reasoning, each cut with a forced answer."""

from __future__ import annotations

import argparse
from typing import Any

from vapo_verl.diagnostics.early_decision.records import COMMAND, load_early_decision
from vapo_verl.diagnostics.early_decision.summary import summarise
from vapo_verl.diagnostics.errors import RunError
from vapo_verl.diagnostics.panel import Panel, Series, numbers
from vapo_verl.diagnostics.probing.journal import write_summary
from vapo_verl.diagnostics.probing.options import (
    add_probe_arguments,
    probe_options,
    require_at_least,
)
from vapo_verl.diagnostics.tables import Table

DEFAULT_TIME_UP = "\nTime is up. I have to answer now.\n"
_UPPER_BOUND = (
    "The peak is chosen in these very rows and the recoverable share takes the best of many cuts:"
    " both are upper bounds."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every probing command, and how an answer is forced."""
    add_probe_arguments(parser, attention=False)
    add = parser.add_argument_group("forced answers").add_argument
    add("--num-cuts", type=int, default=21, help="evenly from 0 to 100 %% (%(default)s)")
    add("--time-up", default=DEFAULT_TIME_UP, help="text behind a cut (%(default)r)")
    add("--end-of-thinking", default="</think>", help="closing tag (%(default)r)")
    add("--answer-start", default="\n\\boxed{", help="begins the answer (%(default)r)")
    add("--answer-tokens", type=int, default=32, help="of a forced answer (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options = probe_options(arguments, COMMAND)
    require_at_least(arguments, "num_cuts", 2)
    require_at_least(arguments, "answer_tokens", 1)
    from vapo_verl.diagnostics.early_decision.probe import EarlyOptions, decide_early
    from vapo_verl.diagnostics.probing.job import finish_rows
    from vapo_verl.diagnostics.probing.page import write_page
    from vapo_verl.diagnostics.probing.rows import read_rows

    early = EarlyOptions(
        num_cuts=arguments.num_cuts,
        time_up=arguments.time_up,
        end_of_thinking=arguments.end_of_thinking,
        answer_start=arguments.answer_start,
        answer_tokens=arguments.answer_tokens,
    )
    rows = read_rows(
        options.data,
        num_rows=options.num_rows,
        seed=options.seed,
        answer_style=options.answer_style,
    )
    finish_rows(
        rows,
        options,
        early.settings(),
        lambda engine, some: decide_early(engine, some, options, early),
    )
    decision = load_early_decision(options.out)
    if decision is None:
        raise RunError(f"{options.out} holds no rows")
    summary = summarise(decision)
    write_summary(options.out, summary)
    page = write_page(
        options.out, "Early decision", _UPPER_BOUND, [_panel(summary)], [_table(summary)]
    )
    print(f"{_headline(summary)}\n{page}")
    return 0


def _headline(summary: dict[str, Any]) -> str:
    last, peak = summary["cuts"][-1]["share"]["share"], summary["peak"]
    return (
        f"{summary['num_rows']} rows: right {summary['response_accuracy']['share']:.3f}, forced at "
        f"100 % {last:.3f}, at the peak ({peak['target']:.0%}) {peak['share']['share']:.3f}"
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
        x_title="share of the reasoning before the forced answer, %",
        y_title="share right",
        series=[line],
        level=summary["response_accuracy"]["share"],
        level_name="the responses themselves",
        note="95 % intervals of Wilson.",
    )


def _table(summary: dict[str, Any]) -> Table:
    from vapo_verl.diagnostics.probing.page import shown_share

    peak, drop = summary["peak"], summary["drop_from_peak"]
    single = summary["recoverable_single"]
    return Table(
        title="Early decision in numbers",
        header=["", "value"],
        rows=[
            ["responses right", shown_share(summary["response_accuracy"])],
            ["responses cut off by --max-tokens", shown_share(summary["truncated"])],
            [
                "forced answer at 100 % is the response's own",
                shown_share(summary["forced_agrees_with_response"]),
            ],
            [f"peak, at {peak['target']:.0%}", shown_share(peak["share"])],
            [
                "100 % less the peak",
                f"{drop['difference']:.3f} ({drop['low']:.3f} to {drop['high']:.3f}),"
                f" p {drop['p']:.2g}",
            ],
            ["errors right at any cut", shown_share(summary["recoverable_any"]["of_errors"])],
            [f"errors right at {single['target']:.0%}", shown_share(single["of_errors"])],
        ],
        note=_UPPER_BOUND,
    )
