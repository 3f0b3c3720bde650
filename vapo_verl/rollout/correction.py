"""The mismatch of engine and trainer: a measure of it, and checks of the settings that correct it.

The engine that samples a token and the trainer that learns from it compute its probability with
different kernels, and in asynchronous training with different weights. veRL corrects for that with
importance weights and rejection (``algorithm.rollout_correction``; its formulas are in
docs/rollout_correction.md). Settings that veRL would ignore or misread are refused here before a
run starts.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEY = "algorithm.rollout_correction"
DIFF_MEAN, DIFF_MAX, RATIO_MEAN = (
    f"vapo/rollout/{name}" for name in ("logprob_diff_mean", "logprob_diff_max", "prob_ratio_mean")
)
LEVELS = ("token", "sequence")
REJECTIONS = (
    *("token_k1", "token_k2", "token_k3", "seq_sum_k1", "seq_sum_k2", "seq_sum_k3"),
    *("seq_mean_k1", "seq_mean_k2", "seq_mean_k3", "seq_max_k2", "seq_max_k3"),
)
LOSSES = ("ppo_clip", "reinforce")
BYPASS_LOSS = "bypass_mode"
"""veRL's policy loss that corrects for the engine, and refuses a micro-batch of padding alone."""
DEFAULT_THRESHOLD = 2.0
"""veRL's default of ``rollout_is_threshold``."""
_PAIR = "write a pair in quotes and with decimals in both, as '0.5_2.0': YAML reads 0.5_2 as 0.52"


