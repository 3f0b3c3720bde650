"""The loop's own work on real rows, a real tokenizer and the packaged model."""

import json
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import OmegaConf
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoProcessor, AutoTokenizer

from vapo_verl.anchors import bind_question
from vapo_verl.config import AnchorConfig
from vapo_verl.data.control_tokens import vision_token_ids
from vapo_verl.data.dataset import VapoDataset
from vapo_verl.data.rows import BENCHMARK_COLUMN
from vapo_verl.digits.model import model_dir
from vapo_verl.digits.model.random_models import make_random_model
from vapo_verl.evaluation.benchmarks import BenchmarkRow
from vapo_verl.reward.accuracy import answer_of
from vapo_verl.reward.perception import attention_perception_score, perception_score
from vapo_verl.rollout.prober import Prober
from vapo_verl.trainer.metrics import attention_metrics

ALWAYS = "vapo.anchors.gate=always"


@pytest.fixture
def question(processor):
    settings = AnchorConfig()
    return bind_question(
        processor.tokenizer, settings.question, settings.yes_words, settings.no_words
    )


@pytest.fixture
def wrong(dataset):
    """A row whose answer no response has."""
    return {**dataset[0], "reward_model": {"style": "exact", "ground_truth": "987654"}}


@pytest.fixture
async def right(run_loop, dataset):
    """A row whose answer is that of its greedy response."""
    output = await run_loop(dataset[0], "vapo.anchors.num_anchors=0", temperature=0.0)
    answer = answer_of(dataset.tokenizer.decode(output.response_ids, skip_special_tokens=True))
    assert answer is not None
    return {**dataset[0], "reward_model": {"style": "exact", "ground_truth": answer}}


async def test_anchors_leave_the_trained_sequence_alone(run_loop, dataset):
    """Response ids, mask and logprobs with 20 anchors are those without any."""
    row = dataset[0]
    without = (await run_loop(row, "vapo.anchors.num_anchors=0")).as_dict()
    probed = await run_loop(row, "vapo.anchors.num_anchors=20", ALWAYS)
    assert len(probed.extra_fields["vapo"]["anchors"]) == 20
    values = probed.as_dict()
    for name in ("prompts", "responses", "response_mask", "rollout_log_probs"):
        assert torch.equal(values[name], without[name]), name
    anchor_id = dataset.tokenizer.convert_tokens_to_ids("<anchor>")
    assert anchor_id not in values["prompts"].tolist() + values["responses"].tolist()


async def test_probes_extend_the_rollouts_own_tokens_on_its_own_server(
    run_loop, dataset, server, question
):
    output = await run_loop(dataset[0], ALWAYS)
    generation, *probes = server.requests
    anchors = output.extra_fields["vapo"]["anchors"]
    assert len(probes) == len(anchors) == 8
    for probe, anchor in zip(probes, anchors, strict=True):
        prefix = output.prompt_ids + output.response_ids[: anchor["position"]]
        assert probe["prompt_ids"] == prefix + question.token_ids(anchor["claim"])
        assert probe["sampling_params"]["logit_bias"].keys() == {question.yes_id, question.no_id}
        assert probe["sampling_params"]["max_tokens"] == 1
        assert probe["sampling_params"]["repetition_penalty"] == 1.0  # whatever the rollout's
        assert probe["image_data"] == generation["image_data"]
    assert len({request["request_id"] for request in server.requests}) == 1  # one sticky session


async def test_images_of_probes_are_processed_as_those_of_the_response(run_loop, dataset, server):
    options = {"min_pixels": 784, "max_pixels": 50176}
    await run_loop(dataset[0], ALWAYS, f"+data.mm_processor_kwargs={options}".replace("'", ""))
    assert [r.get("mm_processor_kwargs") for r in server.requests] == [options] * 9
    await run_loop(dataset[0], ALWAYS)
    assert not any(r.get("mm_processor_kwargs") for r in server.requests)


