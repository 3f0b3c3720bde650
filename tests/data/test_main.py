import subprocess
import sys

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


def test_every_file_is_checked_and_errors_go_to_stderr(row, write, tmp_path, capsys):
    bad = write([row(reward_model=None)], "bad.parquet")
    good = write([row()], "good.parquet")
    assert main(["check", str(tmp_path / "no.parquet"), str(bad), str(good)]) == 1
    output = capsys.readouterr()
    assert f"FILE: {tmp_path / 'no.parquet'} does not exist" in output.err
    assert f"{bad} row 0, column 'reward_model'" in output.err
    assert output.out.startswith(f"{good}: 1 row, 1 images")


def test_user_errors_of_the_process_are_a_message_and_exit_code_1(tmp_path):
    command = [sys.executable, "-m", "vapo_verl.data", "import-plain", str(tmp_path / "no.parquet")]
    options = ["--out", str(tmp_path / "out.parquet"), "--data-source", "x"]
    run = subprocess.run([*command, *options], capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr.startswith("SRC: ") and "Traceback" not in run.stderr


def test_a_place_that_cannot_be_written_is_a_message(thinker_row, write, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    source, out = write([thinker_row()]), tmp_path / "file" / "out.parquet"
    assert main(["import-vapo-thinker", str(source), "--out", str(out)]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
