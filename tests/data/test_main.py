import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vapo_verl.data.__main__ import main


def test_import_then_check(thinker_row, write, tmp_path, capsys):
    source, out = (
        write([thinker_row(), thinker_row()], "released.parquet"),
        tmp_path / "out.parquet",
    )
    assert main(["import-vapo-thinker", str(source), "--out", str(out)]) == 0
    assert main(["check", str(out)]) == 0
    imported, checked = capsys.readouterr().out.splitlines()
    assert imported.startswith(f"{out}: 2 rows written")
    assert checked == f"{out}: 2 rows, 2 images (2 opened), 40 claims (50.0% true)"


def test_import_plain(write, tmp_path, png, capsys):
    (tmp_path / "a.png").write_bytes(png())
    source = write([{"question": "How many?", "answer": "4", "image": ["a.png"]}])
    out = tmp_path / "out.parquet"
    arguments = ["import-plain", str(source), "--out", str(out), "--image-root", str(tmp_path)]
    assert main([*arguments, "--data-source", "virl39k", "--embed-images"]) == 0
    assert main(["check", str(out)]) == 0
    assert "1 row without claims" in capsys.readouterr().out


def test_import_of_json_lines(tmp_path, png, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(png())
    (tmp_path / "mine.jsonl").write_text('{"question": "How?", "answer": 1.50, "image": "a.png"}')
    words = ["import-plain", "mine.jsonl", "--out", "mine.parquet", "--data-source", "mine"]
    assert main([*words, "--image-root", "photos"]) == 0
    assert main(["check", "mine.parquet", "--min-claims", "0"]) == 0
    assert main(["grade", "mine.parquet"]) == 0
    (row,) = pq.read_table("mine.parquet").to_pylist()
    assert row["images"] == [str(tmp_path / "photos" / "a.png")]
    assert main([*words[:3], "none/mine.parquet", *words[4:]]) == 1
    assert "mine.jsonl line 1, column 'images': no file" in capsys.readouterr().err


def test_relative_images_are_checked_under_their_root(row, write, tmp_path, png, capsys):
    (tmp_path / "a.png").write_bytes(png())
    path = write([row(images=["a.png"])])
    assert main(["check", str(path)]) == 1
    assert "no file 'a.png'" in capsys.readouterr().err
    assert main(["check", str(path), "--image-root", str(tmp_path)]) == 0


def test_every_file_is_checked_and_errors_go_to_stderr(row, write, tmp_path, capsys):
    bad = write([row(reward_model=None)], "bad.parquet")
    good = write([row()], "good.parquet")
    assert main(["check", str(tmp_path / "no.parquet"), str(bad), str(good)]) == 1
    output = capsys.readouterr()
    assert f"FILE: {tmp_path / 'no.parquet'} does not exist" in output.err
    assert f"{bad} row 0, column 'reward_model'" in output.err
    assert output.out.startswith(f"{good}: 1 row, 1 images")


def test_user_errors_of_the_process_are_a_message_and_exit_code_1(run_module, tmp_path):
    options = ("--out", tmp_path / "out.parquet", "--data-source", "x")
    run = run_module("vapo_verl.data", "import-plain", tmp_path / "no.parquet", *options)
    assert run.returncode == 1
    assert run.stderr.startswith("SRC: ") and "Traceback" not in run.stderr


def test_a_place_that_cannot_be_written_is_a_message(thinker_row, write, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    source, out = write([thinker_row()]), tmp_path / "file" / "out.parquet"
    assert main(["import-vapo-thinker", str(source), "--out", str(out)]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


def test_unusable_rows_are_left_out_of_a_copy_and_counted(row, write, tmp_path, capsys):
    rows = [row(extra_info={"split": "train", "index": i}, note=f"row {i}") for i in range(90)]
    rows[3]["reward_model"] = {"style": "rule", "ground_truth": "$$"}
    rows[40]["images"] = [{"bytes": b"no image", "path": None}]
    rows[41]["images"] = [{"bytes": b"no image", "path": None}]
    rows[77]["prompt"] = [{"role": "user", "content": "<image>What <|im_end|>?"}]
    path, out = write(rows), tmp_path / "sub" / "usable.parquet"
    assert main(["check", str(path), "--skip-bad-rows", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 86 rows written" in said
    assert "4 rows cannot be used" in said
    assert "  2 of them: column 'images': replace the image or drop the row" in said
    assert "  1 of them: column 'prompt'" in said
    table = pq.read_table(out)
    assert table.schema == pq.read_schema(path)
    assert table["note"].to_pylist() == [f"row {i}" for i in range(90) if i not in (3, 40, 41, 77)]
    assert main(["check", str(out)]) == 0


def test_a_copy_is_complete_or_absent(row, write, tmp_path, capsys, monkeypatch):
    bad = write([row(reward_model=None)], "bad.parquet")
    out = tmp_path / "usable.parquet"
    assert main(["check", str(bad), "--skip-bad-rows", str(out)]) == 1
    assert "no row can be used" in capsys.readouterr().err
    assert main(["check", str(bad), "--skip-bad-rows", str(bad)]) == 1
    assert "is the input" in capsys.readouterr().err
    path = write([row(), row()])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    assert main(["check", str(path), "--skip-bad-rows", str(out)]) == 1
    assert "No space left" in capsys.readouterr().err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.parquet", "train.parquet"]


def test_rows_of_two_files_that_ask_the_same_are_told(row, write, tmp_path, png, capsys):
    (tmp_path / "a.png").write_bytes(png())
    asked = [{"role": "user", "content": "<image>What  COLOUR is it?"}]
    train = write([row(), row(images=[{"bytes": png("blue"), "path": None}])], "train.parquet")
    val = write([row(prompt=asked, images=[str(tmp_path / "a.png")])], "val.parquet")
    assert main(["check", str(train), str(val)]) == 0
    assert f"warning: 1 rows of {val} ask what a row of {train} asks" in capsys.readouterr().out


def test_too_few_rows_for_a_batch(row, write, capsys):
    path = write([row(), row()])
    assert main(["check", str(path), "--batch-size", "3"]) == 1
    assert "2 rows, but --batch-size 3 takes 3 at a time; give more rows" in capsys.readouterr().err


def test_the_home_folder_is_found(row, write, tmp_path, monkeypatch, capsys):
    write([row()])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["check", "~/train.parquet"]) == 0


def test_rows_with_videos_are_refused_unless_no_claims_are_asked_for(row, write, capsys):
    prompt = [{"role": "user", "content": "<image>What follows in <video>?"}]
    path = write([row(videos=None), row(prompt=prompt, videos=["clip.mp4"])])
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().err
    assert f"{path} row 1, column 'videos': the row has videos; anchors are asked about images" in (
        said
    )
    assert "leave such rows out, or set vapo.anchors.num_anchors=0" in said
    assert main(["check", "--min-claims", "0", str(path)]) == 0


def ctrl_c(*arguments, **options):
    raise KeyboardInterrupt


def terminated(*arguments, **options):
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("ended", [ctrl_c, terminated])
def test_signals_end_a_command_with_one_line(row, write, monkeypatch, capsys, ended):
    """As exceptions, so that temporary files are removed."""
    monkeypatch.setattr("vapo_verl.data.__main__.check_parquet", ended)
    assert main(["check", str(write([row()]))]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    row, write, tmp_path, monkeypatch, capsys
):
    def working(*arguments, **options):
        raise AssertionError("the check comes first")

    for name in ("check_parquet", "write_usable", "import_rows"):
        monkeypatch.setattr(f"vapo_verl.data.__main__.{name}", working)
    monkeypatch.setattr("vapo_verl.data.grade.open_parquet", working)
    path, file = str(write([row()])), tmp_path / "file"
    file.write_text("")
    folder = tmp_path / "folder.parquet"
    folder.mkdir()
    plain = ["import-plain", path, "--data-source", "x"]
    split = ["--out", str(tmp_path / "out.parquet"), "--val-fraction", "0.1"]
    commands = {
        "--out": plain,
        "--val-out": [*plain, *split],
        "--skip-bad-rows": ["check", path],
    }
    refusals = {
        "does not end in .parquet": tmp_path / "x",
        "is a folder; give the path of a file in it": folder,
        f"cannot be written, {file} is no folder; give another path": file / "x.parquet",
    }
    for option, command in commands.items():
        for refusal, out in refusals.items():
            assert main([*command, option, str(out)]) == 1
            assert capsys.readouterr().err == f"{option}: {out} {refusal}" + (
                "; veRL goes by that\n" if out.name == "x" else "\n"
            )
    assert main(["grade", path, "--out", str(folder)]) == 1
    assert f"--out: {folder} is a folder" in capsys.readouterr().err


def test_grade_makes_the_folder_of_its_output(row, write, tmp_path):
    out = tmp_path / "new" / "grades.jsonl"
    assert main(["grade", str(write([row()])), "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 1


def test_unusable_rows_are_left_out_beside_columns_that_arrow_cannot_filter(row, write, tmp_path):
    table = pq.read_table(write([row(), row(reward_model=None), row()]))
    notes = pa.array(["a", "b", "c"]).cast(pa.string_view())
    path, out = tmp_path / "view.parquet", tmp_path / "usable.parquet"
    pq.write_table(table.append_column("note", notes), path)
    assert main(["check", str(path), "--skip-bad-rows", str(out)]) == 0
    assert pq.read_table(out)["note"].to_pylist() == ["a", "c"]


@pytest.mark.parametrize("command", ["check", "grade", "import-plain"])
def test_two_columns_of_one_name_are_named(command, tmp_path, capsys):
    cells = pa.array(["?!"])
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.table([cells] * 3, names=["question", "answer", "answer"]), path)
    more = ["--out", str(tmp_path / "out.parquet"), "--data-source", "x"]
    assert main([command, str(path), *(more if command == "import-plain" else [])]) == 1
    said = capsys.readouterr().err
    assert f"{path} has several columns named ['answer']; rename or drop them" in said