def mismatch(old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> dict[str, float]:
    """How far the trainer's log probabilities are from the engine's, over the valid tokens.

    With d_t = log pi_old(y_t) - log pi_rollout(y_t): mean and maximum of |d_t|, in nats, and the
    mean of exp(d_t), the importance ratio. Its expectation is 1 for any two policies, so that a
    distance from 1 is sampling noise or a systematic error.

    Args:
        old_log_probs: [B, T], by the trainer, before the step's first update.
        rollout_log_probs: [B, T], by the engine.
        mask: [B, T], 1 for the tokens of responses.

    Without valid tokens all three are nan.
    """
    valid = mask.bool()
    diff = old_log_probs[valid].double() - rollout_log_probs[valid].double()
    if not len(diff):
        return dict.fromkeys((DIFF_MEAN, DIFF_MAX, RATIO_MEAN), math.nan)
    return {
        DIFF_MEAN: float(diff.abs().mean()),
        DIFF_MAX: float(diff.abs().max()),
        RATIO_MEAN: float(diff.exp().mean()),
    }


def bypasses(config: Any) -> bool:
    """Whether the engine's log probabilities replace those of the old policy: no step computes
    others, and there is nothing to compare them with."""
    return bool((config.algorithm.get("rollout_correction") or {}).get("bypass_mode"))


def needs_bypass_loss(correction: Any) -> bool:
    """Whether a composed ``algorithm.rollout_correction`` needs the policy loss ``bypass_mode``.

    Without it, veRL's V1 trainers clip the ratio to the engine's policy and ignore the rest.
    """
    return bool(correction) and bool(
        correction.get("bypass_mode")
        and (correction.get("rollout_rs") or correction.get("loss_type") == "reinforce")
    )


def check_rollout_correction(config: Any) -> None:
    """Refuse a correction that cannot work, or that veRL would partly ignore.

    Args:
        config: the composed config of a run.

    Raises:
        ValueError: the first such setting, with key, value and fix.
    """
    correction = config.algorithm.get("rollout_correction")
    if not correction:
        return
    if not isinstance(correction, Mapping):
        raise ValueError(f"{KEY}={correction!r} is no group of settings; set {KEY}.rollout_is")
    level, rejection = correction.get("rollout_is"), correction.get("rollout_rs")
    _check_names(correction)
    if level is None:
        _refuse_unused(correction, "rollout_is_threshold", DEFAULT_THRESHOLD, "rollout_is")
        _refuse_unused(correction, "rollout_is_batch_normalize", False, "rollout_is")
    else:
        _check_weight_threshold(correction.get("rollout_is_threshold", DEFAULT_THRESHOLD))
    if rejection is None:
        _refuse_unused(correction, "rollout_rs_threshold", None, "rollout_rs")
    else:
        _check_rejection(rejection, correction.get("rollout_rs_threshold"))
    if correction.get("bypass_mode"):
        _check_bypass(config, correction)
    else:
        _refuse_unused(correction, "loss_type", "ppo_clip", "bypass_mode", "true")
        if config.actor_rollout_ref.actor.policy_loss.loss_mode == BYPASS_LOSS:
            raise ValueError(
                "actor_rollout_ref.actor.policy_loss.loss_mode='bypass_mode' assumes that the old "
                f"policy is the engine's, but {KEY}.bypass_mode=False; set {KEY}.bypass_mode=true, "
                "or loss_mode=vanilla"
            )
    if level or rejection or correction.get("bypass_mode"):
        _check_log_probs(config.actor_rollout_ref.rollout)


def _check_names(correction: Any) -> None:
    level, rejection = correction.get("rollout_is"), correction.get("rollout_rs")
    if level is not None and level not in LEVELS:
        raise ValueError(
            f"{KEY}.rollout_is={level!r} is not known; use one of {', '.join(LEVELS)}, or null"
        )
    if rejection is not None and not isinstance(rejection, str):
        raise ValueError(
            f"{KEY}.rollout_rs={rejection!r} is a {type(rejection).__name__}; give names in one "
            'text, as "token_k1,seq_mean_k3", or null'
        )
    if rejection is not None:
        names = [name.strip() for name in rejection.split(",")]
        for name in names:
            if name not in REJECTIONS:
                near = difflib.get_close_matches(name, REJECTIONS, n=3)
                raise ValueError(
                    f"{KEY}.rollout_rs={rejection!r}: {name!r} is not known; use "
                    f"{' or '.join(near or REJECTIONS)}, or null"
                )
        if len({*names}) < len(names):
            raise ValueError(f"{KEY}.rollout_rs={rejection!r} names one twice; give each once")
    if (loss := correction.get("loss_type", LOSSES[0])) not in LOSSES:
        raise ValueError(f"{KEY}.loss_type={loss!r} is not known; use one of {', '.join(LOSSES)}")


def _refuse_unused(
    correction: Any, name: str, default: object, user: str, fix: str = "to a level"
) -> None:
    value = correction.get(name, default)
    if value != default:
        raise ValueError(
            f"{KEY}.{name}={value!r} has no effect with {KEY}.{user}={correction.get(user)}; "
            f"leave it out, or set {user} {fix}"
        )


def _numbers(key: str, value: object, text: str) -> list[float]:
    """The one or two positive numbers of a threshold.

    Raises:
        ValueError: it is something else.
    """
    try:
        numbers = [float(part) for part in text.split("_")]
    except ValueError:
        numbers = []
    if isinstance(value, bool) or len(numbers) not in (1, 2):
        raise ValueError(f"{key}={value!r} is no number and no pair 'lower_upper'; give 2.0")
    for number in numbers:
        if not (math.isfinite(number) and number > 0):
            raise ValueError(f"{key}={value!r}: {number:g} is no threshold; give a number above 0")
    if len(numbers) == 2 and numbers[0] >= numbers[1]:
        raise ValueError(
            f"{key}={value!r}: the lower bound is not below the upper one; give 'lower_upper'"
        )
    if len(numbers) == 2 and not numbers[0] < 1 < numbers[1]:
        raise ValueError(
            f"{key}={value!r} leaves out the ratio 1, that of a token on which engine and trainer "
            "agree; give a lower bound below 1 and an upper one above it"
        )
    return numbers


def _check_weight_threshold(value: object) -> None:
    key = f"{KEY}.rollout_is_threshold"
    numbers = _numbers(key, value, str(value))
    if len(numbers) == 1 and numbers[0] < 1:
        raise ValueError(
            f"{key}={value!r} lowers the weight of a token on which engine and trainer agree, "
            f"which is 1; give 1 or more. {_PAIR}"
        )


def _check_rejection(rejection: str, value: object) -> None:
    key, names = f"{KEY}.rollout_rs_threshold", [name.strip() for name in rejection.split(",")]
    if value is None:
        raise ValueError(
            f"{key}=null, and {KEY}.rollout_rs={rejection!r}; give a threshold for each name"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(
            f"{key}={value!r} is a {type(value).__name__}; give a number, or several in one text, "
            'as "0.5_2.0,0.01"'
        )
    texts = [text.strip() for text in str(value).split(",")]
    if len(texts) not in (1, len(names)):
        raise ValueError(
            f"{key}={value!r} are {len(texts)} thresholds, and {KEY}.rollout_rs={rejection!r} are "
            f"{len(names)} names; give one for all, or one for each"
        )
    for name, text in zip(names, texts * (len(names) // len(texts)), strict=True):
        numbers = _numbers(key, value, text)
        if name.endswith("k1") and numbers[-1] <= 1:
            raise ValueError(
                f"{key}={value!r}: {name} keeps ratios from 1/u to u, and u={text} keeps none; "
                f"give a number above 1. {_PAIR}"
            )
        if not name.endswith("k1") and len(numbers) == 2:
            raise ValueError(
                f"{key}={value!r}: {name} is a distance with an upper bound only; give one number"
            )


def _check_bypass(config: Any, correction: Any) -> None:
    """In bypass mode veRL uses the engine's log probabilities as those of the old policy."""
    actor, loss = config.actor_rollout_ref.actor, correction.get("loss_type", LOSSES[0])
    given = f"{KEY}.bypass_mode=True"
    if correction.get("rollout_is") and loss == "ppo_clip":
        raise ValueError(
            f"{KEY}.rollout_is={correction.rollout_is!r} with {given} and loss_type=ppo_clip: the "
            "clipped ratio is already to the engine's policy, and no weight would be applied; set "
            "rollout_is=null, loss_type=reinforce, or bypass_mode=false"
        )
    if correction.get("rollout_is_batch_normalize"):
        raise ValueError(
            f"{KEY}.rollout_is_batch_normalize=True with {given}: the loss sees one micro-batch at "
            "a time, and the weights would be divided by its mean; set it to false, or "
            "bypass_mode=false"
        )
    updates = actor.ppo_epochs * config.data.train_batch_size // actor.ppo_mini_batch_size
    if correction.get("rollout_rs") and updates > 1:
        raise ValueError(
            f"{KEY}.rollout_rs={correction.rollout_rs!r} with {given} and {updates} updates in a "
            "step: from the second one on it would reject what the updates moved, not the "
            "mismatch; set bypass_mode=false, or "
            f"actor_rollout_ref.actor.ppo_mini_batch_size={config.data.train_batch_size} and "
            "actor_rollout_ref.actor.ppo_epochs=1"
        )
    mode = actor.policy_loss.loss_mode
    if needs_bypass_loss(correction) and mode not in ("vanilla", BYPASS_LOSS):
        raise ValueError(
            f"actor_rollout_ref.actor.policy_loss.loss_mode={mode!r} with {given} and rollout_rs "
            "or loss_type=reinforce: these are a policy loss of their own; set loss_mode=vanilla"
        )


def _check_log_probs(rollout: Any) -> None:
    for name, cuts in (("top_p", rollout.top_p < 1), ("top_k", rollout.top_k > 0)):
        if cuts:
            raise ValueError(
                f"actor_rollout_ref.rollout.{name}={rollout[name]}: the engine's log probabilities "
                "are those after the cut, the trainer's are those before it, and their ratio "
                f"would be corrected by {KEY}; set {name}={'1.0' if name == 'top_p' else -1}"
            )