async def test_responses_of_a_prompt_share_one_session_and_the_next_step_has_another(
    run_loop, dataset, server
):
    sessions = []
    for uid, sample in (("a", 0), ("a", 1), ("b", 0)):
        await run_loop({**dataset[0], "uid": uid}, ALWAYS, session_id=sample)
        sessions.append({request["request_id"] for request in server.requests})
    assert sessions == [{"a"}, {"a"}, {"b"}]


async def test_with_seeds_every_request_has_one(run_loop, dataset, server):
    await run_loop(dataset[0], ALWAYS)
    assert all(type(r["sampling_params"].get("seed")) is int for r in server.requests)
    await run_loop(dataset[0], ALWAYS, "vapo.seeded_sampling=false")
    assert not any("seed" in r["sampling_params"] for r in server.requests)


async def test_labels_are_those_of_the_row(run_loop, dataset):
    row = dataset[1]
    labels = {claim["text"]: claim["label"] for claim in row["claims"]}
    anchors = (await run_loop(row, ALWAYS)).extra_fields["vapo"]["anchors"]
    assert all(anchor["label"] == labels[anchor["claim"]] for anchor in anchors)
    assert all(anchor["correct"] == (anchor["answer"] == anchor["label"]) for anchor in anchors)
    assert all(0 <= anchor["p_yes"] <= 1 for anchor in anchors)
    assert all((anchor["p_yes"] >= 0.5) == anchor["answer"] for anchor in anchors)


async def test_the_gate_spares_wrong_answers(run_loop, wrong, server):
    output = await run_loop(wrong)
    assert len(server.requests) == 1
    assert output.extra_fields["vapo"]["anchors"] == []


async def test_a_probed_wrong_answer_earns_no_perception_reward(run_loop, wrong):
    output = await run_loop(wrong, ALWAYS)
    reward = output.extra_fields["vapo"]["reward"]
    assert len(output.extra_fields["vapo"]["anchors"]) == 8
    assert reward["accuracy"] == 0
    assert output.reward_score == pytest.approx(reward["format"])  # weights 1, 1 and no perception


async def test_without_the_gate_a_wrong_answer_earns_it_too(run_loop, wrong):
    output = await run_loop(wrong, "vapo.anchors.gate=relaxed")
    reward = output.extra_fields["vapo"]["reward"]
    assert reward["accuracy"] == 0 and reward["perception"] > 0
    assert output.reward_score == pytest.approx(reward["format"] + 0.1 * reward["perception"])


async def test_perception_that_is_not_paid_is_measured_all_the_same(run_loop, wrong):
    unpaid = ("vapo.reward.perception_source=none", "vapo.anchors.gate=relaxed")
    reward = (await run_loop(wrong, *unpaid)).extra_fields["vapo"]["reward"]
    paid = (await run_loop(wrong, unpaid[1])).extra_fields["vapo"]["reward"]
    assert reward["perception"] == paid["perception"] > 0
    assert reward["total"] == pytest.approx(reward["format"])


async def test_a_right_answer_adds_gamma_times_perception(run_loop, right):
    output = await run_loop(right, temperature=0.0)
    reward = output.extra_fields["vapo"]["reward"]
    assert reward["accuracy"] == 1.0 and reward["perception"] > 0
    assert output.reward_score == pytest.approx(1 + reward["format"] + 0.1 * reward["perception"])


async def test_each_part_of_the_reward_has_its_own_weight(run_loop, right, wrong):
    weights = ("vapo.reward.accuracy_weight=0.8", "vapo.reward.format_weight=0.3")
    for row, accuracy in ((right, 1.0), (wrong, 0.0)):
        output = await run_loop(row, *weights, ALWAYS, temperature=0.0)
        reward = output.extra_fields["vapo"]["reward"]
        assert (reward["accuracy"], reward["format"]) == (accuracy, 1.0)
        assert output.reward_score == pytest.approx(
            0.8 * accuracy + 0.3 + 0.1 * reward["perception"] * accuracy
        )


