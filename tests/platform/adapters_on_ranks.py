"""A rank of veRL's FSDP engine with adapters whose B is not zero: `torchrun THIS_FILE OUT_DIR`.

Rank 0 writes OUT_DIR/found.json, what was compared, and OUT_DIR/tensors.pt; all ranks the
checkpoint OUT_DIR/run/global_step_4.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForImageTextToText
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.engine import EngineRegistry

import vapo_verl.platform.fsdp  # noqa: F401  registers the engine
from vapo_verl.digits.model import model_dir
from vapo_verl.launch import composed
from vapo_verl.patches import text_only_forward

IDS = torch.arange(5, 45)[None]


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
    engine.initialize()
    engine.module.eval()
    return engine


@torch.no_grad()
def plant(module: torch.nn.Module) -> None:
    """The same values for B on all ranks."""
    torch.manual_seed(0)
    for name, tensor in module.named_parameters():
        if ".lora_B." in name:
            assert isinstance(tensor, DTensor)
            values = 0.02 * torch.randn(tensor.shape)
            tensor.copy_(distribute_tensor(values, tensor.device_mesh, tensor.placements))


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    places = torch.arange(IDS.shape[1])[None, None].expand(4, 1, -1)
    output = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), position_ids=places)
    return output.logits


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    text_only_forward.apply()
    config = composed("smoke_lora", [])
    engine = make_engine(config)
    plant(engine.module)
    trained = logits(engine.module)
    with engine.disable_adapter():
        reference = logits(engine.module)
    base = AutoModelForImageTextToText.from_pretrained(model_dir(), dtype=torch.float32)
    of_base = logits(base.eval())
    checkpoint = out / "run" / "global_step_4" / "actor"
    engine.save_checkpoint(str(checkpoint), None, 4, None)
    loaded = make_engine(config)
    fresh = logits(loaded.module)
    loaded.load_checkpoint(str(checkpoint), None, False)
    sent, by_layer = (
        dict(engine.get_per_tensor_param(layered_summon=layered, base_sync_done=True)[0])
        for layered in (False, True)
    )
    engine.model_config.lora["merge"] = True
    merged = {name: tensor.clone() for name, tensor in engine.get_per_tensor_param()[0]}
    found = {
        "the reference is the base": torch.equal(reference, of_base),
        "the start is the base": torch.equal(fresh, of_base),
        "the checkpoint is what was trained": torch.equal(logits(loaded.module), trained),
        "merging leaves the policy as it is": torch.equal(logits(engine.module), trained),
        "adapters sent by layer are those sent at once": sent.keys() == by_layer.keys()
        and all(torch.equal(sent[name], by_layer[name]) for name in sent),
        "only the language model has adapters": all("language_model.layers" in n for n in sent),
    }
    if dist.get_rank() == 0:
        (out / "found.json").write_text(json.dumps(found))
        tensors = {"trained": trained, "base": of_base, "sent": sent, "merged": merged}
        torch.save(tensors, out / "tensors.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
