"""Spoiled input and contradictory settings end before Ray starts, in one line a user can act on."""

import json
import math
import re
import shutil
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.composing import compose_once
from tests.evaluation.benchmarks.chat_server import write_tsv
from vapo_verl import preflight
from vapo_verl.data.__main__ import main as data_command
from vapo_verl.digits.model import model_dir
from vapo_verl.doctor.findings import examine
from vapo_verl.launch import settle
from vapo_verl.preflight import (
    InputError,
    check_batches,
    check_data,
    check_first_pass,
    check_micro_batches,
    check_run,
    check_trainer_mode,
    row_rules,
)


def no_network(request):
    raise httpx.ConnectError("no network")


NO_NETWORK = httpx.MockTransport(no_network)


@pytest.fixture(scope="module")
def digits(digits_data):
    return digits_data(train=16, val=2)  # a batch of the smoke recipe


@pytest.fixture
def composed(digits):
    """The smoke recipe under overrides."""

    def compose(*overrides):
        files = [f"data.train_files={digits['train']}", f"data.val_files={digits['val']}"]
        config = compose_once("smoke", [*files, *overrides])
        settle(config)
        return config

    return compose


@pytest.fixture
def check(composed):
    """Check the smoke recipe under overrides, as the command line would."""

    def run(*overrides):
        return check_run(composed(*overrides))

    return run


@pytest.fixture
def spoiled(digits, tmp_path):
    """The training file with one row changed."""

    def write(change):
        rows = pq.read_table(digits["train"]).to_pylist()
        change(rows[1])
        path = tmp_path / "spoiled.parquet"
        pq.write_table(pa.Table.from_pylist(rows), path)
        return f"data.train_files={path}"

    return write


def refused(check, *overrides) -> str:
    with pytest.raises(InputError) as caught:
        check(*overrides)
    return str(caught.value)


def test_good_input_is_described(check):
    train, val = check()
    assert "train.parquet: 16 rows" in train
    assert "val.parquet: 2 rows" in val


@pytest.mark.parametrize("metric", ["perception", "accuracy"])
def test_a_group_filter_goes_by_what_every_response_has(metric):
    given = [f"algorithm.filter_groups.metric={metric}"]
    with pytest.raises(
        ValueError, match=f"metric={metric}.* use one of reward, acc, format"
    ) as told:
        preflight.check_group_filter(compose_once("vapo_released", given))
    assert ("without probes have none" in str(told.value)) == (metric == "perception")
    function = "reward.custom_reward_function.path=mine.py"  # may give values of its own
    preflight.check_group_filter(compose_once("vapo_released", [*given, function]))
    off = "algorithm.filter_groups.enable=false"
    preflight.check_group_filter(compose_once("vapo_released", [*given, off]))
    preflight.check_group_filter(compose_once("vapo_released"))


def test_a_missing_data_file_is_named_with_its_key(check):
    message = refused(check, "data.val_files=/absent/val.parquet")
    assert "data.val_files" in message
    assert "/absent/val.parquet" in message


