"""The line of a step."""

from vapo_verl.trainer import trackers as module
from vapo_verl.trainer.trackers import StepLine, step_line


def test_shows_what_there_is_and_leaves_out_what_is_not():
    data = {
        "vapo/reward/total": 1.234,
        "timing_s/step": 4.04,
        "val/digits/accuracy": 0.5,
        "val-core/digits/acc/mean@1": 0.5,
        "val/digits/perception": 0.75,
    }
    assert step_line(data, 3, 6) == (
        "step 3/6 | reward 1.234  step 4.0s | validation: digits acc 0.500, digits perception 0.750"
    )


def test_validation_before_training_has_no_training_figures():
    line = step_line({"val/digits/accuracy": 0.5}, 0, 6)
    assert line == "step 0/6 | validation: digits acc 0.500"


def test_time_left_follows_the_steps_that_were_done(monkeypatch, capsys):
    now = iter([0.0, 10.0, 30.0, 50.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(now))
    line = StepLine(total_steps=4, first_step=1)
    line.at("rollout")
    line.log({}, 1)  # a validation before the first step is no step
    line.log({}, 2)
    line.at("update")
    line.log({}, 3)
    assert capsys.readouterr().out.splitlines() == [
        "[vapo progress] step 2/4 [=====...............] rollout",
        "[vapo] step 1/4",
        "[vapo] step 2/4 | 0:00:40 left",
        "[vapo progress] step 3/4 [==========..........] update, 0:00:40 left",
        "[vapo] step 3/4 | 0:00:20 left",
    ]


def test_no_time_is_left_after_the_last_step(capsys):
    StepLine(total_steps=1).log({"timing_s/step": 1.0}, 1)
    assert capsys.readouterr().out == "[vapo] step 1/1 | step 1.0s\n"


def test_a_run_without_signal_is_warned_once_after_the_first_steps(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    line = StepLine(total_steps=20)
    figures = {"vapo/anchors/agreement": 0.97, "vapo/anchors/spread": 0.03}
    for step in range(1, 12):
        line.log(figures, step)
        warnings = [text for text in said if text.startswith("WARNING")]
        assert len(warnings) == (step >= 5)
    assert "agree on 97.0% of their claims" in warnings[0]
    said.clear()
    paired = StepLine(total_steps=20, paired=True)
    for step in range(1, 12):
        paired.log(figures, step)
    assert not any(text.startswith("WARNING") for text in said)


def test_a_run_with_signal_or_without_anchors_is_not_warned(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    line = StepLine(total_steps=20)
    for step in range(1, 8):
        line.log({"vapo/anchors/agreement": 0.8, "vapo/anchors/spread": 0.03}, step)
    line = StepLine(total_steps=20)
    for step in range(1, 8):
        line.log({"vapo/reward/total": 1.0}, step)
    assert not any(text.startswith("WARNING") for text in said)
