"""The work of every command: open the folder, probe the rows that are not done, summarise."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from vapo_verl.analysis.statistics import PairedRates, Rate
from vapo_verl.cli_options import settings_of
from vapo_verl.console import progress_bar
from vapo_verl.data.cells import RowRules
from vapo_verl.data.control_tokens import ControlTokens, model_folder, tokenizer_tokens
from vapo_verl.evaluation.probing.engine import Engine
from vapo_verl.evaluation.probing.journal import PAGE_FILE, Journal, read_records, write_summary
from vapo_verl.evaluation.probing.probe_options import (
    EngineOptions,
    ProbeOptions,
    QuestionOptions,
)
from vapo_verl.evaluation.probing.rows import Row, batches, read_rows
from vapo_verl.files import atomic_write
from vapo_verl.plots.html import (
    NONE,
    Table,
    content_policy,
    figures_html,
    inert_json,
    plotly_script,
    resource_text,
    table_html,
)
from vapo_verl.plots.panel import Panel

Work = Callable[[Engine, Sequence[Row]], list[dict[str, Any]]]
"""Probes some rows at once; a record for each, JSON without nan, with its `row`."""
Summarise = Callable[[list[dict[str, Any]]], dict[str, Any]]


def chosen_rows(options: ProbeOptions) -> list[Row]:
    """The rows that the options draw."""
    return read_rows(
        options.data,
        num_rows=options.num_rows,
        seed=options.seed,
        answer_style=options.answer_style,
        rules=_rules(options.engine),
    )


def _rules(engine: EngineOptions) -> RowRules:
    """Rules with the control tokens of the model, if its tokenizer is available locally."""
    folder = model_folder(engine.model)
    tokens = tokenizer_tokens(folder) if folder is not None else None
    return RowRules(
        controls=ControlTokens() if tokens is None else ControlTokens(tokens),
        refuse_controls=engine.control_tokens == "refuse",
        refuse_media=True,
    )


def measure(
    rows: Sequence[Row],
    options: ProbeOptions,
    settings: Mapping[str, Any],
    work: Work,
    summarise: Summarise,
    **more: Any,
) -> dict[str, Any]:
    """Finish the rows that are not done, and write and return the summary.

    Args:
        more: as :func:`finish_rows` takes it.
    """
    finish_rows(rows, options, settings, work, **more)
    summary = summarise(read_records(options.out))
    write_summary(options.out, summary)
    return summary


def finish_rows(
    rows: Sequence[Row],
    options: ProbeOptions,
    settings: Mapping[str, Any],
    work: Work,
    *,
    images_per_row: int = 1,
    attention: bool = False,
) -> None:
    """Make `rows.jsonl` complete; the engine starts only when a row is missing.

    Args:
        settings: what the command adds to :meth:`ProbeOptions.settings`.
        images_per_row: contexts hold at most this many times the images of a row.
        attention: whether completions carry visual attention.

    Raises:
        RunError: the folder was begun with other settings.
        FileError: another process writes there.
    """
    defaults = settings_of(EngineOptions(model="")) | settings_of(QuestionOptions())
    with Journal(options.out, {**options.settings(), **settings}, defaults) as journal:
        finished = journal.finished()
        to_do = [row for row in rows if row.number not in finished]
        print(f"{len(rows):,} rows, {len(rows) - len(to_do):,} done before", flush=True)
        if not to_do:
            return
        most_images = images_per_row * max(len(row.images) for row in rows)
        with (
            Engine(options.engine, images_per_prompt=most_images, attention=attention) as engine,
            progress_bar(len(rows), unit="row", done=len(rows) - len(to_do)) as progress,
        ):
            for some in batches(to_do, options.batch):
                for record in work(engine, some):
                    journal.append(record)
                    progress.update()


def write_page(
    folder: Path, title: str, note: str, panels: Sequence[Panel], tables: Sequence[Table]
) -> Path:
    """Write `page.html` atomically and return its path."""
    plotly, script = plotly_script(), resource_text("plots.js")
    template = (files("vapo_verl.evaluation.probing") / "result.html").read_text(encoding="utf-8")
    page = Template(template).substitute(
        policy=content_policy(plotly, script),
        title=escape(title),
        style=resource_text("page.css"),
        note=escape(note),
        figures=figures_html(panels, 0),
        tables="".join(map(table_html, tables)),
        data=inert_json({"runs": [title], "panels": [asdict(panel) for panel in panels]}),
        plotly=plotly,
        script=script,
    )
    path = folder / PAGE_FILE
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")
    return path


def shown_rate(rate: Rate) -> str:
    """A rate with its interval and counts, for a cell of a table."""
    if rate["share"] is None:
        return NONE
    interval = f"{rate['low']:.3f} to {rate['high']:.3f}"
    return f"{rate['share']:.3f} ({interval}), {rate['num']} of {rate['of']}"


def shown_paired(found: PairedRates) -> str:
    """A paired difference of rates with its interval and McNemar's p."""
    interval = f"{shown_number(found['low'])} to {shown_number(found['high'])}"
    return f"{shown_number(found['difference'])} ({interval}), p {found['p']:.2g}"


def shown_difference(found: Mapping[str, Any]) -> str:
    """A paired difference of means with its interval and Student's p."""
    interval = f"{shown_number(found['low'])} to {shown_number(found['high'])}"
    return f"{shown_number(found['difference'])} ({interval}), p {shown_number(found['p_t'])}"


def shown_number(value: float | None) -> str:
    """Three significant digits; a dash for null."""
    return NONE if value is None else f"{value:.3g}"
