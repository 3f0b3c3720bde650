"""Families of models: what runs, and what is refused before anything starts, by config.json."""

import json
import re

import httpx
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen3_5Config

from tests.composing import compose_once
from tests.paths import ROOT
from vapo_verl.config import COLOCATED, SEPARATE
from vapo_verl.digits.model import model_dir
from vapo_verl.doctor.findings import examine
from vapo_verl.preflight import check_model
from vapo_verl.rollout.model_families import (
    MISSING,
    RUNNING,
    captured_layers,
    check_family,
    read_config,
    softmax_layers,
)


@pytest.fixture
def folder(tmp_path):
    def write(**stated):
        (tmp_path / "config.json").write_text(json.dumps(stated))
        for name in ("preprocessor_config.json", "tokenizer.json"):
            (tmp_path / name).write_text("{}")
        return tmp_path

    return write


def checked(folder, *overrides):
    return check_model(
        compose_once("smoke", [f"actor_rollout_ref.model.path={folder}", *overrides])
    )


@pytest.mark.parametrize("family", RUNNING)
def test_these_pass(folder, family):
    checked(folder(model_type=family))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub whose reply to the one request is given; a cache without models."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))

    def set_reply(reply):
        def answer(request):
            assert request.url.path == "/made/up/resolve/main/config.json"
            if isinstance(reply, Exception):
                raise reply
            return reply

        client = httpx.Client(transport=httpx.MockTransport(answer))
        monkeypatch.setattr("huggingface_hub.get_session", lambda: client)

    return set_reply


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ({"model_type": "internvl_chat"}, "model.path=made/up is a 'internvl_chat' model"),
        (
            {"model_type": "qwen2_5_vl", "quantization_config": {"quant_method": "awq"}},
            "model.path=made/up holds weights in awq",
        ),
        ([], "config.json of made/up holds no JSON object"),
    ],
)
def test_a_model_of_the_hub_is_refused_by_its_config_alone(hub, tmp_path, stated, words):
    hub(httpx.Response(200, json=stated))
    with pytest.raises(ValueError, match=re.escape(words)):
        checked("made/up")
    assert not (tmp_path / "cache").exists()  # a folder of config.json alone is no model


def test_a_model_of_the_hub_that_can_be_trained_passes(hub):
    hub(httpx.Response(200, json={"model_type": "qwen2_5_vl"}))
    assert checked("made/up") == []


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (httpx.ConnectError("no route to host"), "no route to host"),
        (httpx.ConnectTimeout("timed out"), "timed out"),
        (httpx.Response(401, request=httpx.Request("GET", "https://hub/made/up")), "401"),
        (OfflineModeIsEnabled("offline mode is enabled"), "offline mode is enabled"),
    ],
)
def test_without_the_hub_the_family_is_left_to_the_trainers_process(hub, reply, reason):
    hub(reply)
    (note,) = checked("made/up")
    assert note.startswith("made/up is not on this machine") and reason in note


@pytest.mark.parametrize("stated", [{"num_experts": 4}, {"text_config": {"num_experts": 128}}])
def test_experts_are_refused_on_cpu_where_they_take_no_update(folder, stated):
    path = folder(model_type="qwen3_vl_moe", **stated)
    with pytest.raises(ValueError, match=r"has (4|128) experts a layer, and trainer\.device=cpu"):
        checked(path)
    checked(path, "trainer.device=cuda")


