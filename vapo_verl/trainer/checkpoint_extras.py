"""What belongs to a checkpoint beside veRL's files: a KL coefficient, and the user's callback."""

import json
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback
from verl.trainer.ppo.core_algos import AdaptiveKLController

from vapo_verl.console import say
from vapo_verl.files import atomic_write_text

KL_FILE = "kl_coef.json"
"""File of a checkpoint with the adaptive coefficient of ``algorithm.use_kl_in_reward``."""


def write_kl_coef(folder: Path, controller: Any) -> None:
    """Write the coefficient of the next step, if it is adaptive, into a checkpoint.

    Args:
        controller: veRL's; None without a KL term in the reward.
    """
    if isinstance(controller, AdaptiveKLController):
        atomic_write_text(folder / KL_FILE, json.dumps({"kl_coef": float(controller.value)}) + "\n")


def read_kl_coef(folder: Path, controller: Any) -> None:
    """Let an adaptive controller go on with the coefficient of a checkpoint.

    veRL makes it from ``algorithm.kl_ctrl.kl_coef`` at every start. A checkpoint of an older
    release has no coefficient: it stays at that value, with a warning.
    """
    if not isinstance(controller, AdaptiveKLController):
        return
    path = folder / KL_FILE
    if path.exists():
        controller.value = json.loads(path.read_text())["kl_coef"]
    else:
        say(
            f"WARNING: {path} is missing: the adaptive KL coefficient starts again from "
            f"algorithm.kl_ctrl.kl_coef={controller.value}"
        )


class CallbackWhenComplete(CheckpointCallback):
    """Holds the event of a save until the checkpoint is complete.

    veRL calls ``trainer.checkpoint_callback_class`` when it has written its files. A copy made then
    lacks ``complete.json``, and no run would resume from it.

    Args:
        callback: the user's, or veRL's, which does nothing.
    """

    def __init__(self, callback: CheckpointCallback) -> None:
        super().__init__(callback.config)
        self._callback = callback
        self._event: dict[str, Any] | None = None

    def on_save(self, **event: Any) -> None:
        """Called by veRL, with arguments by name."""
        self._event = event

    def checkpoint_complete(self) -> None:
        """Call the user's callback for the last save, once; its errors end the run."""
        event, self._event = self._event, None
        if event is not None:
            self._callback.on_save(**event)
