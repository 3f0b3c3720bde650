"""Decide with which checkpoint a command begins, and whether that is the run in its folder.

With ``trainer.resume_mode=auto`` a run resumes if its folder holds a complete checkpoint. With
``disable`` and ``resume_path`` each start begins with the same step. To be the same run, its
settings are compared with ``config.yaml``, and the contents of its data and model files with
``inputs.json``. A change of keys in :data:`IDENTITY` needs ``vapo.accept_changes``; a change that
the checkpoint would undo (:data:`OF_THE_OPTIMIZER`) is refused; every other change is only printed.
A run that has reached its last step (:func:`last_step`) trains nothing with other settings.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from vapo_verl.config import SYNC, flat, is_within, value_at
from vapo_verl.files import atomic_write_text
from vapo_verl.hydra_config import PACKAGE, base_values
from vapo_verl.run_folder.checkpoints import (
    checkpoint_folder,
    complete_steps,
    latest_complete,
    step_of,
)
from vapo_verl.run_folder.checksums import ALGORITHM, WEIGHT_BLOCKS, cached_checksum
from vapo_verl.run_folder.layout import CONFIG_FILE, config_file

INPUTS_FILE = "inputs.json"
ROWS_FILE = "training_rows.json"
"""Number of training rows, which veRL counts after its filter, and what that depends on."""
ACCEPT_KEY = "vapo.accept_changes"
MODEL_KEY = "actor_rollout_ref.model.path"
TOKENIZER_KEY = "actor_rollout_ref.model.tokenizer_path"
TEMPLATE_KEY = "actor_rollout_ref.model.custom_chat_template"
REWARD_FILE_KEY = "reward.custom_reward_function.path"
FILE_KEYS = ("data.train_files", "data.val_files")
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
)
"""Files of a model folder that decide how a row becomes tokens and pixels."""
IDENTITY = (
    *(MODEL_KEY, "actor_rollout_ref.model.lora", "actor_rollout_ref.model.lora_rank"),
    *("actor_rollout_ref.model.lora_alpha", "actor_rollout_ref.model.lora_adapter_path"),
    *("actor_rollout_ref.model.target_modules", "actor_rollout_ref.model.exclude_modules"),
    *(TOKENIZER_KEY, TEMPLATE_KEY),
    *FILE_KEYS,
    *("data.train_max_samples", "data.val_max_samples", "data.shuffle", "data.seed"),
    *("data.prompt_key", "data.image_key", "data.video_key", "data.custom_cls"),
    *("data.max_prompt_length", "data.filter_overlong_prompts", "data.min_pixels"),
    *("data.max_pixels", "data.apply_chat_template_kwargs", "data.mm_processor_kwargs"),
    "vapo.data",
    *("vapo.seed", "vapo.reward", "vapo.anchors"),
    *("reward", "reward_model", "custom_reward_function"),
    *("vapo.method", "algorithm.adv_estimator", "actor_rollout_ref.actor.policy_loss.loss_mode"),
)
"""Model, data, seed, reward and method: keys, and groups of keys, that identify a run."""
HARMLESS = (
    *("vapo.anchors.max_tokens_in_flight", "vapo.anchors.self_test_rows"),
    *(f"vapo.reward.judge.{name}" for name in ("base_url", "max_concurrency", "cache_dir")),
    *("vapo.reward.judge.timeout_s", "vapo.reward.judge.max_retries"),
    *("data.filter_overlong_prompts_workers", "reward.num_workers", "reward.reward_model.rollout"),
)
"""Keys within those groups that change no result."""
OF_THE_START = (
    *("ray_kwargs", "trainer.v1.trainer_mode", "transfer_queue", "vapo.recipe", ACCEPT_KEY),
    *("trainer.default_local_dir", "actor_rollout_ref.rollout.prometheus.served_model_name"),
    *(
        f"actor_rollout_ref.rollout.engine_kwargs.vllm.{name}"
        for name in ("worker_cls", "scheduler_cls", "additional_config")
    ),
)
"""Keys that a start derives from other keys and the machine: not compared."""
OF_THE_RUN = ("trainer", "vapo.logging", "vapo.replay_poll_s")
"""Keys that may change for a finished run without making it another run."""
FSDP_SIZE = "actor_rollout_ref.actor.fsdp_config.fsdp_size"
STRATEGY = "actor_rollout_ref.actor.strategy"
STORAGE_UNITS = "transfer_queue.backend.SimpleStorage.num_data_storage_units"
STORAGE_FILES = "simple_storage/su_*.pkl"
"""TransferQueue's files of a replay buffer in a checkpoint, one for each storage unit."""
OF_THE_ROWS = (MODEL_KEY, TOKENIZER_KEY, TEMPLATE_KEY, "data", "vapo.data")
"""Keys that the number of training rows depends on, but for :data:`NOT_OF_THE_ROWS`."""
NOT_OF_THE_ROWS = (
    *("data.val_files", "data.val_max_samples", "data.val_batch_size", "data.validation_shuffle"),
    *("data.train_batch_size", "data.gen_batch_size", "data.max_response_length"),
    *("data.dataloader_num_workers", "data.filter_overlong_prompts_workers"),
)
LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
OF_THE_OPTIMIZER = (
    LEARNING_RATE,
    *(
        f"actor_rollout_ref.actor.optim.{name}"
        for name in ("weight_decay", "betas", "optimizer", "optimizer_impl")
    ),
    "actor_rollout_ref.actor.optim.override_optimizer_config",
)
"""Keys whose old values come back with a checkpoint.

torch saves the arguments of an optimizer with its state, and loads them; the checkpoint's part
``extra`` also holds the learning rate, as ``base_lrs`` of the schedule. Warm-up, decay, number of
steps and clipping are not saved: they may change.
"""
LOADED_PARTS = "actor_rollout_ref.actor.checkpoint.load_contents"
_REFERENCE = re.compile(
    r"\$\{(?:vapo\.package_file:(?P<file>[\w./]+)|(?:oc\.select:)?(?P<key>[\w.]+)(?:,\w+)?)\}"
)
"""The value of another key, or the place of this package; `oc.env` may change by itself."""
_WITHOUT_IT = (
    "begin without this checkpoint, in another trainer.default_local_dir with "
    "trainer.resume_mode=auto"
)
_SHOWN_CHARACTERS = 100
_ABSENT = object()