async def test_perception_is_scored_as_the_settings_say(run_loop, dataset):
    """Recomputed from the anchors, of which the first is incorrect and the others are correct."""
    row = dataset[0]
    first, *others = anchors_of(await run_loop(row, ALWAYS, temperature=0.0))
    labels = {a["claim"]: a["answer"] for a in others} | {first["claim"]: not first["answer"]}
    claims = [
        {**claim, "label": labels.get(claim["text"], claim["label"])} for claim in row["claims"]
    ]
    settings = (
        {"soft": True},
        {"chance_corrected": True},
        {"late_emphasis": 0.0},
        {"late_emphasis": 3.0},
    )
    for setting in settings:
        overrides = [f"vapo.reward.{name}={value}" for name, value in setting.items()]
        output = await run_loop({**row, "claims": claims}, ALWAYS, *overrides, temperature=0.0)
        score = output.extra_fields["vapo"]["reward"]["perception"]
        assert score == pytest.approx(recomputed(output, **setting)), setting
        assert score > 0.5
        assert abs(score - recomputed(output)) > 0.01, f"{setting} makes no difference here"


def recomputed(output, soft=False, late_emphasis=1.5, chance_corrected=False):
    """The perception score of the output's anchors; the defaults are those of the recipe."""
    anchors = anchors_of(output)
    if soft:
        scores = [a["p_yes"] if a["label"] else 1 - a["p_yes"] for a in anchors]
    else:
        scores = [a["correct"] for a in anchors]
    positions = [a["position"] for a in anchors]
    length = len(output.response_ids)
    return perception_score(scores, positions, length, late_emphasis, chance_corrected)


def anchors_of(output):
    return output.extra_fields["vapo"]["anchors"]


async def test_a_row_of_a_benchmark_file_is_graded_by_its_rule(run_loop, dataset, wrong):
    """Not by its ground truth, which no response has."""
    plain = await run_loop(wrong, temperature=0.0)
    assert "unparsed" not in plain.extra_fields["reward_extra_info"]
    named = await run_loop({**wrong, "benchmark": "MathVista"}, temperature=0.0)  # a user's column
    assert "unparsed" not in named.extra_fields["reward_extra_info"]
    said = answer_of(dataset.tokenizer.decode(plain.response_ids, skip_special_tokens=True))
    for answer in (said, "987654"):
        row = BenchmarkRow(number=0, index=0, question="Which digit?", answer=answer)
        cell = json.dumps({"rule": "free-form", "row": asdict(row)})
        output = await run_loop({**wrong, BENCHMARK_COLUMN: cell}, temperature=0.0)
        info = output.extra_fields["reward_extra_info"]
        assert info["acc"] == float(answer == said)
        assert (info["unparsed"], info["truncated"]) == (0.0, 0.0)


async def test_a_row_without_claims_gets_the_plain_reward(run_loop, dataset, server):
    output = await run_loop({**dataset[0], "claims": []}, ALWAYS)
    record = output.extra_fields["vapo"]
    assert len(server.requests) == 1
    assert (record["num_claims"], record["reward"]["perception"]) == (0, 0.0)


async def test_fewer_claims_than_anchors_use_all_of_them(run_loop, dataset):
    row = {**dataset[0], "claims": dataset[0]["claims"][:3]}
    anchors = (await run_loop(row, ALWAYS)).extra_fields["vapo"]["anchors"]
    assert {anchor["claim"] for anchor in anchors} == {claim["text"] for claim in row["claims"]}


async def test_claims_over_the_budget_are_counted_not_asked(run_loop, dataset):
    long = {"text": "very " * 100 + "long", "label": True}
    row = {**dataset[0], "claims": [*dataset[0]["claims"][:4], long]}
    record = (await run_loop(row, ALWAYS)).extra_fields["vapo"]
    assert (record["num_claims"], record["num_claims_skipped"]) == (4, 1)
    assert long["text"] not in {anchor["claim"] for anchor in record["anchors"]}


