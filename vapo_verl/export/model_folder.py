"""Convert a checkpoint in a run folder to a model folder."""

import json
import pickle
import re
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vapo_verl.data.control_tokens import spell_saved_tags
from vapo_verl.export.source import (
    Checkpoint,
    ExportError,
    find_checkpoint,
    read_adapters,
    read_weights,
)
from vapo_verl.files import atomic_folder
from vapo_verl.lora import engine_rank
from vapo_verl.patches.upstream import save_in_hub_layout
from vapo_verl.run_folder.layout import METRICS_FILE, config_file
from vapo_verl.run_folder.metrics import Metrics, read_metrics
from vapo_verl.version import __version__

_NUM_SHOWN = 5
_UNREADABLE = (
    *(EOFError, RuntimeError, ValueError, LookupError, AssertionError, AttributeError),
    *(TypeError, NotImplementedError, pickle.UnpicklingError, zipfile.BadZipFile),
)
"""What torch.load and veRL's merger raise for shards that are damaged or of another run."""
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
    "data.min_pixels": "pixels of an image at least",
    "data.max_pixels": "pixels of an image at most",
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

or `vllm serve THIS_FOLDER --generation-config vllm`, which samples as in training."""
USE_ADAPTER = """\
```python
from peft import PeftModel
from transformers import AutoModelForImageTextToText

base = AutoModelForImageTextToText.from_pretrained("BASE_MODEL", dtype="auto")
model = PeftModel.from_pretrained(base, "THIS_FOLDER")
```

or the following, with the limits of images in `processor_config.json` (`image_processor.size`).
vLLM takes chat template and limits of BASE_MODEL otherwise.

```bash
vllm serve BASE_MODEL --enable-lora --max-lora-rank RANK --lora-modules NAME=THIS_FOLDER \\
  --generation-config vllm --chat-template THIS_FOLDER/chat_template.jinja \\
  --mm-processor-kwargs '{"min_pixels": SHORTEST_EDGE, "max_pixels": LONGEST_EDGE}'
```"""
DTYPES = ("bfloat16", "float32")
PROCESSOR_FILE = "processor_config.json"
"""The one file of a processor that transformers 5 saves."""
_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


def write_model_folder(
    run_dir: Path,
    step: int | None = None,
    out: Path | None = None,
    *,
    allow_nonfinite: bool = False,
    dtype: str = DTYPES[0],
    adapter: bool = False,
) -> Path:
    """Write a checkpoint as a Hugging Face folder; returns its path.

    Adapters (LoRA) are merged into the weights, unless ``adapter``.

    Args:
        run_dir: a run's ``trainer.default_local_dir``.
        step: which checkpoint; the newest complete one by default.
        out: the folder to make; ``RUN_DIR/model_step_N`` by default, or ``adapter_step_N``.
        allow_nonfinite: write weights that are nan or infinite, too.
        dtype: of the weights, one of :data:`DTYPES`. Adapters keep their training dtype.
        adapter: write the adapters alone, as peft does.

    Raises:
        ExportError: no such checkpoint, a damaged one, weights that are not finite, or ``out``
            exists already.
        OSError: ``out`` cannot be written.
    """
    checkpoint = find_checkpoint(run_dir, step)
    out = out or run_dir / f"{'adapter' if adapter else 'model'}_step_{checkpoint.step}"
    if out.exists():
        raise ExportError(f"{out} exists already; remove it, or name another folder with --out")
    with atomic_folder(out) as temporary:
        what = _what(checkpoint, dtype, adapter=adapter)
        use = USE
        if adapter and checkpoint.lora is not None:
            use = USE_ADAPTER.replace("RANK", str(engine_rank(checkpoint.lora.rank)))
        base = write_card(run_dir, checkpoint.step, temporary, what=what, use=use)
        with _readable(checkpoint, temporary):
            if adapter:
                write_adapter(checkpoint, temporary, base, allow_nonfinite=allow_nonfinite)
            else:
                write_model(checkpoint, temporary, dtype=dtype, allow_nonfinite=allow_nonfinite)
        config = OmegaConf.load(config_file(run_dir, checkpoint.step))  # the card has read it
        setting = OmegaConf.select(config, "vapo.data.plain_think_tokens")
        spell_saved_tags(temporary, "false" if setting is None else setting)
        limits = (OmegaConf.select(config, f"data.{name}") for name in ("min_pixels", "max_pixels"))
        write_image_limits(temporary, *limits)
    return out


def write_image_limits(folder: Path, least: int | None, most: int | None) -> None:
    """Make a saved processor resize images as a run with these limits does.

    A run resizes an image within its own limits, and then within those of the processor. So the
    latter stay where they are narrower. Settings of videos are not changed.

    Args:
        least, most: `data.min_pixels` and `data.max_pixels`; None leaves the processor's own.
    """
    file = folder / PROCESSOR_FILE
    if (least is None and most is None) or not file.is_file():
        return
    stated = json.loads(file.read_text(encoding="utf-8"))
    size = stated["image_processor"]["size"]
    own = size["shortest_edge"], size["longest_edge"]  # numbers of pixels, despite the names
    for edge, limit in (("shortest_edge", least), ("longest_edge", most)):
        if limit is not None:
            size[edge] = min(max(limit, own[0]), own[1])
    file.write_text(json.dumps(stated, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _what(checkpoint: Checkpoint, dtype: str, *, adapter: bool) -> str:
    """The card's sentence on the weights."""
    weights = f"Weights are {dtype}."
    if checkpoint.lora is None:
        return weights
    size = f"rank {checkpoint.lora.rank}, alpha {checkpoint.lora.alpha}"
    if adapter:
        return f"Adapters alone (LoRA): {size}."
    return f"{weights} Adapters (LoRA: {size}) are merged into them."


