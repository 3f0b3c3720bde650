"""Random models: sizes as promised, sane in bfloat16, loaded by transformers and by vLLM."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    Qwen2_5_VLForConditionalGeneration,
)

from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.__main__ import main
from vapo_verl.digits.model.random_models import (
    FAMILIES,
    SHAPES,
    image_size,
    make_random_model,
    random_config,
)

REDUCED = {"layers": 1, "vision_layers": 1, "vocab_size": 512}
"""7b at the cost of one layer: 300 million parameters, of heads and widths as the original."""
QUESTION = "What is the sum of the top row?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "random_100m"
    make_random_model(out, "100m")
    return out


@pytest.fixture(scope="module")
def model(folder):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def noise(num_tokens, seed=0):
    width, height = image_size(num_tokens)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def prompt_of(processor):
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def inputs_of(processor, num_tokens, seed=0):
    return processor(
        text=[prompt_of(processor)], images=[noise(num_tokens, seed)], return_tensors="pt"
    )


@pytest.fixture(scope="module")
def output(model, processor):
    inputs = inputs_of(processor, 64)
    with torch.no_grad():
        found = model(**inputs, output_attentions=True)
    return inputs["input_ids"][0] == model.config.image_token_id, found


def test_100m_has_about_100_million_parameters_in_bfloat16(model):
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == pytest.approx(100e6, rel=0.02)
    tower = sum(weight.numel() for weight in model.model.visual.parameters())
    assert tower > 10e6


def test_heads_suit_every_attention_backend(model):
    text = model.config.text_config
    assert text.hidden_size // text.num_attention_heads == 64
    assert text.num_attention_heads // text.num_key_value_heads == 4


def test_7b_with_all_its_layers_has_the_originals_parameters(tokenizer):
    config = random_config(replace(SHAPES["7b"], num_layers=28), tokenizer)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert model.num_parameters() == 8_292_166_656  # of Qwen/Qwen2.5-VL-7B-Instruct


@pytest.mark.parametrize(
    ("num_tokens", "size"), [(1, (28, 28)), (12, (112, 84)), (1024, (896, 896))]
)
def test_an_image_token_is_28_pixels_square(processor, num_tokens, size):
    assert image_size(num_tokens) == size
    inputs = inputs_of(processor, num_tokens)
    assert (inputs["input_ids"] == processor.image_token_id).sum() == num_tokens


def test_larger_images_than_the_limit_are_scaled_down(processor):
    ids = inputs_of(processor, 4096)["input_ids"]
    assert (ids == processor.image_token_id).sum() == 1024


def test_the_limit_of_image_tokens_is_an_argument(tmp_path):
    make_random_model(tmp_path, "100m", weights=False, max_image_tokens=4096)
    ids = inputs_of(AutoProcessor.from_pretrained(tmp_path), 4096)["input_ids"]
    assert (ids == AutoTokenizer.from_pretrained(tmp_path).encode("<|image_pad|>")[0]).sum() == 4096


def test_images_longer_than_the_processor_takes_are_refused():
    with pytest.raises(ValueError, match="num_tokens=211 makes an image of 1 x 211 tokens"):
        image_size(211)


def test_logits_are_finite_and_tell_tokens_apart(output):
    logits = output[1].logits[0].float()
    assert logits.isfinite().all()
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert 2 < entropy.mean() < np.log(445) - 0.5  # nats: neither one-hot nor uniform
    assert logits.argmax(-1).unique().numel() > 10


def test_no_special_token_but_the_end_is_ever_sampled(output, processor):
    probabilities = output[1].logits[0].float().softmax(-1)
    tokenizer = processor.tokenizer
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    assert len(special) == 7
    assert probabilities[:, special].max() < 1e-12
    assert 1e-4 < probabilities[:, tokenizer.eos_token_id].mean() < 1e-1


def test_attention_is_neither_uniform_nor_one_hot(output):
    visual, found = output
    weights = torch.stack(found.attentions)[:, 0, :, -1].float()  # [layers, heads, keys]
    assert 0.2 < weights.max(-1).values.mean() < 0.8
    ratio = weights[..., visual].sum(-1)  # [layers, heads]
    assert (ratio.std(1) > 0.1).all()
    wrong = weights[..., visual.roll(1)].sum(-1)
    assert (ratio - wrong).abs().mean() > 0.01  # a span off by one shows


def test_the_image_decides_logits(model, processor):
    one, other = (inputs_of(processor, 64, seed) for seed in (0, 1))
    with torch.no_grad():
        difference = model(**one).logits[0, -1] - model(**other).logits[0, -1]
    assert difference.float().std() > 0.1


def test_it_has_the_packaged_models_end_of_sequence(folder):
    mine, packaged = (
        Qwen2_5_VLForConditionalGeneration.from_pretrained(path).generation_config
        for path in (folder, model_dir())
    )
    assert mine.eos_token_id == packaged.eos_token_id is not None
    assert mine.pad_token_id == packaged.pad_token_id


def test_a_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    def digest(name, **seed):
        make_random_model(tmp_path / name, "tiny", **seed)
        return hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest()

    state = torch.get_rng_state()
    assert digest("one") == digest("same", seed=0) != digest("other", seed=1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("size", "length"), [("100m", 445), ("7b", 152_064)])
def test_vocabulary_and_tokenizer_have_the_same_length(tmp_path, size, length):
    config = make_random_model(tmp_path, size, weights=False)
    tokenizer, packaged = map(AutoTokenizer.from_pretrained, (tmp_path, model_dir()))
    assert config.text_config.vocab_size == len(tokenizer) == length
    text = "<think>The top left digit is 7.</think>\\boxed{7} <unused500>"
    assert tokenizer.encode(text) == packaged.encode(text)
    assert tokenizer.decode([len(packaged) - 1, length - 1]).endswith(
        f"<unused{length - 1}>" if length > len(packaged) else packaged.decode([length - 1])
    )


def test_without_weights_there_is_all_but_weights(tmp_path):
    make_random_model(tmp_path, "7b")
    assert not list(tmp_path.glob("*.safetensors"))
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "3b"}, "size=3b is unknown; use one of tiny, 100m, 7b"),
        ({"family": "qwen4_vl"}, "family=qwen4_vl is unknown; use one of qwen2_vl, qwen2_5_vl"),
        ({"layers": 0}, "layers=0 must be at least 1"),
        ({"vocab_size": 100}, "vocab_size=100 is below the tokenizer's 445"),
        ({"max_image_tokens": 0}, "max_image_tokens=0 must be at least 1"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_random_model(tmp_path / "model", **arguments)
    assert not (tmp_path / "model").exists()


def test_weights_in_the_way_of_a_folder_without_any_are_kept(folder):
    with pytest.raises(ValueError, match="holds weights of another model"):
        make_random_model(folder, "7b")
    assert (folder / "model.safetensors").exists()


def test_command_makes_the_folder_and_says_its_sizes(tmp_path, capsys):
    main(["random", "--size", "7b", "--layers", "2", "--vocab-size", "512", "--out", str(tmp_path)])
    assert "2 decoder layers of 28 heads (4 KV heads) of 128" in capsys.readouterr().out
    main(["random", "--size", "100m", "--no-weights", "--dtype", "float32", "--out", str(tmp_path)])
    assert "99,366,208 parameters, 12 decoder layers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["random", "--layers", "0", "--out", str(tmp_path)])
    assert "error: layers=0 must be at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--memory", "0"], "memory=0.0: give a number of tokens above 0, or none"),
        (["--memory", "-1"], "memory=-1.0: give"),
        (["--memory", "nan"], "memory=nan: give"),
        (["--memory", "inf"], "memory=inf: give"),
        (["--memory", "18", "--guesses", "nan"], "guesses=nan: give a fraction"),
        (["--memory", "18", "--steps", "0"], "steps=0: give 1 or more"),
        (["--memory", "18", "--threads", "0"], "--threads 0: give 1 or more"),
        (["--memory", "18", "--seed", "-1"], "--seed -1: give a number of 0"),
        (["--memory", "18", "--out", f"{__file__}/model"], "is a file; name a folder"),
    ],
)
def test_a_warm_start_that_cannot_be_is_refused(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit, match="2"):
        main(["warm-start", "--out", str(tmp_path / "model"), *arguments])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_command_without_a_folder_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--preset", "digits"])
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_its_own_classes_and_patches(tmp_path, family):
    config = make_random_model(tmp_path, "tiny", family=family)
    processor = AutoProcessor.from_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert model.config.model_type == config.model_type == family
    side = 32 if family.startswith("qwen3") else 28
    image = Image.new("RGB", (3 * side, 2 * side), (200, 30, 90))
    inputs = processor(text=[prompt_of(processor)], images=[image], return_tensors="pt")
    is_image = inputs["input_ids"][0] == processor.image_token_id
    assert is_image.sum() == 6
    with torch.no_grad():
        probabilities = model(**inputs).logits[0, ~is_image].softmax(-1)
        other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits[0, -1]
    tokenizer = processor.tokenizer
    special = [i for i in tokenizer.all_special_ids if i != tokenizer.eos_token_id]
    assert probabilities[:, special].max() < 1e-6
    assert probabilities[:, tokenizer.eos_token_id].mean() > 1e-4
    assert not torch.allclose(other.softmax(-1), probabilities[-1], atol=1e-4)  # it sees the image


def test_experts_are_written_in_the_layout_of_released_folders(tmp_path):
    """As vLLM reads them: [experts, hidden, 2 * intermediate]; no weight of them is square."""
    make_random_model(tmp_path, "tiny", family="qwen3_vl_moe")
    written = load_file(tmp_path / "model.safetensors")
    experts = "model.language_model.layers.0.mlp.experts"
    gate_up, down = (written[f"{experts}.{part}_proj"] for part in ("gate_up", "down"))
    assert (gate_up.shape, down.shape) == ((4, 128, 192), (4, 96, 128))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(model.get_parameter(f"{experts}.down_proj"), down.transpose(1, 2))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_vl"])
def test_think_tags_can_be_added_tokens_that_are_never_sampled(tmp_path, family):
    make_random_model(tmp_path, "tiny", family=family, think_tokens=True)
    processor = AutoProcessor.from_pretrained(tmp_path)
    tokenizer, packaged = processor.tokenizer, AutoTokenizer.from_pretrained(model_dir())
    text = "<think>The top left digit is 7.</think>\\boxed{7}"
    ids = tokenizer.encode(text)
    assert ids == packaged.encode(text)
    tags = [tokenizer.added_tokens_encoder[tag] for tag in ("<think>", "</think>")]
    assert not {*tags} & {*tokenizer.all_special_ids}  # as in Qwen3-VL: skipped by no decoder
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        probabilities = model(torch.tensor([ids])).logits[0].softmax(-1)
    assert probabilities[:, tags].max() < 1e-6


VLLM = """
import sys
import numpy as np
from PIL import Image
from vllm import LLM, SamplingParams