def test_merged_adapters_are_refused_with_experts(folder):
    """veRL sends the merged weights of experts in a layout that vLLM does not load."""
    path = folder(model_type="qwen3_vl_moe", text_config={"num_experts": 128})
    rank, merged = (
        f"actor_rollout_ref.model.{item}" for item in ("lora_rank=8", "lora.merge=true")
    )
    on_gpu = "trainer.device=cuda"
    checked(path, on_gpu, rank)
    checked(path, on_gpu, merged)  # without adapters it is not read
    with pytest.raises(ValueError, match=r"lora\.merge=True, and .* 128 experts .*false, or") as no:
        checked(path, on_gpu, rank, merged)
    assert "trainer_mode" not in str(no.value)
    for mode in (COLOCATED, SEPARATE):
        with pytest.raises(
            ValueError, match=r"lora\.merge=false with trainer\.v1\.trainer_mode=vapo,"
        ):
            checked(path, on_gpu, rank, merged, f"trainer.v1.trainer_mode={mode}")
    checked(folder(model_type="qwen3_vl"), on_gpu, rank, merged)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("internvl", "InternVL3.5: veRL 0.9.1 makes no processor of it"),
        ("internvl_chat", "InternVL3.5 with its own code: veRL 0.9.1 makes no processor of it"),
        ("glm46v", "GLM-4.6V: veRL 0.9.1 sends an image as all of its tokens"),
        ("glm4v_moe", "GLM-4.5V: veRL 0.9.1 sends an image as all of its tokens"),
        ("qwen3_5", "Qwen3.5: veRL 0.9.1 and vLLM 0.24 know it, but no run of it has been tried"),
        ("llava", "is a 'llava' model; use one of"),
        (None, "is a None model; use one of"),
    ],
)
def test_a_refusal_says_what_is_missing_and_what_works(folder, family, words):
    path = folder(model_type=family)
    with pytest.raises(ValueError, match=re.escape(words)) as caught:
        checked(path)
    said = str(caught.value)
    assert said.startswith(f"actor_rollout_ref.model.path={path} is a ")
    assert "; use one of Qwen2-VL (qwen2_vl), Qwen2.5-VL (qwen2_5_vl), Qwen3-VL" in said
    [finding] = examine("model", lambda: checked(path))
    assert finding.status == "error"
    assert finding.fix.startswith("use one of Qwen2-VL")


def test_a_hub_name_in_the_cache_is_looked_at(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--OpenGVLab--InternVL3_5-8B" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "internvl_chat"}')
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="OpenGVLab/InternVL3_5-8B is a 'internvl_chat' model"):
        checked("OpenGVLab/InternVL3_5-8B")
    checked("OpenGVLab/another")  # the workers find it, or not


def test_upstream_still_lacks_it():
    """Fails when veRL learns these families: then they may move to RUNNING."""
    from verl.utils.tokenizer import tokenizer
    from verl.workers.rollout.utils import qwen2_5_vl_dedup_image_tokens

    source = (ROOT / tokenizer.__file__).read_text()
    assert "InternVLProcessor" not in source
    glm = type("Glm46VImageProcessor", (), {})()
    processor = type("P", (), {"image_processor": glm, "image_token_id": 7, "video_token_id": 8})()
    assert qwen2_5_vl_dedup_image_tokens([1, 7, 7, 7, 2], processor) == [1, 7, 7, 7, 2]
    processor.image_processor = type("Qwen2VLImageProcessor", (), {})()
    assert qwen2_5_vl_dedup_image_tokens([1, 7, 7, 7, 2], processor) == [1, 7, 2]


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is no JSON .*; copy it again"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no JSON object"):
        read_config(tmp_path)


def test_layers_of_a_hybrid_model_are_those_with_softmax_attention():
    config = Qwen3_5Config(text_config={"num_hidden_layers": 8}).to_dict()
    assert softmax_layers(config) == [3, 7]  # each fourth, as the released models
    assert captured_layers(config, None) == captured_layers(config, "all") == [3, 7]
    assert captured_layers(config, [7]) == [7]
    with pytest.raises(
        ValueError, match=r"no attention layer \[2\]; it has \[3, 7\]; leave it null"
    ):
        captured_layers(config, [2])
    del config["text_config"]["layer_types"]
    assert softmax_layers({**config["text_config"], "full_attention_interval": 2}) == [1, 3, 5, 7]


