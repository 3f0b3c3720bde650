"""Rollouts in a folder: a step's responses as they were trained, and training on them again.

``vapo.debug.save_rollouts=DIR`` writes every step's batch, ``vapo.debug.train_only=DIR`` trains on
such batches without an engine. A folder ``step_000017`` holds ``rows.json`` (all fields of the
responses and what their prompts share, with their tensors by name), ``tensors.safetensors``, and
``meta.json`` (versions, seeds and checksums). Nothing in them is code: no pickle is read.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from verl.trainer.ppo.v1 import register_trainer

from vapo_verl.console import say
from vapo_verl.files import atomic_folder, sha256_of
from vapo_verl.rollout.prompts import PROMPTS, uid_of
from vapo_verl.rollout.transfer import KVBatchMeta, put_rows, read_rows
from vapo_verl.run_folder.resume import start_of
from vapo_verl.trainer.replay_buffer import FAILED
from vapo_verl.trainer.trainer import VapoTrainer

FORMAT, FORMAT_VERSION = "vapo_verl rollouts", 1
META_FILE, ROWS_FILE, TENSORS_FILE = "meta.json", "rows.json", "tensors.safetensors"
PACKAGES = ("verl", "vllm", "torch", "transformers")
KEY = "vapo.debug.train_only"
REWARD_KEYS = (
    *("vapo.reward.accuracy_weight", "vapo.reward.format_weight"),
    *("vapo.reward.perception_weight", "vapo.reward.perception_source", "vapo.anchors.gate"),
)
"""Settings that a reward is composed by; metrics and normalisation split it up by them again."""

Row = dict[str, Any]


class SavedRolloutsError(ValueError):
    """A folder that holds no saved rollouts, damaged ones, or those of another model."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedStep:
    """The responses of a step, without padding."""

    step: int
    keys: list[str]
    tags: list[dict[str, Any]]
    """Tags in the replay buffer, one for each key."""
    rows: list[Row]
    """All fields of the responses."""
    prompts: dict[str, Row]
    """What the responses to a prompt share, by the prompt's uid."""


def step_folder(folder: Path, step: int) -> Path:
    """Where a step's rollouts are."""
    return folder / f"step_{step:06d}"


def write_step(folder: Path, saved: SavedStep, origin: Mapping[str, Any]) -> Path:
    """Write a step's rollouts; those of an earlier attempt at the same step are replaced.

    Args:
        origin: what is recorded of the run: model, vocabulary, seeds.

    Raises:
        SavedRolloutsError: the target holds something else.
        ValueError: a field cannot be saved; with its name.
    """
    target = step_folder(folder, saved.step)
    tensors: dict[str, torch.Tensor] = {}
    rows = {
        "keys": saved.keys,
        "tags": saved.tags,
        "rows": [_packed(row, tensors, "") for row in saved.rows],
        "prompts": {uid: _packed(row, tensors, "") for uid, row in saved.prompts.items()},
    }
    if target.exists():
        _meta(target)  # raises if it is not ours to remove
        rmtree(target)
    with atomic_folder(target) as temporary:
        (temporary / ROWS_FILE).write_text(json.dumps(rows))
        save_file(tensors, temporary / TENSORS_FILE)
        meta = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "step": saved.step,
            "num_responses": len(saved.keys),
            "num_prompts": len(saved.prompts),
            "versions": {name: version(name) for name in PACKAGES},
            **origin,
            "sha256": {name: sha256_of(temporary / name) for name in (ROWS_FILE, TENSORS_FILE)},
        }
        (temporary / META_FILE).write_text(json.dumps(meta, indent=2) + "\n")
    return target


def read_step(folder: Path, step: int) -> SavedStep:
    """A step's rollouts, with the values and types that were written.

    Raises:
        SavedRolloutsError: there are none, or a file is damaged.
    """
    source = step_folder(folder, step)
    _verified(source)
    try:
        rows = json.loads((source / ROWS_FILE).read_text())
        tensors = load_file(source / TENSORS_FILE)
        return SavedStep(
            step=step,
            keys=rows["keys"],
            tags=rows["tags"],
            rows=[_unpacked(row, tensors) for row in rows["rows"]],
            prompts={uid: _unpacked(row, tensors) for uid, row in rows["prompts"].items()},
        )
    except (ValueError, LookupError, TypeError, SafetensorError) as error:
        raise SavedRolloutsError(f"{source}: not what its {META_FILE} says ({error})") from error


def saved_steps(folder: Path) -> list[int]:
    """The steps of a folder.

    Raises:
        SavedRolloutsError: it holds none.
    """
    names = [path.name for path in folder.glob("step_*") if path.is_dir()]
    steps = sorted(int(name[5:]) for name in names if name[5:].isdecimal())
    if not steps:
        raise SavedRolloutsError(
            f"{KEY}={folder} holds no saved rollouts; give a folder that "
            "vapo.debug.save_rollouts has written"
        )
    return steps