def write_adapter(
    checkpoint: Checkpoint, out: Path, base: str, *, allow_nonfinite: bool = False
) -> None:
    """Write the adapters as peft does, with tokenizer and processor.

    Args:
        base: name of the model that they belong to.

    Raises:
        ExportError: there are none, or they are not finite.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file
    from verl.utils import hf_processor, hf_tokenizer

    adapters = read_adapters(checkpoint)
    tensors = {}
    for layer, adapter in adapters.items():
        for part, tensor in (("lora_A", adapter.a), ("lora_B", adapter.b)):
            tensors[f"base_model.model.{layer}.{part}.weight"] = tensor.contiguous()
    if not allow_nonfinite:
        _refuse_nonfinite(checkpoint.folder, tensors)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
    assert checkpoint.lora is not None, "adapters without a rank"
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
        r=checkpoint.lora.rank,
        lora_alpha=checkpoint.lora.alpha,
        target_modules=sorted(adapters),  # full names: a suffix could also match a vision layer
        inference_mode=True,
    ).save_pretrained(str(out))
    for read in (hf_processor, hf_tokenizer):
        read(str(checkpoint.folder / "huggingface")).save_pretrained(out)


def write_model(
    checkpoint: Checkpoint, out: Path, *, dtype: str = DTYPES[0], allow_nonfinite: bool = False
) -> None:
    """Write weights, config, tokenizer, processor and generation config to ``out``.

    Nothing of the checkpoint is executed: its shards are read as tensors only.

    Raises:
        ExportError: shards that cannot be read or do not fit together, or weights that are not
            finite.
    """
    import torch
    from accelerate import init_empty_weights
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    class Merger(FSDPModelMerger):
        def save_hf_model_and_tokenizer(self, state_dict: Mapping[str, Any]) -> None:
            model_class = self.get_transformers_auto_model_class()
            with init_empty_weights():
                model = model_class.from_config(self.model_config)
            tied = set(getattr(model, "all_tied_weights_keys", ()))
            needed = {name: t for name, t in model.state_dict().items() if name not in tied}
            _refuse_incomplete(checkpoint.folder, state_dict, needed)
            if not allow_nonfinite:
                _refuse_nonfinite(checkpoint.folder, state_dict)
            super().save_hf_model_and_tokenizer(state_dict)

        def patch_model_generation_config(self, model: Any) -> Any:
            """veRL's hook for the model that it saves."""
            save_in_hub_layout(model)
            return super().patch_model_generation_config(model)

    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(checkpoint.folder),
        hf_model_config_path=str(checkpoint.folder / "huggingface"),
        target_dir=str(out),
    )
    Merger(config).save_hf_model_and_tokenizer(read_weights(checkpoint, getattr(torch, dtype)))
    if dtype != DTYPES[0]:  # veRL's merger writes this one into the config
        file = out / "config.json"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(f'"dtype": "{DTYPES[0]}"', f'"dtype": "{dtype}"'))


