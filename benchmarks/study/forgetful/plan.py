"""Arms, seeds and sizes of each part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.study import arms
from benchmarks.study.arms import BASELINE, CONTROL, Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetfulPlan(Plan):
    """A plan for each strength of forgetting."""

    memories: tuple[str, ...]
    """`--memory` of each warm start; its folder has this name."""
    start_steps: int
    """Training steps of the warm start."""
    known: tuple[str, ...] = (BASELINE,)
    """Arms that are tested in another part, or nowhere: p is adjusted over the others."""
    against: Mapping[str, str] = field(default_factory=dict)
    """Arm -> the arm it is compared with in this part, if not its own `against`."""

    @property
    def tested(self) -> tuple[str, ...]:
        """Arms over which p of the primary measure is adjusted, done or not."""
        return tuple(arm for arm in self.arms if arm not in self.known)

    def size(self) -> dict[str, Any]:
        """The fixed part: a folder may mix runs of any arm, seed and strength."""
        mixed = ("arms", "seeds", "memories", "known", "against")
        return {name: value for name, value in asdict(self).items() if name not in mixed}


MAIN = ForgetfulPlan(
    arms=(BASELINE, "vapo", "gamma_1", "decoupled", "no_gate"),
    seeds=(1, 2, 3, 4, 5),
    num_steps=48,
    num_train_rows=1600,
    num_test_rows=256,
    memories=("18", "none"),
    start_steps=1000,
)
ALONE = replace(MAIN, arms=(CONTROL,), seeds=(1,), memories=("18",))
"""The control of the comparison: without an effect there, the comparison shows nothing."""
SIGNAL = replace(
    MAIN,
    arms=("decoupled", *arms.SIGNAL),
    seeds=(1, 2, 3),
    memories=("18",),
    known=("decoupled",),
)
"""Arms on what makes the perception reward a signal; `decoupled` is one of the comparison."""
_BY_ATTENTION = ("vapo_focus", "vapo_grounded", "attention_reward")
NEIGHBOURS = replace(
    MAIN,
    arms=(BASELINE, "vapo", *arms.NEIGHBOURS, *_BY_ATTENTION),
    seeds=(1, 2, 3),
    memories=("18",),
    known=(BASELINE, "vapo"),
    against={"vapo_focus": "vapo", "vapo_grounded": "vapo"},
)
"""Methods of other papers, and credit by visual attention."""
PLANS = {"comparison": MAIN, "control": ALONE, "signal": SIGNAL, "neighbours": NEIGHBOURS}
QUICK = replace(ALONE, seeds=(0,), num_steps=12, num_train_rows=384, num_test_rows=64)
"""A short form of the control."""
