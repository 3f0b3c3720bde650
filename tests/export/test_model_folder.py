"""A model folder appears complete, holds the trained weights, and nothing else."""

import pickle

import pytest
import torch
from safetensors.torch import load_file

from tests.export.conftest import SHARD
from vapo_verl.digits.model import model_dir
from vapo_verl.export import model_folder
from vapo_verl.export.model_folder import atomic_folder, write_model_folder
from vapo_verl.export.source import ExportError


def test_weights_tokenizer_processor_and_card_are_written(run):
    run.save(4)
    out = write_model_folder(run.path)
    assert out == run.path / "model_step_4"
    names = {file.name for file in out.iterdir()}
    assert names >= {
        "README.md",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "processor_config.json",
        "chat_template.jinja",
    }
    written, trained = (load_file(f"{folder}/model.safetensors") for folder in (out, model_dir()))
    assert set(written) == set(trained)
    assert all(torch.equal(written[name], trained[name]) for name in trained)
    for file in out.iterdir():
        assert str(run.path).encode() not in file.read_bytes(), f"{file.name} names a private path"
    assert {path.name for path in run.path.iterdir() if path.name.startswith(".")} == set()


def test_a_checkpoint_that_carries_code_is_refused(run, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"weight": Harm()}, run.save(4) / SHARD)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        write_model_folder(run.path)
    assert not (tmp_path / "harm").exists()
    assert not (run.path / "model_step_4").exists()


def test_an_existing_folder_is_never_touched(run):
    run.save(4)
    out = run.path / "mine"
    out.mkdir()
    with pytest.raises(ExportError, match=r"mine exists already"):
        write_model_folder(run.path, out=out)
    assert list(out.iterdir()) == []


def test_an_error_leaves_nothing(run, monkeypatch):
    def no_space(_checkpoint, _out):
        raise OSError(28, "No space left on device")

    run.save(4)
    before = sorted(run.path.iterdir())
    monkeypatch.setattr(model_folder, "write_model", no_space)
    with pytest.raises(OSError, match="No space"):
        write_model_folder(run.path)
    assert sorted(run.path.iterdir()) == before


def test_a_folder_appears_with_all_its_files(tmp_path):
    folder = tmp_path / "a" / "b"
    with atomic_folder(folder) as temporary:
        (temporary / "file").write_text("text")
        assert not folder.exists()
    assert [file.name for file in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]
