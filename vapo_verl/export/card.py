"""The model card: base model, settings and metrics of a checkpoint."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.export.source import ExportError
from vapo_verl.run_folder.layout import METRICS_FILE, config_file
from vapo_verl.run_folder.metrics import Metrics, read_metrics
from vapo_verl.version import __version__

SETTINGS = {
    "algorithm.adv_estimator": "advantage estimator",
    "vapo.anchors.num_anchors": "anchors per response",
    "vapo.anchors.placement": "placement of anchors",
    "vapo.anchors.gate": "responses that are probed",
    "vapo.reward.late_emphasis": "late emphasis (beta)",
    "vapo.reward.perception_weight": "perception weight (gamma)",
    "vapo.advantage.attention_coef": "weight of visual attention in the advantage",
    "actor_rollout_ref.rollout.n": "responses per prompt",
    "data.train_batch_size": "prompts per step",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "prompts per mini-batch",
    "actor_rollout_ref.actor.optim.lr": "learning rate",
    "actor_rollout_ref.actor.use_kl_loss": "KL loss",
    "actor_rollout_ref.actor.kl_loss_coef": "its coefficient",
    "data.max_prompt_length": "prompt tokens at most",
    "data.max_response_length": "response tokens at most",
    "vapo.seed": "seed",
}
"""Settings that the card states. An explicit list, so that no other setting is published."""

LEFT_OUT = "val-aux/num_turns"
METRIC_PREFIXES = ("val-core/", "val-aux/", "vapo/reward/", "vapo/anchors/accuracy")
LIBRARIES = ("verl", "transformers", "torch")

USE = """\
```python
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("THIS_FOLDER", dtype="auto")
processor = AutoProcessor.from_pretrained("THIS_FOLDER")
```

or `vllm serve THIS_FOLDER`."""

_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


def write_card(run_dir: Path, step: int, out: Path) -> None:
    """Write ``README.md`` from the config of that step and ``metrics.jsonl``.

    Raises:
        ExportError: the run folder lacks its config, or it is damaged.
    """
    file = config_file(run_dir, step)
    if not file.is_file():
        raise ExportError(f"{file} is missing, and the model card is made from it")
    try:
        config = OmegaConf.load(file)
        if not isinstance(config, DictConfig):
            raise ValueError("it holds no settings")
        text = card(config, read_metrics(run_dir / METRICS_FILE), step)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ExportError(
            f"{file} is damaged ({reason}), and the model card is made from it; restore it"
        ) from error
    (out / "README.md").write_text(text, encoding="utf-8")


def card(config: DictConfig, metrics: Metrics, step: int) -> str:
    """The card's text. It holds only the last parts of a path."""
    base = config.actor_rollout_ref.model.path
    name = config.trainer.experiment_name
    recipe = OmegaConf.select(config, "vapo.recipe") or name
    data = [*_files("training", config.data.train_files)]
    data += _files("validation", config.data.val_files)
    sections = [
        _front_matter(base),
        f"# {name}, step {step}",
        f"`{public_name(base)}` after {step} steps of the recipe `{recipe}` of vapo_verl, "
        "Vision-Anchored Policy Optimization (arXiv 2509.25848). Weights are bfloat16.",
        "## Data",
        _table(("use", "file"), data),
        "## Settings",
        _table(("setting", "value"), _settings(config)),
        f"## Metrics up to step {step}",
        _table(("metric", "step", "value"), _metrics(metrics, step)),
        "## Exported with",
        _table(("library", "version"), _versions()),
        "## Use",
        USE,
    ]
    return "\n\n".join(sections) + "\n"


def public_name(model: str) -> str:
    """A hub name unchanged; a local folder by its name, without its path."""
    cached = _HUB_CACHE.search(model)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return model if _is_hub_name(model) else PurePosixPath(model.rstrip("/")).name


def _is_hub_name(model: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", model) is not None


def _front_matter(base: str) -> str:
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "tags": ["vapo", "grpo", "reinforcement-learning"],
    }
    if "/" in public_name(base):
        fields["base_model"] = public_name(base)
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _files(use: str, files: str | Iterable[str] | None) -> list[tuple[str, str]]:
    names = [files] if isinstance(files, str) else files or []
    return [(use, "/".join(PurePosixPath(name).parts[-2:]).lstrip("/")) for name in names]


def _settings(config: DictConfig) -> list[tuple[str, str]]:
    values = ((text, OmegaConf.select(config, key)) for key, text in SETTINGS.items())
    return [(text, str(value)) for text, value in values if value is not None]


def _metrics(metrics: Metrics, step: int) -> list[tuple[str, str, str]]:
    """The last value of each metric up to that step."""
    rows = []
    for prefix in METRIC_PREFIXES:
        for name in metrics.names(prefix):
            reached = [at for at in metrics.series(name) if at <= step]
            if reached and not name.startswith(LEFT_OUT):
                value = metrics.series(name)[reached[-1]]
                rows.append((f"`{name}`", str(reached[-1]), f"{value:.4g}"))
    return rows


def _versions() -> list[tuple[str, str]]:
    return [("vapo_verl", __version__), *((library, version(library)) for library in LIBRARIES)]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