def check_saved(config: DictConfig) -> None:
    """Refuse a folder that the run cannot train on, before a process starts.

    Raises:
        SavedRolloutsError: it is absent, foreign or damaged, or lacks steps.
    """
    folder = Path(config.vapo.debug.train_only)
    steps, total = saved_steps(folder), config.trainer.total_training_steps
    for step in steps:
        meta = _verified(step_folder(folder, step))
        differing = {
            name: f"{meta['versions'].get(name)} -> {version(name)}"
            for name in PACKAGES
            if meta["versions"].get(name) != version(name)
        }
        if differing:
            say(f"WARNING: {step_folder(folder, step)} was saved with other versions: {differing}")
        saved = meta.get("reward", {})  # absent in older folders
        for key, value in _reward_settings(config).items():
            if saved.get(key, value) != value:
                raise SavedRolloutsError(
                    f"{key}={value}, and the rewards in {step_folder(folder, step)} were put "
                    f"together by {saved[key]}: they are used as they are; set {key}={saved[key]}"
                )
    first = start_of(config.trainer).step + 1
    missing = {*range(first, (total or 0) + 1)} - {*steps} if len(steps) > 1 else set()
    if total is None or missing:
        last = first - 1
        while last + 1 in steps:
            last += 1
        lacks = f", not step {min(missing)}" if missing and min(missing) < steps[-1] else ""
        fix = (
            f"set trainer.total_training_steps={last if len(steps) > 1 else steps[-1]}"
            if last >= first or len(steps) == 1
            else f"save step {first}, or give a folder that has it"
        )
        raise SavedRolloutsError(
            f"trainer.total_training_steps={total}, and {KEY}={folder} holds the steps "
            f"{', '.join(map(str, steps))}{lacks}; {fix}"
        )


def _verified(folder: Path) -> dict[str, Any]:
    """The metadata of a step, after a check that its files are as they were written."""
    meta = _meta(folder)
    for name in (ROWS_FILE, TENSORS_FILE):
        file = folder / name
        if not file.is_file() or sha256_of(file) != meta["sha256"].get(name):
            raise SavedRolloutsError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}; save the step again"
            )
    return meta


def _meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META_FILE).read_text())
        parts = meta["sha256"], meta["versions"]
        is_ours = meta["format"] == FORMAT and all(isinstance(part, dict) for part in parts)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SavedRolloutsError(f"{folder} holds no saved rollouts ({error})") from error
    if not is_ours or meta.get("version") != FORMAT_VERSION:
        raise SavedRolloutsError(
            f"{folder} has the format {meta['format']!r}, version {meta.get('version')!r}; this "
            f"package reads {FORMAT!r}, version {FORMAT_VERSION}"
        )
    return meta


_PLAIN = (bool, int, float, str)
_NOT_SAVED = "vapo.debug.save_rollouts: {} is a {}, which cannot be saved"


def _packed(value: Any, tensors: dict[str, torch.Tensor], place: str) -> Any:
    """JSON of a value; its tensors, arrays and bytes go to `tensors`, and are named in it."""
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, np.generic):
        return _packed(value.item(), tensors, place)
    if isinstance(value, Mapping):
        for key in value:
            if not (key is None or type(key) in _PLAIN):
                place = f"{place}: the key {key!r}"
                raise ValueError(_NOT_SAVED.format(place[1:], type(key).__name__))
        pairs = [[k, _packed(v, tensors, f"{place}.{k}")] for k, v in value.items()]
        return ["mapping", pairs]
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return [kind, [_packed(item, tensors, place) for item in value]]
    if isinstance(value, np.ndarray) and value.dtype.kind in "OUS":
        if value.ndim == 1:
            return ["objects", [_packed(item, tensors, place) for item in value.tolist()]]
    elif isinstance(value, torch.Tensor | np.ndarray | bytes):
        kind = type(value).__name__ if isinstance(value, bytes | np.ndarray) else "tensor"
        array = _bytes(value) if isinstance(value, bytes) else value
        name = str(len(tensors))
        tensors[name] = torch.as_tensor(array).detach().contiguous().clone()
        return [kind, name]
    raise ValueError(_NOT_SAVED.format(place[1:], type(value).__name__))


def _bytes(value: bytes) -> torch.Tensor:
    """uint8 [N]; torch refuses an empty buffer."""
    return torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0).byte()