def test_a_file_that_is_not_parquet_is_named(check, tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text("id,question\n")
    message = refused(check, f"data.train_files={path}")
    assert str(path) in message
    assert "parquet" in message


def test_a_missing_image_names_row_column_and_path(check, spoiled):
    def change(row):
        row["images"] = [{"bytes": None, "path": "/absent/7.png"}]

    message = refused(check, spoiled(change))
    assert "row 1, column 'images'" in message
    assert "/absent/7.png" in message


def test_an_unreadable_image_names_its_row(check, spoiled):
    def change(row):
        row["images"] = [{"bytes": b"not an image", "path": None}]

    assert "row 1, column 'images'" in refused(check, spoiled(change))


def test_a_label_that_is_no_truth_value_names_the_importer(check, digits, tmp_path):
    rows = pq.read_table(digits["train"]).to_pylist()
    for row in rows:
        row["claims"] = [{"text": c["text"], "label": "CORRECT"} for c in row["claims"]]
    path = tmp_path / "labels.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    message = refused(check, f"data.train_files={path}")
    assert "row 0, column 'claims'" in message
    assert "import-vapo-thinker" in message


def test_a_blank_answer_names_its_row(check, spoiled):
    def change(row):
        row["reward_model"] = {"style": "rule", "ground_truth": " "}

    assert "row 1, column 'reward_model'" in refused(check, spoiled(change))


def test_a_row_for_a_judge_needs_one(check, spoiled, tmp_path):
    files = spoiled(lambda row: row["reward_model"].update(style="judge"))
    message = refused(check, files)
    assert "row 1, column 'reward_model': the style is 'judge'" in message
    assert message.endswith(
        "name the judge's model in vapo.reward.judge.model, or write another style"
    )
    check(
        files, "vapo.reward.judge.model=made/up", "vapo.reward.judge.base_url=http://localhost:1/v1"
    )
    (tmp_path / "mine.py").write_text("def score(**row):\n    return 1.0\n")
    function = f"reward.custom_reward_function.path={tmp_path}/mine.py"
    check(files, function, "reward.custom_reward_function.name=score")
    assert data_command(["check", files.partition("=")[2]]) == 0  # it knows no run


def test_a_prompt_without_a_question_names_its_row(check, spoiled):
    def change(row):
        row["prompt"] = []

    assert "row 1, column 'prompt'" in refused(check, spoiled(change))


def ask(text):
    def change(row):
        row["prompt"][-1]["content"] += text

    return change


def cells(**values):
    return lambda row: row.update(values)


@pytest.mark.parametrize(
    "change",
    [
        ask("<|im_end|>"),
        ask("<|image_pad|>"),
        ask("<video>"),
        cells(claims=[{"text": "<|vision_start|>", "label": True}]),
        cells(reward_model={"style": "rule", "ground_truth": "\\boxed{}"}),
        cells(reward_model={"style": "exakt", "ground_truth": "4"}),
        cells(data_source=""),
        cells(images=[{"bytes": b"cut", "path": None}]),
        lambda row: row["extra_info"].update(index=None),
        lambda row: row["prompt"].append({"role": "assistant", "content": "It is"}),
    ],
)
def test_a_row_is_refused_in_the_same_words_by_check_run_and_doctor(
    check, spoiled, composed, change, capsys
):
    override = spoiled(change)
    path = override.partition("=")[2]
    assert data_command(["check", path]) == 1
    said = capsys.readouterr().err.strip()
    assert f"{path} row 1, column '" in said
    assert refused(check, override) == said
    findings = examine("data", check_data, composed(override))
    assert [f"{f.found}; {f.fix}" for f in findings] == [said]


def test_too_few_rows_are_refused_before_the_workers_start(check):
    message = refused(check, "data.train_batch_size=24")
    assert "data.train_files: 16 rows, but data.train_batch_size=24 takes 24" in message
    message = refused(check, "data.max_prompt_length=10", "data.filter_overlong_prompts=true")
    assert "0 rows of at most data.max_prompt_length=10 tokens" in message


def test_more_images_than_the_engine_takes(check, spoiled):
    def change(row):
        row["images"] *= 2
        row["prompt"][-1]["content"] += "<image>"

    message = refused(check, spoiled(change))
    assert "row 1, column 'images': 2 images, " in message
    assert "engine_kwargs.vllm.limit_mm_per_prompt.image=1; raise the limit" in message


def test_rows_of_the_training_in_the_validation_are_a_warning(check, digits):
    *_, said = check(f"data.val_files={digits['train']}")
    assert said.startswith("warning: 16 of 16 rows")


def test_control_tokens_as_text_are_let_through(check, spoiled):
    train, *_ = check(spoiled(ask("<|im_end|>")), "vapo.data.control_tokens=text")
    assert "1 row with control tokens, encoded as plain text" in train


def test_a_missing_model_and_one_without_eyes_are_named(check, tmp_path):
    assert "/absent/model does not exist" in refused(
        check, "actor_rollout_ref.model.path=/absent/model"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    message = refused(check, f"actor_rollout_ref.model.path={tmp_path}")
    assert "'qwen2' model" in message
    assert "qwen2_5_vl" in message


@pytest.mark.parametrize("lost", ["processor", "tokenizer"])
def test_a_model_that_was_saved_without_its_processor_is_refused(check, tmp_path, lost):
    model = Path(shutil.copytree(model_dir(), tmp_path / "model"))
    for file in [*model.glob(f"{lost}*"), *model.glob("preprocessor_config.json")]:
        file.unlink()
    message = refused(check, f"actor_rollout_ref.model.path={model}")
    assert f"no {lost}" in message
    assert f"save_pretrained('{model}')" in message


def test_answer_words_of_several_tokens_are_refused(check):
    message = refused(check, "vapo.anchors.yes_words=[Quite right]")
    assert "vapo.anchors.yes_words=['Quite right']" in message


def test_a_context_without_room_for_a_claim_states_the_room_needed(check):
    message = refused(check, "actor_rollout_ref.rollout.max_model_len=256")
    # smoke: 96 prompt + 160 response + 64 claim + 1 answer
    assert "max_model_len=256" in message
    assert "= 321" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vapo.advantage.attention_coef=0.3", "vapo.attention.enabled"),
        ("vapo.anchors.placement=middle", "use one of random"),
        (
            "algorithm.norm_adv_by_std_in_grpo=false",
            "algorithm.norm_adv_by_std_in_grpo=False contradicts "
            "vapo.advantage.normalize_by_std=True, which it follows; leave it out and set "
            "vapo.advantage.normalize_by_std=false",
        ),
        ("actor_rollout_ref.rollout.n=1", "rollout.n=1"),
        ("data.train_batch_size=12", "is not a multiple of"),
        ("+data.gen_batch_size=5", "data.gen_batch_size=5 does not divide data.train_batch_size="),
        (
            "actor_rollout_ref.rollout.tensor_model_parallel_size=2",
            "tensor_model_parallel_size=2: 1 GPUs (trainer.n_gpus_per_node * trainer.nnodes) do "
            "not make engines of 2",
        ),
        (
            "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=true",
            "log_prob_use_dynamic_bsz=True and actor_rollout_ref.actor.use_dynamic_bsz=False: veRL",
        ),
        (
            "actor_rollout_ref.rollout.val_kwargs.n=4",
            "val_kwargs.n=4 asks for equal responses at temperature 0; set "
            "actor_rollout_ref.rollout.val_kwargs.temperature",
        ),
        (
            "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
            "val_kwargs.do_sample=True is greedy at temperature 0",
        ),
        (
            "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
            "default_agent_loop=tool_agent: veRL's own loops ask no claims",
        ),
        (
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.disable_mm_processor_cache=true",
            "vllm.disable_mm_processor_cache: this vLLM has no argument of that name; use ",
        ),
        (
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.enable-dbo=true",
            "engine_kwargs.vllm.enable-dbo: write it enable_dbo",
        ),
        (
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.logprobs_mode=raw_logprobs",
            "engine_kwargs.vllm.logprobs_mode=raw_logprobs: veRL fills this argument from another "
            "key, which is the one that is checked; leave it out and set "
            "actor_rollout_ref.rollout.logprobs_mode",
        ),
        (
            "+actor_rollout_ref.rollout.engine_kwargs.vllm.tensor_parallel_size=2",
            "set actor_rollout_ref.rollout.tensor_model_parallel_size",
        ),
        ("trainer.n_gpus_per_node=3", "do not split over 3 ranks"),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16", "the 40 responses"),
        ("actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=60", "a divisor of 40"),
        # divides the step, but not what is left of it when the responses of a mini-batch failed
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=80", "a divisor of 40"),
        ("actor_rollout_ref.rollout.name=sglang", "anchors need vllm"),
        (
            "actor_rollout_ref.rollout.disaggregation.enabled=true",
            "disaggregation.enabled=True: veRL starts servers of its own",
        ),
        ("actor_rollout_ref.rollout.full_determinism=true", "vapo.seeded_sampling=true"),
        ("actor_rollout_ref.rollout.logprobs_mode=raw_logprobs", "processed_logprobs"),
        ("actor_rollout_ref.rollout.calculate_log_probs=false", "set true"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean", "set gspo"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode=dro", "dro_beta=None: "),
        ("actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm", "loss_scale_factor=null"),
        ("algorithm.adv_estimator=grpo_passk", "set algorithm.adv_estimator=grpo"),
        ("actor_rollout_ref.actor.checkpoint.async_save=true", "async_save"),
        (
            "actor_rollout_ref.actor.optim.optimizer=AdmW",
            "actor_rollout_ref.actor.optim.optimizer='AdmW' is no class of torch.optim; use one of "
            "ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, ",
        ),
        (
            "actor_rollout_ref.actor.optim.optimizer_impl=torhc.optim",
            "optimizer_impl='torhc.optim' cannot be imported (No module named 'torhc')",
        ),
        (
            "actor_rollout_ref.actor.optim.betas=[0.9,1.5]",
            "torch.optim.AdamW does not take its settings (Invalid beta parameter at index 1: 1.5)",
        ),
        (
            "actor_rollout_ref.actor.optim.override_optimizer_config={epss: 1e-6}",
            "got an unexpected keyword argument 'epss'); correct weight_decay, betas or override",
        ),
        (
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=5119",  # 20 * (96 + 160) tokens
            "are 5120 tokens, above actor_rollout_ref.actor.ppo_max_token_len_per_gpu=5119; "
            "set actor.ppo_micro_batch_size_per_gpu=19",
        ),
        (
            "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=200",
            "set shorter lengths, or rollout.log_prob_max_token_len_per_gpu=5120",
        ),
        (
            "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true",
            "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=True with "
            "actor_rollout_ref.model.use_remove_padding=False: micro-batches are cut by their "
            "tokens before padding, which bounds no memory; set it to false and "
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=64",
        ),
    ],
)
def test_settings_that_cannot_work_name_the_key(check, override, words):
    assert words in refused(check, override)