@contextmanager
def _readable(checkpoint: Checkpoint, out: Path) -> Iterator[None]:
    """Turn errors of reading shards and writing files into ExportError; nothing to stdout."""
    from safetensors import SafetensorError

    with redirect_stdout(sys.stderr):  # stdout is for the path only
        try:
            yield
        except ExportError:
            raise
        except SafetensorError as error:
            raise ExportError(
                f"{out.parent} cannot be written: {error}; free some space"
            ) from error
        except _UNREADABLE as error:
            raise ExportError(
                f"{checkpoint.folder} cannot be merged: {type(error).__name__}: {error}; copy the "
                "checkpoint again, or export another with --step"
            ) from error
    for file in out.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)  # safetensors: owner only


def _refuse_incomplete(
    checkpoint: Path, given: Mapping[str, Any], needed: Mapping[str, Any]
) -> None:
    """Refuse missing tensors: the merger would leave them out, and loaders draw them at random.

    Tensors are compared by shape: transformers has two sets of names for some models.
    """
    missing = Counter(tuple(tensor.shape) for tensor in needed.values())
    missing -= Counter(tuple(tensor.shape) for tensor in given.values())
    if not missing:
        return
    by_name = sorted(set(needed) - set(given)) if set(needed) & set(given) else []
    what = by_name or [f"of shape {list(shape)}" for shape in missing]
    shown = ", ".join(what[:_NUM_SHOWN]) + (", ..." if len(what) > _NUM_SHOWN else "")
    raise ExportError(
        f"{checkpoint} lacks {missing.total()} of the {len(needed)} tensors of the model in its "
        f"huggingface/config.json: {shown}; copy the checkpoint again, or export another with "
        "--step"
    )


def _refuse_nonfinite(checkpoint: Path, weights: Mapping[str, Any]) -> None:
    import torch

    broken = {
        name: int((~torch.isfinite(tensor)).sum())
        for name, tensor in sorted(weights.items())
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    }
    if broken:
        shown = ", ".join(f"{name} ({count})" for name, count in list(broken.items())[:_NUM_SHOWN])
        more = ", ..." if len(broken) > _NUM_SHOWN else ""
        raise ExportError(
            f"{checkpoint}: {len(broken)} of {len(weights)} tensors hold values that are nan or "
            f"infinite: {shown}{more}; the training has diverged: export an earlier one with "
            "--step, or write them all the same with --allow-nonfinite"
        )


def write_card(
    run_dir: Path, step: int, out: Path, *, what: str = "Weights are bfloat16.", use: str = USE
) -> str:
    """Write ``README.md`` from that step's config and ``metrics.jsonl``; returns the base's name.

    Args:
        what: a sentence on the weights.
        use: how they are loaded.

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
        text = card(config, read_metrics(run_dir / METRICS_FILE), step, what=what, use=use)
    except (ValueError, TypeError, AttributeError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ExportError(
            f"{file} is damaged ({reason}), and the model card is made from it; restore it"
        ) from error
    (out / "README.md").write_text(text, encoding="utf-8")
    return public_name(config.actor_rollout_ref.model.path)


def card(
    config: DictConfig,
    metrics: Metrics,
    step: int,
    *,
    what: str = "Weights are bfloat16.",
    use: str = USE,
) -> str:
    """The card's text. Paths are cut to their last parts."""
    base = config.actor_rollout_ref.model.path
    name = config.trainer.experiment_name
    recipe = OmegaConf.select(config, "vapo.recipe") or name
    data = [*_files("training", config.data.train_files)]
    data += _files("validation", config.data.val_files)
    sections = [
        _front_matter(base),
        f"# {name}, step {step}",
        f"`{public_name(base)}` after {step} steps of the recipe `{recipe}` of vapo_verl, "
        f"Vision-Anchored Policy Optimization (arXiv 2509.25848). {what}",
        "## Data",
        _table(("use", "file"), data),
        "## Settings",
        _table(("setting", "value"), _settings(config)),
        f"## Metrics up to step {step}",
        _table(("metric", "step", "value"), _metrics(metrics, step)),
        "## Exported with",
        _table(("library", "version"), _versions()),
        "## Use",
        use,
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
