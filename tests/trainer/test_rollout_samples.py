"""Rows of the sampled rollouts, and which layers they keep apart."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import transfer_queue
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLConfig

from tests.sample_records import anchor_result, sample_record
from vapo_verl.digits.model import model_dir
from vapo_verl.run_folder.rollouts import ROLLOUT_SCHEMA
from vapo_verl.trainer.metrics import captured_layers, sample_rows


def test_layers_are_counted_as_the_model_counts_them():
    model = AutoConfig.from_pretrained(model_dir())
    assert captured_layers("all", model) == [0, 1, 2, 3, 4, 5]
    assert captured_layers(None, model) == [1, 4]
    assert captured_layers((4, 0), model) == [0, 4]


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
    assert captured_layers("all", model) == found


def test_a_row_fills_every_column_of_the_schema(monkeypatch):
    record = sample_record(anchor_result(1, label=True, answer=False, p_yes=0.25))
    floats = ("visual_attention", "advantages", "rollout_log_probs", "old_log_probs")
    columns = {
        **{name: torch.tensor([[1, 2]]) for name in ("prompts", "responses", "response_mask")},
        **{name: torch.tensor([[0.5, 0.25]]) for name in floats},
        "extra_fields": [{"vapo": record.to_plain()}],
        "visual_attention_layers": [[np.full((2, 1), 0.5)]],
        "reward_model": [{"ground_truth": 7}],
        "data_source": ["digits"],
        "index": [3],
        "raw_prompt": [[{"role": "user", "content": "How many?"}]],
        "pixels": [None],
        "image_grid_thw": [None],
    }

    def get(keys, partition_id, select_fields):
        if "raw_prompt" in select_fields:  # once for a prompt
            assert (keys, partition_id) == (["000004-00000"], "prompts")
        else:
            assert (keys, partition_id) == (["000004-00000_1_0"], "train")
        return {name: columns[name] for name in select_fields}

    monkeypatch.setattr(transfer_queue, "kv_batch_get", get)
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    [row] = sample_rows(["000004-00000_1_0"], "train", tokenizer, step=4)
    assert row.keys() == set(ROLLOUT_SCHEMA.names)
    [stored] = pa.Table.from_pylist([row], schema=ROLLOUT_SCHEMA).to_pylist()
    assert (stored["uid"], stored["sample"], stored["ground_truth"]) == ("000004-00000", 1, "7")
    assert stored["reward"] == {"accuracy": 1.0, "format": 1.0, "perception": 0.5, "total": 2.05}
    assert stored["anchors"] == [
        {
            "position": 1,
            "claim": "3 is red",
            "label": True,
            "answer": False,
            "correct": False,
            "p_yes": 0.25,
        }
    ]