def test_engines_behind_one_server_are_refused_where_claims_are_probed():
    two = "actor_rollout_ref.rollout.data_parallel_size=2"
    with pytest.raises(ValueError, match="data_parallel_size=2: vLLM sends a probe to any"):
        preflight.check_engine(compose_once("vapo", [two]))
    preflight.check_engine(compose_once("vapo", [two, "vapo.anchors.num_anchors=0"]))


def test_validation_may_sample_several_responses(check):
    key = "actor_rollout_ref.rollout.val_kwargs"
    check(f"{key}.n=4", f"{key}.do_sample=true", f"{key}.temperature=1.0")


ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"


@pytest.mark.parametrize(
    ("overrides", "key", "least"),
    [
        ((f"{ACTOR}.ppo_max_token_len_per_gpu=9000",), f"{ACTOR}.ppo_max_token_len_per_gpu", 10000),
        (
            (
                f"{ACTOR}.ulysses_sequence_parallel_size=2",
                f"{ACTOR}.ppo_max_token_len_per_gpu=4999",
            ),
            f"{ACTOR}.ppo_max_token_len_per_gpu=4999 on 2 ranks of a sequence",
            5000,
        ),
        ((f"{REF}.log_prob_max_token_len_per_gpu=9000",), f"{REF}.log_prob_max_token_len", 10000),
    ],
)
def test_a_micro_batch_holds_the_longest_sequence(overrides, key, least):
    lengths = ("data.max_prompt_length=2000", "data.max_response_length=8000")
    with pytest.raises(ValueError, match="would end the run") as refused:
        check_micro_batches(compose_once("vapo", [*lengths, *overrides]))
    assert str(refused.value).startswith(key)
    assert str(refused.value).endswith(f"set {least} or more")


