"""The report's data of one run, collected in one pass over its files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vapo_verl.analysis.anchor_accuracy import AnchorAccuracy
from vapo_verl.analysis.attention_curves import (
    AttentionCurves,
    ResponseAttention,
    response_attention,
)
from vapo_verl.evaluation.early_decision import COMMAND, EarlyDecision, load_early_decision
from vapo_verl.evaluation.probing.probe_options import FOLDER
from vapo_verl.report.explorer_samples import BoundedSample, ExplorerSamples
from vapo_verl.run_folder import RunError
from vapo_verl.run_folder.layout import METRICS_FILE
from vapo_verl.run_folder.metrics import Metrics, read_metrics
from vapo_verl.run_folder.rollouts import Rollout, read_rollouts, rollout_files

MAX_PROMPTS = 20_000
QUANTITIES = (
    "accuracy",
    "format",
    "total reward",
    "response tokens",
    "anchor accuracy",
    "visual attention",
    "attention slope",
    "attention late / early",
)
"""Per response; each nan if the response has none."""


class PromptMeans:
    """Sums per (step, data source, index), of at most `MAX_PROMPTS` such prompts."""

    def __init__(self, max_prompts: int = MAX_PROMPTS) -> None:
        self._sums: BoundedSample[list[list[float]]] = BoundedSample(max_prompts)
        self._num_rows = 0

    def __len__(self) -> int:
        return len(self._sums)

    def add(self, rollout: Rollout, num_tokens: int, attention: ResponseAttention) -> None:
        """Count one response."""
        prompt = (rollout.step, rollout.data_source, rollout.index)
        key = "\t".join(map(str, prompt if rollout.index is not None else (*prompt, rollout.uid)))
        if not self._sums.admits(key):
            return
        sums = self._sums.get(key) or [[0.0, 0.0] for _ in QUANTITIES]
        for total, value in zip(sums, _quantities(rollout, num_tokens, attention), strict=True):
            if math.isfinite(value):
                total[0] += value
                total[1] += 1
        self._sums.put(key, sums)

    def means(self, quantity: str) -> dict[str, float]:
        """Prompt -> mean over its responses; a prompt without a value is absent."""
        column = QUANTITIES.index(quantity)
        sums = {key: values[column] for key, values in self._sums.items()}
        return {key: total / count for key, (total, count) in sums.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run."""

    name: str
    metrics: Metrics
    curves: AttentionCurves
    anchors: AnchorAccuracy
    prompts: PromptMeans
    explorer: ExplorerSamples
    early_decision: EarlyDecision | None
    """None if the command has not been run."""
    num_files: int
    num_responses: int
    problems: list[str]
    """One sentence for each unreadable file or line."""


def summarise_run(
    run_dir: Path, *, name: str, num_samples: int, seed: int, rollouts_of: range | None = None
) -> RunSummary:
    """Read a run folder, also of an unfinished or interrupted run.

    Memory does not grow with the number of rollout files, except for one path each.

    Args:
        num_samples: responses kept for the explorer, drawn by `seed`.
        rollouts_of: read the rollouts of these steps only; all metrics are read.

    Raises:
        RunError: no folder, or one that has neither metrics nor rollouts.
    """
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} is no folder; give a run's trainer.default_local_dir")
    files = rollout_files(run_dir, rollouts_of)
    if not files and not (run_dir / METRICS_FILE).exists():
        raise RunError(
            f"{run_dir} has neither {METRICS_FILE} nor rollouts/step_*.parquet: it is no run"
            " folder, or its first step has not finished; give a run's trainer.default_local_dir"
        )
    problems: list[str] = []
    metrics = read_metrics(run_dir / METRICS_FILE)
    if metrics.num_broken_lines:
        problems.append(
            f"{METRICS_FILE}: {metrics.num_broken_lines} incomplete line(s) are left out;"
            " the run is writing, or was killed while it wrote."
        )
    summary = RunSummary(
        name=name,
        metrics=metrics,
        curves=AttentionCurves(),
        anchors=AnchorAccuracy(),
        prompts=PromptMeans(),
        explorer=ExplorerSamples(num_samples, seed),
        early_decision=_early_decision(run_dir / FOLDER / COMMAND, problems),
        num_files=len(files),
        num_responses=0,
        problems=problems,
    )
    return _with_rollouts(summary, files)


def _early_decision(folder: Path, problems: list[str]) -> EarlyDecision | None:
    try:
        return load_early_decision(folder)
    except (RunError, OSError) as error:
        problems.append(str(error))
        return None


def _with_rollouts(summary: RunSummary, files: Sequence[Path]) -> RunSummary:
    num_responses = 0
    for rollout in read_rollouts(files, summary.problems):
        ratio = rollout.attention()
        num_tokens = rollout.num_tokens()
        summary.curves.add(ratio, rollout.layer_attention(), rollout.layers)
        summary.anchors.add(rollout.anchors, num_tokens)
        summary.prompts.add(rollout, num_tokens, response_attention(ratio))
        summary.explorer.add(rollout)
        num_responses += 1
    if summary.curves.num_other_layers:
        summary.problems.append(
            f"{summary.curves.num_other_layers} response(s) were captured at other layers and are"
            " not in the heat map."
        )
    return replace(summary, num_responses=num_responses)


def _quantities(rollout: Rollout, num_tokens: int, attention: ResponseAttention) -> list[float]:
    reward = rollout.reward
    answers = [anchor.correct for anchor in rollout.anchors if anchor.correct is not None]
    return [
        _number(reward.accuracy),
        _number(reward.format),
        _number(reward.total),
        float(num_tokens),
        sum(answers) / len(answers) if answers else math.nan,
        attention.mean,
        attention.slope,
        attention.late_over_early,
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
