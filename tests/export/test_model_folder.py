"""A model folder appears complete, holds the trained weights, and nothing else."""

import json
import shutil

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.checkpoints import mark_complete
from tests.export.conftest import SHARD
from vapo_verl.data.control_tokens import load_processor
from vapo_verl.data.images import resized
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.export import model_folder
from vapo_verl.export.model_folder import PROCESSOR_FILE, atomic_folder, write_model_folder
from vapo_verl.export.source import ExportError
from vapo_verl.run_folder.layout import write_config


def test_weights_tokenizer_processor_and_card_are_written(run):
    run.save(4)
    out = write_model_folder(run.path)
    assert out == run.path / "model_step_4"
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    }
    written, trained = (load_file(f"{folder}/model.safetensors") for folder in (out, model_dir()))
    assert set(written) == set(trained)
    assert all(torch.equal(written[name], trained[name]) for name in trained)
    for file in out.iterdir():
        assert str(run.path).encode() not in file.read_bytes(), f"{file.name} names a private path"
    assert {path.name for path in run.path.iterdir() if path.name.startswith(".")} == set()


def test_experts_are_written_as_on_the_hub(run, tmp_path):
    """[experts, hidden, 2 * intermediate], which vLLM transposes; in memory it is transposed."""
    num_experts, hidden, intermediate = 4, 32, 24
    base, actor = tmp_path / "base", run.save(4, complete=False)
    config = make_random_model(base, "tiny", family="qwen3_vl_moe", weights=False)
    text = config.text_config
    text.update({"hidden_size": hidden, "num_experts": num_experts, "num_hidden_layers": 1})
    text.update({"moe_intermediate_size": intermediate, "vocab_size": 64})
    config.vision_config.out_hidden_size = hidden
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    trained = model.state_dict()
    torch.save(trained, actor / SHARD)
    shutil.copytree(base, actor / "huggingface", dirs_exist_ok=True)
    config.save_pretrained(actor / "huggingface")
    mark_complete(run.path, 4)
    out = write_model_folder(run.path)
    written = load_file(f"{out}/model.safetensors")
    experts = "model.language_model.layers.0.mlp.experts"
    shapes = {name: list(tensor.shape) for name, tensor in written.items() if experts in name}
    assert shapes == {
        f"{experts}.gate_up_proj": [num_experts, hidden, 2 * intermediate],
        f"{experts}.down_proj": [num_experts, intermediate, hidden],
    }
    for name in shapes:
        assert torch.equal(written[name].transpose(1, 2), trained[name])
    loaded = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.bfloat16).state_dict()
    assert set(loaded) == set(trained)
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_a_checkpoint_that_carries_code_is_refused(run, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"weight": Harm()}, run.save(4, complete=False) / SHARD)
    mark_complete(run.path, 4)
    with pytest.raises(ExportError, match="UnpicklingError: Weights only load failed"):
        write_model_folder(run.path)
    assert not (tmp_path / "harm").exists()
    assert not (run.path / "model_step_4").exists()


def spoiled(run, value, name="lm_head.weight"):
    """A checkpoint of step 4 with one weight of that value; the tensor's name."""
    weights = load_file(f"{model_dir()}/model.safetensors")
    name = name if name in weights else sorted(weights)[0]
    weights[name].view(-1)[3] = value
    actor = run.save(4, complete=False)
    torch.save(weights, actor / SHARD)
    mark_complete(run.path, 4)
    return name


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_by_name(run, value):
    name = spoiled(run, value)
    with pytest.raises(ExportError, match=rf"1 of \d+ tensors hold .*: {name} \(1\); .*--step"):
        write_model_folder(run.path)
    assert not [path for path in run.path.iterdir() if "model_step" in path.name]


def test_weights_that_are_not_finite_can_be_had_on_purpose(run):
    name = spoiled(run, float("nan"))
    out = write_model_folder(run.path, allow_nonfinite=True)
    assert load_file(f"{out}/model.safetensors")[name].isnan().sum() == 1


def test_a_shard_that_lacks_a_tensor_is_refused_by_name(run):
    weights = load_file(f"{model_dir()}/model.safetensors")
    name = sorted(name for name in weights if "norm" in name)[0]
    shape = list(weights.pop(name).shape)
    torch.save(weights, run.save(4, complete=False) / SHARD)
    mark_complete(run.path, 4)
    with pytest.raises(ExportError, match=r"lacks 1 of the \d+ tensors .* again") as no:
        write_model_folder(run.path)
    assert f"of shape {shape}; copy" in str(no.value)


