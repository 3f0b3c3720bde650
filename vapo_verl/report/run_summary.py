"""The report's data of one run, collected in one pass over its files."""

import hashlib
import heapq
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import yaml

from vapo_verl.analysis.position_curves import (
    AnchorAccuracy,
    AttentionCurves,
    ResponseAttention,
    response_attention,
)
from vapo_verl.evaluation.early_decision import COMMAND, EarlyDecision, load_early_decision
from vapo_verl.evaluation.probing.probe_options import FOLDER
from vapo_verl.run_folder import RunError
from vapo_verl.run_folder.layout import CONFIG_FILE, METRICS_FILE
from vapo_verl.run_folder.metrics import Metrics, read_metrics
from vapo_verl.run_folder.rollouts import (
    RewardParts,
    Rollout,
    RolloutAnchor,
    image_uri,
    read_rollouts,
    rollout_files,
)

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
MAX_TOKENS = 4096
"""Tokens shown of one response."""
MAX_PROMPT_CHARACTERS = 8000
DIGITS = 4
"""Decimals of an attention ratio or a probability on the page."""
Value = TypeVar("Value")


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
class ShownResponse:
    """One response, as the page shows it. All texts are untrusted."""

    step: int | None
    uid: str
    sample: int | None
    data_source: str
    index: int | None
    prompt: str
    tokens: list[str]
    num_tokens: int
    """Of the full response; more than `tokens` holds if it was cut."""
    attention: list[float | None]
    """One per shown token; empty if not exported."""
    ground_truth: str
    correct: bool | None
    reward: RewardParts
    anchors: list[RolloutAnchor]
    images: list[str]
    """``data:`` addresses of the prompt's images that could be read."""


class ExplorerSamples:
    """At most `size` responses of a run, half of them correct, drawn by `seed`."""

    def __init__(self, size: int, seed: int) -> None:
        sizes = {True: size // 2, False: size - size // 2}
        self._kept = {
            correct: BoundedSample[ShownResponse](part, seed) for correct, part in sizes.items()
        }
        self.num_seen = {True: 0, False: 0}

    def add(self, rollout: Rollout) -> None:
        """Count one response and keep it if it is drawn."""
        correct = bool(_is_correct(rollout.reward))
        self.num_seen[correct] += 1
        row = (rollout.step, rollout.uid, rollout.sample, rollout.data_source, rollout.index)
        key = "\t".join(map(str, row))
        kept = self._kept[correct]
        if kept.admits(key):
            kept.put(key, shown_response(rollout))

    def responses(self) -> list[ShownResponse]:
        """By step, then by prompt and sample."""
        kept = [response for part in self._kept.values() for _, response in part.items()]
        return sorted(kept, key=lambda r: (r.step or 0, r.uid, r.sample or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """One run."""

    name: str
    metrics: Metrics
    curves: AttentionCurves
    anchors: AnchorAccuracy
    prompts: PromptMeans
    explorer: ExplorerSamples
    is_paired: bool
    """Whether siblings got the same claims."""
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
        is_paired=_is_paired(run_dir / CONFIG_FILE, problems),
        early_decision=_early_decision(run_dir / FOLDER / COMMAND, problems),
        num_files=len(files),
        num_responses=0,
        problems=problems,
    )
    return _with_rollouts(summary, files)


def _is_paired(file: Path, problems: list[str]) -> bool:
    if not file.exists():
        return False
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        return bool(config["vapo"].get("anchors", {}).get("pairing") == "group")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        problems.append(f"{file.name} cannot be read: {' '.join(str(error).split())}")
        return False


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


def shown_response(rollout: Rollout) -> ShownResponse:
    """The page's view of one row; a column that the file lacks stays empty."""
    tokens = rollout.tokens or [rollout.response]
    attention, reward = rollout.attention(), rollout.reward
    known = len(attention) == len(tokens) and any(map(math.isfinite, attention))
    return ShownResponse(
        step=rollout.step,
        uid=rollout.uid,
        sample=rollout.sample,
        data_source=rollout.data_source,
        index=rollout.index,
        prompt=rollout.prompt[:MAX_PROMPT_CHARACTERS],
        tokens=tokens[:MAX_TOKENS],
        num_tokens=len(tokens),
        attention=[_rounded(value) for value in attention[:MAX_TOKENS]] if known else [],
        ground_truth=rollout.ground_truth,
        correct=_is_correct(reward),
        reward=RewardParts(**{part: _rounded(value) for part, value in asdict(reward).items()}),
        anchors=[replace(anchor, p_yes=_rounded(anchor.p_yes)) for anchor in rollout.anchors],
        images=[uri for image in rollout.images if (uri := image_uri(image))],
    )


def _is_correct(reward: RewardParts) -> bool | None:
    accuracy = reward.accuracy
    return None if accuracy is None or math.isnan(accuracy) else accuracy >= 1


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)


class BoundedSample(Generic[Value]):
    """Keeps the values of the `size` keys whose hash is smallest.

    Every key has the same chance, whatever its position in the stream. Two samples with the same
    seed prefer the same keys, so common keys of two runs stay common. An evicted key is never
    readmitted, so a multi-part value is either complete or missing.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self._size, self._seed = size, seed
        self._values: dict[str, Value] = {}
        self._largest_first: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str) -> Value | None:
        return self._values.get(key)

    def admits(self, key: str) -> bool:
        """Whether `put` would keep the key; call it first if the value is expensive."""
        if key in self._values or len(self._values) < self._size:
            return True
        return self._size > 0 and self._rank(key) < -self._largest_first[0][0]

    def put(self, key: str, value: Value) -> None:
        """Keep `value`, drop it, or evict another for it."""
        if not self.admits(key):
            return
        if key not in self._values:
            heapq.heappush(self._largest_first, (-self._rank(key), key))
        self._values[key] = value
        if len(self._values) > self._size:
            del self._values[heapq.heappop(self._largest_first)[1]]

    def items(self) -> list[tuple[str, Value]]:
        """Kept keys and values, ordered by key."""
        return sorted(self._values.items(), key=lambda item: item[0])

    def _rank(self, key: str) -> int:
        digest = hashlib.blake2b(f"{self._seed}:{key}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big")
