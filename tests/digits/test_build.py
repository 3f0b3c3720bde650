import io
import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vapo_verl.digits.__main__ import main
from vapo_verl.digits.build import DigitsConfig, write_dataset
from vapo_verl.digits.claims import all_claims, judge
from vapo_verl.digits.questions import QUESTION_SETS
from vapo_verl.digits.scene import Scene, scan_pool

SMALL = DigitsConfig(train=7, val=2, test=3, seed=5, grids=("2x2", "2x3", "3x3"))


def test_rows_have_the_layout_of_verl(tmp_path):
    paths = write_dataset(tmp_path, SMALL)
    rows = pq.read_table(paths["train"]).to_pylist()
    assert [row["extra_info"]["grid"] for row in rows] == ["2x2", "2x3", "3x3"] * 2 + ["2x2"]
    for index, row in enumerate(rows):
        info = row["extra_info"]
        assert (info["split"], info["index"]) == ("train", index)
        assert row["data_source"] == "digits"
        assert row["prompt"] == [{"role": "user", "content": f"<image>{info['question']}"}]
        assert row["reward_model"]["style"] == "rule"
        assert len(row["claims"]) == 20


def test_images_have_the_size_of_their_grid(tmp_path):
    for row in pq.read_table(write_dataset(tmp_path, SMALL)["test"]).to_pylist():
        rows, cols = map(int, row["extra_info"]["grid"].split("x"))
        (image,) = row["images"]
        assert np.asarray(Image.open(io.BytesIO(image["bytes"]))).shape == (28 * rows, 28 * cols, 3)


def test_labels_agree_with_the_stored_scene(tmp_path):
    for path in write_dataset(tmp_path, SMALL).values():
        for row in pq.read_table(path).to_pylist():
            scene = Scene.from_json(row["extra_info"]["scene"])
            assert all(judge(claim["text"], scene) == claim["label"] for claim in row["claims"])


def test_rows_use_scans_of_their_split_only(tmp_path):
    for split, path in write_dataset(tmp_path, SMALL).items():
        allowed = set(sum(scan_pool(split).by_digit, ()))
        for row in pq.read_table(path).to_pylist():
            scene = Scene.from_json(row["extra_info"]["scene"])
            assert {cell.scan for cell in scene.cells} <= allowed


def test_same_config_same_bytes(tmp_path):
    first, second = (write_dataset(tmp_path / name, SMALL) for name in ("a", "b"))
    for split in first:
        assert first[split].read_bytes() == second[split].read_bytes()


def test_writing_again_leaves_files_but_another_config_replaces_them(tmp_path):
    path = write_dataset(tmp_path, SMALL)["train"]
    before = path.stat().st_mtime_ns
    write_dataset(tmp_path, SMALL)
    assert path.stat().st_mtime_ns == before
    write_dataset(tmp_path, DigitsConfig(train=1, val=1, test=1))
    assert pq.read_table(path).num_rows == 1


def test_command_line(tmp_path, capsys):
    main(["--out", str(tmp_path), "--train", "2", "--val", "1", "--test", "1", "--grids", "3x3"])
    assert str(tmp_path / "train.parquet") in capsys.readouterr().out
    (row, _) = pq.read_table(tmp_path / "train.parquet").to_pylist()
    assert row["extra_info"]["grid"] == "3x3"


def test_the_question_sets_are_asked_about_the_same_scenes_and_images(tmp_path):
    arguments = ["--train", "6", "--val", "0", "--test", "0", "--grids", "3x3"]
    main(["--out", str(tmp_path / "standard"), *arguments])
    main(["--out", str(tmp_path / "long"), *arguments, "--questions", "long"])
    standard, long = (
        pq.read_table(tmp_path / name / "train.parquet").to_pylist()
        for name in ("standard", "long")
    )
    for row, other in zip(standard, long, strict=True):
        assert row["images"] == other["images"]
        assert row["extra_info"]["scene"] == other["extra_info"]["scene"]
    assert {row["extra_info"]["kind"] for row in long} <= set(QUESTION_SETS["long"])


def test_command_line_names_a_wrong_question_set(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--questions", "short"])
    assert "questions='short'" in capsys.readouterr().err


def test_command_line_names_a_wrong_grid(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), "--grids", "5x5"])
    assert "grid='5x5'" in capsys.readouterr().err


def test_claims_may_be_of_some_kinds_only(tmp_path):
    config = replace(SMALL, grids=("3x3", "2x3"), claim_kinds=("identity", "color"))
    for row in pq.read_table(write_dataset(tmp_path, config)["train"]).to_pylist():
        scene = Scene.from_json(row["extra_info"]["scene"])
        kinds = {claim.text: claim.kind for claim in all_claims(scene)}
        assert {kinds[claim["text"]] for claim in row["claims"]} == {"identity", "color"}
        assert sum(claim["label"] for claim in row["claims"]) == 10


@pytest.mark.parametrize(
    ("kinds", "grid", "message"),
    [
        (("identity", "colour"), "3x3", "name some of identity, color, relation, position"),
        ((), "3x3", "name some of"),
        (("identity", "color"), "2x2", "a grid of 2x2 may have too few claims"),
        (("identity",), "3x3", "may have too few claims"),
        (("relation", "position"), "3x3", "may have too few claims"),
    ],
)
def test_kinds_of_claims_that_cannot_fill_a_row_are_refused(kinds, grid, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, grids=(grid,), claim_kinds=kinds)


def test_kinds_are_given_on_the_command_line(tmp_path, capsys):
    words = ["--train", "1", "--val", "0", "--test", "0", "--grids", "3x3"]
    main(["--out", str(tmp_path), *words, "--claim-kinds", "identity,color"])
    assert json.loads((tmp_path / "digits.json").read_text())["claim_kinds"] == [
        "identity",
        "color",
    ]
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path), *words, "--claim-kinds", "identity"])
    assert "error: claim_kinds=" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["--out", f"{__file__}/digits", *words])
    assert "name a folder that you may write" in capsys.readouterr().err