async def test_same_key_same_response_and_anchors_another_sample_differs(run_loop, dataset):
    first, again = await run_loop(dataset[2], ALWAYS), await run_loop(dataset[2], ALWAYS)
    other = await run_loop(dataset[2], ALWAYS, session_id=1)
    assert first.response_ids == again.response_ids
    plans = [
        [(a["position"], a["claim"]) for a in o.extra_fields["vapo"]["anchors"]]
        for o in (first, again, other)
    ]
    assert plans[0] == plans[1] != plans[2]


async def test_a_group_gets_the_same_claims_in_the_same_order(run_loop, dataset):
    """At the same fractions of the reasoning, whose draws are those of `relative`."""
    few = ("vapo.anchors.pairing=group", "vapo.anchors.num_anchors=4", ALWAYS)
    siblings = [await run_loop(dataset[1], *few, session_id=sample) for sample in (0, 1)]
    plans = [[(a["position"], a["claim"]) for a in anchors_of(output)] for output in siblings]
    assert siblings[0].response_ids != siblings[1].response_ids
    assert [claim for _, claim in plans[0]] == [claim for _, claim in plans[1]]
    relative = await run_loop(dataset[1], *few, "vapo.anchors.placement=relative")
    assert [(a["position"], a["claim"]) for a in anchors_of(relative)] == plans[0]


async def test_cuts_are_placed_at_either_end_with_the_gap_that_is_set(run_loop, dataset):
    cuts = {}
    for placement in ("front", "back"):
        settings = {"placement": placement, "num_anchors": 3, "min_gap": 9}
        overrides = [f"vapo.anchors.{name}={value}" for name, value in settings.items()]
        anchors = anchors_of(await run_loop(dataset[1], ALWAYS, *overrides, temperature=0.0))
        assert all(a["own_boundary"] for a in anchors)
        cuts[placement] = np.array([a["position"] for a in anchors])
        assert len(cuts[placement]) == 3 and (np.diff(cuts[placement]) >= 9).all()
    assert (cuts["front"] < cuts["back"]).all()


async def test_attention_is_a_field_of_the_replay_buffer_with_nan_where_unknown(run_loop, dataset):
    output = await run_loop(dataset[0])
    column = output.as_dict()["visual_attention"]
    assert column.shape == (len(output.response_ids),)
    assert column.isnan().all()
    output.visual_attention = [0.25, 0.5]
    column = output.as_dict()["visual_attention"]
    assert column[:2].tolist() == [0.25, 0.5]
    assert column[2:].isnan().all()


async def test_reward_parts_reach_verls_validation_perception_where_it_was_probed(
    run_loop, dataset
):
    probed = (await run_loop(dataset[0], ALWAYS)).extra_fields
    assert probed["reward_extra_info"].keys() == {"acc", "format", "perception"}
    assert probed["reward_extra_info"]["perception"] == probed["vapo"]["reward"]["perception"]
    plain = (await run_loop(dataset[0], "vapo.anchors.num_anchors=0")).extra_fields
    assert plain["reward_extra_info"].keys() == {"acc", "format"}


async def test_claims_of_a_row_with_two_images_are_asked_about_both(run_loop, dataset, server):
    row, other = dataset[0], dataset[1]
    [message] = row["raw_prompt"][-1:]
    images = [c for c in (*message["content"], *_contents(other)) if c["type"] == "image"]
    text = [c for c in message["content"] if c["type"] != "image"]
    both = {**row, "raw_prompt": [{**message, "content": [*images, *text]}]}
    output = await run_loop(both, ALWAYS)
    record = output.extra_fields["vapo"]
    assert record["num_images"] == 2
    pad = dataset.processor.image_token_id
    assert record["image_end"] == len(output.prompt_ids) - output.prompt_ids[::-1].index(pad)
    assert len(record["anchors"]) == 8
    assert all(len(request["image_data"]) == 2 for request in server.requests)


async def test_video_is_refused(run_loop, dataset):
    settings = AnchorConfig()
    question = bind_question(
        dataset.tokenizer, settings.question, settings.yes_words, settings.no_words
    )
    prober = Prober(None, question, max_tokens_in_flight=0, by_priority=False)
    with pytest.raises(ValueError, match="this row has videos"):
        prober.asker({"images": [], "videos": [object()]})


