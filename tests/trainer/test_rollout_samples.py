"""Rows of the sampled rollouts."""

import numpy as np
import pyarrow as pa
import torch
import transfer_queue
from transformers import AutoTokenizer

from tests.sample_records import anchor_result, sample_record
from vapo_verl.digits.model import model_dir
from vapo_verl.run_folder.rollouts import ROLLOUT_SCHEMA
from vapo_verl.trainer.metrics import sample_rows


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
