"""The command line of the export."""

import subprocess
import sys

from vapo_verl.export import model_folder
from vapo_verl.export.__main__ import main


def test_help_is_light():
    code = (
        "import sys\n"
        "from vapo_verl.export.__main__ import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'verl', 'vllm', 'ray', 'transformers'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "HEAVY []" in result.stdout
    assert "RUN_DIR" in result.stdout


def test_the_folder_is_printed(run, monkeypatch, capsys):
    run.save(4)
    monkeypatch.setattr(model_folder, "write_model", lambda _checkpoint, out, **_how: None)
    out = run.path.parent / "exported"
    assert main([str(run.path), "--step", "4", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert (out / "README.md").is_file()


def test_bad_input_is_a_message(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "holds no complete checkpoint" in capsys.readouterr().err
