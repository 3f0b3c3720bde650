"""The line of a step."""

from vapo_verl.trainer.console import step_line


def test_shows_what_there_is_and_leaves_out_what_is_not():
    data = {
        "vapo/reward/total": 1.234,
        "timing_s/step": 4.04,
        "val-core/digits/acc/mean@1": 0.5,
        "val-aux/digits/perception/mean@1": 0.75,
    }
    assert step_line(data, 3, 6) == (
        "step 3/6 | reward 1.234  step 4.0s | validation: digits acc 0.500, digits perception 0.750"
    )


def test_validation_before_training_has_no_training_figures():
    line = step_line({"val-core/digits/acc/mean@1": 0.5}, 0, 6)
    assert line == "step 0/6 | validation: digits acc 0.500"
