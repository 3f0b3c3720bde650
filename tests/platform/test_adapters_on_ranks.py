"""LoRA on two FSDP ranks without an engine: reference, checkpoint, what is sent, the export."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.checkpoints import mark_complete
from vapo_verl.export.model_folder import write_model_folder
from vapo_verl.launch import composed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).with_name("adapters_on_ranks.py")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """What two ranks have written."""
    folder = tmp_path_factory.mktemp("ranks")
    actor = folder / "run" / "global_step_4" / "actor"
    actor.mkdir(parents=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run(
        [*command, str(SCRIPT), str(folder)],
        env={**os.environ, "VERL_PLATFORM": "cpu", "TORCHDYNAMO_DISABLE": "1"},
        check=True,
        timeout=600,
    )
    OmegaConf.save(composed("smoke_lora", []), folder / "run" / "config.yaml", resolve=True)
    (folder / "run" / "metrics.jsonl").write_text('{"step": 1, "data": {"actor/lr": 1.0}}\n')
    mark_complete(folder / "run", 4)
    return folder


@pytest.fixture(scope="module")
def tensors(out):
    return torch.load(out / "tensors.pt", weights_only=True)


def test_reference_checkpoint_and_sync_are_exact(out, tensors):
    found = json.loads((out / "found.json").read_text())
    assert found == dict.fromkeys(found, True)
    assert (tensors["trained"] - tensors["base"]).abs().max() > 0.1


def test_the_exported_adapter_is_what_the_engine_gets(out, tensors):
    folder = write_model_folder(out / "run", adapter=True)
    exported = load_file(folder / "adapter_model.safetensors")
    assert exported.keys() == tensors["sent"].keys()
    assert all(torch.equal(exported[name], tensors["sent"][name]) for name in exported)


def test_the_exported_model_is_what_an_engine_of_merged_weights_gets(out, tensors):
    folder = write_model_folder(out / "run")
    exported = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").state_dict()
    merged = {name: tensor for name, tensor in tensors["merged"].items() if name in exported}
    assert len(merged) == len(tensors["merged"])
    assert all(torch.equal(exported[name], tensor.bfloat16()) for name, tensor in merged.items())
