"""Commands of 0.1 answer for one release, with a line that names the new one."""

from tests.commands import run_commands

RENAMED = [
    (("vapo_verl.small_model",), ("vapo_verl.digits.model",)),
    (("vapo_verl.data.digits",), ("vapo_verl.digits",)),
    (("vapo_verl.diagnostics", "report"), ("vapo_verl.report",)),
    (("vapo_verl.diagnostics", "early-decision"), ("vapo_verl.evaluation", "early-decision")),
    (("vapo_verl.diagnostics", "masking"), ("vapo_verl.evaluation", "image-swap")),
    (("vapo_verl.diagnostics", "remedies"), ("vapo_verl.evaluation", "interventions")),
]
"""Old and new."""


def test_an_old_name_runs_the_new_command_and_says_so():
    of_old = run_commands([(*old, "--help") for old, _ in RENAMED])
    of_new = run_commands([(*new, "--help") for _, new in RENAMED])
    for (old, new), done, expected in zip(RENAMED, of_old, of_new, strict=True):
        assert done.status == expected.status == 0, old
        assert done.stdout == expected.stdout != "", old
        assert done.stderr == f"python -m {old[0]} is now python -m {new[0]}\n"