@pytest.mark.parametrize(
    "content", [[1, 2], {}, {"weight": "text"}, {"weight": torch.zeros(3)}], ids=str
)
def test_a_shard_with_other_content_is_an_error_and_leaves_nothing(run, content):
    actor = run.save(4, complete=False)
    torch.save(content, actor / SHARD)
    mark_complete(run.path, 4)
    before = sorted(run.path.iterdir())
    with pytest.raises(ExportError, match=r"cannot be merged: |lacks \d+ of the \d+ tensors"):
        write_model_folder(run.path)
    assert sorted(run.path.iterdir()) == before


def test_the_card_names_the_model_of_its_own_step(run):
    """After a resume with another model, which has to be accepted."""
    run.save(4)
    config = OmegaConf.load(run.path / "config.yaml")
    first = config.actor_rollout_ref.model.path
    config.actor_rollout_ref.model.path = "Other/Model"
    write_config(run.path, config, 4)
    run.save(8)
    cards = [(write_model_folder(run.path, step) / "README.md").read_text() for step in (4, 8)]
    assert "`digits` after" in cards[0] and "Other/Model" not in cards[0], first
    assert "`Other/Model` after" in cards[1]


def test_an_existing_folder_is_never_touched(run):
    run.save(4)
    out = run.path / "mine"
    out.mkdir()
    with pytest.raises(ExportError, match=r"mine exists already"):
        write_model_folder(run.path, out=out)
    assert list(out.iterdir()) == []


def test_an_error_leaves_nothing(run, monkeypatch):
    def no_space(_checkpoint, _out, **_how):
        raise OSError(28, "No space left on device")

    run.save(4)
    before = sorted(run.path.iterdir())
    monkeypatch.setattr(model_folder, "write_model", no_space)
    with pytest.raises(OSError, match="No space"):
        write_model_folder(run.path)
    assert sorted(run.path.iterdir()) == before


def test_a_folder_appears_with_all_its_files(tmp_path):
    folder = tmp_path / "a" / "b"
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text("text")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]


@pytest.fixture
def limited(run):
    """`limited("out", min_pixels=...)`: the export of a run with these limits."""
    run.save(4)

    def export(name, **limits):
        config = OmegaConf.load(run.path / "config.yaml")
        config.data.update(limits)
        OmegaConf.save(config, run.path / "config.yaml")
        return write_model_folder(run.path, out=run.path / name)

    return export


@pytest.mark.parametrize(
    ("limits", "shortest", "longest"),
    [
        ({"min_pixels": 12544, "max_pixels": 31360}, 12544, 31360),
        ({"min_pixels": 12544}, 12544, 50176),
        ({"max_pixels": 31360}, 784, 31360),
        ({"min_pixels": 100, "max_pixels": 4194304}, 784, 50176),  # the processor's are narrower
    ],
)
def test_the_processor_has_the_limits_of_the_run(limited, limits, shortest, longest):
    expected = json.loads((limited("before") / PROCESSOR_FILE).read_text())
    expected["image_processor"]["size"] = {"shortest_edge": shortest, "longest_edge": longest}
    out = limited("after", **limits)
    assert json.loads((out / PROCESSOR_FILE).read_text()) == expected  # videos as before
    card = (out / "README.md").read_text()
    assert all(f"| {limit} |" in card for limit in limits.values())


def test_who_loads_the_folder_resizes_images_as_in_training(limited):
    """`vllm serve` makes the same processor of it."""
    limits = {"min_pixels": 12544, "max_pixels": 31360}
    folders = (model_dir(), limited("out", **limits))
    own, processor = (AutoProcessor.from_pretrained(folder).image_processor for folder in folders)

    def num_patches(of, image):
        return of.get_number_of_image_patches(image.height, image.width, {})

    below, between, above = (30, 20), (140, 121), (640, 480)
    for size in (below, between, above, (100, 301), (900, 90)):
        image = Image.new("RGB", size)
        in_training = resized(image, patch_size=own.patch_size, **limits)
        assert num_patches(processor, image) == num_patches(own, in_training)
        assert size == between or num_patches(own, image) != num_patches(own, in_training)


def test_a_template_of_the_run_is_exported(run):
    """veRL saves the processor of its HFModelConfig, whose template it is."""
    actor = run.save(4, complete=False)
    processor = load_processor(model_dir(), "{{ messages[0].role }}")
    processor.save_pretrained(actor / "huggingface")
    mark_complete(run.path, 4)
    written = AutoProcessor.from_pretrained(write_model_folder(run.path))
    messages = [{"role": "user", "content": "Yes?"}]
    for each in (written, written.tokenizer):
        assert each.apply_chat_template(messages, tokenize=False) == "user"


def test_without_limits_of_the_run_the_processor_is_that_of_the_model(limited, tmp_path):
    AutoProcessor.from_pretrained(model_dir()).save_pretrained(tmp_path / "model")
    out = limited("out")
    assert (out / PROCESSOR_FILE).read_bytes() == (tmp_path / "model" / PROCESSOR_FILE).read_bytes()
    assert "pixels of an image" not in (out / "README.md").read_text()
