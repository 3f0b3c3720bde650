"""The command: a healthy recipe, its JSON, and exit codes."""

import json

import pytest

from vapo_verl.doctor import __main__ as command
from vapo_verl.doctor import child
from vapo_verl.doctor.findings import error, ok


@pytest.fixture
def without_child(monkeypatch):
    """The checks of this process only."""
    monkeypatch.setattr(child, "check_imports", lambda *_, **__: [ok("imports", "left out")])


def test_a_healthy_smoke_recipe_has_no_error(run_module, overrides):
    command = ("vapo_verl.doctor", "+recipe=smoke", *overrides, "--json")
    done = run_module(*command, timeout=240, env={"RAY_ADDRESS": None})
    report = json.loads(done.stdout)
    assert [f for f in report["findings"] if f["status"] == "error"] == []
    assert done.returncode == 0
    assert (report["recipe"], report["num_errors"]) == ("smoke", 0)
    checks = {finding["check"] for finding in report["findings"]}
    assert checks >= {"versions", "accelerator", "ray", "disk", "limits", "host memory", "recipe"}
    assert checks >= {"context", "model", "data", "pixels", "answers", "rows", "registrations"}
    proved = " ".join(f["found"] for f in report["findings"] if f["check"] == "registrations")
    for name in (
        "estimator vapo",
        "trainer vapo",
        "agent loop vapo_agent",
        "rollout replica vllm",
        "rollout vllm",
    ):
        assert f"{name} is vapo_verl." in proved
    assert "platform under VERL_PLATFORM=cpu is vapo_verl.platform.cpu.CPUPlatform" in proved
    assert "attention backend FLASH_ATTN is vapo_verl." in proved
    matched = [f["found"] for f in report["findings"] if f["check"] == "rows"]
    assert any(text.startswith("16 rows: image tokens match") for text in matched)


def test_an_error_is_exit_code_1_and_is_printed_with_its_fix(overrides, without_child, capsys):
    status = command.main(["+recipe=smoke", *overrides, "actor_rollout_ref.rollout.name=sglang"])
    printed = capsys.readouterr().out
    assert status == 1
    assert "error    recipe: actor_rollout_ref.rollout.name=sglang" in printed
    assert "fix: set vllm" in printed
    assert printed.splitlines()[-1].startswith("1 errors")


def test_a_setting_out_of_range_does_not_hide_the_machine(overrides, without_child, capsys):
    wrong = "vapo.anchors.placement=middle"
    assert command.main(["+recipe=smoke", *overrides, wrong, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    (found,) = [f for f in report["findings"] if f["status"] == "error"]
    assert "vapo.anchors.placement='middle'" in found["found"]
    assert report["overrides"][-1] == wrong


def test_without_a_recipe_the_machine_alone_is_checked(without_child, capsys):
    command.main(["--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["recipe"] is None
    assert "data" not in {finding["check"] for finding in report["findings"]}


def test_what_a_library_prints_is_not_in_the_json(monkeypatch, capsys):
    def noisy(*_, **__):
        print("libfoo says hello")
        yield error("disk", "full", "free some")

    monkeypatch.setattr(command, "diagnose", noisy)
    assert command.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["num_errors"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["+recipe=absent"], "+recipe=absent is not known; use one of dapo"),
        (["trainer.nnodes=2"], "add +recipe=NAME"),
        (["+recipe=smoke", "trainer.absent=2"], "trainer.absent"),
        (["+recipe=smoke", "+recipe=vapo"], "give one recipe"),
        (["+recipe=smoke", "trainer.nnodes=0"], "trainer.nnodes=0 is out of range"),
        (["+recipe=smoke", "data.train_files=a(b"], "'data.train_files=\"a(b\"'"),
        (["+recipe=smoke", "--config-dir", "/absent"], "--config-dir /absent is no folder"),
    ],
)
def test_bad_usage_is_exit_code_2(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_a_recipe_of_the_users_own_is_checked(tmp_path, overrides, without_child, capsys):
    mine = tmp_path / "it's mine" / "recipe" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("# @package _global_\ndefaults: [smoke, _self_]\nvapo: {seed: 3}\n")
    given = ["+recipe=mine", "--config-dir", str(mine.parents[1]), *overrides, "--json"]
    command.main(given)
    document = json.loads(capsys.readouterr().out)
    assert document["recipe"] == "mine" and document["num_errors"] == 0
    folders = ["--config-dir", str(mine.parents[1])]
    with pytest.raises(SystemExit):
        command.main(["+recipe=absent", *folders])
    assert "mine" in capsys.readouterr().err
