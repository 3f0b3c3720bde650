"""A LoRA run exported twice: adapters merged into the weights, and alone."""

import copy
import json

import pytest
import torch
from omegaconf import OmegaConf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.checkpoints import mark_complete
from tests.composing import compose_once
from tests.export.conftest import SHARD
from vapo_verl.digits.model import model_dir
from vapo_verl.export.__main__ import main
from vapo_verl.export.model_folder import write_model_folder
from vapo_verl.export.source import ExportError

RANK, ALPHA = 4, 12
TOLERANCE = 1e-5


def base_model():
    return AutoModelForImageTextToText.from_pretrained(model_dir(), dtype=torch.float32).eval()


def logits(model):
    """Of float32 weights, computed in float64: what differs is the weights."""
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        wide = copy.deepcopy(model).double()
        return wide(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


@pytest.fixture(scope="module")
def trained():
    """The packaged model with adapters whose B is not zero, as a training leaves them."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=RANK,
        lora_alpha=ALPHA,
        target_modules="all-linear",
        exclude_modules=".*visual.*",
    )
    model = get_peft_model(base_model(), config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if ".lora_B." in name:
                tensor.copy_(0.02 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture
def lora_run(run, trained):
    """A run folder with a checkpoint of it at step 4."""
    OmegaConf.save(compose_once("smoke_lora"), run.path / "config.yaml", resolve=True)
    return save(run, {name: t for name, t in trained.state_dict().items() if "lm_head" not in name})


def save(run, weights, **meta):
    actor = run.path / "global_step_4" / "actor"
    if not actor.exists():
        run.save(4, complete=False)
    torch.save(weights, actor / SHARD)
    stated = {"r": RANK, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", **meta}
    (actor / "lora_train_meta.json").write_text(json.dumps(stated))
    mark_complete(run.path, 4)
    return run


def test_merged_weights_and_adapters_compute_what_was_trained(lora_run, trained):
    merged = write_model_folder(lora_run.path, dtype="float32")
    adapter = write_model_folder(lora_run.path, adapter=True)
    assert (merged.name, adapter.name) == ("model_step_4", "adapter_step_4")
    expected = logits(trained)
    assert (expected - logits(base_model())).abs().max() > 0.1
    of_merged = logits(AutoModelForImageTextToText.from_pretrained(merged, dtype="auto").eval())
    of_adapter = logits(PeftModel.from_pretrained(base_model(), adapter).eval())
    for found in (of_merged, of_adapter):
        assert (found - expected).abs().max() <= TOLERANCE


def test_a_merged_weight_is_rounded_once(lora_run, trained):
    out = write_model_folder(lora_run.path)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    written = load_file(f"{out}/model.safetensors")
    layer = trained.base_model.model.model.language_model.layers[0].self_attn.q_proj
    change = layer.lora_B.default.weight @ layer.lora_A.default.weight
    exact = layer.base_layer.weight + ALPHA / RANK * change
    name = next(name for name in written if name.endswith("layers.0.self_attn.q_proj.weight"))
    assert torch.equal(written[name], exact.bfloat16())


def test_the_adapter_folder_holds_peft_files_and_the_tokenizer(lora_run):
    out = write_model_folder(lora_run.path, adapter=True)
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    }
    assert not {"config.json", "model.safetensors"} & names
    stated = json.loads((out / "adapter_config.json").read_text())
    assert (stated["r"], stated["lora_alpha"], stated["peft_type"]) == (RANK, ALPHA, "LORA")
    assert stated["base_model_name_or_path"] == "digits"
    assert all(".language_model.layers." in name for name in stated["target_modules"])
    card = (out / "README.md").read_text()
    assert f"Adapters alone (LoRA): rank {RANK}, alpha {ALPHA}." in card
    assert "--max-lora-rank 8 " in card, "vLLM has room for no rank of 4"
    for file in out.iterdir():
        assert str(lora_run.path).encode() not in file.read_bytes(), file.name
        assert str(model_dir()).encode() not in file.read_bytes(), file.name


def test_an_adapter_comes_with_the_limits_of_the_run_and_how_to_serve_them(lora_run):
    config = OmegaConf.load(lora_run.path / "config.yaml")
    config.data.max_pixels = 31360
    OmegaConf.save(config, lora_run.path / "config.yaml")
    out = write_model_folder(lora_run.path, adapter=True)
    size = json.loads((out / "processor_config.json").read_text())["image_processor"]["size"]
    assert size == {"shortest_edge": 784, "longest_edge": 31360}
    card = (out / "README.md").read_text()
    assert "--mm-processor-kwargs" in card and "--chat-template THIS_FOLDER" in card


def test_the_card_says_what_was_merged(lora_run):
    out = write_model_folder(lora_run.path, dtype="float32")
    text = (out / "README.md").read_text()
    assert f"float32. Adapters (LoRA: rank {RANK}, alpha {ALPHA}) are merged into them." in text
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_a_checkpoint_of_adapters_alone_gives_an_adapter_and_no_model(run, trained):
    save(run, {name: t for name, t in trained.state_dict().items() if "lora_" in name})
    with pytest.raises(ExportError, match=r"holds adapters only .*export them with --adapter"):
        write_model_folder(run.path)
    out = write_model_folder(run.path, adapter=True)
    found = logits(PeftModel.from_pretrained(base_model(), out).eval())
    assert (found - logits(trained)).abs().max() <= TOLERANCE


def test_a_run_that_trained_all_weights_has_no_adapter(run):
    run.save(4)
    with pytest.raises(ExportError, match=r"holds no adapters: .*export without --adapter"):
        write_model_folder(run.path, adapter=True)
    assert not (run.path / "adapter_step_4").exists()


def test_float32_keeps_what_bfloat16_rounds(run):
    weights = load_file(f"{model_dir()}/model.safetensors")
    name = sorted(name for name in weights if "q_proj.weight" in name)[0]
    weights[name] = weights[name].float() + 1e-6
    torch.save(weights, run.save(4, complete=False) / SHARD)
    mark_complete(run.path, 4)
    out = write_model_folder(run.path, dtype="float32")
    assert torch.equal(load_file(f"{out}/model.safetensors")[name], weights[name])


@pytest.mark.parametrize("stated", [{"r": 8}, {"r": 0}, {"r": "4"}, {"lora_alpha": None}])
def test_a_rank_or_alpha_that_does_not_fit_is_refused(lora_run, trained, stated):
    (lora_run.path / "global_step_4" / "complete.json").unlink()
    save(lora_run, trained.state_dict(), **stated)
    with pytest.raises(ExportError, match=r"lora_train_meta.json (says 8|gives no rank)"):
        write_model_folder(lora_run.path)


@pytest.mark.parametrize("adapter", [False, True])
def test_adapters_that_are_not_finite_are_refused_by_name(run, trained, adapter, capsys):
    weights = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    name = next(name for name in weights if "k_proj.lora_B" in name)
    weights[name][0, 0] = float("nan")
    save(run, weights)
    assert main([str(run.path), *(["--adapter"] if adapter else [])]) == 2
    message = capsys.readouterr().err
    assert "nan or infinite" in message and "k_proj" in message and "--allow-nonfinite" in message


def test_an_adapter_without_its_layer_is_refused(run, trained):
    weights = trained.state_dict()
    name = next(name for name in weights if name.endswith("v_proj.base_layer.weight"))
    save(run, {other: tensor for other, tensor in weights.items() if other != name})
    with pytest.raises(ExportError, match=r"adapters of layers that it lacks: .*v_proj"):
        write_model_folder(run.path)


def test_adapters_that_are_missing_are_not_left_out_of_the_model(run, trained):
    save(run, {name: t for name, t in trained.state_dict().items() if "lora_" not in name})
    with pytest.raises(ExportError, match=r"lora_train_meta.json speaks of adapters .* again"):
        write_model_folder(run.path)
