"""Only whole checkpoints are ever resumed from."""

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.checkpoints import mark_complete
from vapo_verl.files import atomic_write_text
from vapo_verl.run_folder import checkpoints


def save(run_dir: Path, step: int, *, whole: bool) -> None:
    folder = checkpoints.checkpoint_folder(run_dir, step) / "actor"
    folder.mkdir(parents=True)
    (folder / "model_world_size_1_rank_0.pt").write_bytes(b"weights")
    if whole:
        mark_complete(run_dir, step)


def written(run_dir: Path, step: int, keep: int | None = None) -> None:
    """A checkpoint as a run writes it."""
    with checkpoints.writing(run_dir, step, keep) as records:
        save(run_dir, step, whole=False)
        (run_dir / checkpoints.POINTER).write_text(str(step))  # as veRL does
    checkpoints.declare_complete(run_dir, step, records, keep)


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


def test_a_folder_that_is_written_again_is_removed_whether_complete_or_not(tmp_path):
    save(tmp_path, 3, whole=True)
    save(tmp_path, 6, whole=False)
    for step in (3, 6):
        checkpoints.discard(tmp_path, step)
    assert list(tmp_path.glob("global_step_*")) == []


def test_pointing_nowhere_makes_verl_start_afresh(tmp_path):
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    save(tmp_path, 3, whole=True)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_3")
    checkpoints.point_to(tmp_path, None)
    checkpoints.point_to(tmp_path, None)
    assert find_latest_ckpt_path(str(tmp_path)) is None


def test_a_failed_write_leaves_the_old_text(tmp_path, monkeypatch):
    file = tmp_path / "f"
    atomic_write_text(file, "old")

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        atomic_write_text(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def failing_fsync(monkeypatch, number: int, *, of_folders: bool) -> list[bool]:
    """Make fsync of folders, or of files, fail; which of the calls were for folders."""
    calls: list[bool] = []

    def fsync(descriptor):
        calls.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
        if calls[-1] == of_folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    return calls


@pytest.mark.parametrize(
    "number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF]
)
def test_a_file_system_that_cannot_sync_folders_holds_complete_checkpoints(
    tmp_path, monkeypatch, number
):
    calls = failing_fsync(monkeypatch, number, of_folders=True)
    save(tmp_path, 3, whole=True)
    # actor, the checkpoint, the run; the shard, the marker, the pointer
    assert (calls.count(True), calls.count(False)) == (3, 3)
    assert checkpoints.latest_complete(tmp_path) == 3
    assert pointer(tmp_path) == "3"


@pytest.mark.parametrize(
    ("number", "of_folders"), [(errno.EIO, True), (errno.EINVAL, False), (errno.ENOSPC, False)]
)
def test_a_sync_that_fails_for_a_file_or_a_broken_disk_is_an_error(
    tmp_path, monkeypatch, number, of_folders
):
    failing_fsync(monkeypatch, number, of_folders=of_folders)
    with pytest.raises((OSError, checkpoints.CheckpointError), match=os.strerror(number)):
        save(tmp_path, 3, whole=True)
    assert not (tmp_path / checkpoints.POINTER).exists()


def test_a_save_that_fails_leaves_nothing_of_itself_and_the_older_one_usable(tmp_path):
    save(tmp_path, 3, whole=True)
    with (
        pytest.raises(checkpoints.CheckpointError) as caught,
        checkpoints.writing(tmp_path, 6),
    ):
        save(tmp_path, 6, whole=False)
        (tmp_path / checkpoints.POINTER).write_text("6")  # as veRL does before the end
        raise OSError(28, "No space left on device")
    message = caught.value.message
    assert f"{tmp_path / 'global_step_6'}: [Errno 28] No space left on device" in message
    assert "That of step 3 is complete" in message
    assert "max_actor_ckpt_to_keep" in message
    assert [folder.name for folder in tmp_path.glob("global_step_*")] == ["global_step_3"]
    assert pointer(tmp_path) == "3"


def test_a_failed_first_save_says_that_there_is_no_older_one(tmp_path):
    with (
        pytest.raises(checkpoints.CheckpointError, match="There is no older one"),
        checkpoints.writing(tmp_path, 6),
    ):
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 64\nframe #0"
        )
    assert not (tmp_path / checkpoints.POINTER).exists()


def test_a_kill_inside_a_save_is_no_error_of_the_disk(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoints.writing(tmp_path, 6):
        save(tmp_path, 6, whole=False)
        raise KeyboardInterrupt
    assert checkpoints.latest_complete(tmp_path) is None


def test_a_save_replaces_what_a_killed_one_left(tmp_path):
    save(tmp_path, 6, whole=False)
    written(tmp_path, 6)  # its mkdir() would refuse the old folder
    assert checkpoints.latest_complete(tmp_path) == 6
    assert pointer(tmp_path) == "6"


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (None, [2, 4, 5, 6, 8]),
        (-1, [2, 4, 5, 6, 8]),
        (1, [6, 8]),
        (2, [4, 6, 8]),
        (9, [2, 4, 6, 8]),
    ],
)
def test_the_newest_checkpoints_are_kept_whole_and_remains_go(tmp_path, keep, left):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, whole=True)
    save(tmp_path, 5, whole=False)
    checkpoints.remove_old(tmp_path, 6, keep)  # 8 is of an earlier run that went further
    assert sorted(int(f.name.removeprefix("global_step_")) for f in tmp_path.glob("g*")) == left


