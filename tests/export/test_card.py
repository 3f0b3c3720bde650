"""What a model card tells, and what it keeps."""

import pytest
import yaml
from omegaconf import OmegaConf

from tests.composing import compose_once
from vapo_verl.export.model_folder import card, public_name, write_card
from vapo_verl.export.source import ExportError
from vapo_verl.run_folder.metrics import Metrics


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("/home/somebody/models/mine/", "mine"),
        ("/c/hub/models--Qwen--Qwen2.5-VL-3B/snapshots/0a1b", "Qwen/Qwen2.5-VL-3B"),
        ("hdfs://host:9000/private/base", "base"),
    ],
)
def test_models_are_named_without_where_they_lie(model, name):
    assert public_name(model) == name


def test_recipe_base_data_settings_and_metrics_are_told():
    files = "data.train_files=[/home/somebody/geo/train.parquet]"
    config = compose_once("vapo", [files, "vapo.recipe=vapo_3b"])
    OmegaConf.resolve(config)
    values = {"val-core/geo/acc/mean@1": {0: 0.25, 20: 0.5, 40: 0.75}, "vapo/reward/total": {30: 1}}
    text = card(config, Metrics(columns=values), step=30)
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert front["library_name"] == "transformers"
    assert "# vapo, step 30" in text and "of the recipe `vapo_3b`" in text
    assert "| training | geo/train.parquet |" in text
    assert "somebody" not in text
    assert "| `val-core/geo/acc/mean@1` | 20 | 0.5 |" in text  # 40 came after this checkpoint
    assert "| `vapo/reward/total` | 30 | 1 |" in text
    assert f"| anchors per response | {config.vapo.anchors.num_anchors} |" in text


def test_nothing_else_of_a_config_is_told(run):
    config = OmegaConf.load(run.path / "config.yaml")
    config.trainer.wandb_api_key = "a-secret"
    config.ray_kwargs.ray_init.runtime_env = {"env_vars": {"HF_TOKEN": "a-secret"}}
    OmegaConf.save(config, run.path / "config.yaml")
    out = run.path / "out"
    out.mkdir()
    write_card(run.path, 4, out)
    text = (out / "README.md").read_text()
    assert "secret" not in text
    assert str(run.path.parent) not in text


def test_a_run_without_config_is_refused(run):
    (run.path / "config.yaml").unlink()
    with pytest.raises(ExportError, match=r"config.yaml is missing"):
        write_card(run.path, 4, run.path)


@pytest.mark.parametrize(
    "text", [b"", b"a: [", b"just text", b"- 1", b"\xff\xfe\x00", b"<html>", b"trainer: 3", b"a: 1"]
)
def test_a_broken_config_is_named(run, text):
    (run.path / "config.yaml").write_bytes(text)
    with pytest.raises(ExportError, match=r"config.yaml is damaged \(.*\), and the .* restore it"):
        write_card(run.path, 4, run.path)
    assert not (run.path / "README.md").exists()