def test_layers_of_a_plain_model_are_all():
    config = AutoConfig.from_pretrained(model_dir()).to_dict()
    assert softmax_layers(config) == [0, 1, 2, 3, 4, 5]
    assert captured_layers(config, None) == [1, 4]
    assert captured_layers(config, "all") == [0, 1, 2, 3, 4, 5]
    assert captured_layers(config, (4, 0)) == [0, 4]


@pytest.mark.parametrize(
    ("kinds", "found"),
    [
        (["linear_attention", "linear_attention", "linear_attention", "full_attention"], [3]),
        (["sliding_attention", "full_attention"] * 2, [0, 1, 2, 3]),
    ],
)
def test_layers_of_another_kind_are_not_captured(kinds, found):
    model = Qwen2_5_VLConfig()
    model.text_config.num_hidden_layers = 4
    model.text_config.layer_types = kinds
    assert captured_layers(model.get_text_config(decoder=True).to_dict(), "all") == found


def test_without_softmax_there_is_nothing_to_capture():
    config = {"num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2}
    with pytest.raises(ValueError, match="no decoder layer has softmax attention; set it to false"):
        captured_layers(config, None)


def test_a_layer_without_attention_is_refused_before_the_engine_starts():
    model = f"{model_dir()}"
    capture = "vapo.attention.enabled=true"
    checked(model, capture, "vapo.attention.layers=[5]")
    with pytest.raises(ValueError, match=r"vapo\.attention\.layers: .*no attention layer \[6\]"):
        checked(model, capture, "vapo.attention.layers=[6]")


SEVEN_B = {"num_attention_heads": 28, "num_key_value_heads": 4}  # Qwen2.5-VL-7B
TENSOR = "actor_rollout_ref.rollout.tensor_model_parallel_size"
ULYSSES = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"


@pytest.mark.parametrize("stated", [SEVEN_B, {"text_config": SEVEN_B}])
@pytest.mark.parametrize("key", [TENSOR, ULYSSES])
def test_ranks_that_do_not_split_the_heads_are_refused_with_those_that_do(folder, stated, key):
    path = folder(model_type="qwen2_5_vl", **stated)
    for size in (1, 2, 4, 28):  # 28: each of 4 heads of keys and values is repeated 7 times
        checked(path, f"{key}={size}")
    for size in (3, 7, 8):  # 7 divides 28, but neither divides 4 nor is a multiple of it
        words = f"{key}={size}: the model's 28 attention heads and 4 heads of keys and values"
        with pytest.raises(ValueError, match=re.escape(words)) as told:
            checked(path, f"{key}={size}")
        assert str(told.value).endswith("set one of " + ("1, 2" if size == 3 else "1, 2, 4"))


def test_the_references_ranks_count_where_there_is_one(folder):
    path = folder(model_type="qwen2_5_vl", **SEVEN_B)
    key = "actor_rollout_ref.ref.ulysses_sequence_parallel_size"
    own = [f"{key}=8", f"{ULYSSES}=4"]
    checked(path, *own, "actor_rollout_ref.actor.use_kl_loss=false")
    with pytest.raises(ValueError, match=f"{re.escape(key)}=8: "):
        checked(path, *own, "actor_rollout_ref.actor.use_kl_loss=true")


def test_heads_of_a_cached_hub_model_are_read(folder, tmp_path, monkeypatch):
    cached = tmp_path / "models--made--up" / "snapshots" / "0000"
    cached.mkdir(parents=True)
    (folder(model_type="qwen2_5_vl", **SEVEN_B) / "config.json").rename(cached / "config.json")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    checked("made/up", f"{TENSOR}=4")
    with pytest.raises(ValueError, match=f"{re.escape(TENSOR)}=8: "):
        checked("made/up", f"{TENSOR}=8")


def test_the_page_lists_every_family():
    page = (ROOT / "docs" / "models.md").read_text()
    for family in (*RUNNING, *MISSING):
        assert f"`{family}`" in page, family
    with pytest.raises(ValueError, match="glm4v"):
        check_family({"model_type": "glm4v"}, "model")