@pytest.mark.parametrize(
    ("keep", "during", "after"), [(1, [1, 2, 4], [6]), (2, [4], [4, 6]), (3, [2, 4], [2, 4, 6])]
)
def test_old_ones_make_room_but_never_the_newest(tmp_path, keep, during, after):
    for step in (1, 2, 4):
        save(tmp_path, step, whole=True)
    with checkpoints.writing(tmp_path, 6, keep) as records:
        assert checkpoints.complete_steps(tmp_path) == during
        save(tmp_path, 6, whole=False)
    assert checkpoints.complete_steps(tmp_path) == during
    checkpoints.declare_complete(tmp_path, 6, records, keep)
    assert checkpoints.complete_steps(tmp_path) == after


def test_a_kill_while_an_old_one_is_removed_leaves_no_half_that_counts_as_whole(
    tmp_path, monkeypatch
):
    for step in (2, 4):
        save(tmp_path, step, whole=True)

    def killed(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.remove_old(tmp_path, 4, 1)
    assert [folder.name for folder in checkpoints.incomplete(tmp_path)] == ["global_step_2"]
    assert checkpoints.latest_complete(tmp_path) == 4


def damaged(run_dir: Path, step: int) -> list[str]:
    folder = checkpoints.checkpoint_folder(run_dir, step)
    return [str(problem) for problem in checkpoints.verify_checkpoint(folder)]


SHARD = "actor/model_world_size_1_rank_0.pt"


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:3])


def flip_a_bit(shard: Path) -> None:
    content = bytearray(shard.read_bytes())
    content[2] ^= 1
    shard.write_bytes(content)


def make_a_folder_of_it(shard: Path) -> None:
    shard.unlink()
    shard.mkdir()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (cut, f"{SHARD}: expected 7 bytes, found 3 bytes"),
        (flip_a_bit, f"{SHARD}: expected xxh3_128 "),
        (Path.unlink, f"{SHARD}: expected 7 bytes, found no file"),
        (make_a_folder_of_it, f"{SHARD}: expected 7 bytes, found no regular file"),
        (lambda shard: shard.open("ab").write(b"x"), f"{SHARD}: expected 7 bytes, found 8 bytes"),
        (lambda shard: shard.write_bytes(b""), f"{SHARD}: expected 7 bytes, found 0 bytes"),
    ],
)
def test_a_damaged_file_is_named_and_the_older_checkpoint_is_used(tmp_path, damage, named):
    for step in (2, 4):
        written(tmp_path, step)
        assert damaged(tmp_path, step) == []
    damage(checkpoints.checkpoint_folder(tmp_path, 4) / SHARD)
    [problem] = damaged(tmp_path, 4)
    assert problem.startswith(named)
    point = checkpoints.resume_point(tmp_path)
    assert (point.step, point.verified, sorted(point.damaged)) == (2, True, [4])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "no JSON"),
        ('{"step": 4', "no JSON"),
        ("[4]", "no step"),
        ("{}", "no step"),
        ('{"step": 2}', "that of step 2"),
        ('{"step": 4, "files": [1]}', "no table of files"),
        ('{"step": 4, "files": {"a": {}}}', "checksums by None"),
        ('{"step": 4, "algorithm": "xxh3_128", "files": {"a": {}}}', "no size and checksum of a"),
        (
            '{"step": 4, "algorithm": "xxh3_128", "files": {"../a": {"size": 1, "checksum": ""}}}',
            "leaves the checkpoint",
        ),
        ("\0\0\0\0", "no JSON"),
    ],
)
def test_a_damaged_marker_is_a_damaged_checkpoint(tmp_path, text, found):
    for step in (2, 4):
        written(tmp_path, step)
    (checkpoints.checkpoint_folder(tmp_path, 4) / checkpoints.MARKER).write_text(text)
    [problem] = damaged(tmp_path, 4)
    assert problem.startswith("complete.json: expected the marker of this checkpoint, found ")
    assert found in problem
    assert checkpoints.resume_point(tmp_path).step == 2


def test_a_checkpoint_of_an_older_release_is_used_unverified(tmp_path):
    written(tmp_path, 2)
    folder = checkpoints.checkpoint_folder(tmp_path, 2)
    (folder / checkpoints.MARKER).write_text('{"step": 2}')
    assert damaged(tmp_path, 2) == []
    assert not checkpoints.has_checksums(folder)
    assert checkpoints.resume_point(tmp_path) == checkpoints.ResumePoint(2, verified=False)