def test_each_pass_is_checked_by_its_own_switch():
    lengths = ("data.max_prompt_length=2000", "data.max_response_length=8000")
    small = f"{REF}.log_prob_max_token_len_per_gpu=9000"
    by_sequences = (
        f"{REF}.log_prob_use_dynamic_bsz=false",
        f"{REF}.log_prob_micro_batch_size_per_gpu=1",
    )
    check_micro_batches(compose_once("vapo", [*lengths, small, *by_sequences]))
    seven = f"{REF}.log_prob_micro_batch_size_per_gpu=7"
    with pytest.raises(
        ValueError, match=r"ref\.log_prob_micro_batch_size_per_gpu=7 does not divide"
    ):
        check_micro_batches(compose_once("vapo", [*lengths, by_sequences[0], seven]))
    without_kl = (f"{ACTOR}.use_kl_loss=false", "algorithm.use_kl_in_reward=false")
    check_micro_batches(compose_once("vapo", [*lengths, small, *without_kl]))


def test_with_adapters_the_reference_has_no_settings_of_its_own():
    """The actor without its adapters is the reference, in micro-batches of its own log probs."""
    lengths = ("data.max_prompt_length=2000", "data.max_response_length=8000")
    of_ref = (
        f"{REF}.log_prob_max_token_len_per_gpu=9000",
        f"{REF}.ulysses_sequence_parallel_size=3",
    )
    check_micro_batches(compose_once("vapo_lora", [*lengths, *of_ref]))
    small = "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu"
    with pytest.raises(ValueError, match=rf"{small}=9000 is below"):
        check_micro_batches(compose_once("vapo_lora", [*lengths, f"{small}=9000"]))


