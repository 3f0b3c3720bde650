"""Arms, variants and sizes of the study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

BASELINE, CONTROL = "grpo", "perception"
_NO_CLAIMS = ("vapo.anchors.num_anchors=0",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The recipe `study` with some overrides."""

    name: str
    title: str
    overrides: tuple[str, ...]
    against: str = BASELINE
    """The arm it is compared with."""


_GRPO = (*_NO_CLAIMS, "vapo.reward.perception_source=none")
ARMS = {
    arm.name: arm
    for arm in (
        Arm(name=BASELINE, title="GRPO (K=0)", overrides=_GRPO),
        Arm(name="vapo", title="VAPO", overrides=()),
        Arm(
            name="vapo_focus",
            title="VAPO, attention-weighted advantage (focus)",
            overrides=("vapo.advantage.attention_coef=0.3", "vapo.advantage.attention_mode=focus"),
        ),
        Arm(
            name="vapo_grounded",
            title="VAPO, attention-weighted advantage (grounded)",
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


def _with_grpo(name: str, title: str, override: str) -> tuple[Arm, Arm]:
    """GRPO and VAPO with a setting that both have."""
    grpo = Arm(name=f"grpo_{name}", title=f"GRPO, {title}", overrides=(*_GRPO, override))
    vapo = Arm(
        name=f"vapo_{name}", title=f"VAPO, {title}", overrides=(override,), against=grpo.name
    )
    return grpo, vapo


VARIANTS = {
    arm.name: arm
    for arm in (
        Arm(
            name="gamma_1",
            title="VAPO, gamma 1",
            overrides=("vapo.reward.perception_weight=1.0",),
        ),
        Arm(
            name="no_gate",
            title="VAPO, incorrect answers earn it, too",
            overrides=("vapo.anchors.gate=relaxed",),
        ),
        *_with_grpo("lr_1e-4", "learning rate 1e-4", "actor_rollout_ref.actor.optim.lr=1e-4"),
        Arm(name="beta_0", title="VAPO, beta 0", overrides=("vapo.reward.late_emphasis=0.0",)),
        Arm(name="k_5", title="VAPO, K 5", overrides=("vapo.anchors.num_anchors=5",)),
        *_with_grpo("lr_2e-5", "learning rate 2e-5", "actor_rollout_ref.actor.optim.lr=2e-5"),
        *_with_grpo("no_std", "not divided by deviations", "vapo.advantage.normalize_by_std=false"),
    )
}
"""VAPO with other settings than the study's, and GRPO if it has the setting."""
_GAMMA_1 = "vapo.reward.perception_weight=1.0"
_DECOUPLED = (_GAMMA_1, "vapo.advantage.normalization=decoupled")
_SAME_PLACES = "vapo.anchors.placement=relative"
"""Cuts at relative places as with `vapo.anchors.pairing=group`, but drawn for each response."""
FORGETFUL = {
    arm.name: arm
    for arm in (
        Arm(name="decoupled", title="VAPO, gamma 1, decoupled", overrides=_DECOUPLED),
        Arm(
            name=CONTROL,
            title="perception alone",
            overrides=(
                *(_GAMMA_1, "vapo.anchors.gate=relaxed"),
                *("vapo.reward.accuracy_weight=0.0", "vapo.reward.format_weight=0.0"),
            ),
        ),
    )
}
"""Further arms of the main comparison; the last one is its control."""


def _signal(name: str, title: str, *overrides: str, against: str = "decoupled") -> Arm:
    """Decoupled VAPO with other anchors, or another normalisation."""
    return Arm(name=name, title=title, overrides=(*_DECOUPLED, *overrides), against=against)


_K_5, _GROUP = "vapo.anchors.num_anchors=5", "vapo.anchors.pairing=group"
SIGNAL = {
    arm.name: arm
    for arm in (
        _signal("k_20_relative", "K 20, independent draws at relative places", _SAME_PLACES),
        _signal("k_20_group", "K 20, paired draws", _GROUP, against="k_20_relative"),
        _signal(
            "k_5_relative",
            "K 5, independent draws at relative places",
            *(_K_5, _SAME_PLACES),
            against="k_20_relative",
        ),
        _signal("k_5_group", "K 5, paired draws", _K_5, _GROUP, against="k_5_relative"),
        _signal("flat", "beta 0", "vapo.reward.late_emphasis=0.0"),
        _signal(
            "not_divided", "not divided by deviations", "vapo.advantage.normalize_by_std=false"
        ),
        _signal("ungated", "incorrect answers earn it, too", "vapo.anchors.gate=relaxed"),
    )
}
"""Arms on what makes the signal: each differs from its `against` arm in one setting."""


def _method(name: str, title: str, *overrides: str) -> Arm:
    """GRPO with the method of another paper, and that method's defaults (docs/methods.md)."""
    return Arm(name=name, title=title, overrides=(*_GRPO, f"vapo.method.name={name}", *overrides))


_ACTORS_LOG_PROBS = "algorithm.rollout_correction.bypass_mode=false"
NEIGHBOURS = {
    arm.name: arm
    for arm in (
        _method("papo", "PAPO"),
        _method("vppo", "VPPO", _ACTORS_LOG_PROBS),
        _method("vgpo", "VGPO"),
        _method(
            "noisy_rollout",
            "NoisyRollout",
            "+vapo.method.options.mid_step=32",  # of 48; 40 of 60 steps in its script
            _ACTORS_LOG_PROBS,
        ),
    )
}
"""Methods with the settings they need: some compare the actor's log probs on two images."""
ALL_ARMS = ARMS | VARIANTS | FORGETFUL | SIGNAL | NEIGHBOURS


AnyPlan = TypeVar("AnyPlan", bound="Plan")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of a study; results of one size are never mixed with those of another."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    num_steps: int
    num_train_rows: int
    num_test_rows: int
    """Held-out rows on which every checkpoint is measured."""

    def size(self) -> dict[str, Any]:
        """The settings that all runs of a folder have in common."""
        return asdict(self)

    def chosen(self: AnyPlan, arms: Sequence[str] | None, seeds: Sequence[int] | None) -> AnyPlan:
        """The plan with other arms and seeds, if given."""
        return replace(self, arms=tuple(arms or self.arms), seeds=tuple(seeds or self.seeds))


FULL = Plan(
    arms=tuple(ARMS),
    seeds=(0, 1, 2),
    num_steps=24,
    num_train_rows=384,
    num_test_rows=256,
)