def test_no_checkpoint_means_from_the_start_but_only_damaged_ones_are_an_error(tmp_path):
    assert checkpoints.resume_point(tmp_path).step is None
    written(tmp_path, 2)
    cut(checkpoints.checkpoint_folder(tmp_path, 2) / SHARD)
    said = []
    with pytest.raises(checkpoints.CheckpointError, match="No intact checkpoint is left") as caught:
        checkpoints.prepare_resume(tmp_path, said.append)
    assert said == [f"WARNING: {caught.value.message}"]
    assert f"{tmp_path / 'global_step_2'} is damaged: {SHARD}" in caught.value.message


def test_a_resume_says_what_is_wrong_and_points_to_the_intact_checkpoint(tmp_path):
    for step in (2, 4):
        written(tmp_path, step)
    save(tmp_path, 6, whole=False)
    flip_a_bit(checkpoints.checkpoint_folder(tmp_path, 4) / SHARD)
    assert checkpoints.resume_point(tmp_path, sizes_only=True).step == 4
    said = []
    assert checkpoints.prepare_resume(tmp_path, said.append).step == 2
    assert said[0] == f"{tmp_path / 'global_step_6'} is incomplete and not used"
    assert said[1].startswith(f"WARNING: {tmp_path / 'global_step_4'} is damaged: {SHARD}: ")
    assert said[1].endswith("it is set aside, resuming from step 2")
    assert pointer(tmp_path) == "2"
    assert checkpoints.complete_steps(tmp_path) == [2]
    (checkpoints.checkpoint_folder(tmp_path, 2) / checkpoints.MARKER).write_text('{"step": 2}')
    checkpoints.prepare_resume(tmp_path, said.append)
    assert said[-1] == "the checkpoint of step 2 has no checksums: used unverified"


def test_files_that_no_marker_names_do_no_harm(tmp_path):
    written(tmp_path, 2)
    (checkpoints.checkpoint_folder(tmp_path, 2) / "notes.txt").write_text("best so far")
    assert damaged(tmp_path, 2) == []


def test_a_checkpoint_under_another_name_is_verified_all_the_same(tmp_path):
    written(tmp_path, 2)
    moved = checkpoints.checkpoint_folder(tmp_path, 2).rename(tmp_path / "best")
    assert checkpoints.verify_checkpoint(moved) == []
    cut(moved / SHARD)
    assert [problem.path for problem in checkpoints.verify_checkpoint(moved)] == [SHARD]


def test_a_damaged_checkpoint_that_is_set_aside_counts_no_more_and_may_be_written_again(tmp_path):
    for step in (2, 4):
        written(tmp_path, step)
    checkpoints.set_aside(tmp_path, 4)
    checkpoints.set_aside(tmp_path, 4)
    assert checkpoints.complete_steps(tmp_path) == [2]
    [folder] = checkpoints.incomplete(tmp_path)
    assert folder.name == "global_step_4"
    with pytest.raises(
        checkpoints.CheckpointError, match=r"damaged: an earlier start .* set it aside"
    ):
        checkpoints.require_intact(folder)  # chosen by `resume_path`
    written(tmp_path, 4)
    assert damaged(tmp_path, 4) == []
    checkpoints.require_intact(folder)


def test_a_kill_while_a_complete_checkpoint_is_written_again_leaves_an_incomplete_one(tmp_path):
    for step in (2, 4):
        written(tmp_path, step)
    with pytest.raises(KeyboardInterrupt), checkpoints.writing(tmp_path, 4):
        save(tmp_path, 4, whole=False)
        raise KeyboardInterrupt
    assert checkpoints.latest_complete(tmp_path) == 2


def test_retention_never_removes_the_last_good_checkpoint(tmp_path):
    for step in (2, 4):
        written(tmp_path, step)
    cut(checkpoints.checkpoint_folder(tmp_path, 4) / SHARD)
    with pytest.raises(KeyboardInterrupt), checkpoints.writing(tmp_path, 6, keep=2):
        raise KeyboardInterrupt
    assert damaged(tmp_path, 2) == []
    written(tmp_path, 6, keep=2)
    assert checkpoints.complete_steps(tmp_path) == [2, 6]


def test_ranks_record_the_files_that_they_wrote(tmp_path):
    with checkpoints.writing(tmp_path, 2) as records:
        save(tmp_path, 2, whole=False)
        folder = checkpoints.checkpoint_folder(tmp_path, 2)
        records.update(checkpoints.file_records(folder, lambda name: name == SHARD))
        records["actor/on_another_node.pt"] = records[SHARD]
        (folder / "data.pt").write_bytes(b"data")
    assert sorted(records) == [SHARD, "data.pt"]
    checkpoints.declare_complete(tmp_path, 2, records)
    assert damaged(tmp_path, 2) == []


def test_a_file_that_changed_after_its_rank_wrote_it_is_an_error(tmp_path):
    with (
        pytest.raises(checkpoints.CheckpointError, match="and its rank wrote 7"),
        checkpoints.writing(tmp_path, 2) as records,
    ):
        save(tmp_path, 2, whole=False)
        folder = checkpoints.checkpoint_folder(tmp_path, 2)
        records.update(checkpoints.file_records(folder))
        cut(folder / SHARD)