folder, load_format, prompt, side = *sys.argv[1:4], int(sys.argv[4])
engine = LLM(
    folder,
    load_format=load_format,
    enforce_eager=True,
    max_model_len=1280,
    max_num_seqs=4,
    max_num_batched_tokens=2048,
    kv_cache_memory_bytes=2**27,
    limit_mm_per_prompt={"image": 1, "video": 0},
    skip_mm_profiling=True,
)
pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
image = Image.fromarray(pixels)
sampling = SamplingParams(temperature=1.0, seed=0, max_tokens=24, logprobs=0)
request = {"prompt": prompt, "multi_modal_data": {"image": image}}
[output] = engine.generate([request], sampling)
image_id = engine.get_tokenizer().convert_tokens_to_ids("<|image_pad|>")
logprobs = [entry[i].logprob for i, entry in zip(
    output.outputs[0].token_ids, output.outputs[0].logprobs
)]
assert np.isfinite(logprobs).all(), logprobs
print("IMAGE TOKENS", output.prompt_token_ids.count(image_id), engine.model_config.dtype)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "reduced", "load_format"), [("100m", {}, "auto"), ("7b", REDUCED, "dummy")]
)
def test_vllm_loads_it_and_sees_1024_tokens_of_an_image(tmp_path, size, reduced, load_format):
    pytest.importorskip("vllm")
    make_random_model(tmp_path, size, **reduced)
    prompt = prompt_of(AutoProcessor.from_pretrained(tmp_path))
    environment = {"TORCHDYNAMO_DISABLE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(tmp_path), load_format, prompt, "896"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "IMAGE TOKENS 1024 torch.bfloat16" in done.stdout
