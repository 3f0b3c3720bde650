"""A rank that trains a model with a frozen vision tower: `torchrun THIS_FILE OUT_DIR`.

One rank sees an image and the other text alone. Rank 0 writes OUT_DIR/found.json, what was compared
after a step, and OUT_DIR/checkpoint is veRL's checkpoint of FSDP 2.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import AutoModelForImageTextToText
from verl.models.transformers.monkey_patch import apply_monkey_patch
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.fsdp_utils import get_fsdp_wrap_policy
from verl.workers.engine import EngineRegistry

import vapo_verl.platform.fsdp  # noqa: F401  registers the engine
from vapo_verl.digits.model import model_dir
from vapo_verl.launch import composed
from vapo_verl.patches import text_only_forward, upstream


def make_engine(config: Any) -> Any:
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="fsdp2",
        model_config=omega_conf_to_dataclass(config.actor_rollout_ref.model),
        engine_config=actor.engine,
        optimizer_config=actor.optim,
        checkpoint_config=actor.checkpoint,
    )
    upstream.use_frozen_tower(engine)
    engine.initialize()
    return engine


def inputs(config: Any) -> dict[str, torch.Tensor]:
    """A sequence, with an image of 4 by 4 patches on rank 0."""
    ids = torch.arange(30, 50)[None]
    values = {}
    if dist.get_rank() == 0:
        vision = config.vision_config
        ids[0, 3:7] = config.image_token_id
        width = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        values = {
            "pixel_values": torch.rand(16, width),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
        }
    places = torch.arange(ids.shape[1])[None, None].expand(4, 1, -1)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": places, **values}


def complete(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in state.items()
    }


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def in_tower(names: set[str]) -> set[str]:
    return {name for name in names if ".visual." in f".{name}"}


def loss_of(model: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(**given).logits.float()
    return torch.nn.functional.cross_entropy(logits[0, :-1], given["input_ids"][0, 1:])


def of_fsdp2(out: Path, whole: dict[str, torch.Tensor]) -> dict[str, bool]:
    config = composed("smoke", ["actor_rollout_ref.actor.optim.lr=1e-3"])
    engine = make_engine(config)
    given = inputs(engine.model_config.hf_config)
    before = complete(engine.module.state_dict())
    loss_of(engine.module, given).backward()
    norm = engine.optimizer_step()
    after = complete(engine.module.state_dict())
    sent = dict(engine.get_per_tensor_param()[0])
    engine.save_checkpoint(str(out / "checkpoint"), None, 1, None)
    other = make_engine(config)
    other.load_checkpoint(str(out / "checkpoint"), None, False)
    tower = [w for name, w in engine.module.named_parameters() if in_tower({name})]
    has_moments = [bool(engine.optimizer.state.get(weight)) for weight in tower]
    return {
        "fsdp2 starts from the model": before.keys() == whole.keys() and not changed(before, whole),
        "fsdp2 trains all but the tower": changed(before, after)
        == set(before) - in_tower({*before}),
        "fsdp2 has a norm": 0 < norm < float("inf"),
        "fsdp2 sends all weights": {*sent} == {*before} and not changed(after, complete(sent)),
        "fsdp2 keeps no moments of the tower": len(tower) > 0 and not any(has_moments),
        "fsdp2 loads its checkpoint": not changed(after, complete(other.module.state_dict())),
    }


def of_fsdp1(whole: dict[str, torch.Tensor]) -> dict[str, bool]:
    """As veRL's engine wraps it, which has no FSDP 1 on CPU."""
    model = AutoModelForImageTextToText.from_pretrained(model_dir(), dtype=torch.float32)
    apply_monkey_patch(model=model, use_remove_padding=False)
    given = inputs(model.config)
    upstream.freeze_tower(model)
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=get_fsdp_wrap_policy(model),
        device_id=torch.device("cpu"),
        use_orig_params=True,
    )
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-3)
    loss_of(wrapped, given).backward()
    norm = wrapped.clip_grad_norm_(1.0)
    optimizer.step()
    with FullyShardedDataParallel.summon_full_params(wrapped):
        after = complete(model.state_dict())
    after = {name.replace("_fsdp_wrapped_module.", ""): value for name, value in after.items()}
    return {
        "fsdp1 trains all but the tower": changed(whole, after) == {*whole} - in_tower({*whole}),
        "fsdp1 has a norm": 0 < norm.item() < float("inf"),
    }


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    text_only_forward.apply()
    start = AutoModelForImageTextToText.from_pretrained(model_dir(), dtype=torch.float32)
    whole = complete(start.state_dict())
    found = {**of_fsdp2(out, whole), **of_fsdp1(whole)}
    if dist.get_rank() == 0:
        (out / "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