def test_a_micro_batch_of_several_ranks_holds_as_many_times_the_tokens():
    check_micro_batches(
        compose_once(
            "vapo",
            [
                *("data.max_prompt_length=2000", "data.max_response_length=8000"),
                f"{ACTOR}.ulysses_sequence_parallel_size=2",
                f"{ACTOR}.ppo_max_token_len_per_gpu=5000",
            ],
        )
    )


def test_ranks_that_share_a_sequence_hold_the_same_responses():
    eight = ["trainer.n_gpus_per_node=8", f"{ACTOR}.ppo_mini_batch_size=4"]
    shared = f"{ACTOR}.ulysses_sequence_parallel_size"
    with pytest.raises(ValueError, match="20 responses do not split over 8 ranks"):
        check_batches(compose_once("vapo", eight))
    check_batches(compose_once("vapo", [*eight, f"{shared}=2"]))
    with pytest.raises(ValueError, match="not split over 3 groups of 2 ranks"):
        check_batches(compose_once("vapo", [*eight, f"{shared}=2", "trainer.n_gpus_per_node=6"]))
    with pytest.raises(ValueError, match=r"sequence_parallel_size=3 does not divide the 8 ranks"):
        check_batches(compose_once("vapo", [*eight, f"{shared}=3"]))
    by_sequences = [f"{ACTOR}.use_dynamic_bsz=false", f"{ACTOR}.ppo_micro_batch_size_per_gpu=5"]
    rollout = "actor_rollout_ref.rollout.log_prob"
    by_sequences += [f"{rollout}_use_dynamic_bsz=false", f"{rollout}_micro_batch_size_per_gpu=5"]
    check_micro_batches(compose_once("vapo", [*eight, *by_sequences, f"{shared}=2"]))


def test_verls_limit_of_images_comes_before_the_engines():
    assert row_rules(compose_once("vapo", [])).max_images == 8
    rules = row_rules(compose_once("vapo", ["+actor_rollout_ref.rollout.limit_images=2"]))
    assert (rules.max_images, rules.max_images_key) == (2, "actor_rollout_ref.rollout.limit_images")


def test_servers_of_several_nodes_are_not_restarted():
    engine = "actor_rollout_ref.rollout.tensor_model_parallel_size=16"
    overrides = [engine, "trainer.nnodes=2", "vapo.rollout.restart_servers=true"]
    with pytest.raises(ValueError, match=r"engines of 16 GPUs, on nodes of 8: .*set it to false"):
        check_trainer_mode(compose_once("vapo", overrides))
    check_trainer_mode(compose_once("vapo", overrides[:2]))


def test_other_optimizers_are_accepted(check):
    optim = "actor_rollout_ref.actor.optim"
    check(f"{optim}.optimizer=SGD", f"{optim}.override_optimizer_config={{momentum: 0.9}}")
    check(f"{optim}.betas=[0.9,0.95]")


BYPASS = "algorithm.rollout_correction.bypass_mode=true"


def test_adapters_are_not_bypassed_by_the_first_forward_pass():
    config = compose_once("vapo_lora", [BYPASS])
    with pytest.raises(ValueError, match=r"FSDP 2.*set bypass_mode=false"):
        check_first_pass(config)
    without_kl = "actor_rollout_ref.actor.use_kl_loss=false"
    for recipe, overrides in (
        ("vapo_lora", [BYPASS, without_kl]),
        ("vapo_lora", []),
        ("vapo", [BYPASS]),
        ("smoke_lora", [BYPASS]),  # not on a GPU
    ):
        check_first_pass(compose_once(recipe, overrides))


ENGINE_IMAGES = "+actor_rollout_ref.rollout.engine_kwargs.vllm.mm_processor_kwargs"


