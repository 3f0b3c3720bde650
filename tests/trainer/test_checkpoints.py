"""Only whole checkpoints are ever resumed from."""

from pathlib import Path

import pytest

from vapo_verl.trainer import checkpoints


def save(run_dir: Path, step: int, *, whole: bool) -> None:
    folder = checkpoints.checkpoint_folder(run_dir, step) / "actor"
    folder.mkdir(parents=True)
    (folder / "model_world_size_1_rank_0.pt").write_bytes(b"weights")
    if whole:
        checkpoints.mark_complete(run_dir, step)


def pointer(run_dir: Path) -> str:
    return (run_dir / checkpoints.POINTER).read_text()


def test_an_empty_or_missing_folder_has_none(tmp_path):
    assert checkpoints.latest_complete(tmp_path) is None
    assert checkpoints.latest_complete(tmp_path / "absent") is None


def test_a_half_written_checkpoint_is_never_picked(tmp_path):
    save(tmp_path, 3, whole=True)
    save(tmp_path, 6, whole=False)
    assert checkpoints.latest_complete(tmp_path) == 3
    assert [folder.name for folder in checkpoints.incomplete(tmp_path)] == ["global_step_6"]
    assert pointer(tmp_path) == "3"


def test_steps_compare_as_numbers(tmp_path):
    for step in (9, 10):
        save(tmp_path, step, whole=True)
    assert checkpoints.latest_complete(tmp_path) == 10


def test_other_names_are_no_checkpoints(tmp_path):
    (tmp_path / "global_step_x").mkdir()
    (tmp_path / "global_step_7.bak").mkdir()
    assert checkpoints.latest_complete(tmp_path) is None
    assert checkpoints.incomplete(tmp_path) == []


def test_only_an_unfinished_folder_of_the_step_is_discarded(tmp_path):
    save(tmp_path, 3, whole=True)
    save(tmp_path, 6, whole=False)
    checkpoints.discard_incomplete(tmp_path, 3)
    checkpoints.discard_incomplete(tmp_path, 6)
    assert checkpoints.latest_complete(tmp_path) == 3
    assert not checkpoints.checkpoint_folder(tmp_path, 6).exists()


def test_pointing_nowhere_makes_verl_start_afresh(tmp_path):
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    save(tmp_path, 3, whole=True)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_3")
    checkpoints.point_to(tmp_path, None)
    checkpoints.point_to(tmp_path, None)
    assert find_latest_ckpt_path(str(tmp_path)) is None


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "f"
    checkpoints.write_atomically(file, "old")

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write_atomically(file, "new")
    assert file.read_text() == "old"
