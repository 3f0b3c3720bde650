"""The reward of a response from its parts (Eq. 5 of arXiv 2509.25848)."""

from dataclasses import dataclass

from vapo_verl.config import GATES


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardComponents:
    """A response's reward and what it is made of, before weights: logged apart."""

    accuracy: float
    """R_acc, 1.0 for a right answer."""
    format: float
    """R_fmt, 1.0 for the asked form."""
    perception: float
    """R_perc as measured, wrong answers included; what the gate lets through is in `total`."""
    total: float
    """R, what the advantage is computed from."""


def compose_reward(
    accuracy: float,
    format: float,
    perception: float,
    *,
    accuracy_weight: float,
    format_weight: float,
    perception_weight: float,
    gate: str = "correct",
) -> RewardComponents:
    """R = w_acc * R_acc + w_fmt * R_fmt + gamma * 1[R_acc = 1] * R_perc  (Eq. 5).

    The paper's values are 1, 1 and gamma = 0.1. The released script is the same formula with
    0.8, 0.1 and 0.1, on the chance-corrected perception score (`perception_score`).

    Args:
        accuracy: R_acc in [0, 1].
        format: R_fmt in [0, 1].
        perception: R_perc in [0, 1]; 0.0 where nothing was probed.
        accuracy_weight: w_acc.
        format_weight: w_fmt.
        perception_weight: gamma.
        gate: which responses were probed: "correct" the right ones, "always" all of them, for
            diagnostics. The reward is the same: perception pays for right answers alone, or a
            trivially short reasoning would earn it. "relaxed" probes all and pays for all, without
            the factor 1[R_acc = 1].

    Raises:
        ValueError: an unknown gate, or a part outside [0, 1] (nan included).
    """
    if gate not in GATES:
        raise ValueError(f"gate={gate!r}: pick one of {GATES}")
    for name, part in (("accuracy", accuracy), ("format", format), ("perception", perception)):
        if not 0 <= part <= 1:
            raise ValueError(f"{name}={part}: a part of the reward is in [0, 1], before weights")
    seen = perception if accuracy == 1 or gate == "relaxed" else 0.0
    total = accuracy_weight * accuracy + format_weight * format + perception_weight * seen
    return RewardComponents(accuracy=accuracy, format=format, perception=perception, total=total)
