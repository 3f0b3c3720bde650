"""Results that survive a kill, and a folder that keeps to its settings."""

import json

import pytest

from vapo_verl.evaluation.probing.journal import ROWS_FILE, Journal, read_records
from vapo_verl.files import FolderLocked
from vapo_verl.run_folder import RunError

SETTINGS = {"--seed": 0, "--max-tokens": 512}


def test_rows_are_kept_and_an_unfinished_line_is_dropped(tmp_path):
    folder = tmp_path / "made" / "here"
    with Journal(folder, SETTINGS) as journal:
        journal.append({"row": 3})
        journal.append({"row": 1, "text": "ü\n"})
    rows = folder / ROWS_FILE
    rows.write_bytes(rows.read_bytes() + b'{"row": 2, "te')
    assert [record["row"] for record in read_records(folder)] == [1, 3]
    with Journal(folder, SETTINGS) as journal:
        assert journal.finished() == {1, 3}
        journal.append({"row": 2})
    assert [json.loads(line)["row"] for line in rows.read_text().splitlines()] == [3, 1, 2]


def test_other_settings_are_refused_by_name(tmp_path):
    with Journal(tmp_path, SETTINGS):
        pass
    other = Journal(tmp_path, {**SETTINGS, "--max-tokens": 256})
    with pytest.raises(RunError, match=r"--max-tokens was 512, is 256\. Give"):
        other.__enter__()
    with Journal(tmp_path, SETTINGS):  # the refusal has left no lock
        pass


def test_two_processes_do_not_write_one_folder(tmp_path):
    with Journal(tmp_path, SETTINGS), pytest.raises(FolderLocked, match="is writing here"):
        Journal(tmp_path, SETTINGS).__enter__()


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / ROWS_FILE).write_text('{"row": 1}\nnonsense\n{"row": 2}\n')
    with pytest.raises(RunError, match=f"{ROWS_FILE}:2"):
        read_records(tmp_path)


def test_values_that_json_lacks_are_refused(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal, pytest.raises(ValueError):
        journal.append({"row": 1, "ratio": float("nan")})


def test_a_setting_that_an_older_folder_lacks_was_its_default(tmp_path):
    with Journal(tmp_path, SETTINGS):
        pass
    defaults = {"--control-tokens": "refuse", "--seed": 7}
    with Journal(tmp_path, {**SETTINGS, "--control-tokens": "refuse"}, defaults):
        pass
    other = Journal(tmp_path, {**SETTINGS, "--control-tokens": "text"}, defaults)
    with pytest.raises(RunError, match=r"--control-tokens was 'refuse', is 'text'\. Give"):
        other.__enter__()
