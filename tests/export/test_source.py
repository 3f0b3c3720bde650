"""The checkpoint that is meant, or what is missing or damaged."""

import json

import pytest

from tests.checkpoints import mark_complete
from tests.export.conftest import SHARD
from vapo_verl.export.source import ExportError, find_checkpoint


def test_the_newest_complete_checkpoint_is_the_default(run):
    for step, complete in ((2, True), (10, True), (12, False)):
        run.save(step, complete=complete)
    assert find_checkpoint(run.path).step == 10
    assert find_checkpoint(run.path, 2).folder == run.path / "global_step_2" / "actor"


def test_no_run_folder(tmp_path):
    with pytest.raises(ExportError, match=r"absent is no folder"):
        find_checkpoint(tmp_path / "absent")


def test_no_checkpoint(run):
    with pytest.raises(ExportError, match=r"no global_step_N; run on until trainer.save_freq"):
        find_checkpoint(run.path)


def test_only_an_unfinished_checkpoint(run):
    run.save(2, complete=False)
    with pytest.raises(ExportError, match=r"only unfinished ones \(global_step_2\)"):
        find_checkpoint(run.path)


@pytest.mark.parametrize(("step", "problem"), [(3, "does not exist"), (4, "was never finished")])
def test_another_step_names_those_there_are(run, step, problem):
    run.save(2)
    run.save(4, complete=False)
    with pytest.raises(ExportError, match=rf"--step {step}: .* {problem}; complete ones are 2"):
        find_checkpoint(run.path, step)


def test_a_missing_shard_is_named(run):
    actor = run.save(2)
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 2}')
    with pytest.raises(ExportError, match=r"lacks model_world_size_2_rank_0.pt, .*rank_1.pt"):
        find_checkpoint(run.path)


def test_other_backends_are_refused(run):
    (run.save(2) / "fsdp_config.json").unlink()
    with pytest.raises(ExportError, match=r"only checkpoints of FSDP"):
        find_checkpoint(run.path)


def test_adapters_come_with_their_rank_and_alpha(run):
    file = run.save(2, complete=False) / "lora_train_meta.json"
    file.write_text('{"r": 8, "lora_alpha": 16}')
    mark_complete(run.path, 2)
    assert find_checkpoint(run.path).lora.factor == 2
    file.write_text("{}")
    mark_complete(run.path, 2)
    with pytest.raises(ExportError, match=r"lora_train_meta.json gives no rank and alpha"):
        find_checkpoint(run.path)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_text(text):
    return lambda path: path.write_bytes(text)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n"
DAMAGES = {
    "truncated": (truncated, "is truncated"),
    "half": (half, "is truncated"),
    "empty": (with_text(b""), "is empty"),
    "a pointer": (with_text(LFS), "is a pointer of Git LFS and not the file; run `git lfs pull`"),
    "a page": (with_text(HTML), "is a web page saved in place of the file"),
    "zeros": (with_text(b"\0" * 4096), "begins with zeros"),
    "a text": (with_text(b"hello"), "is no file that torch.save writes"),
    "a zip": (with_text(b"PK\x03\x04" + b"x" * 500), "is truncated"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_shard_is_named_with_what_is_wrong(run, name):
    damage, problem = DAMAGES[name]
    damage(run.save(2) / SHARD)
    with pytest.raises(ExportError) as refused:
        find_checkpoint(run.path)
    assert str(refused.value).startswith(f"{run.path / 'global_step_2/actor' / SHARD} {problem}")
    assert "copy the checkpoint again, or export another with --step" in str(refused.value)


def test_a_shard_that_was_changed_after_the_save_is_named(run):
    """Its form is right: only the checksum of complete.json tells."""
    shard = run.save(2) / SHARD
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ExportError, match=r"global_step_2 is damaged: .*" + SHARD):
        find_checkpoint(run.path)


@pytest.mark.parametrize("file", ["fsdp_config.json", "huggingface/config.json"])
@pytest.mark.parametrize("text", [b"", HTML, LFS, b'{"world_size": 1', b"[1]", b"\xff\xfe"])
def test_a_config_of_the_checkpoint_that_is_damaged_is_named(run, file, text):
    path = run.save(2) / file
    path.write_bytes(text)
    with pytest.raises(ExportError, match=rf"{file}.* copy the checkpoint again"):
        find_checkpoint(run.path)


@pytest.mark.parametrize("value", [0, -1, "1", 1.5, True, None, 10**12, [1]])
def test_a_number_of_ranks_that_is_none(run, value):
    (run.save(2) / "fsdp_config.json").write_text(json.dumps({"world_size": value}))
    with pytest.raises(ExportError, match=r"fsdp_config.json gives no number of ranks"):
        find_checkpoint(run.path)


def test_shards_of_another_number_of_ranks_are_told(run):
    actor = run.save(2)
    (actor / "fsdp_config.json").write_text('{"world_size": 8}')
    with pytest.raises(
        ExportError, match=rf"lacks .*_8_rank_0.pt, .*, \.\.\. \(there are {SHARD}\)"
    ):
        find_checkpoint(run.path)
