"""Convert a checkpoint in a run folder to a model folder."""

import os
import pickle
import stat
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from vapo_verl.export.card import write_card
from vapo_verl.export.source import ExportError, find_checkpoint
from vapo_verl.files import atomic_folder

_NUM_SHOWN = 5
_UNREADABLE = (
    *(EOFError, RuntimeError, ValueError, LookupError, AssertionError, AttributeError),
    *(TypeError, NotImplementedError, pickle.UnpicklingError, zipfile.BadZipFile),
)
"""What torch.load and veRL's merger raise for shards that are damaged or of another run."""


def write_model_folder(
    run_dir: Path,
    step: int | None = None,
    out: Path | None = None,
    *,
    allow_nonfinite: bool = False,
) -> Path:
    """Write a checkpoint as a Hugging Face folder; its path.

    Args:
        run_dir: a run's ``trainer.default_local_dir``.
        step: which checkpoint; the newest complete one by default.
        out: the folder to make; ``RUN_DIR/model_step_N`` by default.
        allow_nonfinite: write weights that are nan or infinite, too.

    Raises:
        ExportError: no such checkpoint, a damaged one, weights that are not finite, or ``out``
            exists already.
        OSError: ``out`` cannot be written.
    """
    checkpoint = find_checkpoint(run_dir, step)
    out = out or run_dir / f"model_step_{checkpoint.step}"
    if out.exists():
        raise ExportError(f"{out} exists already; remove it, or name another folder with --out")
    with atomic_folder(out) as temporary:
        write_card(run_dir, checkpoint.step, temporary)
        write_model(checkpoint.folder, temporary, allow_nonfinite=allow_nonfinite)
    return out


def write_model(checkpoint: Path, out: Path, *, allow_nonfinite: bool = False) -> None:
    """Write weights in bfloat16, config, tokenizer, processor and generation config to ``out``.

    Nothing of the checkpoint is executed: its shards are read as tensors only.

    Raises:
        ExportError: shards that cannot be read or do not fit together, or weights that are not
            finite.
    """
    from accelerate import init_empty_weights
    from safetensors import SafetensorError
    from verl.model_merger.base_model_merger import ModelMergerConfig
    from verl.model_merger.fsdp_model_merger import FSDPModelMerger

    class Merger(FSDPModelMerger):
        def save_hf_model_and_tokenizer(self, state_dict: Mapping[str, Any]) -> None:
            model_class = self.get_transformers_auto_model_class()
            with init_empty_weights():
                model = model_class.from_config(self.model_config)
            tied = set(getattr(model, "all_tied_weights_keys", ()))
            needed = {name: t for name, t in model.state_dict().items() if name not in tied}
            _refuse_incomplete(checkpoint, state_dict, needed)
            if not allow_nonfinite:
                _refuse_nonfinite(checkpoint, state_dict)
            super().save_hf_model_and_tokenizer(state_dict)

    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(checkpoint),
        hf_model_config_path=str(checkpoint / "huggingface"),
        target_dir=str(out),
    )
    with _tensors_only(), redirect_stdout(sys.stderr):  # stdout is for the path only
        try:
            Merger(config).merge_and_save()
        except ExportError:
            raise
        except SafetensorError as error:
            raise ExportError(
                f"{out.parent} cannot be written: {error}; free some space"
            ) from error
        except _UNREADABLE as error:
            raise ExportError(
                f"{checkpoint} cannot be merged: {type(error).__name__}: {error}; copy the "
                "checkpoint again, or export another with --step"
            ) from error
    for file in out.iterdir():
        file.chmod(file.stat().st_mode | stat.S_IRGRP | stat.S_IROTH)  # safetensors: owner only


def _refuse_incomplete(
    checkpoint: Path, given: Mapping[str, Any], needed: Mapping[str, Any]
) -> None:
    """The merger would write a folder without these tensors, and a reader draw them at random.

    Compared by shape: transformers has two sets of names for some models.
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


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make ``torch.load`` refuse pickled code, although the merger allows it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
