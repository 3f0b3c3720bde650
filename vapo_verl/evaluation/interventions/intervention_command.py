"""`interventions`: responses with the image shown again or a reminder, against plain ones."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from vapo_verl.analysis.statistics import finite, paired_difference, paired_rates, rate_of
from vapo_verl.cli_options import settings_of
from vapo_verl.evaluation.interventions import COMMAND, INTERVENTIONS, PLAIN, InterventionOptions
from vapo_verl.evaluation.probing.attention_summary import attention_summary
from vapo_verl.evaluation.probing.probe_options import (
    ProbeOptions,
    add_command_arguments,
    read_command_options,
)

Record = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of every probing command, and those for insertions."""
    add_command_arguments(parser, InterventionOptions, "insertions", attention=True)


def run(arguments: argparse.Namespace) -> int:
    """The command."""
    options, interventions = read_command_options(arguments, COMMAND, InterventionOptions)
    summary = measure_interventions(options, interventions)
    rates = ", ".join(
        f"{name} {of['accuracy']['share']:.3f}" for name, of in summary["responses"].items()
    )
    print(f"{summary['num_rows']} rows, correct: {rates}")
    print(_page(options.out, summary))
    return 0


def measure_interventions(
    options: ProbeOptions, interventions: InterventionOptions
) -> dict[str, Any]:
    """Probe the rows that are not done; write and return the summary."""
    from vapo_verl.evaluation.interventions.intervention_probe import apply_interventions
    from vapo_verl.evaluation.probing.job import chosen_rows, measure

    return measure(
        chosen_rows(options),
        options,
        settings_of(interventions),
        lambda engine, rows: apply_interventions(engine, rows, options, interventions),
        summarise,
        images_per_row=1 + interventions.num_insertions,
        attention=True,
    )


def _page(folder: Path, summary: dict[str, Any]) -> Path:
    from vapo_verl.evaluation.probing.attention_summary import attention_panels
    from vapo_verl.evaluation.probing.job import write_page

    responses = summary["responses"]
    panels = attention_panels({name: of["attention"] for name, of in responses.items()})
    note = (
        f"{summary['num_rows']} rows, each answered plainly, with the image shown again at even"
        " positions (replay), and with a reminder to look there (focus)."
    )
    tables = [_each(responses), _paired(summary["against_plain"])]
    return write_page(folder, "Interventions", note, panels, tables)


def _each(responses: dict[str, Any]) -> Any:
    from vapo_verl.evaluation.probing.job import shown_number, shown_rate
    from vapo_verl.plots.html import Table

    return Table(
        title="Responses",
        header=["", "correct", "cut off", "tokens", "insertions", "attention", "late / early"],
        rows=[
            [
                name,
                shown_rate(of["accuracy"]),
                shown_rate(of["truncated"]),
                f"{of['mean_tokens']:.1f}",
                f"{of['mean_insertions']:.2f}",
                shown_number(of["attention"]["mean"]),
                shown_number(of["attention"]["late_over_early"]),
            ]
            for name, of in responses.items()
        ],
        note="Tokens that the model wrote, without insertions.",
    )


def _paired(against_plain: dict[str, Any]) -> Any:
    from vapo_verl.evaluation.probing.job import shown_difference, shown_paired
    from vapo_verl.plots.html import Table

    return Table(
        title="Against plain responses of the same rows",
        header=["", "accuracy", "gained", "lost", "tokens"],
        rows=[
            [
                name,
                shown_paired(found["accuracy"]),
                str(found["accuracy"]["gained"]),
                str(found["accuracy"]["lost"]),
                shown_difference(found["num_tokens"]),
            ]
            for name, found in against_plain.items()
        ],
        note="95 % intervals; p: McNemar's exact test of accuracy, Student's for pairs of tokens.",
    )


def summarise(records: Sequence[Record]) -> dict[str, Any]:
    """The content of `summary.json`, from at least one record.

    `responses` has the results of each kind. `against_plain` has, for each intervention,
    `accuracy`: the paired difference and McNemar's test, and `num_tokens`: the paired difference
    in tokens that the model wrote.
    """
    return {
        "num_rows": len(records),
        "responses": {name: _of(records, name) for name in (PLAIN, *INTERVENTIONS)},
        "against_plain": {
            name: {
                "accuracy": paired_rates(_right(records, PLAIN), _right(records, name)),
                "num_tokens": finite(
                    asdict(
                        paired_difference(
                            "num_tokens", _lengths(records, PLAIN), _lengths(records, name)
                        )
                    )
                ),
            }
            for name in INTERVENTIONS
        },
    }


def _of(records: Sequence[Record], name: str) -> dict[str, Any]:
    responses = [record["responses"][name] for record in records]
    return {
        "accuracy": rate_of([response["right"] for response in responses]),
        "truncated": rate_of([response["finish"] == "length" for response in responses]),
        "mean_tokens": float(np.mean([response["num_tokens"] for response in responses])),
        "mean_insertions": float(np.mean([len(response["insertions"]) for response in responses])),
        "attention": attention_summary(response["attention"] for response in responses),
    }


def _right(records: Sequence[Record], name: str) -> np.ndarray:
    return np.array([record["responses"][name]["right"] for record in records], dtype=bool)


def _lengths(records: Sequence[Record], name: str) -> dict[int, float]:
    return {record["row"]: float(record["responses"][name]["num_tokens"]) for record in records}
