"""A run with a frozen vision tower, and the validation of its first checkpoint."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.system.smoke import metrics
from vapo_verl.digits.model import model_dir

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TWO_STEPS = (
    "trainer.total_training_steps=2",
    *("trainer.save_freq=1", "trainer.test_freq=-1", "trainer.val_before_train=false"),
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.actor.freeze_vision_tower=true",
)


@pytest.fixture(scope="module")
def run(smoke):
    return smoke.run("frozen", *TWO_STEPS)


def weights(run, step):
    (file,) = (run / f"global_step_{step}" / "actor").glob("model_world_size_1_rank_0.pt")
    state = torch.load(file, weights_only=False)
    return {name: tensor.to_local() for name, tensor in state.items()}


def test_all_but_the_vision_tower_is_trained(run):
    first, last = weights(run, 1), weights(run, 2)
    changed = {name for name, tensor in last.items() if not torch.equal(tensor, first[name])}
    tower = {name for name in last if ".visual." in name}
    assert tower and not changed & tower
    assert len(changed) > 20
    start = load_file(model_dir() / "model.safetensors")
    patches = "visual.patch_embed.proj.weight"
    (before,) = (tensor for name, tensor in start.items() if name.endswith(patches))
    (after,) = (tensor for name, tensor in last.items() if name.endswith(patches))
    assert torch.equal(before.float(), after.float())


def test_validating_an_older_checkpoint_changes_nothing_that_the_run_recorded(smoke, run):
    def recorded():
        return {
            path.relative_to(run): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(run.rglob("*"))
            if path.is_file() and path.name not in ("validation.jsonl", "console.log")
            if "validation" not in path.parts
        }

    before = recorded()
    smoke.run(
        "frozen",
        *TWO_STEPS,
        "trainer.val_only=true",
        *("trainer.resume_mode=resume_path", f"trainer.resume_from_path={run}/global_step_1"),
    )
    assert recorded() == before
    assert sorted(metrics(run)) == [1, 2]
    (line,) = (run / "validation.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert (result["step"], result["checkpoint"]) == (1, str(run / "global_step_1"))
    assert any(name.endswith("/accuracy") for name in result["data"])
