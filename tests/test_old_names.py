"""Commands of 0.1 answer for one release, with a line that names the new one."""

import pytest


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("vapo_verl.small_model",), ("vapo_verl.digits.model",)),
        (("vapo_verl.data.digits",), ("vapo_verl.digits",)),
        (("vapo_verl.diagnostics", "report"), ("vapo_verl.report",)),
        (("vapo_verl.diagnostics", "early-decision"), ("vapo_verl.evaluation", "early-decision")),
        (("vapo_verl.diagnostics", "masking"), ("vapo_verl.evaluation", "image-swap")),
        (("vapo_verl.diagnostics", "remedies"), ("vapo_verl.evaluation", "interventions")),
    ],
)
def test_an_old_name_runs_the_new_command_and_says_so(run_module, old, new):
    done, expected = run_module(*old, "--help"), run_module(*new, "--help")
    assert done.returncode == expected.returncode == 0
    assert done.stdout == expected.stdout
    assert done.stderr == f"python -m {old[0]} is now python -m {new[0]}\n"