async def test_tokens_of_images_are_banned_when_sampling(run_loop, dataset, server):
    await run_loop(dataset[0], "vapo.anchors.num_anchors=0")
    bias = server.requests[0]["sampling_params"]["logit_bias"]
    assert bias == dict.fromkeys(vision_token_ids(dataset.tokenizer), -100.0)


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>"])
async def test_one_that_comes_all_the_same_does_not_break_the_forward(
    run_loop, dataset, server, monkeypatch, token
):
    token_id = dataset.tokenizer.convert_tokens_to_ids(token)
    generate = server._continue

    def with_a_vision_token(prompt_ids, sampling_params, image_data=None, **more):
        ids, logprobs = generate(prompt_ids, sampling_params, image_data, **more)
        if sampling_params.get("max_tokens") != 1:
            ids[2] = token_id
        return ids, logprobs

    monkeypatch.setattr(server, "_continue", with_a_vision_token)
    output = await run_loop(dataset[0], ALWAYS)
    assert output.response_ids[2] == dataset.tokenizer.pad_token_id
    assert output.response_mask[:4] == [1, 1, 0, 1]
    generation, *probes = server.requests
    assert len(probes) == 8
    for probe in probes:
        assert probe["prompt_ids"].count(token_id) == generation["prompt_ids"].count(token_id)
    ids = torch.tensor([output.prompt_ids + output.response_ids])
    images = output.multi_modal_data["images"]
    server.model(
        input_ids=ids,
        mm_token_type_ids=(ids == server.model.config.image_token_id).long(),
        **dataset.processor.image_processor(images=images, return_tensors="pt"),
    )


async def test_control_tokens_of_prompt_and_claims_are_text(run_loop, dataset, server, tmp_path):
    """As `vapo.data.control_tokens=text` says, through data set, builder and probes."""
    word = "<|im_end|><|image_pad|>"
    [cells] = pq.read_table(dataset.data_files[0]).slice(0, 1).to_pylist()
    cells["prompt"][-1]["content"] += word
    cells["claims"] = [{"text": f"It shows {word}.", "label": True}]
    path = tmp_path / "row.parquet"
    pq.write_table(pa.Table.from_pylist([cells]), path)
    config = OmegaConf.merge(dataset.config, {"control_tokens": "text"})
    processor = AutoProcessor.from_pretrained(model_dir())
    [row] = VapoDataset(str(path), processor.tokenizer, config, processor)
    await run_loop(row, ALWAYS, "vapo.data.control_tokens=text")
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    plain = tokenizer.encode(word, split_special_tokens=True)
    generation, *probes = server.requests
    assert contains(generation["prompt_ids"], plain)
    assert generation["prompt_ids"].count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1
    for probe in probes:
        assert contains(probe["prompt_ids"][len(generation["prompt_ids"]) :], plain)