def _unpacked(packed: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The inverse of :func:`_packed`."""
    if not isinstance(packed, list):
        return packed
    kind, content = packed
    if kind == "mapping":
        return {name: _unpacked(value, tensors) for name, value in content}
    if kind in ("list", "tuple", "objects"):
        items = [_unpacked(item, tensors) for item in content]
        if kind == "objects":
            array = np.empty(len(items), dtype=object)
            array[:] = items
            return array
        return tuple(items) if kind == "tuple" else items
    tensor = tensors[content].clone()
    if kind == "tensor":
        return tensor
    return tensor.numpy().tobytes() if kind == "bytes" else tensor.numpy()


def _reward_settings(config: DictConfig) -> dict[str, Any]:
    """The settings that a reward is composed by."""
    return {key: OmegaConf.select(config, key) for key in REWARD_KEYS}


def origin_of(config: DictConfig, num_tokens: int) -> dict[str, Any]:
    """What is recorded of a run beside the versions."""
    return {
        "model": config.actor_rollout_ref.model.path,
        "vocabulary": num_tokens,
        "reward": _reward_settings(config),
        "seeds": {
            "vapo.seed": config.vapo.seed,
            "vapo.seeded_sampling": config.vapo.seeded_sampling,
            "data.seed": config.data.seed,
            "actor_rollout_ref.rollout.seed": config.actor_rollout_ref.rollout.seed,
        },
    }


class NoAgentLoops:
    """Replaces the manager of agent loops: nothing is generated."""

    def __init__(self) -> None:
        self.expected: dict[str, int] = {}
        self.agent_loop_workers: list[Any] = []
        self.after_dispatch: Any = None

    @classmethod
    def create(cls, **_: Any) -> "NoAgentLoops":
        """As veRL makes a manager."""
        return cls()


class NoEngine:
    """Replaces veRL's manager of weight transfers: there is no engine."""

    def sleep_replicas(self) -> None:
        """There is no engine to sleep."""

    def update_weights(self, global_steps: int) -> None:
        """There is no engine to receive them."""


class SavedBuffer:
    """Replaces the replay buffer: the responses of a step are those of a folder."""

    def __init__(self, folder: Path, num_tokens: int) -> None:
        self._folder, self._num_tokens = folder, num_tokens
        self._steps = saved_steps(folder)
        self.num_failed = Counter[str]()

    def watch(self, **_: Any) -> None:
        """Nothing is waited for."""

    def sample(
        self, global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[KVBatchMeta, dict[str, Any]]:
        """The saved responses of this step; if the folder has only one step, of that one.

        Raises:
            SavedRolloutsError: the step is not there, is damaged, or is of another tokenizer.
        """
        step = self._steps[0] if len(self._steps) == 1 else global_steps
        source = step_folder(self._folder, step)
        if (given := _meta(source).get("vocabulary")) != self._num_tokens:
            raise SavedRolloutsError(
                f"{source} has token ids of a tokenizer of {given} tokens, and that of "
                f"actor_rollout_ref.model.path has {self._num_tokens}; give the model it was "
                "saved with"
            )
        saved = read_step(self._folder, step)
        put_rows(list(saved.prompts), PROMPTS, list(saved.prompts.values()))
        put_rows(saved.keys, partition_id, saved.rows, saved.tags)
        say(f"training on {len(saved.keys)} responses of {source}")
        batch = KVBatchMeta(
            partition_id=partition_id, keys=list(saved.keys), tags=[dict(t) for t in saved.tags]
        )
        return batch, {FAILED: 0}


@register_trainer("vapo_replay")
class ReplayTrainer(VapoTrainer):
    """Trains on saved rollouts, with actor and reference but without engines and agent loops."""

    def _init_resource_pool_mgr(self) -> None:
        super()._init_resource_pool_mgr()
        self._enable_hybrid_replicas = False  # veRL then starts no engine on the actor's devices

    def _setup(self) -> None:
        self.config.actor_rollout_ref.rollout.nnodes = 1  # veRL requires it without an engine
        super()._setup()
        self.checkpoint_manager = NoEngine()
        folder = Path(self.config.vapo.debug.train_only)
        self.replay_buffer = SavedBuffer(folder, len(self.tokenizer))

    def prepare_step(self) -> dict[str, Any]:
        """No prompts are sent anywhere."""
        return {}


@register_trainer("vapo_saving")
class SavingTrainer(VapoTrainer):
    """Saves each step's batch before veRL pads it."""

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        tags = dict(zip(batch.keys, batch.tags, strict=True))
        keys = sorted(tags)  # the order of arrival differs from run to run
        uids = sorted(set(map(uid_of, keys)))
        saved = SavedStep(
            step=self.global_steps,
            keys=keys,
            tags=[dict(tags[key]) for key in keys],
            rows=read_rows(keys, batch.partition_id),
            prompts=dict(zip(uids, read_rows(uids, PROMPTS), strict=True)),
        )
        origin = origin_of(self.config, len(self.tokenizer))
        target = write_step(Path(self.vapo.debug.save_rollouts), saved, origin)
        say(f"saved {len(saved.keys)} responses in {target}")
        return super()._balance_batch(batch, *args, **kwargs)


def without_engine(config: DictConfig) -> None:
    """Leave out what needs an engine: agent loops, validation, the check of the question."""
    config.trainer.val_before_train, config.trainer.test_freq = False, -1
    config.vapo.anchors.self_test_rows = 0
    config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = (
        f"{NoAgentLoops.__module__}.{NoAgentLoops.__qualname__}"
    )