@pytest.mark.parametrize(
    ("limit", "overrides", "words"),
    [
        ("max_pixels: 40000", ["data.max_pixels=50000"], "is below data.max_pixels=50000"),
        ("max_pixels: 40000", [], "is below data.max_pixels=None"),
        (
            "max_pixels: 40000",
            ["data.max_pixels=40000", "data.min_pixels=39000"],
            "data.min_pixels=39000 is too close",
        ),
        ("min_pixels: 9000", [], "mm_processor_kwargs.min_pixels=9000: the engine alone"),
    ],
)
def test_an_engine_that_would_resize_images_again_is_refused(check, limit, overrides, words):
    assert words in refused(check, f"{ENGINE_IMAGES}={{{limit}}}", *overrides)


def test_the_name_of_a_chat_templates_file_is_refused(check):
    message = refused(check, "actor_rollout_ref.model.custom_chat_template=mine.jinja")
    assert "custom_chat_template='mine.jinja' is the text of no template" in message


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_limits_that_engine_and_processor_read_differently_are_refused(check, name):
    message = refused(check, f"+data.mm_processor_kwargs.{name}=9000")
    assert f"data.mm_processor_kwargs.{name}=9000: engine and trainer" in message
    assert "set data.min_pixels and data.max_pixels" in message


def test_a_limit_of_the_data_above_the_models_own_is_the_models_in_engine_and_loop(check):
    check(f"{ENGINE_IMAGES}={{max_pixels: 60000}}", "data.max_pixels=60000")
    config = compose_once("smoke", [f"{ENGINE_IMAGES}={{max_pixels: 60000}}"])
    with pytest.raises(ValueError, match="above the 50176 pixels of the model's processor"):
        preflight.check_engine_images(config)  # as it is before it is settled


def test_an_engine_limited_to_the_pixels_of_the_data_is_accepted(check):
    check(f"{ENGINE_IMAGES}={{max_pixels: 40000}}", "data.max_pixels=40000", "data.min_pixels=784")


@settings(max_examples=200)
@given(st.integers(1, 10**6), st.floats(1, 200), st.sampled_from([28, 32]))
def test_no_enlarged_image_is_larger_than_the_check_of_min_pixels_takes_it_to_be(
    min_pixels, ratio, factor
):
    from qwen_vl_utils.vision_process import smart_resize

    width = max(1, math.isqrt(int(min_pixels / ratio)) // 2)  # smaller: it will be enlarged
    height = max(1, int(width * ratio))
    enlarged = math.prod(smart_resize(height, width, factor, min_pixels, 10**9))
    if width * height < min_pixels:
        assert enlarged <= max(preflight.max_enlarged_pixels(min_pixels), factor**2 * 200)


def test_verls_normalization_follows_ours(check):
    check("vapo.advantage.normalize_by_std=false")
    check("vapo.advantage.normalize_by_std=false", "algorithm.norm_adv_by_std_in_grpo=false")


@pytest.mark.parametrize(
    ("override", "fix"),
    [
        ("algorithm.adv_estimator=grpo", "ignores vapo.advantage.normalization=decoupled; set"),
        ("algorithm.use_kl_in_reward=true", "actor_rollout_ref.actor.use_kl_loss=true instead"),
        ("vapo.anchors.num_anchors=0", "measures none; set total"),
    ],
)
def test_decoupled_normalisation_is_refused_where_it_means_nothing(check, override, fix):
    check("vapo.advantage.normalization=decoupled", "vapo.advantage.normalize_by_std=false")
    assert fix in refused(check, "vapo.advantage.normalization=decoupled", override)


def test_weights_by_attention_are_refused_of_another_estimator(check):
    weighted = ("vapo.attention.enabled=true", "vapo.advantage.attention_coef=0.3")
    check(*weighted)
    message = refused(check, *weighted, "algorithm.adv_estimator=grpo")
    assert "ignores vapo.advantage.attention_coef=0.3; set algorithm.adv_estimator=vapo" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("critic.enable=true", "critic.enable=True trains a critic, and there is none here"),
        ("algorithm.adv_estimator=gae", "adv_estimator=gae reads the values of a critic, and"),
        ("algorithm.adv_estimator=remax", "remax reads the reward of a greedy response to each"),
        ("algorithm.adv_estimator=gdpo", "gdpo reads the parts of a reward as columns"),
        ("algorithm.adv_estimator=optimal_token_baseline", "the sum of squared probabilities"),
    ],
)
def test_what_no_trainer_here_computes_is_refused(check, override, words):
    assert words in refused(check, override)


_LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"


@pytest.mark.parametrize(
    ("loss", "key", "bad", "good"),
    [
        ("vanilla", "clip_ratio_c", ("null", "1.0", ".5", "inf"), ("1.1", "1e6")),
        ("dppo_tv", "clip_ratio_c", ("null", "0"), ("1.0",)),
        ("clip_cov", "policy_loss.clip_cov_ratio", ("0", "-1"), ("2e-4", "1", "null")),
        ("kl_cov", "policy_loss.kl_cov_ratio", ("0", "1.5"), ("2e-4", "1", "null")),
        ("dro", "policy_loss.dro_beta", ("null", "0"), ("0.1",)),
        ("sapo", "tau_neg", ("0",), ("1.05",)),
    ],
)
def test_a_number_at_which_a_loss_fails_in_the_first_update_is_refused(loss, key, bad, good):
    def config(value):
        aggregation = "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"
        given = f"++actor_rollout_ref.actor.{key}={value}"
        return compose_once("smoke", [f"{_LOSS}={loss}", aggregation, given])

    for value in bad:
        with pytest.raises(ValueError, match=rf"{key}=\S+: loss_mode={loss} .* above \d"):
            preflight.check_policy_loss(config(value))
    for value in good:
        preflight.check_policy_loss(config(value))


def test_a_refused_dual_clip_says_how_to_turn_it_off(check):
    message = refused(check, "actor_rollout_ref.actor.clip_ratio_c=null")
    assert "actor_rollout_ref.actor.clip_ratio_c=None: loss_mode=vanilla" in message
    assert "set a number above 1; a large one, such as 1e6, turns dual clip off" in message


def test_a_micro_batch_that_fills_its_budget_exactly_is_accepted(check):
    check("actor_rollout_ref.actor.ppo_max_token_len_per_gpu=5120")


def test_two_ranks_train_the_smoke_recipe_as_it_is(check):
    check("trainer.n_gpus_per_node=2")


def test_without_anchors_no_room_is_asked_for_them(check):
    check("vapo.anchors.num_anchors=0", "actor_rollout_ref.rollout.max_model_len=256")


def test_video_rows_are_refused_where_anchors_are_asked(check, video_rows):
    message = refused(check, f"data.train_files={video_rows}")
    assert f"{video_rows} row 2, column 'videos'" in message
    check(f"data.train_files={video_rows}", "vapo.anchors.num_anchors=0")


def test_a_run_folder_from_which_no_benchmark_file_can_be_read_is_refused(check, tmp_path):
    tsv = write_tsv(tmp_path / "quiz.tsv", [{"question": "How many?", "answer": "7"}])
    files = f"data.val_files={tsv}"
    assert any("rows of a benchmark" in note for note in check(files))
    message = refused(check, files, f"trainer.default_local_dir='{tmp_path}/a::b'")
    assert f"trainer.default_local_dir={tmp_path}/a::b: " in message


def test_a_hub_name_without_a_network_is_left_to_the_trainers_process(check, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_session", lambda: httpx.Client(transport=NO_NETWORK))
    name = f"{model_dir().parent.name}/some-model"
    notes = check(f"actor_rollout_ref.model.path={name}")
    assert f"{name} is not on this machine" in notes[0] and "no network" in notes[0]


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("vapo.anchors.yes_words=[Quite right]", "vapo.anchors.yes_words=['Quite right']"),
        ("vapo.anchors.max_claim_tokens=4", "vapo.anchors.max_claim_tokens=4: "),
    ],
)
def test_a_cached_hub_model_is_checked_as_its_folder_is(
    composed, tmp_path, monkeypatch, override, words
):
    (tmp_path / "models--made--up" / "snapshots").mkdir(parents=True)
    (tmp_path / "models--made--up" / "snapshots" / "0000").symlink_to(model_dir())
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in (str(model_dir()), "made/up"):
        with pytest.raises(ValueError, match=re.escape(words)):
            preflight.check_answer_words(composed(override, f"actor_rollout_ref.model.path={name}"))
    preflight.check_answer_words(composed(override, "actor_rollout_ref.model.path=made/absent"))
