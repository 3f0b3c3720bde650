"""Rows of rollout files as typed records, also of files with fewer columns."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vapo_verl.run_folder.rollouts import (
    RewardParts,
    RolloutAnchor,
    read_rollouts,
    rollout_file,
    write_rollouts,
)

ROW = {
    "step": 3,
    "uid": "000003-00001",
    "sample": 1,
    "data_source": "digits",
    "index": 7,
    "prompt": "How many?",
    "images": [b"png", None],
    "response": "ab",
    "tokens": ["a", "b"],
    "visual_attention": [0.5, None],
    "visual_attention_layers": [[0.25, 0.75], [0.5, 0.5]],
    "ground_truth": "2",
    "reward": {"accuracy": 1.0, "format": 0.5, "perception": None, "total": 1.5},
    "anchors": [
        {
            "position": 1,
            "claim": "top left is 3",
            "label": True,
            "answer": False,
            "correct": False,
            "p_yes": 0.25,
        }
    ],
}


def read_one(path):
    problems = []
    (rollout,) = read_rollouts([path], problems)
    assert problems == []
    return rollout


def test_a_row_is_read_as_it_was_written(tmp_path):
    write_rollouts(tmp_path, 3, [ROW], layers=[0, 8])
    row = read_one(rollout_file(tmp_path, 3))
    assert (row.step, row.uid, row.sample, row.index) == (3, "000003-00001", 1, 7)
    assert (row.data_source, row.prompt, row.response) == ("digits", "How many?", "ab")
    assert (row.tokens, row.num_tokens(), row.ground_truth) == (["a", "b"], 2, "2")
    assert row.images == [b"png"]
    assert row.reward == RewardParts(accuracy=1.0, format=0.5, perception=None, total=1.5)
    assert row.anchors == [RolloutAnchor(**ROW["anchors"][0])]
    np.testing.assert_array_equal(row.attention(), [0.5, np.nan])
    np.testing.assert_array_equal(row.layer_attention(), ROW["visual_attention_layers"])
    assert row.layers == (0, 8)


def check_defaults(row):
    assert (row.step, row.sample, row.index) == (None, None, None)
    assert (row.uid, row.data_source, row.prompt, row.ground_truth) == ("", "", "", "")
    assert (row.images, row.tokens, row.anchors, row.layers) == ([], [], [], ())
    assert row.reward == RewardParts()
    assert row.num_tokens() == len(row.attention()) == 0
    assert row.layer_attention() is None


def test_columns_that_an_older_file_lacks_have_defaults(tmp_path):
    path = tmp_path / "old.parquet"
    pq.write_table(pa.table({"response": ["text"]}), path)
    check_defaults(read_one(path))
    assert read_one(path).response == "text"


def test_null_cells_have_the_same_defaults(tmp_path):
    write_rollouts(tmp_path, 1, [{}])
    check_defaults(read_one(rollout_file(tmp_path, 1)))


def test_fields_of_another_version_have_defaults_or_are_left_out(tmp_path):
    path = tmp_path / "other.parquet"
    table = pa.table(
        {
            "reward": [{"accuracy": 1.0, "style": 0.5}],
            "anchors": [[{"position": 4, "claim": None, "colour": "red"}]],
            "visual_attention": [[0.1, 0.2, 0.3]],
        }
    )
    pq.write_table(table, path)
    row = read_one(path)
    assert row.reward == RewardParts(accuracy=1.0)
    assert row.anchors == [RolloutAnchor(position=4)]
    assert row.num_tokens() == 3  # of its attention