class OtherRun(ValueError):
    """The folder holds another run; the message names the keys, both values and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start of a command in its run folder."""

    run_dir: Path
    mode: str = "auto"
    """``trainer.resume_mode``."""
    checkpoint: Path | None = None
    """The checkpoint that it begins with; None: the model as it is configured."""
    val_only: bool = False

    @property
    def step(self) -> int:
        """Step of that checkpoint; 0 without one."""
        return 0 if self.checkpoint is None else step_of(self.checkpoint)


def start_of(trainer: Mapping[str, Any]) -> Start:
    """What a command with these settings of ``trainer`` would do now.

    With ``resume_mode=auto`` the checkpoint is the newest complete one. It is not verified here.
    """
    run_dir, mode, checkpoint = Path(trainer["default_local_dir"]), trainer["resume_mode"], None
    if mode == "resume_path":
        checkpoint = Path(trainer["resume_from_path"])
    elif mode == "auto" and (step := latest_complete(run_dir)) is not None:
        checkpoint = checkpoint_folder(run_dir, step)
    return Start(
        run_dir=run_dir, mode=mode, checkpoint=checkpoint, val_only=bool(trainer["val_only"])
    )


def refuse_later_steps(start: Start) -> None:
    """Refuse to begin before a step whose complete checkpoint is in the folder.

    The metrics and rollouts of that step would be removed, and its checkpoint would stay the newest
    one: the next resume, the export and evaluations would take it for the new run's.

    Raises:
        OtherRun: with the step, and what to do. A start that only validates passes.
    """
    later = [step for step in complete_steps(start.run_dir) if step > start.step]
    if start.mode == "auto" or start.val_only or not later:
        return
    first, last = start.step + 1, later[-1]
    raise OtherRun(
        f"trainer.default_local_dir={start.run_dir} holds a complete checkpoint of step {last}, "
        f"and trainer.resume_mode={start.mode} begins with step {first}: the next resume, the "
        f"export and evaluations would take step {last} for the new run's. To go on with the run "
        f"in this folder, set trainer.resume_mode=auto. To begin with step {first}, set another "
        "trainer.default_local_dir or trainer.experiment_name, or remove the checkpoints after "
        f"step {start.step} from this folder"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A key whose value differs from that in the folder."""

    key: str
    old: str
    """As text, like `new`."""
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def references(config: Mapping[str, Any]) -> dict[str, str]:
    """Keys of an unresolved config whose value is that of another key, with which they change, or a
    file of this package -> the text of the reference."""
    return {
        key: value
        for key, value in flat(config).items()
        if isinstance(value, str) and _REFERENCE.fullmatch(value)
    }


def changes_since(
    run_dir: Path,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    references: Mapping[str, str],
) -> list[Change]:
    """What differs from the run in `run_dir`, keys of :data:`IDENTITY` first.

    A key that is missing in the folder's config is a change if it has no default, as arguments of
    an engine or a method. One with a default is of a later release.

    Args:
        config: the settled config, without references.
        inputs: by :func:`inputs_of`.
        references: by :func:`references`. Such a key is left out if the folder's value is that of
            the same reference: its change is that of the other key. The model is compared.

    Raises:
        OtherRun: the folder's config cannot be read.
    """
    old, new = (
        {key: value for key, value in flat(values).items() if value != {}}
        for values in (_read_config(run_dir / CONFIG_FILE), config)
    )
    pairs = {
        key: (value, new.get(key, _ABSENT))
        for key, value in old.items()
        if not is_within(key, OF_THE_START)
        and (key == MODEL_KEY or key not in references or not _follows(references[key], key, old))
    }
    for key in new.keys() - old.keys() if old else ():
        if not is_within(key, OF_THE_START) and not _has_default(key):
            pairs[key] = (_ABSENT, new[key])
    stored = _read_inputs(run_dir)
    for key in (*FILE_KEYS, MODEL_KEY, TOKENIZER_KEY, REWARD_FILE_KEY):
        if key in stored and key in inputs:  # not by path: a file can move, and can change
            same = _contents(stored[key]) == _contents(inputs[key])
            pairs[key] = (None, None) if same else (_Files(stored[key]), _Files(inputs[key]))
    changes = [
        Change(key=key, old=_shown(before), new=_shown(now))
        for key, (before, now) in pairs.items()
        if before != now
    ]
    return sorted(changes, key=lambda change: (not is_identity(change.key), change.key))


def _follows(reference: str, key: str, values: Mapping[str, Any]) -> bool:
    """Whether the value of `key` among `values` is that which the reference has there."""
    match = _REFERENCE.fullmatch(reference)
    assert match is not None
    if match["file"]:  # the package may have moved
        return str(values[key]).endswith(f"/{PACKAGE.name}/{match['file']}")
    target = match["key"].lstrip(".")
    if num_dots := len(match["key"]) - len(target):  # one: a key of the same group
        target = ".".join([*key.split(".")[:-num_dots], target])
    return target in values and values[target] == values[key]


def _has_default(key: str) -> bool:
    """Whether a key exists without a recipe, itself or in a group that refers to another one."""
    defaults, groups = base_values(), accumulate(key.split("."), "{}.{}".format)
    return key in defaults or any(isinstance(defaults.get(group), str) for group in groups)


def is_identity(key: str) -> bool:
    """Whether a change of `key` makes another run."""
    return is_within(key, IDENTITY) and not is_within(key, HARMLESS)


def refuse_other_run(
    run_dir: Path, changes: Sequence[Change], accepted: Iterable[str], step: int
) -> None:
    """Refuse to resume with another model, data, seed, reward or method, unless in `accepted`.

    Raises:
        OtherRun: with the keys, both values, and what to do.
    """
    refused = [change for change in changes if is_identity(change.key)]
    refused = [change for change in refused if change.key not in set(accepted)]
    if not refused:
        return
    keys = sorted({*accepted, *(change.key for change in refused)})
    raise OtherRun(
        f"trainer.default_local_dir={run_dir} holds step {step} of a run with other settings:\n"
        f"{_listed(refused)}\n"
        "To start a new run, set trainer.default_local_dir to another folder. To go on in this one "
        f"with these changes, add '{ACCEPT_KEY}=[{','.join(keys)}]'"
    )


def refuse_other_optimizer(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse settings of the optimizer that loading `checkpoint` would undo.

    They are compared with the config under which the checkpoint was written, if its folder has it.

    Args:
        config: the settled config, without references.

    Raises:
        OtherRun: with the keys and both values. Accepting the change would not help: the new value
            would be recorded, and the old one used.
    """
    parts = value_at(config, LOADED_PARTS)
    loaded = parts if isinstance(parts, list) else ["optimizer", "extra"]  # as veRL takes null
    undone = [
        key
        for key in OF_THE_OPTIMIZER
        if "optimizer" in loaded or ("extra" in loaded and key == LEARNING_RATE)
    ]
    run_dir = checkpoint.parent
    old_config = _read_config(config_file(run_dir, step_of(checkpoint)))
    pairs = [
        (key, *(value_at(values, key, _ABSENT) for values in (old_config, config)))
        for key in undone
    ]
    refused = [
        Change(key=key, old=_shown(old), new=_shown(new))
        for key, old, new in pairs
        if old is not _ABSENT and old != new
    ]
    if refused:
        raise OtherRun(
            f"{checkpoint} was written with other settings of the optimizer:\n{_listed(refused)}\n"
            "These changes would have no effect: the old values are loaded with the optimizer's "
            "state. Keep the old values; or start a new run from the exported model (`python -m "
            f"vapo_verl.export {run_dir}`, then {MODEL_KEY} and another trainer.default_local_dir)"
        )


def refuse_other_ranks(checkpoint: Path, num_ranks: int) -> None:
    """Refuse to begin with a checkpoint of another number of ranks: each rank reads its own shard.
    A checkpoint with an unknown number passes.

    Raises:
        OtherRun: with both numbers.
    """
    file = checkpoint / "actor" / "fsdp_config.json"
    try:
        written_by = json.loads(file.read_text(encoding="utf-8"))["world_size"]
    except (OSError, ValueError, LookupError, TypeError):
        return
    if written_by != num_ranks:
        raise OtherRun(
            f"the checkpoint of {_at(checkpoint)} was written by {written_by} ranks, and "
            f"trainer.n_gpus_per_node * trainer.nnodes is {num_ranks}; resume with the same "
            f"number, or {_WITHOUT_IT}"
        )


def refuse_other_storage(checkpoint: Path, trainer_mode: str, num_units: int | None) -> None:
    """Refuse to resume an asynchronous run with another number of storage units.

    Its checkpoint holds the replay buffer, one file for each unit. A checkpoint without them
    passes.

    Raises:
        OtherRun: with both numbers.
    """
    written_by = len([*(checkpoint / "transfer_queue").glob(STORAGE_FILES)])
    if trainer_mode != SYNC and written_by not in (0, num_units):
        raise OtherRun(
            f"the replay buffer of {checkpoint} is in {written_by} storage units, and "
            f"{STORAGE_UNITS}={num_units}; set it to {written_by}, or set "
            f"trainer.v1.trainer_mode={SYNC}, which leaves out the prompts in flight"
        )


def refuse_other_shards(checkpoint: Path, config: Mapping[str, Any], num_ranks: int) -> None:
    """Refuse to begin with a checkpoint whose shards are arranged in another way.

    Its arrangement is that of the config under which it was written, if its folder has it.

    Args:
        config: the settled config, without references.

    Raises:
        OtherRun: another strategy, or ``fsdp_size``. Accepting the change would not help: no rank
            can load its shard.
    """

    def arrangement(key: str, value: Any) -> Any:
        if key != FSDP_SIZE:
            return value
        is_group = isinstance(value, int) and 0 < value < num_ranks
        return value if is_group else num_ranks  # below 0, or all ranks: one group

    written_with = _read_config(config_file(checkpoint.parent, step_of(checkpoint)))
    for key in (FSDP_SIZE, STRATEGY):
        old, new = (value_at(values, key, _ABSENT) for values in (written_with, config))
        if old is not _ABSENT and arrangement(key, old) != arrangement(key, new):
            raise OtherRun(
                f"{key} was {_shown(old)} in the checkpoint of {_at(checkpoint)}, and is "
                f"{_shown(new)}: the ranks could not load its shards; resume with {_shown(old)}, "
                f"or {_WITHOUT_IT}"
            )


def refuse_other_adapters(checkpoint: Path, rank: int) -> None:
    """Refuse to begin with adapters (LoRA) of another rank than those of the checkpoint.

    Args:
        rank: ``actor_rollout_ref.model.lora_rank``; 0 where all weights are trained.

    Raises:
        OtherRun: with both ranks. Accepting the change would not help: the shapes differ.
    """
    actor = checkpoint / "actor"
    if not (actor / "fsdp_config.json").is_file():
        return
    try:
        file = actor / "lora_train_meta.json"
        saved = json.loads(file.read_text(encoding="utf-8"))["r"] if file.is_file() else 0
    except (OSError, ValueError, LookupError, TypeError):
        return
    if saved != rank:
        raise OtherRun(
            f"the checkpoint of {_at(checkpoint)} holds "
            f"{f'adapters of rank {saved}' if saved else 'no adapters'}, and "
            f"actor_rollout_ref.model.lora_rank is {rank}; set it to {saved}, or {_WITHOUT_IT}"
        )


def refuse_finished_run(start: Start, changes: Sequence[Change], last: int) -> None:
    """Refuse other settings where the run in the folder has reached its last step.

    Args:
        last: the last step of this command.

    Raises:
        OtherRun: nothing would be trained with the new settings.
    """
    refused = [change for change in changes if not is_within(change.key, OF_THE_RUN)]
    if refused:
        where = "the last one" if start.step == last else f"beyond the last one here, {last}"
        raise OtherRun(
            f"trainer.default_local_dir={start.run_dir} already holds step {start.step}, {where}, "
            f"of a run with other settings:\n{_listed(refused)}\n"
            "Set trainer.default_local_dir to another folder for each run, such as "
            "'trainer.default_local_dir=runs/mine_seed${vapo.seed}'"
        )


def nothing_to_train(checkpoint: Path, last: int) -> str:
    """Why a start with a checkpoint of the last step, or a later one, trains nothing; the fix."""
    return (
        f"nothing to train: {checkpoint} is of step {step_of(checkpoint)}, and the last step is "
        f"{last} (trainer.total_training_steps, or the steps of trainer.total_epochs). To go on, "
        "raise it; to train with other settings, begin without this checkpoint: another "
        "trainer.default_local_dir"
    )


def inputs_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprints of the data files, a local model folder's weights, its tokenizer and processor,
    and the reward function's file: sizes, rows, and a digest, of weights that of some blocks.
    Files that are not on this machine are left out."""
    files: dict[str, list[Path]] = {}
    for key in (*FILE_KEYS, REWARD_FILE_KEY):
        value = value_at(config, key)
        paths = [Path(file) for file in ([value] if isinstance(value, str) else value or [])]
        if all(path.is_file() for path in paths):
            files[key] = paths
    name = str(value_at(config, MODEL_KEY))
    model, tokenizer = Path(name), Path(str(value_at(config, TOKENIZER_KEY) or name))
    if weights := sorted(model.glob("*.safetensors")):
        files[MODEL_KEY] = [path for path in (model / "config.json", *weights) if path.is_file()]
    files[TOKENIZER_KEY] = [
        path for file in TOKENIZER_FILES if (path := tokenizer / file).is_file()
    ]
    return {key: [_fingerprint(path) for path in paths] for key, paths in files.items() if paths}


def last_step(run_dir: Path, config: Mapping[str, Any]) -> int | None:
    """The last step of a run with these settings.

    With ``trainer.total_training_steps=null`` it follows from the number of training rows, which a
    start has stored in the folder.

    Args:
        config: the settled config, without references.

    Returns:
        None where no start with this model and these data has counted the rows.
    """
    trainer = config["trainer"]
    if trainer["total_training_steps"] is not None:
        return trainer["total_training_steps"]
    try:
        stored = json.loads((run_dir / ROWS_FILE).read_text(encoding="utf-8"))
        num_rows, depends_on = int(stored["num_rows"]), dict(stored["depends_on"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    found = _dependencies_of_rows(config, inputs_of(config))
    if any(found.get(key, _ABSENT) != value for key, value in depends_on.items()):
        return None
    return num_rows // config["data"]["train_batch_size"] * trainer["total_epochs"]


def write_num_rows(run_dir: Path, config: Mapping[str, Any], num_rows: int) -> None:
    """Store the number of training rows that a start with these settings has counted.

    Args:
        config: the settled config, without references.
    """
    depends_on = _dependencies_of_rows(config, inputs_of(config))
    content = {"num_rows": num_rows, "depends_on": depends_on}
    atomic_write_text(run_dir / ROWS_FILE, json.dumps(content, indent=1) + "\n")


def _dependencies_of_rows(config: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value as JSON has it; files by their contents."""
    values = {
        key: value
        for key, value in flat(config).items()
        if is_within(key, OF_THE_ROWS) and not is_within(key, NOT_OF_THE_ROWS)
    }
    values |= {key: _contents(inputs[key]) for key in values.keys() & inputs.keys()}
    return json.loads(json.dumps(values, default=str))


def write_inputs(run_dir: Path, inputs: Mapping[str, Any]) -> None:
    """Store the fingerprints of a run's inputs, for its next start."""
    atomic_write_text(run_dir / INPUTS_FILE, json.dumps(inputs, indent=1) + "\n")


def _read_config(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OtherRun(_unreadable(file, str(error))) from error
    if not isinstance(content, dict):
        raise OtherRun(_unreadable(file, "it holds no settings"))
    return content


def _unreadable(file: Path, reason: str) -> str:
    reason = " ".join(reason.split())
    return (
        f"{file} cannot be read ({reason}), so that it is unknown whether its checkpoints are of "
        "this run; restore it, or delete it to go on without this check"
    )


def _read_inputs(run_dir: Path) -> Mapping[str, Any]:
    """The stored fingerprints; empty for a folder of an older release, and for a damaged file."""
    try:
        content = json.loads((run_dir / INPUTS_FILE).read_text(encoding="utf-8"))
        return {key: value for key, value in content.items() if _is_fingerprints(value)}
    except (OSError, ValueError, AttributeError):
        return {}


def _is_fingerprints(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and {"path", "bytes", ALGORITHM} <= item.keys() for item in value
    )


def _fingerprint(path: Path) -> dict[str, Any]:
    blocks = WEIGHT_BLOCKS if path.suffix == ".safetensors" else None
    size, digest = path.stat().st_size, cached_checksum(path, blocks)
    return {"path": str(path), "bytes": size, "rows": _rows(path), ALGORITHM: digest}


def _rows(path: Path) -> int | None:
    if path.suffix != ".parquet":
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):  # the check of the data says so
        return None


def _contents(fingerprints: Sequence[Mapping[str, Any]]) -> list[tuple[Any, Any]]:
    return [(each["bytes"], each[ALGORITHM]) for each in fingerprints]


@dataclass(frozen=True, slots=True)
class _Files:
    """Fingerprints with a readable text form."""

    fingerprints: Sequence[Mapping[str, Any]]

    def __str__(self) -> str:
        shown = []
        for each in self.fingerprints:
            rows = f"{each.get('rows')} rows, " if each.get("rows") is not None else ""
            size = f"{each['bytes']} bytes, {ALGORITHM} {str(each[ALGORITHM])[:8]}"
            shown.append(f"{each['path']} ({rows}{size})")
        return ", ".join(shown)


def _shown(value: object) -> str:
    if value is _ABSENT:
        return "absent"
    text = str(value) if isinstance(value, _Files) else json.dumps(value, default=str)
    limit = 10 * _SHOWN_CHARACTERS if isinstance(value, _Files) else _SHOWN_CHARACTERS
    return text if len(text) <= limit else f"{text[:limit]}..."


def _at(checkpoint: Path) -> str:
    return f"step {step_of(checkpoint)} in {checkpoint.parent}"


def _listed(changes: Iterable[Change]) -> str:
    return "\n".join(f"  {change}" for change in changes)
