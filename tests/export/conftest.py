"""Run folders with checkpoints of the packaged model, as veRL writes them on one rank."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from vapo_verl.digits.model import model_dir
from vapo_verl.run_folder.checkpoints import checkpoint_folder

SHARD = "model_world_size_1_rank_0.pt"


class RunFolder:
    """A run of the smoke recipe that ended at step 4, with one checkpoint after another."""

    def __init__(self, path: Path, config: str) -> None:
        self.path = path
        path.mkdir()
        (path / "config.yaml").write_text(config)
        lines = [
            {"step": 0, "data": {"val-core/digits/acc/mean@1": 0.25}},
            *({"step": step, "data": {"vapo/reward/total": step / 10}} for step in (1, 2, 3, 4)),
        ]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def save(self, step: int, *, complete: bool = True) -> Path:
        """The actor's folder of a new checkpoint."""
        actor = checkpoint_folder(self.path, step) / "actor"
        hf = actor / "huggingface"
        hf.mkdir(parents=True)
        for file in Path(model_dir()).iterdir():
            if file.suffix in {".json", ".jinja"}:
                shutil.copy(file, hf)
        torch.save(load_file(Path(model_dir()) / "model.safetensors"), actor / SHARD)
        (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
        if complete:
            mark_complete(self.path, step)
        return actor


@pytest.fixture(scope="session")
def smoke_config() -> str:
    return OmegaConf.to_yaml(compose_once("smoke"), resolve=True)


@pytest.fixture
def run(tmp_path, smoke_config) -> RunFolder:
    return RunFolder(tmp_path / "run", smoke_config)
