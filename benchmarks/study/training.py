"""One run of one arm, with the project's entry point."""

from __future__ import annotations

from benchmarks.study.arms import ALL_ARMS, Plan
from benchmarks.study.workspace import TRAIN, VALIDATION, Run, Workspace


def train(work: Workspace, plan: Plan, run: Run, threads: int) -> None:
    """Train to the last step; a stopped run resumes, a finished one does nothing."""
    overrides = (
        f"trainer.default_local_dir={work.folder(run.name)}",
        f"trainer.total_training_steps={plan.num_steps}",
        f"actor_rollout_ref.model.path={work.model}",
        f"data.train_files={work.data / TRAIN}",
        f"data.val_files={work.data / VALIDATION}",
        f"data.seed={run.seed}",
        f"vapo.seed={run.seed}",
        *ALL_ARMS[run.arm].overrides,
    )
    work.command(run.name, "vapo_verl.main", "+recipe=study", *overrides, threads=threads)