@pytest.mark.parametrize("setting", ["auto", "false"])
async def test_think_tags_are_spelled_in_prompt_and_response(
    run_loop, dataset, server, tmp_path, setting
):
    """Where they are added tokens that were never trained, as in Qwen3-VL-Instruct."""
    model = tmp_path / "model"  # the packaged tokenizer, but for the tags
    make_random_model(model, "tiny", think_tokens=True, weights=False)
    [cells] = pq.read_table(dataset.data_files[0]).slice(0, 1).to_pylist()
    cells["prompt"][-1]["content"] += " Think in <think></think>."
    path = tmp_path / "row.parquet"
    pq.write_table(pa.Table.from_pylist([cells]), path)
    config = OmegaConf.merge(dataset.config, {"plain_think_tokens": setting})
    processor = AutoProcessor.from_pretrained(model)
    [row] = VapoDataset(str(path), processor.tokenizer, config, processor)
    overrides = (f"vapo.data.plain_think_tokens={setting}", "data.max_prompt_length=128")
    output = await run_loop(row, ALWAYS, *overrides, model=model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tags = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    generation, *probes = server.requests
    as_token = setting == "false"
    assert [generation["prompt_ids"].count(tag) for tag in tags] == [as_token, as_token]
    assert "Think in <think></think>." in tokenizer.decode(generation["prompt_ids"])
    banned = {*generation["sampling_params"]["logit_bias"]}
    assert banned == {*vision_token_ids(tokenizer), *(() if as_token else tags)}
    assert len(probes) == 8
    for probe in probes:  # its prefix is what the engine has generated
        assert probe["prompt_ids"][: len(output.prompt_ids)] == output.prompt_ids


def contains(ids, part):
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def _contents(row):
    return row["raw_prompt"][-1]["content"]


def export_attention(server, monkeypatch, values):
    """Let the server return `values(response length, request)` with each response."""

    async def generate(request_id, **request):
        output = await plain(request_id, **request)
        output.extra_fields["visual_attention"] = values(len(output.token_ids), request)
        return output

    plain = server.generate
    monkeypatch.setattr(server, "generate", generate)


async def test_visual_attention_of_the_server_becomes_a_field_per_token(
    run_loop, dataset, server, monkeypatch
):
    """[T, layers] of the server: their mean in the replay buffer, the layers for the samples."""
    layers = []

    def values(length, request):
        layers.append(np.random.default_rng(0).random((length, 3), dtype=np.float32))
        return layers[-1]

    export_attention(server, monkeypatch, values)
    output = await run_loop(dataset[0], ALWAYS)
    [stored] = output.as_dict()["visual_attention_layers"]
    np.testing.assert_array_equal(stored, layers[0])
    assert not any("attention" in name for name in output.extra_fields)
    column = output.as_dict()["visual_attention"]
    assert column.shape == output.as_dict()["responses"].shape
    np.testing.assert_allclose(column.numpy(), layers[0].mean(1), rtol=1e-6)


async def test_attention_is_paid_in_the_place_of_claims(run_loop, dataset, server, monkeypatch):
    """Even where the gate has the claims probed."""

    def values(length, request):
        return np.linspace(0.1, 0.3, length, dtype=np.float32)

    export_attention(server, monkeypatch, values)
    output = await run_loop(
        dataset[0],
        ALWAYS,
        "vapo.attention.enabled=true",
        "vapo.reward.perception_source=attention",
        "vapo.reward.late_emphasis=3",
        temperature=0.0,
    )
    assert len(anchors_of(output)) == 8
    expected = attention_perception_score(values(len(output.response_ids), None), 3.0)
    assert 0.2 < expected < 0.3  # above the plain mean
    score = output.extra_fields["vapo"]["reward"]["perception"]
    assert score == pytest.approx(expected)


async def test_a_prompt_without_images_has_no_visual_attention(
    run_loop, dataset, server, monkeypatch
):
    """The engine measures 0 for it, which would dilute the means over rows of both kinds."""

    def values(length, request):
        value = 0.5 if request.get("image_data") else 0.0
        return np.full((length, 3), value, dtype=np.float32)

    export_attention(server, monkeypatch, values)
    text_only = {**dataset[0], "raw_prompt": [{"role": "user", "content": "How much is 2 and 3?"}]}
    outputs = [await run_loop(row, "vapo.anchors.num_anchors=0") for row in (text_only, dataset[0])]
    without, shown = (output.as_dict()["visual_attention"] for output in outputs)
    assert len(without) > 0 and without.isnan().all()
    assert (shown == 0.5).all()
    [layers] = outputs[0].as_dict()["visual_attention_layers"]
    assert layers.shape == (len(without), 3) and np.isnan(layers).all()
    both = pad_sequence([without, shown], batch_first=True, padding_value=float("nan"))
    mask = pad_sequence([torch.ones(len(x)) for x in (without, shown)], batch_first=True)
    metrics = attention_metrics(both, mask)
    assert metrics["vapo/attention/mean"] == 0.5
    missing = len(without) / (len(without) + len(shown))
    assert metrics["vapo/attention/missing_fraction"] == pytest.approx(missing)
