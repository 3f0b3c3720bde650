"""Checks whether the perception reward alone changes late claims."""

from __future__ import annotations

from benchmarks.study.arms import CONTROL
from benchmarks.study.figures import late_claims
from benchmarks.study.forgetful.outcome import statements
from benchmarks.study.forgetful.plan import ForgetfulPlan
from benchmarks.study.page import paired_cells
from benchmarks.study.reads import read_scenes
from benchmarks.study.workspace import TEST, WARM_START, Run, StudyError, Workspace
from vapo_verl.analysis.statistics import paired_difference
from vapo_verl.evaluation.probing.journal import read_records

ALPHA = 0.05


def check_control(work: Workspace, plan: ForgetfulPlan) -> str:
    """The control's effect: late claims of the same rows, against the warm start.

    Raises:
        StudyError: they did not rise, so the perception reward does not reach the policy.
    """
    names = (WARM_START, Run(arm=CONTROL, seed=plan.seeds[0]).name)
    before, after = (read_records(work.folder(n) / "diagnostics" / "perception") for n in names)
    late = [{r["row"]: late_claims(r) for r in records} for records in (before, after)]
    known = [{row: v for row, v in of.items() if v is not None} for of in late]
    found = paired_difference("claims_late", *known)
    scenes = read_scenes(work.data / TEST)
    cells = [statements(records, scenes)["stated"] for records in (before, after)]
    difference, p = paired_cells(found)
    text = (
        f"perception reward alone: late claims {difference}, p {p} over rows of one run; cells "
        f"stated {cells[0]:.2f} -> {cells[1]:.2f}"
    )
    if not (found.difference > 0 and found.p_t < ALPHA):
        raise StudyError(f"the control did not move: {text}")
    return text
