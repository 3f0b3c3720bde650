"""What is compared, and with how much of everything."""

from __future__ import annotations

from dataclasses import dataclass

_NO_CLAIMS = ("vapo.anchors.num_anchors=0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way of training: the recipe `study` with some overrides."""

    name: str
    title: str
    overrides: tuple[str, ...]


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            name="grpo",
            title="GRPO (K=0)",
            overrides=(*_NO_CLAIMS, "vapo.reward.perception_source=none"),
        ),
        Arm(name="vapo", title="VAPO", overrides=()),
        Arm(
            name="vapo_focus",
            title="VAPO, credit by attention (focus)",
            overrides=("vapo.advantage.attention_coef=0.3", "vapo.advantage.attention_mode=focus"),
        ),
        Arm(
            name="vapo_grounded",
            title="VAPO, credit by attention (grounded)",
            overrides=(
                "vapo.advantage.attention_coef=0.3",
                "vapo.advantage.attention_mode=grounded",
            ),
        ),
        Arm(
            name="attention_reward",
            title="attention as the reward",
            overrides=(*_NO_CLAIMS, "vapo.reward.perception_source=attention"),
        ),
    )
}
BASELINE = "grpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a study; results of one size are never mixed with those of another."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    num_steps: int
    num_train_rows: int
    num_test_rows: int
    """Held-out rows on which every checkpoint is measured."""


FULL = Plan(
    arms=tuple(ARMS),
    seeds=(0, 1, 2),
    num_steps=24,
    num_train_rows=384,
    num_test_rows=256,
)
QUICK = Plan(
    arms=("grpo", "vapo"),
    seeds=(0,),
    num_steps=12,
    num_train_rows=192,
    num_test_rows=64,
)
