"""Methods of other papers beside VAPO, each in one file; ``vapo.method.name`` chooses one, or a
class of a user's package by its path.

A method is a frozen dataclass: its fields are the settings below ``vapo.method.options``, and its
hooks change a step in up to four places, here in the order of a step. A hook that a class does not
define leaves the step as it is.

=================  ======================================================  =====================
hook               what it changes                                         runs in
=================  ======================================================  =====================
``changed_image``  the image that a response is generated from             agent loop workers
``mask_fraction``  adds a forward pass of the actor, without gradient, on  FSDP ranks
                   images of which a fraction of the patches is black
``token_weights``  the advantages, each multiplied by a weight             trainer
``token_losses``   the policy loss: terms of each token are added          FSDP ranks
=================  ======================================================  =====================

The files take tensors or arrays and return them; :mod:`vapo_verl.trainer` and
:mod:`vapo_verl.rollout` call them. docs/methods.md compares each with its paper.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar

from vapo_verl.config import MethodConfig, section

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

METHODS: Mapping[str, str] = {
    "none": "vapo_verl.methods.Method",
    "vgpo": "vapo_verl.methods.vgpo.Vgpo",
    "noisy_rollout": "vapo_verl.methods.noisy_rollout.NoisyRollout",
    "papo": "vapo_verl.methods.papo.Papo",
    "vppo": "vapo_verl.methods.vppo.Vppo",
}
"""Name -> class. A path, so that composing a config imports no tensor library."""
NAME, OPTIONS = "vapo.method.name", "vapo.method.options"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTokens:
    """The responses of a step, token by token, in the order of the batch."""

    group_ids: Sequence[Hashable]
    """[B], equal for responses to the same prompt."""
    response_mask: Tensor
    """bool [B, T]; all false for a padding row."""
    visual_attention: Tensor
    """[B, T], nan where unknown."""
    old_log_probs: Tensor
    """[B, T], of the policy that is updated, on the images as they are."""
    masked_log_probs: Tensor | None
    """[B, T], the same on the masked images; None where ``mask_fraction`` is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Current and last step of a run."""

    step: int
    total_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """No method: the step is left as it is."""

    needs_attention: ClassVar[bool] = False
    """Reads ``visual_attention``: ``vapo.attention.enabled`` must be on."""
    needs_actor_log_probs: ClassVar[bool] = False
    """``old_log_probs`` must be the actor's on the images as they are, not the engine's."""
    weighs_tokens: ClassVar[bool] = False
    """Defines :meth:`token_weights`."""

    @property
    def mask_fraction(self) -> float:
        """Fraction of an image's patches that are black in the second view; 0: no such view."""
        return 0.0

    @property
    def adds_losses(self) -> bool:
        """Whether :meth:`token_losses` has any terms."""
        return False

    @property
    def changes_images(self) -> bool:
        """Whether :meth:`changes_image` is true for any response."""
        return False

    def changes_image(self, sample: int, group_size: int, progress: Progress) -> bool:
        """Whether the response number `sample` of a prompt is generated from a changed image."""
        return False

    def changed_image(
        self, image: np.ndarray, progress: Progress, rng: np.random.Generator
    ) -> np.ndarray:
        """The image uint8 [height, width, channels] that such responses are generated from.

        It is made once for a prompt and a step. The actor is updated on the image as it is.
        """
        return image

    def response_metrics(
        self,
        samples: Sequence[int],
        accuracies: Sequence[float],
        group_size: int,
        asked: Sequence[Progress],
    ) -> dict[str, float]:
        """Metrics of a step from its responses to prompts with images.

        Args:
            samples: numbers of the responses within their groups.
            accuracies: R_acc of each.
            asked: progress when each was requested; earlier under an asynchronous trainer.
        """
        return {}

    def token_weights(self, tokens: StepTokens) -> tuple[Tensor, dict[str, float]]:
        """Weights [B, T] of the advantages, and metrics."""
        raise NotImplementedError

    def token_losses(self, log_probs: Tensor, masked_log_probs: Tensor) -> Mapping[str, Tensor]:
        """Terms [B, T] by name, each aggregated like the policy loss and added to it.

        Args:
            log_probs: of the policy that is trained, with gradient.
            masked_log_probs: of the policy before the update on masked images, without gradient;
                zeros where ``mask_fraction`` is 0.
        """
        return {}


def method_of(config: MethodConfig) -> Method:
    """The method that ``vapo.method`` names, with its options.

    Raises:
        ValueError: an unknown name, a path to no method, an unknown option, or a value out of its
            range.
    """
    if config.name == "none" and config.options:
        raise ValueError(
            f"{OPTIONS}={config.options} has no method; set {NAME} to one of {', '.join(METHODS)}"
        )
    method = section(_class_of(config.name), config.options, OPTIONS)
    for option, value in config.options.items():
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite, option, value, "a finite number")
    return method


def _class_of(name: str) -> type[Method]:
    """The class of a name in :data:`METHODS`, or of a path such as ``my_package.module.Class``."""
    module, _, class_name = METHODS.get(name, name).rpartition(".")
    if not module:
        raise ValueError(
            f"{NAME}={name!r} is not known; use one of {', '.join(METHODS)}, or the path of a "
            "class of yours, as my_package.module.Class"
        )
    try:
        found = getattr(import_module(module), class_name)
    except (Exception, SystemExit) as error:  # the module's code is a user's
        raise ValueError(
            f"{NAME}={name!r} cannot be imported ({type(error).__name__}: {error}); correct it, "
            "or install the package or set PYTHONPATH to its folder, on every node"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(
            f"{NAME}={name!r} is no method; derive the class from vapo_verl.methods.Method"
        )
    if "__dataclass_fields__" not in vars(found):
        raise ValueError(
            f"{NAME}={name!r} is no dataclass of its own; decorate it by "
            "@dataclass(frozen=True, slots=True, kw_only=True)"
        )
    for option in fields(found):
        if option.default is MISSING and option.default_factory is MISSING:
            raise ValueError(f"{NAME}={name!r}: its option {option.name} needs a default; give one")
    return found


def short_name(name: str) -> str:
    """NAME of a method's metrics ``vapo/NAME/*``; that of a user's class is in snake case."""
    if name in METHODS:
        return name
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name.rpartition(".")[2])
    return words.lower()


def require(condition: bool, option: str, value: object, allowed: str) -> None:
    """Refuse an option's value.

    Raises:
        ValueError: not `condition`; names the option, its value and what is allowed.
    """
    if not condition:
        raise ValueError(f"{OPTIONS}.{option}={value!r} is out of range; give {allowed}")


def kl_estimate(log_probs: Tensor, other_log_probs: Tensor) -> Tensor:
    """Per-token KL(pi || other), estimated by the tokens that pi sampled: r - log r - 1 >= 0.

    r = other(o_t) / pi(o_t), k3 of http://joschu.net/blog/kl-approx.html, log r held to 20 and the
    result to 10 as in veRL's ``low_var_kl``.
    """
    log_ratio = (other_log_probs - log_probs).clamp(-20.0, 20.0)
    return (log_ratio.exp() - log_ratio - 1).clamp(max=10.0)
